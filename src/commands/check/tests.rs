//! Tests reports on real folders.

use super::*;
use crate::error::Reason;
use crate::kafka::broker_check::BrokerStep;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Place(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    fn write(&self, name: &str, text: &str, mode: u32) -> String {
        fs::write(self.path(name), text).unwrap();
        fs::set_permissions(self.path(name), Permissions::from_mode(mode)).unwrap();
        self.path(name)
    }

    fn load(&self, config: &str) -> Config {
        let config = format!("[agent]\nstate_dir = \"{}\"\n{config}", self.path("state"));
        let path = self.write("c.toml", &config, 0o644);
        let asked = Overrides { config: Some(path.into()), ..Overrides::default() };
        config::load(&asked).unwrap_or_else(|e| panic!("{e}"))
    }

    fn report(&self, config: &str) -> Report {
        Report::of(&self.load(config))
    }
}

const KAFKA: &str = "[kafka]\nbrokers = [\"127.0.0.1:1\"]\ntopic = \"t\"\n";

/// Fails when the estimate leaves out rotated files, compression or requests, or counts a device; or when a budget that is
/// too small gets no warning.
#[test]
fn traffic_is_estimated() {
    let p = Place::new();
    let line = "10.0.0.7 - - [22/Nov/2026:20:00:00 +0000] GET /shop/item/123 HTTP/1.1 200 5120\n";
    let (log, rotated) =
        (p.write("a.log", &line.repeat(1000), 0o644), p.write("a.log.1", &line.repeat(2000), 0o644));
    let hour = std::time::SystemTime::now() - Duration::from_secs(3600);
    fs::File::open(&rotated).unwrap().set_modified(hour).unwrap();
    let of = |kafka: &str| {
        p.report(&format!("{KAFKA}{kafka}\n[[files]]\npaths = [{log:?}, \"/dev/null\"]\n")).text
    };
    let plain = of("linger = \"1s\"");
    assert!(plain.contains("of lines, from the growth of a file in the last 60 min; "), "{plain}");
    assert!(plain.contains("about 7.7 MiB a day") || plain.contains("about 7.8 MiB a day"), "{plain}");
    let text = of("linger = \"60s\"\ncompression = \"zstd\"\nbudget = \"100KiB/day\"");
    let percent = text
        .split("; ")
        .find_map(|part| part.strip_prefix("compression leaves ")?.strip_suffix(" % of a sample"));
    assert!(percent.is_some_and(|percent| percent.parse::<u32>().unwrap() <= 20), "{text}");
    assert!(
        text.contains("1440 requests of 250 bytes") && text.contains("the budget of 100 KiB per day is less"),
        "{text}"
    );
}

#[test]
fn a_plain_config() {
    let p = Place::new();
    p.write("a.log", "12345", 0o644);
    p.write("b.log.gz", "", 0o644);
    let glob = p.path("*");
    let r = p.report(&format!("{KAFKA}[[files]]\npaths = \"{glob}\"\nexclude = [\"*.gz\", \"c.toml\"]\n"));
    assert!(!r.failed && !r.text.contains("warning"), "{}", r.text);
    for line in [
        format!("config   {}\n", p.path("c.toml")),
        "brokers  127.0.0.1:1 with acks = all\n".into(),
        "driver   auto: modern if the broker supports it (0.11 or newer), otherwise classic (the kafka crate)\n"
            .into(),
        "delivery at-least-once\n".into(),
        format!("state    {}\n", p.path("state")),
        format!("files    {glob} to topic t\n"),
        format!("           {} (5 bytes)\n", p.path("a.log")),
        "memory   at most ".into(),
        "ok       the config has no mistakes\n".into(),
    ] {
        assert!(r.text.contains(&line), "{line}in\n{}", r.text);
    }
    assert!(!r.text.contains(".gz ("), "{}", r.text);
}

/// The default config stays under 24,000 KiB; the printed worst case must agree.
#[test]
fn the_worst_case_of_the_default_config() {
    let p = Place::new();
    for i in 0..10 {
        p.write(&format!("{i}.log"), "", 0o644);
    }
    let r = p.report(&format!("{KAFKA}[[files]]\npaths = \"{}\"\n", p.path("*.log")));
    let line = r.text.lines().find_map(|l| l.strip_prefix("memory   at most ")).unwrap();
    let kib: usize = line.split(' ').next().unwrap().parse().unwrap();
    assert!(kib < 24_000, "{line}");
}

