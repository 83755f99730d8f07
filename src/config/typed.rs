//! What stands in the config files, key by key, as it was typed. Fills in no default and judges no combination: that is
//! [`super::resolve`].

use super::keys::{self, *};
use super::places::{Place, Problems};
use super::syntax::{self, Repaired};
use super::values::*;
use super::walk::*;
use super::*;
use std::io::ErrorKind;
use toml::de::DeTable;

/// All files together: `[agent]`, `[kafka]` and `[metrics]` from the main one, `[[files]]` from each.
#[derive(Default)]
pub struct Typed {
    /// Top of the main file, for what is missing in it; `None` when there is no file.
    pub top: Option<Place>,
    pub read_from: Vec<PathBuf>,
    pub agent: Agent,
    pub kafka: Kafka,
    pub textfile: Field<PathBuf>,
    /// Whether a `files` stands there at all, be it a wrong one.
    pub has_files: bool,
    pub files: Vec<Files>,
}

#[derive(Default)]
pub struct Agent {
    pub state_dir: Field<PathBuf>,
    pub memory: Field<usize>,
    pub delivery: Field<Delivery>,
    pub sync: Field<Sync>,
    pub drain_timeout: Field<Duration>,
    pub damaged_state: Field<DamagedState>,
    pub hostname: Field<String>,
}

#[derive(Default)]
pub struct Kafka {
    /// The table's header.
    pub place: Option<Place>,
    pub brokers: Field<Vec<Broker>>,
    pub topic: Field<String>,
    pub acks: Field<Acks>,
    pub driver: Field<Driver>,
    pub client_id: Field<String>,
    pub key: Field<keys::Key>,
    pub partition: Field<Partition>,
    pub compression: Field<Compression>,
    pub linger: Field<Duration>,
    pub batch: Field<usize>,
    pub rate: Field<u64>,
    pub create_topics: Field<bool>,
    pub tls: Field<Tls>,
    pub sasl: Field<Sasl>,
}

#[derive(Clone, Debug, Default)]
pub struct Tls {
    pub ca: Field<PathBuf>,
    pub cert: Field<PathBuf>,
    pub key: Field<PathBuf>,
    pub server_name: Field<String>,
}

#[derive(Clone, Debug, Default)]
pub struct Sasl {
    pub mechanism: Field<Mechanism>,
    pub username: Field<String>,
    pub password_file: Field<PathBuf>,
    pub plain_without_tls: Field<bool>,
}

#[derive(Default)]
pub struct Files {
    /// The table's header.
    pub place: Option<Place>,
    pub paths: Field<Vec<Pattern>>,
    pub exclude: Field<Vec<String>>,
    pub topic: Field<String>,
    pub start: Field<Start>,
    pub must_exist: Field<bool>,
    pub follow: Field<bool>,
    pub reopen: Field<bool>,
    pub poll: Field<Option<Duration>>,
    pub rotate_grace: Field<Duration>,
    pub deleted_hold: Field<(Field<u64>, Field<Duration>)>,
    pub max_line: Field<usize>,
    pub partial_after: Field<Duration>,
    pub multiline: Field<keys::Multiline>,
    pub include: Field<Vec<Regex>>,
    pub drop: Field<Vec<Regex>>,
    pub skip_empty: Field<bool>,
    pub format: Field<Format>,
    pub fields: Field<Vec<(String, String)>>,
    pub headers: Field<Vec<(String, String)>>,
    pub rate_limit: Field<u64>,
}

/// Reads `main` and the `*.toml` of the `.d` folder beside it.
pub fn read(main: &Path, problems: &mut Problems) -> Result<Typed, Error> {
    let bytes = std::fs::read(main).map_err(|e| unreadable(main, &e))?;
    let mut typed = Typed::default();
    let doc = take_up(main, bytes, problems, &mut typed, true);
    typed.top = Some(problems.place(doc, 0));
    for path in more_files(main)? {
        match std::fs::read(&path) {
            Ok(bytes) => drop(take_up(&path, bytes, problems, &mut typed, false)),
            Err(e) => {
                let doc = problems.add_file(&path, String::new());
                let place = problems.place(doc, 0);
                problems.add(
                    place,
                    format!("cannot be read: {e}"),
                    "let the agent's user read it, or remove it",
                );
            }
        }
    }
    typed.read_from = problems.files().map(Path::to_owned).collect();
    Ok(typed)
}

