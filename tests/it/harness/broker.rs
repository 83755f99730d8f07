//! Real brokers through `tests/kafka/broker`, and their topics read back with kcat. Speaks no protocol itself.

use super::{PATIENT, limit_the_suite, lock, millis, need, pause};
use std::{
    collections::HashMap,
    fs,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        LazyLock, Mutex, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    V011,
    V24,
    V28,
    V39,
    V39Zk,
    V41,
    V44,
    /// Any release, such as `3.5.2`; only `tests/run --long` installs it.
    Release(&'static str),
}

impl Version {
    pub fn name(self) -> &'static str {
        match self {
            Version::V011 => "0.11",
            Version::V24 => "2.4",
            Version::V28 => "2.8",
            Version::V39 => "3.9",
            Version::V39Zk => "3.9-zk",
            Version::V41 => "4.1",
            Version::V44 => "4.4",
            Version::Release(name) => name,
        }
    }
}

/// One broker of each requested version; the first caller starts it, the others wait for that.
type OneEach = Mutex<HashMap<&'static str, &'static OnceLock<Broker>>>;

fn one_of(all: &OneEach, version: Version, start: impl FnOnce() -> Broker) -> &'static Broker {
    let mut all = lock(all);
    let place = *all.entry(version.name()).or_insert_with(|| Box::leak(Box::default()));
    drop(all);
    place.get_or_init(start)
}