#[test]
fn every_warning() {
    let p = Place::new();
    p.write("a.log", "", 0o644);
    fs::hard_link(p.path("a.log"), p.path("other")).unwrap();
    let password = p.write("password", "s3cret", 0o644);
    fs::create_dir(p.path("state")).unwrap();
    fs::set_permissions(p.path("state"), Permissions::from_mode(0o755)).unwrap();
    let config = p.load(&format!(
        "{KAFKA}acks = 0\nsasl = {{ mechanism = \"PLAIN\", username = \"u\", password_file = \"{password}\", \
         plain_without_tls = true }}\n\
         [[files]]\npaths = \"{}\"\n[[files]]\npaths = \"{}\"\n",
        p.path("*.log"),
        p.path("other"),
    ));
    fs::set_permissions(p.path("c.toml"), Permissions::from_mode(0o666)).unwrap();
    let r = Report::of(&config);
    for said in [
        "acks = 0 can lose lines",
        "PLAIN without TLS",
        "is readable by every user (mode 644)",
        "can be written by every user",
        "state is open to other users",
        "is matched twice, by [[files]] 1",
        "auto: modern, because of SASL",
        "ok       the config is valid; see the 6 warnings above\n",
    ] {
        assert!(r.text.contains(said), "{said}\n{}", r.text);
    }
    assert!(!r.failed && !r.text.contains("s3cret"), "{}", r.text);
}

/// Fails when a folder, or a file without the PEM that is needed, passes as `ca`, `cert`, `key` or as a password.
#[test]
fn files_for_tls_that_cannot_be_used() {
    let p = Place::new();
    let text = p.write("text", "no PEM\n", 0o600);
    let pem = p.write("pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", 0o600);
    let cut = p.write("cut", "-----BEGIN CERTIFICATE-----\nAAAA\n", 0o600);
    let folder = p.path("");
    let pair = |cert: &str, key: &str| format!("cert = {cert:?}\nkey = {key:?}");
    let told = |tls: &str| {
        let r = p.report(&format!("{KAFKA}[kafka.tls]\n{tls}\n[[files]]\npaths = \"/x\"\n"));
        let mut failed = r.text.lines().filter_map(|l| l.strip_prefix("failed   "));
        (failed.next().unwrap_or_default().to_owned(), failed.next().is_some(), r.failed)
    };
    for (tls, said) in [
        (format!("ca = {folder:?}"), format!("ca {folder}: it is a folder; name a file")),
        (
            format!("ca = {text:?}"),
            format!("ca {text}: no PEM certificate in it; name a file with -----BEGIN"),
        ),
        (format!("ca = {cut:?}"), format!("ca {cut}: damaged PEM; name a file with -----BEGIN")),
        (format!("ca = {pem:?}"), format!("ca {pem}: ")),
        (pair(&folder, &text), format!("cert {folder}: it is a folder; name a file")),
        (pair(&pem, &folder), format!("key {folder}: it is a folder; name a file")),
        (pair(&pem, &text), format!("key {text}: no unencrypted PEM private key in it; ")),
    ] {
        let (first, more, failed) = told(&tls);
        assert!(first.starts_with(&said) && !more && failed, "{tls}: {first}");
    }
    assert_eq!(told("ca = \"/none\"").0, "", "it may exist where the service runs");
    let sasl =
        format!("sasl = {{ mechanism = \"SCRAM-SHA-256\", username = \"u\", password_file = {folder:?} }}");
    let r = p.report(&format!("{KAFKA}{sasl}\n[[files]]\npaths = \"/x\"\n"));
    assert!(r.failed && r.text.contains(&format!("password_file {folder}: it is a folder")), "{}", r.text);
}

/// Fails with `is_dir` instead of `exists` in `Report::state`: the parent folder is checked, and no problem is
/// reported.
#[test]
fn a_file_in_place_of_the_state_folder_fails() {
    let p = Place::new();
    p.write("state", "", 0o644);
    let r = p.report(&format!("{KAFKA}[[files]]\npaths = \"/x\"\n"));
    assert!(r.failed, "{}", r.text);
    assert!(r.text.contains(&format!("failed   {}: it is not a folder; ", p.path("state"))), "{}", r.text);
    assert!(!r.text.contains("\nok "), "{}", r.text);
}