fn unreadable(main: &Path, e: &std::io::Error) -> Error {
    let what = format!("read {}", main.display());
    match e.kind() {
        ErrorKind::IsADirectory => {
            let fix = format!("name the file in it, as in -c {}", main.join("logagent.toml").display());
            Error::config(what, "it is a folder", fix)
        }
        ErrorKind::NotFound => {
            let fix = "write one there, name another with -c, or give the files: logagent run FILE…";
            Error::config(what, e, fix)
        }
        _ => Error::config(what, e, "let this user read it, or name another with -c"),
    }
}

/// In the order of their names. No such folder: none.
fn more_files(main: &Path) -> Result<Vec<PathBuf>, Error> {
    let folder = main.with_extension("d");
    let unreadable =
        |e| Error::config(format!("read {}", folder.display()), e, "let the agent's user read it");
    let entries = match std::fs::read_dir(&folder) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(unreadable)?,
    };
    let paths: Result<Vec<PathBuf>, _> = entries.map(|e| e.map(|e| e.path())).collect();
    let mut paths = paths.map_err(unreadable)?;
    paths.retain(|p| p.extension().is_some_and(|e| e == "toml"));
    paths.sort();
    Ok(paths)
}

/// Adds what stands in one file to `typed`.
fn take_up(path: &Path, bytes: Vec<u8>, problems: &mut Problems, typed: &mut Typed, main: bool) -> usize {
    let broken_at = std::str::from_utf8(&bytes).err().map(|e| e.valid_up_to());
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let doc = problems.add_file(path, text.clone());
    if let Some(at) = broken_at {
        problems.add_syntax(
            doc,
            at..at + 1,
            "a byte that is not UTF-8".into(),
            "save the file as UTF-8".into(),
        );
    }
    let repaired = Repaired::new(&text);
    syntax::report(&repaired, doc, problems);
    let (table, _) = repaired.parse();
    let mut walk = Walk { doc, problems, text: &repaired };
    match main {
        true => take_main(&mut walk, table.get_ref(), typed),
        false => take_more(&mut walk, table.get_ref(), typed),
    }
    doc
}

fn take_main(walk: &mut Walk<'_>, root: &DeTable<'_>, typed: &mut Typed) {
    let mut top = Section::new(walk, "the file", root);
    typed.agent = top.field("agent", agent).or_default();
    typed.kafka = top.field("kafka", kafka).or_default();
    typed.textfile = top.field("metrics", metrics).or(Field::Missing);
    typed.take_files(top.field("files", files));
    top.finish(elsewhere);
}

fn take_more(walk: &mut Walk<'_>, root: &DeTable<'_>, typed: &mut Typed) {
    let mut top = Section::new(walk, "a file of the .d folder, which may hold [[files]] only", root);
    typed.take_files(top.field("files", files));
    top.finish(|key| match key {
        "agent" | "kafka" | "metrics" => Some("the main config file"),
        other => elsewhere(other),
    });
}

impl Typed {
    fn take_files(&mut self, found: Field<Vec<Files>>) {
        self.has_files |= !found.is_missing();
        self.files.extend(found.or_default());
    }
}

fn agent(walk: &mut Walk<'_>, key: &str, v: &Value<'_>) -> Option<Agent> {
    let found = table(walk, key, v, "[agent]")?;
    let mut s = Section::new(walk, "[agent]", found);
    let agent = Agent {
        state_dir: s.field("state_dir", path),
        memory: s.field("memory", bytes),
        delivery: s.field("delivery", named),
        sync: s.field("sync", sync),
        drain_timeout: s.field("drain_timeout", duration),
        damaged_state: s.field("damaged_state", named),
        hostname: s.field("hostname", text),
    };
    s.finish(elsewhere);
    Some(agent)
}

fn kafka(walk: &mut Walk<'_>, key: &str, v: &Value<'_>) -> Option<Kafka> {
    let found = table(walk, key, v, "[kafka]")?;
    let place = Some(walk.place(v.span().start));
    let mut s = Section::new(walk, "[kafka]", found);
    let kafka = Kafka {
        place,
        brokers: s.field("brokers", broker_list),
        topic: s.field("topic", topic),
        acks: s.field("acks", acks),
        driver: s.field("driver", named),
        client_id: s.field("client_id", client_id),
        key: s.field("key", record_key),
        partition: s.field("partition", partition),
        compression: s.field("compression", named),
        linger: s.field("linger", duration),
        batch: s.field("batch", bytes),
        rate: s.field("rate", rate),
        create_topics: s.field("create_topics", flag),
        tls: s.field("tls", tls),
        sasl: s.field("sasl", sasl),
    };
    s.finish(elsewhere);
    Some(kafka)
}

