//! Tests whole configs through [`load_in`]: every key, every default, and every mistake with its position. Long,
//! because it is the table of all of them.

use super::*;
use crate::error::ExitCode;
use std::fs;
use std::time::Duration;

struct Box {
    dir: tempfile::TempDir,
}

impl Box {
    fn new(config: &str) -> Self {
        let b = Box { dir: tempfile::tempdir().unwrap() };
        fs::write(b.path("c.toml"), config).unwrap();
        b
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn around(&self) -> Surroundings {
        Surroundings {
            hostname: "box7".into(),
            state_directory: None,
            working_directory: self.dir.path().to_owned(),
            env: |name| (name == "SITE").then(|| "north".into()),
        }
    }

    fn load(&self, asked: Overrides) -> Result<Config, Error> {
        self.show(asked).map(|(config, _)| config)
    }

    fn show(&self, asked: Overrides) -> Result<(Config, String), Error> {
        load_in(&Overrides { config: Some(self.path("c.toml")), ..asked }, &self.around())
    }

    /// Each problem without the program's name and the folder.
    fn problems(&self, asked: Overrides) -> Vec<String> {
        let error = self.load(asked).expect_err("no problem was found");
        assert_eq!(error.code, ExitCode::Config);
        let prefix = format!("logagent: {}/", self.dir.path().display());
        error.to_string().lines().map(|l| l.strip_prefix(&prefix).expect(l).to_owned()).collect()
    }
}

pub fn good(config: &str) -> Config {
    Box::new(config).load(Overrides::default()).unwrap_or_else(|e| panic!("{config}\n{e}"))
}

pub fn problems(config: &str) -> Vec<String> {
    Box::new(config).problems(Overrides::default())
}

fn kafka(config: &Config) -> &Kafka {
    match &config.output {
        Output::Kafka(k) => k,
        Output::Stdout => panic!("standard output"),
    }
}

const LEAST: &str = "[kafka]\nbrokers = [\"k:9092\"]\ntopic = \"t\"\n[[files]]\npaths = [\"/var/log/a\"]\n";

#[test]
fn defaults() {
    let c = good(LEAST);
    assert_eq!(c.agent.state_dir.as_deref(), Some(Path::new("/var/lib/logagent")));
    assert_eq!((c.agent.memory, c.agent.delivery), (8 << 20, Delivery::AtLeastOnce));
    assert_eq!(c.agent.sync, Sync::Every(Duration::from_secs(30)));
    assert_eq!(c.agent.drain_timeout, Duration::from_secs(10));
    assert_eq!((c.agent.damaged_state, c.agent.hostname.as_str()), (Damaged::Refuse, "box7"));
    let k = kafka(&c);
    assert_eq!(k.brokers, [BrokerAddress { host: "k".into(), port: 9092 }]);
    assert_eq!((k.acks, k.driver, k.partition), (Acks::All, DriverChoice::Auto, Partitioner::Sticky));
    assert_eq!((k.compression, k.linger, k.batch), (Codec::None, Duration::ZERO, 512 << 10));
    assert_eq!((k.client_id.as_str(), k.rate, k.create_topics), ("logagent", None, true));
    assert!(k.key.is_none() && k.tls.is_none() && k.sasl.is_none());
    let s = &c.sources[0];
    assert_eq!(s.paths, [Pattern::path(Path::new("/var/log/a"))]);
    assert_eq!((s.topic(), s.start), ("t", Start::End));
    assert!(matches!(s.format, Format::Raw));
    assert_eq!((s.must_exist, s.follow, s.reopen, s.poll), (false, true, true, None));
    assert_eq!((s.rotate_grace, s.max_line), (Duration::from_secs(60), 1_000_000));
    assert_eq!(s.deleted_hold, Hold { bytes: 1 << 30, time: Duration::from_secs(604_800) });
    assert!(s.partial_after.is_none() && s.multiline.is_none() && s.rate_limit.is_none() && !s.skip_empty);
    assert!(c.textfile.is_none() && !c.once);
}

/// Fails when exactly-once uses small batches, or overrides what the config says.
#[test]
fn exactly_once_uses_larger_batches() {
    for (agent, batch, want) in [
        ("", "", 512 << 10),
        ("delivery = \"exactly-once\"", "", 880 << 10),
        ("delivery = \"exactly-once\"", "batch = \"64KiB\"", 64 << 10),
    ] {
        let text = format!(
            "[agent]\n{agent}\n[kafka]\nbrokers = [\"a:1\"]\ntopic = \"t\"\n{batch}\n[[files]]\npaths = \"/x\""
        );
        assert_eq!(kafka(&good(&text)).batch, want, "{agent} {batch}");
    }
}

/// Fails when a placeholder in a text, a list, a table or a list of addresses is not filled in, or `${host}` ignores
/// `hostname`.
#[test]
fn placeholders_in_every_kind_of_text() {
    let c = good(
        r#"
        [agent]
        hostname = "box-${env:SITE}"
        [kafka]
        brokers = ["${env:SITE}.kafka:${env:PORT:-9093}"]
        topic = "${env:SITE}.logs"
        client_id = "agent-${host}"
        key = { constant = "${host}" }
        [kafka.tls]
        server_name = "${env:SITE}.example"
        [[files]]
        paths = ["/var/log/${env:SITE}/*.log"]
        headers = { from = "${host}" }
        "#,
    );
    let k = kafka(&c);
    assert_eq!(k.brokers[0].to_string(), "north.kafka:9093");
    assert_eq!((k.client_id.as_str(), k.topic.as_deref()), ("agent-box-north", Some("north.logs")));
    assert!(matches!(&k.key, Some(Key::Constant(text)) if text == b"box-north"), "{:?}", k.key);
    assert_eq!(k.tls.as_ref().unwrap().server_name.as_deref(), Some("north.example"));
    assert!(format!("{:?}", c.sources[0].paths).contains("north"));
    assert_eq!(c.sources[0].headers, [("from".to_owned(), "box-north".to_owned())]);
}

#[test]
fn every_key_is_read() {
    let c = good(
        r#"
        [agent]
        state_dir = "/s"
        memory = "16MiB"
        delivery = "exactly-once"
        sync = "always"
        drain_timeout = "3s"
        damaged_state = "beginning"
        hostname = "h"
        [kafka]
        brokers = ["a:1", "[::1]:2", "10.0.0.1:3"]
        topic = "t"
        acks = "all"
        driver = "modern"
        client_id = "c"
        key = { field = "user.id" }
        partition = { fixed = 3 }
        compression = "zstd"
        linger = "5ms"
        batch = "64KiB"
        rate = "1MiB/s"
        create_topics = false
        [kafka.tls]
        ca = "/ca"
        cert = "/cert"
        key = "/key"
        server_name = "n"
        [kafka.sasl]
        mechanism = "SCRAM-SHA-256"
        username = "u"
        password_file = "/p"
        [metrics]
        textfile = "/m.prom"
        [[files]]
        paths = ["/a/*.log"]
        exclude = "*.gz"
        topic = "u"
        start = 17
        must_exist = true
        follow = false
        reopen = false
        poll = "250ms"
        rotate_grace = "1m"
        deleted_hold = { bytes = 5, time = "1h" }
        max_line = 100
        partial_after = "1s"
        multiline = { continue = '^\s', timeout = "1s", max_lines = 9 }
        include = ['a', 'b']
        drop = 'c'
        skip_empty = true
        format = "json"
        fields = { host = "${host}!", b = "2" }
        headers = { h = "v" }
        rate_limit = 1000
        "#,
    );
    assert_eq!((c.agent.delivery, c.agent.sync), (Delivery::ExactlyOnce, Sync::Always));
    assert_eq!((c.agent.damaged_state, c.agent.hostname.as_str()), (Damaged::Beginning, "h"));
    let k = kafka(&c);
    assert_eq!(
        k.brokers.iter().map(BrokerAddress::to_string).collect::<Vec<_>>(),
        ["a:1", "[::1]:2", "10.0.0.1:3"]
    );
    assert!(matches!(&k.key, Some(Key::Field(path)) if path == &["user", "id"]));
    assert_eq!((k.partition, k.compression, k.rate), (Partitioner::Fixed(3), Codec::Zstd, Some(1 << 20)));
    assert_eq!((k.linger, k.batch, k.create_topics), (Duration::from_millis(5), 64 << 10, false));
    assert_eq!(k.tls.as_ref().unwrap().server_name.as_deref(), Some("n"));
    assert_eq!(k.sasl.as_ref().unwrap().mechanism(), "SCRAM-SHA-256");
    assert_eq!(c.needs_modern(), ["exactly-once", "TLS", "SASL", "zstd", "headers"]);
    let s = &c.sources[0];
    assert_eq!(s.paths, [Pattern::glob("/a/*.log").unwrap()]);
    assert_eq!((s.topic(), s.start, s.poll), ("u", Start::Offset(17), Some(Duration::from_millis(250))));
    assert_eq!(s.deleted_hold, Hold { bytes: 5, time: Duration::from_secs(3600) });
    assert!(matches!(&s.multiline, Some((Multiline { joint: Joint::Continue(_), max_lines: 9 }, _))));
    assert_eq!((s.include.len(), s.drop.len(), s.skip_empty), (2, 1, true));
    assert_eq!(s.fields, [("b".into(), "2".into()), ("host".into(), "h!".into())]);
    assert_eq!((s.headers.len(), s.rate_limit, s.max_line), (1, Some(1000), 100));
}

#[test]
fn keys_partitions_polls() {
    for (line, debug) in [
        ("key = \"path\"", "Some(Path) Hash"),
        ("key = \"host\"\npartition = \"hash\"", "Some(Constant([98, 111, 120, 55])) Hash"),
        ("key = { constant = \"x\" }\npartition = \"random\"", "Some(Constant([120])) Random"),
        ("key = { regex = 'id=(\\d+)' }", "Some(Regex(LineRegex(Regex(\"id=(\\\\d+)\")))) Hash"),
        ("partition = \"round-robin\"", "None RoundRobin"),
        ("acks = 0", "None Sticky"),
    ] {
        let c = good(&LEAST.replace("topic = \"t\"", &format!("topic = \"t\"\n{line}")));
        assert_eq!(format!("{:?} {:?}", kafka(&c).key, kafka(&c).partition), debug);
    }
    for (line, poll) in [("true", Some(1)), ("false", None), ("\"5s\"", Some(5))] {
        assert_eq!(good(&format!("{LEAST}poll = {line}")).sources[0].poll, poll.map(Duration::from_secs));
    }
}

/// One run reports all problems: syntax, types, unknown keys, units, meaning. Fails when the first of any kind ends
/// the search.
#[test]
fn six_kinds_of_mistakes_are_all_reported() {
    let found = problems(
        "[agent]\nmemory = 8MiB\nsync = true\n[kafka]\nbroker = [\"k:9092\"]\nlinger = \"5 parsecs\"\nacks = 1\n\
         [[files]]\npaths = [\"log/a.log\"]\ninclude = [\"(\"]\nmultiline = { timeout = \"1s\" }\n",
    );
    assert_eq!(
        found,
        [
            "c.toml:2:10: string values must be quoted, expected literal string; correct the TOML of this line: memory = 8MiB",
            "c.toml:3:8: `sync` is true or false, not a duration; write sync = \"30s\"",
            "c.toml:5:1: unknown key `broker` in [kafka]; did you mean `brokers`?",
            "c.toml:6:10: `linger`: \"5 parsecs\" is not a duration: the unit \"parsecs\" is none of ms, s, m, h, d; \
             write for example linger = \"30s\"",
            "c.toml:9:10: `paths`: \"log/a.log\" is a relative path; begin it with /, because a service has no folder \
             of its own to start from",
            "c.toml:10:12: `include`: \"(\" is not a regular expression: unclosed group; write for example include = \
             '^[0-9]+ '",
            "c.toml:11:13: `multiline` does not have exactly one of `start` and `continue`; write one of them, to define \
             which lines belong together",
        ]
    );
}

/// Fails when a syntax error in a long line fills the log with it.
#[test]
fn a_long_line_is_shown_in_part() {
    let found = problems(&format!("a = {}é{}", "[".repeat(200), "x".repeat(200_000)));
    assert!(!found.is_empty() && found.iter().all(|line| line.len() < 500), "{found:?}");
}

/// Each line is a mistake placed after `[kafka]`, `[[files]]` or at the top, with the expected message.
#[test]
fn one_mistake_each() {
    let long = format!("client_id = \"{}\"", "x".repeat(256));
    let in_kafka = [
        (&*long, "4:13", "1 to 255 bytes"),
        ("key = \"path\"\npartition = \"sticky\"", "5:13", "ignores the `key`"),
        ("partition = \"hash\"", "4:13", "needs a `key`"),
        ("partition = \"hsah\"", "4:13", "did you mean \"hash\"?"),
        ("partition = { fixed = -1 }", "4:23", "not from 0 to"),
        ("partition = {}", "4:13", "`fixed` is missing in `partition`"),
        ("key = { regex = \"[\" }", "4:17", "unclosed character class"),
        ("key = { field = \"a..b\" }", "4:17", "a name in it is empty"),
        ("key = { constant = \"a\", field = \"b\" }", "4:7", "not exactly one source"),
        ("key = \"paht\"", "4:7", "cannot be \"paht\""),
        ("acks = \"most\"", "4:8", "cannot be \"most\""),
        ("driver = \"classic\"\ncompression = \"lz4\"", "5:15", "does not support lz4"),
        ("driver = \"classic\"\n[kafka.tls]", "5:1", "does not support TLS"),
        (
            "driver = \"classic\"\nsasl = { mechanism = \"SCRAM-SHA-256\", username = \"u\", password_file = \"/p\" }",
            "5:8",
            "does not support SASL",
        ),
        ("[kafka.tls]\ncert = \"/c\"", "5:8", "without its `key`"),
        ("[kafka.tls]\nkey = \"/c\"", "5:7", "without its `cert`"),
        ("[kafka.tls]\nca = \"ca.pem\"", "5:6", "relative path"),
        (
            "[kafka.sasl]\nmechanism = \"SCRAM-SHA-256\"\nusername = \"u\"",
            "4:1",
            "`password_file` is missing",
        ),
        (
            "[kafka.sasl]\nmechanism = \"SCRAM-SHA-256\"\nusername = \"u\"\npassword_file = \"/p\"\npassword = \"s3cret\"",
            "8:1",
            "unknown key `password`",
        ),
        ("rate = \"1MiB\"", "4:8", "a rate ends in /s"),
        ("acks = 2", "4:8", "`acks` cannot be 2; write \"all\", 1 or 0"),
        ("acks = \"al\"", "4:8", "`acks` cannot be \"al\"; did you mean \"all\"?"),
        ("batch = 0", "4:9", "not from 1 byte"),
        ("batch = -1", "4:9", "not from 1 byte"),
        ("batch = \"1.5MiB\"", "4:9", "its number is not a whole one"),
        ("batch = \"-1MiB\"", "4:9", "does not begin with a whole number"),
        ("linger = \"1.5s\"", "4:10", "its number is not a whole one"),
        ("rate = 0", "4:8", "not from 1 to"),
        ("acks = \"-1\"", "4:8", "write \"all\" or \"1\" or \"0\""),
        ("partition = 3", "4:13", "write partition = { fixed = 3 }"),
        ("partition = \"fixed\"", "4:13", "write partition = { fixed = 0 }"),
        ("memory = 1", "4:1", "it belongs in [agent]"),
        ("nonsense = 1", "4:1", "known here: brokers, topic"),
        ("create_topics = \"yes\"", "4:17", "is a text, not true or false"),
        ("batch = \"20MiB\"", "4:9", "in [agent], or a smaller batch"),
    ];
    for (line, at, said) in in_kafka {
        let config = LEAST.replace("topic = \"t\"", &format!("topic = \"t\"\n{line}"));
        one(&config, at, said);
    }
    let in_files = [
        ("reopen = true\nfollow = false", "6:10", "`reopen` without `follow`"),
        ("fields = { a = \"b\" }", "6:10", "needs format = \"json\""),
        ("format = \"json\"\nfields = { a = 1 }", "7:16", "`fields.a` is a number"),
        ("headers = { a = \"${hots}\" }", "6:17", "is not ${host} or ${env:NAME}"),
        ("exclude = [\"*.gz\", \"${env:NO}\"]", "6:20", "NO is not in the environment"),
        ("topic = \"${env:KAFKA_PASSWORD}\"", "6:9", "put it into a file"),
        ("exclude = [\"[\"]", "6:12", "is not a glob"),
        ("start = -1", "6:9", "not from 0"),
        ("start = \"begining\"", "6:9", "did you mean \"beginning\"?"),
        ("poll = \"0ms\"", "6:8", "must not be zero"),
        ("deleted_hold = { byte = 1 }", "6:18", "did you mean `bytes`?"),
        ("multiline = { start = 'a', continue = 'b' }", "6:13", "exactly one of"),
        ("multiline = { start = 'a', max_lines = 0 }", "6:40", "not from 1"),
        ("topic = \"a b\"", "6:9", "Kafka accepts"),
        ("max_line = \"20MiB\"", "1:1", "`memory` of 8388608 bytes is too small for 1 topic:"),
        ("[metric]\ntextfile = \"/x\"", "6:2", "did you mean `metrics`?"),
        ("[metrics]\ntextfile = \"x\"", "7:12", "relative path"),
        ("[agent]\ndelivery = \"exactly-once\"\n[[files]]\npaths = \"/x\"\nheader = 1", "10:1", "`headers`"),
    ];
    for (line, at, said) in in_files {
        one(&format!("{LEAST}{line}\n"), at, said);
    }
    let whole = [
        ("", "1:1", "no [[files]]"),
        ("[kafka]\nbrokers = []\ntopic = \"t\"\n[[files]]\npaths = \"/x\"", "2:11", "`brokers` is empty"),
        ("[kafka]\ntopic = \"t\"\n[[files]]\npaths = \"/x\"", "1:1", "`brokers` is missing"),
        ("\n[kafka]\nbrokers = [\"a:1\"]\n[[files]]\npaths = \"/x\"", "2:1", "`topic` is missing"),
        ("[kafka]\nbrokers = [\"a:1\"]\ntopic = \"t\"\n[[files]]\n", "4:1", "`paths` is missing"),
        ("[kafka]\nbrokers = [\"a:1\"]\ntopic = \"t\"\n[[files]]\npaths = []", "5:9", "`paths` is empty"),
        (
            "[[kafka]]\nbrokers = [\"a:1\"]\n[[files]]\npaths = \"/x\"\ntopic = \"t\"",
            "1:1",
            "write kafka = { … }",
        ),
        (
            "[kafka]\nbrokers = [\"a:1,b:2\"]\ntopic = \"t\"\n[[files]]\npaths = \"/x\"",
            "2:12",
            "a comma; write for example brokers = [\"a:1\", \"b:2\"]",
        ),
        (
            "[kafka]\nbrokers = [\"u:p@a:1\"]\ntopic = \"t\"\n[[files]]\npaths = \"/x\"",
            "2:12",
            "more than one colon",
        ),
        ("[kafka]\nbrokers = [\"::1:92\"]\ntopic = \"t\"\n[[files]]\npaths = \"/x\"", "2:12", "in brackets"),
        (
            "[kafka]\nbrokers = [\"a\"]\ntopic = \"t\"\n[[files]]\npaths = \"/x\"",
            "2:12",
            "the port is missing; write for example brokers = [\"a:9092\"]",
        ),
        (
            "[kafka]\nbrokers = \"127.0.0.1\"\ntopic = \"t\"\n[[files]]\npaths = \"/x\"",
            "2:11",
            "`brokers` is a text, not a list; write brokers = [\"127.0.0.1:9092\"]",
        ),
        (
            "[kafka]\nbrokers = \"a:1, b:2\"\ntopic = \"t\"\n[[files]]\npaths = \"/x\"",
            "2:11",
            "write brokers = [\"a:1\", \"b:2\"]",
        ),
        ("[kafka]\nbrokers = [\"a:1\"]\ntopic = \"t\"\n[files]\npaths = \"/x\"", "4:1", "[[files]]"),
    ];
    for (config, at, said) in whole {
        one(config, at, said);
    }
}

/// Exactly one problem (of [`whole`] configs: at least this one), at this place, and no secret in it.
fn one(config: &str, at: &str, said: &str) {
    let found = problems(config);
    let place = format!("c.toml:{at}: ");
    assert!(
        found.iter().any(|p| p.starts_with(&place) && p.contains(said)),
        "wanted {at} {said}\n{config}\n{found:#?}"
    );
    assert!(found.len() == 1 || config.is_empty(), "{config}\n{found:#?}");
    assert!(!found.concat().contains("s3cret"), "{found:?}");
}

/// Fails when a cleartext password over the network is not rejected, or is rejected where it is allowed or stays on
/// this machine.
#[test]
fn plain_without_tls() {
    let config = |brokers: &str, rest: &str| {
        let sasl = "[kafka.sasl]\nmechanism = \"PLAIN\"\nusername = \"u\"\npassword_file = \"/p\"";
        format!("[kafka]\nbrokers = [{brokers}]\ntopic = \"t\"\n{sasl}\n{rest}\n[[files]]\npaths = \"/x\"")
    };
    for brokers in [
        "\"k:9092\"",
        "\"127.0.0.1:9092\", \"10.0.0.1:9092\"",
        "\"[::2]:9092\"",
        "\"[::ffff:10.0.0.1]:9092\"",
        "\"localhost.example:9092\"",
    ] {
        let found = problems(&config(brokers, ""));
        assert_eq!(found.len(), 1, "{brokers}: {found:#?}");
        let said = "c.toml:5:13: PLAIN without TLS would send the password in the clear";
        assert!(found[0].starts_with(said) && found[0].contains("plain_without_tls = true"), "{found:?}");
        for rest in ["plain_without_tls = true", "[kafka.tls]"] {
            good(&config(brokers, rest));
        }
    }
    good(&config(
        "\"127.0.0.1:1\", \"127.9.9.9:1\", \"[::1]:1\", \"[::ffff:127.0.0.1]:1\", \"Localhost:1\"",
        "",
    ));
}

#[test]
fn exactly_once_needs_all_acks_and_the_modern_driver() {
    let found = problems(&format!(
        "[agent]\ndelivery = \"exactly-once\"\n{}",
        LEAST.replace("topic", "acks = 1\ndriver = \"classic\"\ntopic")
    ));
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(found[0].starts_with("c.toml:2:12: the classic driver") && found[0].contains("exactly-once"));
    assert!(found[1].starts_with("c.toml:5:8: exactly-once needs"), "{found:#?}");
}

/// Fails when keys after a syntax error count as missing: the operator would chase problems that do not exist.
#[test]
fn a_syntax_error_adds_nothing() {
    // The parser substitutes `true` here. Fails when that guess is judged like a written value.
    let found = problems(&format!("[agent]\nmemori = 1\n{}", LEAST.replace("\"t\"", "test")));
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(found[0].starts_with("c.toml:2:1: unknown key `memori`"), "{found:#?}");
    assert!(found[1].starts_with("c.toml:5:9: ") && found[1].ends_with(": topic = test"), "{found:#?}");
}

/// Fails when each line after an unclosed bracket is reported: there may be hundreds.
#[test]
fn an_unclosed_bracket_is_reported_once_at_its_start() {
    let tail = "topic = \"t\"\n[agent]\nmemory = \"9MiB\"\n[[files]]\npaths = [\"/x\"]\n";
    for (open, at, said) in [
        ("brokers = [\"a:1\"\n", "2:11", "unclosed array"),
        ("brokers = [\"a:1\", # the first\n  \"b:1\",\n", "2:11", "unclosed array"),
        ("brokers = [\"a:1\"]\nclient_id = \"a\n", "3:13", "client_id = \"a"),
    ] {
        one(&format!("[kafka]\n{open}{tail}"), at, said);
    }
    one(&format!("[kafka\nbrokers = [\"a:1\"]\n{tail}"), "1:1", "unclosed table");
}

#[test]
fn not_utf8() {
    let b = Box::new("");
    fs::write(b.path("c.toml"), [LEAST.as_bytes(), b"\n# \xff\nnope = 1\n"].concat()).unwrap();
    let found = b.problems(Overrides::default());
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(found[0].starts_with("c.toml:7:3: a byte that is not UTF-8"), "{found:#?}");
}

/// Fails when a file that is not `*.toml` to a shell is read, such as an editor's lock, a dangling link.
#[test]
fn more_files_beside_the_config() {
    let b = Box::new(LEAST);
    fs::create_dir(b.path("c.d")).unwrap();
    fs::write(b.path("c.d/2.toml"), "[[files]]\npaths = \"/2\"\ntopic = \"two\"\n").unwrap();
    fs::write(b.path("c.d/1.toml"), "[[files]]\npaths = \"/1\"\n").unwrap();
    fs::write(b.path("c.d/3.toml.bak"), "nonsense").unwrap();
    std::os::unix::fs::symlink("user@box.1", b.path("c.d/.#1.toml")).unwrap();
    let c = b.load(Overrides::default()).unwrap();
    let topics: Vec<&str> = c.sources.iter().map(|s| s.topic()).collect();
    assert_eq!(topics, ["t", "t", "two"]);
    assert_eq!(c.read_from.len(), 3);
    assert_eq!(c.memory_plan().topics, 2);

    fs::write(b.path("c.d/1.toml"), "[agent]\nmemori = 1\n[[files]]\npath = \"/1\"\n").unwrap();
    let found = b.problems(Overrides::default());
    assert_eq!(found.len(), 3, "{found:#?}");
    assert!(found[0].starts_with("c.d/1.toml:2:1: unknown key `memori`"), "{found:#?}");
}

/// Fails when a config waits for the writer of a FIFO.
#[test]
fn a_fifo_beside_the_config() {
    let b = Box::new(LEAST);
    fs::create_dir(b.path("c.d")).unwrap();
    let fifo = b.path("c.d/1.toml");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)
        .unwrap();
    let found = b.problems(Overrides::default());
    assert!(found[0].starts_with("c.d/1.toml:1:1: cannot be read: not a regular file"), "{found:#?}");
}