/// Runs `tests/kafka/broker` and returns its output; fails with its error.
#[track_caller]
fn script<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> String {
    limit_the_suite();
    for tool in ["bash", "kcat"] {
        need(tool);
    }
    // To a file, not a pipe: the brokers it starts outlive it and would keep a pipe open.
    let said = tempfile::NamedTempFile::new().unwrap();
    let output = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kafka/broker"))
        .args(args)
        .stdin(Stdio::null())
        .stderr(said.reopen().unwrap())
        .output()
        .expect("tests/kafka/broker starts");
    let text = fs::read_to_string(said.path()).unwrap_or_default();
    assert!(output.status.success(), "{text}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A command about a running broker or cluster in this folder.
#[track_caller]
fn on(dir: &Path, command: &str, args: &[&str]) -> String {
    let args = args.iter().map(AsRef::as_ref);
    script([command.as_ref(), dir.as_os_str()].into_iter().chain(args))
}

/// Each as the value of this option.
fn options<'a>(name: &'a str, values: &[&'a str]) -> Vec<&'a str> {
    values.iter().flat_map(|value| [name, value]).collect()
}

#[track_caller]
fn start(args: &[&str], conf: &[&str]) -> (PathBuf, String) {
    let owner = std::process::id().to_string();
    let said = script([args, &["--owner", &owner], &options("--conf", conf)].concat());
    let (dir, address) = said.split_once(' ').expect("a folder and an address");
    (dir.into(), address.to_owned())
}

/// One broker. Stopped when dropped, or when the test process exits.
pub struct Broker {
    pub version: Version,
    /// `127.0.0.1:PORT`; constant for its lifetime.
    pub address: String,
    dir: PathBuf,
}

impl Broker {
    /// Shared by all tests that only read and write. Never stop or kill it: other tests are using it.
    #[track_caller]
    pub fn shared(version: Version) -> &'static Broker {
        static SHARED: LazyLock<OneEach> = LazyLock::new(Mutex::default);
        // One start at a time: two at once on two cores take longer than one after the other.
        static STARTING: Mutex<()> = Mutex::new(());
        one_of(&SHARED, version, || {
            let _one = lock(&STARTING);
            Broker::own(version)
        })
    }
    /// A broker with TLS, SASL and ACLs (see `tests/kafka/broker`) and sessions of 4 s. Shared by all tests that only
    /// create topics and permissions of their own.
    #[track_caller]
    pub fn secure(version: Version) -> &'static Broker {
        static SECURE: LazyLock<OneEach> = LazyLock::new(Mutex::default);
        one_of(&SECURE, version, || Broker::own_secure(version, &["connections.max.reauth.ms=4000"]))
    }
    /// The same for one test only, with these lines in its server.properties.
    #[track_caller]
    pub fn own_secure(version: Version, conf: &[&str]) -> Broker {
        Broker::start(version, &["--secure"], conf)
    }
    #[track_caller]
    fn start(version: Version, args: &[&str], conf: &[&str]) -> Broker {
        let (dir, address) = start(&[&["start", version.name()], args].concat(), conf);
        Broker { version, address, dir }
    }
    /// Its folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
    /// A secure broker for one user, which also serves clients in other network namespaces: those reach it at `host`.
    #[track_caller]
    pub fn secure_at(version: Version, host: &str) -> Broker {
        Broker::start(version, &["--secure", "--host", host], &[])
    }
    /// The address of a listener of a secure broker.
    pub fn listener(&self, name: &str) -> String {
        on(&self.dir, "address", &[name])
    }
    /// A key file of a secure broker.
    pub fn key(&self, name: &str) -> PathBuf {
        self.dir.join("keys").join(name)
    }
    /// Grants a user the right to write to a topic.
    pub fn allow(&self, user: &str, topic: &Topic) {
        on(&self.dir, "acl", &["add", user, &topic.name]);
    }
    /// Grants a user the right to read a topic.
    pub fn allow_reading(&self, user: &str, topic: &Topic) {
        on(&self.dir, "acl", &["add", user, &topic.name, "read"]);
    }
    /// Revokes the right to write.
    pub fn forbid(&self, user: &str, topic: &Topic) {
        on(&self.dir, "acl", &["remove", user, &topic.name]);
    }
    /// A broker for this test only.
    #[track_caller]
    pub fn own(version: Version) -> Broker {
        Broker::own_with(version, &[])
    }
    /// With these lines in its server.properties, `key=value`.
    #[track_caller]
    pub fn own_with(version: Version, conf: &[&str]) -> Broker {
        Broker::start(version, &[], conf)
    }

    fn tell(&self, what: &str) -> String {
        on(&self.dir, what, &[])
    }
    /// SIGTERM; waits until it exits.
    pub fn stop(&self) {
        self.tell("stop");
    }
    /// SIGKILL; waits until it exits.
    pub fn kill(&self) {
        self.tell("kill");
    }
    /// SIGSTOP: connections stay open, nothing answers.
    pub fn pause(&self) {
        self.tell("pause");
    }
    pub fn resume(&self) {
        self.tell("resume");
    }
    /// Restarts on the same port and data; waits until it serves its topics again.
    pub fn restart(&self) {
        self.tell("restart");
    }
    /// Restarts the node with its data on another port; returns its new address.
    pub fn move_away(&mut self) -> String {
        self.address = self.tell("move");
        self.address.clone()
    }
    /// Like [`Broker::restart`] with other settings, which persist.
    pub fn restart_with(&self, conf: &[&str]) {
        on(&self.dir, "restart", &options("--conf", conf));
    }
    /// Restarts on the same port and data with another version of Kafka (3.9 to 4.1).
    pub fn replace_by(&mut self, version: Version) {
        on(&self.dir, "restart", &[version.name()]);
        self.version = version;
    }
    pub fn pid(&self) -> u32 {
        self.tell("pid").parse().expect("the broker's process")
    }
    pub fn port(&self) -> u16 {
        self.address.rsplit_once(':').unwrap().1.parse().unwrap()
    }
    pub fn topic(&self, partitions: u32) -> Topic {
        self.topic_with(partitions, &[])
    }
    pub fn topic_with(&self, partitions: u32, config: &[&str]) -> Topic {
        let topic = self.missing_topic(partitions);
        topic.create(config);
        topic
    }
    /// The name of a topic that does not exist yet.
    pub fn missing_topic(&self, partitions: u32) -> Topic {
        Topic::missing(&self.address, &self.dir, partitions)
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        drop_dir(&self.dir);
    }
}

/// Three brokers, replication factor 3, `min.insync.replicas=2`.
pub struct Cluster {
    pub addresses: Vec<String>,
    dir: PathBuf,
}

impl Cluster {
    #[track_caller]
    pub fn start(version: Version, conf: &[&str]) -> Cluster {
        let (dir, addresses) = start(&["cluster", "start", version.name()], conf);
        Cluster { addresses: addresses.split(',').map(str::to_owned).collect(), dir }
    }
    pub fn bootstrap(&self) -> String {
        self.addresses.join(",")
    }
    pub fn topic(&self, partitions: u32) -> Topic {
        let topic = Topic::missing(&self.bootstrap(), &self.dir, partitions);
        topic.create(&[]);
        topic
    }
    /// One partition, on this node only.
    pub fn topic_on(&self, node: usize) -> Topic {
        let topic = Topic::missing(&self.bootstrap(), &self.dir, 1);
        topic.create_on(node);
        topic
    }
    /// Restarts the node with its data on another port.
    pub fn move_away(&mut self, node: usize) {
        self.addresses[node - 1] = self.tell(node, "move");
    }
    /// Nodes are 1, 2 and 3.
    pub fn kill(&self, node: usize) {
        self.tell(node, "kill");
    }
    pub fn restart(&self, node: usize) {
        self.tell(node, "restart");
    }
    fn tell(&self, node: usize, what: &str) -> String {
        on(&self.dir.join(node.to_string()), what, &[])
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        drop_dir(&self.dir);
    }
}

fn drop_dir(dir: &Path) {
    // Not `script`, which panics: this may run while a test fails.
    let broker = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kafka/broker");
    let _ = Command::new(broker).arg("remove").arg(dir).stdout(Stdio::null()).stderr(Stdio::null()).status();
}

/// A record as kcat prints it, borrowed from the read buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    pub partition: i32,
    pub offset: i64,
    /// Milliseconds; -1 if the record has none.
    pub timestamp: i64,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
}