/// Problems that `run` only logs. Fails with `found::folders` returning nothing, and without `Report::metrics`.
#[test]
fn a_folder_named_as_a_file_and_a_missing_folder() {
    let p = Place::new();
    fs::create_dir(p.path("logs")).unwrap();
    let (logs, metrics) = (p.path("logs"), p.path("none/m.prom"));
    let r = p.report(&format!("{KAFKA}[metrics]\ntextfile = \"{metrics}\"\n[[files]]\npaths = \"{logs}\"\n"));
    for said in [
        format!("{logs} is a folder, so nothing in it is read; name its files, as in {logs}/*.log"),
        format!("textfile: there is no folder {}", p.path("none")),
    ] {
        assert!(r.text.contains(&said), "{said}\n{}", r.text);
    }
    assert!(!r.failed, "{}", r.text);
}

/// Both are accepted by the config. Fails when a field that each object has anyway, or a folder as the metrics file, is
/// not mentioned.
#[test]
fn a_field_twice_and_a_folder_for_the_metrics() {
    let p = Place::new();
    fs::create_dir(p.path("m")).unwrap();
    let metrics = p.path("m");
    let r = p.report(&format!(
        "{KAFKA}[metrics]\ntextfile = \"{metrics}\"\n[[files]]\npaths = \"/x\"\nformat = \"json\"\n\
         fields = {{ host = \"a\", service = \"b\" }}\n"
    ));
    for said in ["fields.host: every object has a field of this name", "/m is a folder; name a file in it"] {
        assert!(r.text.contains(said), "{said}\n{}", r.text);
    }
    assert!(!r.failed && !r.text.contains("fields.service"), "{}", r.text);
}

#[test]
fn must_exist_fails_and_a_fifo_does_not_block() {
    let p = Place::new();
    let fifo = p.0.path().join("fifo.log");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o644.into(), 0).unwrap();
    let gone = p.path("gone");
    let glob = p.path("*.log");
    let r = p.report(&format!("{KAFKA}[[files]]\npaths = [\"{gone}\", \"{glob}\"]\nmust_exist = true\n"));
    assert!(r.failed, "{}", r.text);
    assert!(r.text.contains(&format!("{gone}: missing, and must_exist is set")), "{}", r.text);
    assert!(r.text.contains("fifo.log: not a regular file"), "{}", r.text);
}

/// Fails when a step's failure does not reach the exit code.
#[test]
fn a_failed_step_fails() {
    let p = Place::new();
    p.load(&format!("{KAFKA}[[files]]\npaths = \"/x\"\n"));
    let asked = |connect| cli::CheckArgs { config: Some(p.path("c.toml").into()), connect, show: false };
    let failing: Connect = |_, tell| {
        let outcome = Outcome::Failed(Reason::new("refused", "start it"));
        tell(BrokerCheckStep { what: BrokerStep::Tls, took: Duration::from_millis(3), outcome });
        String::new()
    };
    let hopeless: Connect = |_, tell| {
        for outcome in [Outcome::Never, Outcome::Failed] {
            let outcome = outcome(Reason::new("too old", "upgrade it"));
            tell(BrokerCheckStep { what: BrokerStep::Metadata, took: Duration::ZERO, outcome });
        }
        String::new()
    };
    assert_eq!(run_with(asked(true), hopeless).unwrap(), ExitCode::Config);
    assert_eq!(run_with(asked(true), failing).unwrap(), ExitCode::Failed);
    assert_eq!(run_with(asked(false), failing).unwrap(), ExitCode::Done);
    let outcome = Outcome::Good("1.3\x1b".into());
    let step = BrokerCheckStep { what: BrokerStep::Tls, took: Duration::from_millis(3), outcome };
    assert_eq!(step_line(&step), "ok       TLS (3 ms): 1.3\\x1b\n");
}

#[test]
fn a_port_where_nothing_listens() {
    let p = Place::new();
    let config = p.load(&format!("{KAFKA}[[files]]\npaths = \"/x\"\n"));
    let mut steps = Vec::new();
    let table = connect::steps(&config, &mut |s| {
        steps.push((s.what.to_string(), matches!(s.outcome, Outcome::Good(_))));
    });
    assert_eq!(steps, [("name 127.0.0.1".into(), true), ("TCP 127.0.0.1:1".into(), false)]);
    assert_eq!(table, "");
}