/// Fails when a key of a later file does not win or replaces its whole table, when its mistakes or its value are
/// attributed to another file, or when `${host}` in the main file ignores a later `hostname`.
#[test]
fn later_files_win_key_by_key() {
    let b = Box::new(
        "[kafka]\ntopic = \"t\"\nclient_id = \"${host}\"\nlinger = \"1s\"\n[[files]]\npaths = \"/x\"\n",
    );
    fs::create_dir(b.path("c.d")).unwrap();
    fs::write(b.path("c.d/1.toml"), "[kafka]\nbrokers = [\"one:1\"]\nacks = 1\n").unwrap();
    let site =
        "[kafka]\nbrokers = [\"two:2\"]\n[agent]\nhostname = \"edge\"\n[kafka.tls]\nserver_name = \"n\"\n";
    fs::write(b.path("c.d/2.toml"), site).unwrap();
    let (c, shown) = b.show(Overrides::default()).unwrap();
    let k = kafka(&c);
    assert_eq!((k.brokers.len(), k.brokers[0].to_string(), k.acks), (1, "two:2".into(), Acks::One));
    assert_eq!((k.client_id.as_str(), k.linger), ("edge", Duration::from_secs(1)));
    assert_eq!(k.tls.as_ref().unwrap().server_name.as_deref(), Some("n"));
    let shown = shown.replace(&format!("{}/", b.dir.path().display()), "");
    for line in [
        "[agent]\n",
        "\nhostname = \"edge\"  # c.d/2.toml:4\n",
        "\nbrokers = [\"two:2\"]  # c.d/2.toml:2\n",
        "\nacks = 1  # c.d/1.toml:3\n",
        "\nclient_id = \"${host}\"  # c.toml:3\n",
        "\ndelivery = \"at-least-once\"  # default\n",
        "\n[kafka.tls]\nserver_name = \"n\"  # c.d/2.toml:6\n",
        "\n[[files]]\npaths = \"/x\"  # c.toml:6\n",
    ] {
        assert!(shown.contains(line), "{line:?} in\n{shown}");
    }
    assert!(!shown.contains("[kafka.sasl]"), "{shown}");
    fs::write(b.path("c.d/2.toml"), format!("{site}[metrics]\ntextfile = \"x\"\n")).unwrap();
    let found = b.problems(Overrides::default());
    assert!(found.len() == 1 && found[0].starts_with("c.d/2.toml:8:12: "), "{found:#?}");
}