/// A topic used by one test only.
pub struct Topic {
    pub name: String,
    pub address: String,
    pub partitions: u32,
    dir: PathBuf,
}

impl Topic {
    /// The name of a topic that does not exist yet, of the brokers in this folder.
    fn missing(address: &str, dir: &Path, partitions: u32) -> Topic {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let name = format!("t{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        Topic { name, address: address.to_owned(), partitions, dir: dir.to_owned() }
    }
    /// A topic of a server that `tests/kafka/broker` did not start: it can only be read.
    pub fn of_foreign(address: &str, name: &str, partitions: u32) -> Topic {
        Topic { name: name.into(), address: address.into(), partitions, dir: PathBuf::new() }
    }
    /// For reading only: the end offsets of a foreign server may be wrong.
    fn kcat(&self) -> Command {
        let is_foreign = self.dir.as_os_str().is_empty();
        if !is_foreign {
            return Command::new("kcat");
        }
        let mut kcat = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kafka/foreign/run"));
        kcat.arg("kcat");
        kcat
    }
    #[track_caller]
    pub fn create(&self, config: &[&str]) {
        let partitions = self.partitions.to_string();
        self.tell(&[&["--partitions", &partitions[..]][..], &options("--config", config)].concat());
    }
    /// One partition, on this node of a cluster only.
    #[track_caller]
    pub fn create_on(&self, node: usize) {
        self.tell(&["--node", &node.to_string()]);
    }
    /// Adds partitions until there are this many, by Kafka's own tool.
    #[track_caller]
    pub fn grow(&mut self, version: Version, partitions: u32) {
        self.partitions = partitions;
        let (tool, n) = ("org.apache.kafka.tools.TopicCommand", partitions.to_string());
        let args =
            ["--bootstrap-server", &self.address, "--alter", "--topic", &self.name, "--partitions", &n];
        script(["tool", version.name(), tool].into_iter().chain(args));
    }
    #[track_caller]
    pub fn delete(&self) {
        self.tell(&["--delete"]);
    }
    #[track_caller]
    fn tell(&self, args: &[&str]) {
        on(&self.dir, "topic", &[&[&self.name[..]], args].concat());
    }

    /// Reads all partitions from beginning to end, checking each record's CRC; 1,000,000 records a second.
    #[track_caller]
    pub fn each(&self, mut look: impl FnMut(Record<'_>)) {
        need("kcat");
        // Queues large enough for a whole test: with its defaults kcat pauses at 100,000 records and takes three
        // times as long.
        let mut kcat = self
            .kcat()
            .args(["-C", "-e", "-q", "-o", "beginning", "-b", &self.address, "-t", &self.name])
            .args([
                "-X",
                "check.crcs=true",
                "-X",
                "fetch.wait.max.ms=10",
                "-X",
                "queued.min.messages=1000000",
            ])
            .args(["-X", "queued.max.messages.kbytes=300000", "-f", "%p %o %T %K %S\n%k%s\n"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kcat starts");
        let mut errors = kcat.stderr.take().unwrap();
        let errors = thread::spawn(move || {
            let mut text = String::new();
            let _ = errors.read_to_string(&mut text);
            text
        });
        let mut out = BufReader::with_capacity(1 << 18, kcat.stdout.take().unwrap());
        let guard = limit_process(&mut kcat, READING);
        let (mut head, mut body) = (Vec::new(), Vec::new());
        while read_record(&mut out, &mut head, &mut body, &mut look) {}
        let status = kcat.wait().unwrap();
        drop(guard);
        let text = errors.join().unwrap();
        assert!(status.success(), "kcat could not read topic {}: {status}: {text}", self.name);
    }

    /// All values in order of partition and offset; for small topics.
    #[track_caller]
    pub fn values(&self) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        self.each(|r| all.push(((r.partition, r.offset), r.value.unwrap_or(b"<null>").to_vec())));
        all.sort();
        all.into_iter().map(|(_, value)| value).collect()
    }

    /// The sum of the partitions' end offsets. Duplicates count.
    pub fn end_offsets(&self) -> u64 {
        let asked = (0..self.partitions).flat_map(|p| ["-t".to_owned(), format!("{}:{p}:-1", self.name)]);
        let out =
            Command::new("kcat").args(["-Q", "-b", &self.address]).args(asked).stdin(Stdio::null()).output();
        let out = out.expect("kcat starts");
        let text = String::from_utf8_lossy(&out.stdout);
        text.lines().filter_map(|line| line.rsplit_once("offset ")?.1.trim().parse::<u64>().ok()).sum()
    }
    /// Bytes of the partitions' segments on the broker's disk: the batches as sent over the wire.
    pub fn bytes_on_disk(&self) -> u64 {
        fn sum(dir: &Path, topic: &str) -> u64 {
            let entries = std::fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
            entries
                .map(|e| {
                    let path = e.path();
                    let of_topic = path.parent().and_then(Path::file_name).is_some_and(|p| {
                        p.to_string_lossy().rsplit_once('-').is_some_and(|(name, _)| name == topic)
                    });
                    match e.metadata() {
                        Ok(m) if m.is_dir() => sum(&path, topic),
                        Ok(m) if of_topic && path.extension().is_some_and(|x| x == "log") => m.len(),
                        _ => 0,
                    }
                })
                .sum()
        }
        sum(&self.dir, &self.name)
    }
    /// Waits for at least `n` records.
    #[track_caller]
    pub fn wait_count(&self, n: u64) {
        self.wait_count_for(n, PATIENT);
    }
    #[track_caller]
    pub fn wait_count_for(&self, n: u64, limit: Duration) {
        let end = Instant::now() + limit;
        loop {
            let seen = self.end_offsets();
            if seen >= n {
                return;
            }
            assert!(Instant::now() < end, "topic {} has {seen} of {n} records after {limit:?}", self.name);
            pause(millis(50));
        }
    }
}

fn read_record(
    out: &mut impl BufRead,
    head: &mut Vec<u8>,
    body: &mut Vec<u8>,
    look: &mut impl FnMut(Record<'_>),
) -> bool {
    head.clear();
    if out.read_until(b'\n', head).unwrap() == 0 {
        return false;
    }
    let text = std::str::from_utf8(head).expect("kcat's numbers");
    let numbers: Vec<i64> = text.split_whitespace().map(|n| n.parse().expect("kcat's numbers")).collect();
    let [partition, offset, timestamp, key_len, value_len] = numbers[..] else {
        panic!("unexpected output of kcat: {text:?}")
    };
    let (klen, vlen) = (key_len.max(0) as usize, value_len.max(0) as usize);
    body.resize(klen + vlen + 1, 0);
    out.read_exact(body).unwrap();
    look(Record {
        partition: partition as i32,
        offset,
        timestamp,
        key: (key_len >= 0).then(|| &body[..klen]),
        value: (value_len >= 0).then(|| &body[klen..klen + vlen]),
    });
    true
}

/// Time limit for reading a whole topic: millions of records on a busy machine.
const READING: Duration = Duration::from_secs(600);

/// Kills a child that still runs after `limit`; does nothing once dropped.
fn limit_process(child: &mut std::process::Child, limit: Duration) -> std::sync::mpsc::Sender<()> {
    let (keep, gone) = std::sync::mpsc::channel::<()>();
    let pid = rustix::process::Pid::from_child(child);
    thread::spawn(move || {
        if gone.recv_timeout(limit) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    });
    keep
}