fn tls(walk: &mut Walk<'_>, key: &str, v: &Value<'_>) -> Option<Tls> {
    let found = table(walk, key, v, "{ ca = \"/etc/ssl/kafka.pem\" }")?;
    let mut s = Section::new(walk, "[kafka.tls]", found);
    let tls = Tls {
        ca: s.field("ca", path),
        cert: s.field("cert", path),
        key: s.field("key", path),
        server_name: s.field("server_name", text),
    };
    s.finish(elsewhere);
    Some(tls)
}

fn sasl(walk: &mut Walk<'_>, key: &str, v: &Value<'_>) -> Option<Sasl> {
    let found = table(walk, key, v, "{ mechanism = \"SCRAM-SHA-512\", … }")?;
    let mut s = Section::new(walk, "[kafka.sasl]", found);
    let sasl = Sasl {
        mechanism: s.field("mechanism", named),
        username: s.field("username", text),
        password_file: s.field("password_file", path),
        plain_without_tls: s.field("plain_without_tls", flag),
    };
    s.finish(elsewhere);
    Some(sasl)
}

fn metrics(walk: &mut Walk<'_>, key: &str, v: &Value<'_>) -> Option<Field<PathBuf>> {
    let found = table(walk, key, v, "[metrics]")?;
    let mut s = Section::new(walk, "[metrics]", found);
    let textfile = s.field("textfile", path);
    s.finish(elsewhere);
    Some(textfile)
}

fn files(walk: &mut Walk<'_>, key: &str, v: &Value<'_>) -> Option<Vec<Files>> {
    let Some(tables) = v.get_ref().as_array().filter(|a| a.iter().all(|t| t.get_ref().is_table())) else {
        walk.wrong(v.span(), "`files` is not a list of tables", "write [[files]] above the keys of each");
        return None;
    };
    Some(tables.iter().filter_map(|t| one_files(walk, key, t)).collect())
}

fn one_files(walk: &mut Walk<'_>, key: &str, v: &Value<'_>) -> Option<Files> {
    let found = table(walk, key, v, "[[files]]")?;
    let place = Some(walk.place(v.span().start));
    let mut s = Section::new(walk, "[[files]]", found);
    let files = Files {
        place,
        paths: s.field("paths", one_or_list(followed)),
        exclude: s.field("exclude", one_or_list(exclusion)),
        topic: s.field("topic", topic),
        start: s.field("start", start),
        must_exist: s.field("must_exist", flag),
        follow: s.field("follow", flag),
        reopen: s.field("reopen", flag),
        poll: s.field("poll", poll),
        rotate_grace: s.field("rotate_grace", duration),
        deleted_hold: s.field("deleted_hold", deleted_hold),
        max_line: s.field("max_line", bytes),
        partial_after: s.field("partial_after", wait),
        multiline: s.field("multiline", multiline),
        include: s.field("include", one_or_list(pattern)),
        drop: s.field("drop", one_or_list(pattern)),
        skip_empty: s.field("skip_empty", flag),
        format: s.field("format", named),
        fields: s.field("fields", texts),
        headers: s.field("headers", texts),
        rate_limit: s.field("rate_limit", rate),
    };
    s.finish(elsewhere);
    Some(files)
}

/// Every table and its keys, for a key that stands in the wrong one, and for the test that the example shows all.
pub const TABLES: [(&str, &str); 7] = [
    ("[agent]", "state_dir memory delivery sync drain_timeout damaged_state hostname"),
    (
        "[kafka]",
        "brokers topic acks driver client_id key partition compression linger batch rate create_topics tls sasl",
    ),
    ("[kafka.tls]", "ca cert key server_name"),
    ("[kafka.sasl]", "mechanism username password_file plain_without_tls"),
    ("[metrics]", "textfile"),
    (
        "[[files]]",
        "paths exclude topic start must_exist follow reopen poll rotate_grace deleted_hold max_line partial_after \
         multiline include drop skip_empty format fields headers rate_limit",
    ),
    ("the file", "agent kafka metrics files"),
];

pub fn elsewhere(key: &str) -> Option<&'static str> {
    if key == "password" {
        return Some("a file of its own, which password_file in [kafka.sasl] names");
    }
    TABLES.iter().find(|(_, keys)| keys.split_whitespace().any(|k| k == key)).map(|(table, _)| *table)
}