/// `[[files]]` of the `.d` folder alone are enough.
#[test]
fn a_main_file_without_files() {
    let b = Box::new("[kafka]\nbrokers = [\"k:9092\"]\ntopic = \"t\"\n");
    fs::create_dir(b.path("c.d")).unwrap();
    fs::write(b.path("c.d/1.toml"), "[[files]]\npaths = \"/1\"\n").unwrap();
    assert_eq!(b.load(Overrides::default()).unwrap().sources.len(), 1);
}

#[test]
fn the_command_line_wins() {
    let b = Box::new(
        &LEAST.replace("[[files]]", "driver = \"modern\"\n[[files]]\nstart = \"end\"\ntopic = \"u\""),
    );
    fs::write(b.path("a[1].log"), "").unwrap();
    let asked = Overrides {
        brokers: Some(brokers("x:1").unwrap()),
        topic: Some("cli".into()),
        from: Some(Start::Beginning),
        state_dir: Some("state".into()),
        driver: Some(DriverChoice::Classic),
        once: true,
        ..Overrides::default()
    };
    let c = b.load(asked.clone()).unwrap();
    assert_eq!((kafka(&c).brokers[0].host.as_str(), kafka(&c).driver), ("x", DriverChoice::Classic));
    assert_eq!((c.sources[0].topic(), c.sources[0].start), ("cli", Start::Beginning));
    assert_eq!(c.agent.state_dir, Some(b.path("state")));
    assert!(c.once);

    let files = vec!["./a[1].log".into(), "*.txt".into(), "/x/gone".into()];
    let c = b.load(Overrides { files, topic: None, ..asked.clone() }).unwrap();
    let here = crate::watch::glob::escape(b.dir.path().to_str().unwrap());
    let wanted = [
        Pattern::path(&b.path("a[1].log")),
        Pattern::glob(&format!("{here}/*.txt")).unwrap(),
        Pattern::path(Path::new("/x/gone")),
    ];
    assert_eq!((c.sources.len(), c.sources[0].topic()), (1, "t"));
    assert_eq!(c.sources[0].paths, wanted);

    // With --output stdout neither brokers nor a topic is needed.
    let b = Box::new("[[files]]\npaths = \"/x\"\n");
    let c = b.load(Overrides { output: Some(OutputName::Stdout), ..Overrides::default() }).unwrap();
    assert!(matches!(c.output, Output::Stdout));
    assert_eq!(c.sources[0].topic(), "-");
    // --driver classic makes the config's TLS a mistake, at its place.
    let b = Box::new(&LEAST.replace("[[files]]", "[kafka.tls]\n[[files]]"));
    let found = b.problems(Overrides { driver: Some(DriverChoice::Classic), ..Overrides::default() });
    assert!(found[0].starts_with("c.toml:4:1: the classic driver"), "{found:#?}");
}

/// Fails when the current folder is treated as part of the glob.
#[test]
fn the_working_folder_is_literal() {
    let b = Box::new("");
    let around = Surroundings { working_directory: "/a[b]/*".into(), ..b.around() };
    let asked = Overrides { files: vec!["*.log".into()], ..Overrides::default() };
    let (c, _) = load_in(&asked, &around).unwrap();
    let m = &c.sources[0].paths[0];
    assert!(m.matches(Path::new("/a[b]/*/x.log")) && !m.matches(Path::new("/ab/y/x.log")));
}

/// Each topic must hold its longest line in addition to the encoding buffers. Fails when either is left out of the
/// sum.
#[test]
fn the_smallest_valid_memory() {
    let more = "[[files]]\npaths = \"/x\"\ntopic = \"u\"\nmax_line = \"2MiB\"\n";
    let with = |memory: usize| format!("[agent]\nmemory = {memory}\n{LEAST}{more}");
    let plan = good(&with(1 << 30)).memory_plan();
    assert_eq!((plan.topics, plan.encoding), (2, 2 << 20));
    assert_eq!(plan.needed, plan.encoding + 2 * ((2 << 20) + LINE_TABLE));
    good(&with(plan.needed));
    let found = problems(&with(plan.needed - 1));
    assert!(found.len() == 1 && found[0].starts_with("c.toml:2:10: `memory` of "), "{found:#?}");
}

#[test]
fn files_without_a_config() {
    let b = Box::new("");
    let with = |asked: Overrides| load_in(&Overrides { files: vec!["a.log".into()], ..asked }, &b.around());
    let (c, _) = with(Overrides::default()).unwrap();
    assert!(matches!(c.output, Output::Stdout) && c.agent.state_dir.is_none() && c.read_from.is_empty());
    assert_eq!((c.sources[0].start, c.sources[0].paths[0].literal()), (Start::End, Some(b.path("a.log"))));
    let (c, _) =
        with(Overrides { once: true, state_dir: Some("/s".into()), ..Overrides::default() }).unwrap();
    assert_eq!((c.sources[0].start, c.agent.state_dir), (Start::Beginning, Some("/s".into())));

    let kafka_at = || Some(brokers("k:1").unwrap());
    let (c, _) =
        with(Overrides { brokers: kafka_at(), topic: Some("t".into()), ..Overrides::default() }).unwrap();
    assert!(matches!(c.output, Output::Kafka(_)));
    for (asked, lacking) in [
        (Overrides { brokers: kafka_at(), ..Overrides::default() }, "--topic"),
        (Overrides { topic: Some("t".into()), ..Overrides::default() }, "--brokers"),
        (Overrides { output: Some(OutputName::Kafka), ..Overrides::default() }, "--brokers and --topic"),
        (Overrides { files: vec!["[x".into()], ..Overrides::default() }, "FILE [x"),
    ] {
        let files = if asked.files.is_empty() { vec!["a".into()] } else { asked.files.clone() };
        let error = load_in(&Overrides { files, ..asked }, &b.around()).unwrap_err();
        assert_eq!(error.code, ExitCode::Usage);
        assert!(error.to_string().contains(lacking), "{error}");
    }
}

/// Fails when `send` requires [[files]], validates keys that only files need, or lets the config override the command
/// line.
#[test]
fn kafka_alone() {
    let b = Box::new(
        "[agent]\ndelivery = \"exactly-once\"\n[kafka]\nbrokers = [\"k:1\"]\nacks = 1\nclient_id = \"me\"\n[kafka.tls]\n",
    );
    let asked = |topic: Option<&str>| Overrides {
        config: Some(b.path("c.toml")),
        topic: topic.map(str::to_owned),
        ..Overrides::default()
    };
    let (k, topic) = load_kafka(&asked(Some("t"))).unwrap();
    assert_eq!((k.brokers[0].to_string().as_str(), k.acks, k.client_id.as_str()), ("k:1", Acks::One, "me"));
    assert_eq!((topic.as_str(), k.needs_modern()), ("t", vec!["TLS"]));
    let (k, _) =
        load_kafka(&Overrides { brokers: Some(brokers("l:2").unwrap()), ..asked(Some("t")) }).unwrap();
    assert_eq!(k.brokers[0].port, 2);
    let error = load_kafka(&asked(None)).unwrap_err();
    assert!(error.code == ExitCode::Config && error.to_string().contains("or give --topic"), "{error}");
    let classic = Overrides { driver: Some(DriverChoice::Classic), ..asked(Some("t")) };
    let error = load_kafka(&classic).unwrap_err().to_string();
    assert!(error.contains("c.toml:7:1: the classic driver") && error.lines().count() == 1, "{error}");
    let bare = Overrides { brokers: Some(brokers("l:2").unwrap()), config: None, ..asked(Some("t")) };
    assert_eq!(load_kafka(&bare).unwrap().0.acks, Acks::All);
}

#[test]
fn the_state_folder_is_found_in_a_broken_config() {
    let b = Box::new("[agent]\nstate_dir = \"/s\"\nmemory = [\n[kafka]\nx = 1\n");
    let bare = Box::new("");
    let folder = |b: &Box, around: &Surroundings| state_dir_in(Some(&b.path("c.toml")), around).unwrap();
    let mut around = b.around();
    assert_eq!(folder(&b, &around), Path::new("/s"));
    assert_eq!(folder(&bare, &around), Path::new("/var/lib/logagent"));
    around.state_directory = Some("/run/s".into());
    assert_eq!(folder(&b, &around), Path::new("/s"));
    assert_eq!(folder(&bare, &around), Path::new("/run/s"));
}

#[test]
fn no_such_config() {
    let b = Box::new("");
    let asked = Overrides { config: Some(b.path("none.toml")), ..Overrides::default() };
    let error = load_in(&asked, &b.around()).unwrap_err();
    assert_eq!(error.code, ExitCode::Config);
    assert!(error.to_string().contains("none.toml: No such file"), "{error}");
    let error = load_in(&Overrides { config: Some(b.path(".")), ..asked }, &b.around()).unwrap_err();
    assert!(error.to_string().contains("it is a folder; name the file in it"), "{error}");
}

proptest::proptest! {
    /// Any text yields problems or a config, never a panic.
    #[test]
    fn never_panics(parts in proptest::collection::vec(
        proptest::sample::select(vec![
            "[kafka]\n", "[agent]\n", "[[files]]\n", "[files]\n", "key = ", "partition = ", "acks = ", "memory = ",
            "paths = ", "multiline = ", "deleted_hold = ", "start = ", "fields = ", "tls = ", "brokers = ", "\"x\"\n",
            "{ a = 1 }\n", "[\"/a\"]\n", "[\n", "{\n", "7\n", "true\n", "1979-05-27\n", "-1.5\n", "'\n", "]", "}",
        ]), 0..24)) {
        let b = Box::new(&parts.concat());
        let _ = b.load(Overrides::default());
    }
}

/// Fails when a text makes the reader panic or hang, or when a problem has no position or more than one line.
#[test]
fn fuzz_config() {
    let example = include_str!("../../systemd/logagent.toml");
    let spoken: String =
        example.lines().map(|l| format!("{}\n", l.strip_prefix("# ").unwrap_or(l))).collect();
    let samples =
        [LEAST, example, &spoken, "[kafka.tls]\nca = \"/a\"\n[[files]]\npaths = []\nmultiline = {}\n"];
    let samples = samples.map(|s| s.as_bytes().to_vec());
    let place = Box::new("");
    crate::fuzz::damaged(
        &samples,
        |_| 1000,
        |bytes| {
            fs::write(place.path("c.toml"), bytes).unwrap();
            match place.load(Overrides::default()) {
                Ok(config) => config.sources.len(),
                Err(e) => {
                    let text = e.to_string();
                    assert!(
                        text.lines().all(|l| l.starts_with("logagent: ") && l.contains("c.toml")),
                        "{text}"
                    );
                    text.lines().count()
                }
            }
        },
    );
}

/// Fails when two sources may read one journal, since they would share its positions, or when one of its keys is
/// misread.
#[test]
fn journals() {
    let base = "[kafka]\nbrokers = [\"k:9092\"]\ntopic = \"t\"\n";
    let c =
        good(&format!("{base}[[journal]]\npriority = 3\n[[journal]]\nnamespace = \"n\"\ntopic = \"u\"\n"));
    let shown: Vec<_> = c.journals.iter().map(|j| (j.topic(), j.priority, j.start)).collect();
    assert_eq!(shown, [("t", Some(Priority(3)), Start::End), ("u", None, Start::End)]);
    assert!(c.sources.is_empty());
    let text =
        problems(&format!("{base}[[journal]]\nunits = \"a.service\"\n[[journal]]\npriority = \"warnin\"\n"))
            .join("\n");
    assert!(text.contains("another [[journal]] already reads this journal"), "{text}");
    let machine = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
    for directory in ["/var/log/journal/", "/run/log/journal/"] {
        let other = format!("[[journal]]\ndirectory = \"{directory}{}\"\n", machine.trim());
        let text = problems(&format!("{base}[[journal]]\n{other}")).join("\n");
        assert!(text.contains("another [[journal]] already reads this journal"), "{text}");
    }
    assert!(text.contains("did you mean \"warning\"?"), "{text}");
}
