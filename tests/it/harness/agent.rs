//! The real binary in a folder of its own: started, stopped, killed, observed from outside through /proc. Tests
//! supply its command line.

use super::manager::Manager;
use super::{SOON, Topic, limit_the_suite, millis, pause, wait_for, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    ffi::{OsStr, OsString},
    fs,
    io::{Read, Write},
    os::fd::{AsRawFd, OwnedFd},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// The agent under test: `LOGAGENT_BIN` (a release or static build), else what cargo built for the tests.
pub fn binary() -> PathBuf {
    std::env::var_os("LOGAGENT_BIN").map_or_else(|| env!("CARGO_BIN_EXE_logagent").into(), PathBuf::from)
}

/// Picks the limit for an optimized or an unoptimized agent: unoptimized code is larger, slower, and needs deeper
/// stacks.
pub fn optimized<T>(limit: T, otherwise: T) -> T {
    if std::env::var_os("LOGAGENT_BIN").is_some() { limit } else { otherwise }
}

static ALIVE: Mutex<Vec<u32>> = Mutex::new(Vec::new());

/// Kills every agent that this process started and has not yet seen exit.
pub fn kill_all() {
    for id in ALIVE.lock().unwrap().iter() {
        if let Some(pid) = Pid::from_raw(*id as i32) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// A temporary folder: where a test keeps its logs and where its agents run.
pub struct Folder {
    dir: tempfile::TempDir,
    agents: AtomicU32,
}

impl Folder {
    pub fn new() -> Folder {
        Folder::below(&std::env::temp_dir())
    }
    /// A folder outside /tmp, for tests that count wake-ups: the agent watches every parent of a file, and the other tests
    /// change /tmp all the time.
    pub fn quiet() -> Folder {
        let parent = Path::new(env!("CARGO_TARGET_TMPDIR"));
        fs::create_dir_all(parent).expect("cargo's folder for tests");
        Folder::below(parent)
    }
    fn below(parent: &Path) -> Folder {
        let dir =
            tempfile::Builder::new().prefix("logagent-").tempdir_in(parent).expect("a temporary folder");
        Folder { dir, agents: AtomicU32::new(0) }
    }
    pub fn root(&self) -> &Path {
        self.dir.path()
    }
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(name)
    }
    /// Writes a whole file, and creates its parent folders.
    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }
    /// Writes `c.toml` for `f.log`, from its beginning; `kafka` holds further keys and tables of `[kafka]`.
    pub fn write_config(&self, brokers: &str, topic: &str, kafka: &str) {
        let (state, log) = (self.path("state"), self.path("f.log"));
        let text = format!(
            "[agent]\nstate_dir = {state:?}\n[kafka]\nbrokers = [{brokers:?}]\ntopic = {topic:?}\n{kafka}\n\
             [[files]]\npaths = [{log:?}]\nstart = \"beginning\"\n"
        );
        self.write("c.toml", text);
    }
    /// One `write(2)` with `O_APPEND`, as loggers do; creates the file if it does not exist.
    pub fn append(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let mut file = fs::OpenOptions::new().create(true).append(true).open(self.path(name)).unwrap();
        file.write_all(bytes.as_ref()).unwrap();
    }
    pub fn mkdir(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(&path).unwrap();
        path
    }
    /// Renames within the folder, as logrotate does.
    #[allow(clippy::disallowed_methods)]
    pub fn rename(&self, from: &str, to: &str) {
        fs::rename(self.path(from), self.path(to)).unwrap();
    }
    pub fn remove(&self, name: &str) {
        fs::remove_file(self.path(name)).unwrap();
    }
    /// An agent that will run in this folder with these arguments.
    pub fn agent<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Setup {
        limit_the_suite();
        let bin = binary();
        assert!(bin.exists(), "there is no agent at {}: build it first", bin.display());
        let mut command = Command::new(bin);
        command.current_dir(self.root()).args(args).env("TMPDIR", self.root());
        for name in [
            "RUST_LOG",
            "STATE_DIRECTORY",
            "NOTIFY_SOCKET",
            "WATCHDOG_USEC",
            "FDSTORE",
            "INVOCATION_ID",
            "JOURNAL_STREAM",
        ] {
            command.env_remove(name);
        }
        let socket = self.path(format!(".notify-{}", self.agents.fetch_add(1, Ordering::Relaxed)));
        Setup { command, socket, input: None, given: Vec::new() }
    }
    /// Like [`Folder::agent_line`], started through a program that executes it: `env`, `setpriv` and the like.
    pub fn started_by<S: AsRef<OsStr>>(&self, starter: impl IntoIterator<Item = S>, args: &str) -> Setup {
        let mut setup = self.agent(Vec::<&str>::new());
        let mut words = starter.into_iter();
        let mut command = Command::new(words.next().expect("a program"));
        command.args(words).arg(binary()).args(args.split_whitespace());
        setup.replace(command);
        setup
    }
    /// An agent that follows `f.log` from its beginning into a topic and keeps its positions in `state`.
    pub fn follows(&self, brokers: &str, topic: &Topic, driver: &str) -> Setup {
        let name = &topic.name;
        self.agent_line(&format!(
            "run --brokers {brokers} --topic {name} --driver {driver} --from beginning --state-dir state f.log"
        ))
    }
    /// Like [`Folder::agent`], with one string split at blanks.
    pub fn agent_line(&self, args: &str) -> Setup {
        self.agent(args.split_whitespace())
    }
}

/// An agent that is not started yet.
pub struct Setup {
    command: Command,
    socket: PathBuf,
    input: Option<Vec<u8>>,
    given: Vec<(String, OwnedFd)>,
}

/// Gives a command the environment and the folder of another one.
pub fn surround(command: &mut Command, of: &Command) {
    for (name, value) in of.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    if let Some(folder) = of.get_current_dir() {
        command.current_dir(folder);
    }
}

impl Setup {
    /// Runs the program that cargo built for the tests, also where `LOGAGENT_BIN` is set: a preloaded library has no effect
    /// on a static program.
    pub fn dynamic(mut self) -> Setup {
        let mut command = Command::new(env!("CARGO_BIN_EXE_logagent"));
        command.args(self.command.get_args());
        self.replace(command);
        self
    }

    /// Starts with these descriptors, as systemd passes its store: from 3 upwards, announced in the environment.
    pub fn given(mut self, store: Vec<(String, OwnedFd)>) -> Setup {
        let names: Vec<&str> = store.iter().map(|(name, _)| name.as_str()).collect();
        let (own, count) = (std::process::id(), store.len());
        assert!((1..=7).contains(&count), "a shell's redirections have one digit");
        let open = |(i, (_, fd)): (usize, &(String, OwnedFd))| {
            format!("{}</proc/{own}/fd/{}", i + 3, fd.as_raw_fd())
        };
        let opened: Vec<String> = store.iter().enumerate().map(open).collect();
        let opened = opened.join(" ");
        // Only the process that becomes the agent knows its own process id.
        let script = format!("exec {opened}; LISTEN_PID=${{LISTEN_PID:-$$}} exec \"$@\"");
        let mut command = Command::new("sh");
        command.args(["-c", &script, "sh"]).arg(self.command.get_program()).args(self.command.get_args());
        self.replace(command);
        self.command.env("LISTEN_FDS", count.to_string()).env("LISTEN_FDNAMES", names.join(":"));
        Setup { given: store, ..self }
    }
    /// Replaces the command by another one in the same environment, which executes a copy of the agent.
    pub fn replaced_by<S: AsRef<OsStr>>(mut self, words: impl IntoIterator<Item = S>) -> Setup {
        let mut words = words.into_iter();
        let mut command = Command::new(words.next().expect("a program"));
        command.args(words);
        self.replace(command);
        self
    }
    /// Replaces the command by another one in the same environment.
    fn replace(&mut self, mut command: Command) {
        surround(&mut command, &self.command);
        self.command = command;
    }

    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Setup {
        self.command.arg(arg);
        self
    }
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Setup {
        self.command.env(name, value);
        self
    }
    /// Appends the agent to the arguments of this program, which must execute it.
    pub fn wrapped_in<S: AsRef<OsStr>>(mut self, wrap: impl IntoIterator<Item = S>) -> Setup {
        let mut words = wrap.into_iter();
        let mut outer = Command::new(words.next().expect("a program"));
        outer.args(words).arg(self.command.get_program()).args(self.command.get_args());
        self.replace(outer);
        self
    }
    /// Its standard input, which is empty by default.
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Setup {
        self.input = Some(bytes.into());
        self
    }

    /// Starts it and returns immediately.
    pub fn spawn(mut self) -> Agent {
        let notify = Manager::bind(&self.socket, self.given);
        self.command.env("NOTIFY_SOCKET", &self.socket);
        self.command.stdin(if self.input.is_some() { Stdio::piped() } else { Stdio::null() });
        let mut child =
            self.command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the agent starts");
        ALIVE.lock().unwrap().push(child.id());
        let stdout = Capture::of(child.stdout.take().unwrap());
        let stderr = Capture::of(child.stderr.take().unwrap());
        if let Some(bytes) = self.input {
            let mut pipe = child.stdin.take().unwrap();
            // The test judges an agent that exits without reading all its input, by its exit code.
            thread::spawn(move || drop(pipe.write_all(&bytes)));
        }
        let watch = Watch::of(child.id());
        let args = self.command.get_args().map(OsStr::to_owned).collect();
        Agent { child, stdout, stderr, notify, watch, started: Instant::now(), done: None, args }
    }

    /// Starts it and waits for READY=1.
    #[track_caller]
    pub fn start(self) -> Agent {
        let mut agent = self.spawn();
        agent.wait_ready();
        agent
    }

    /// Runs it until it exits; fails if that takes longer than `limit`.
    #[track_caller]
    pub fn run_for(self, limit: Duration) -> Done {
        self.spawn().wait_exit(limit)
    }
    #[track_caller]
    pub fn run(self) -> Done {
        self.run_for(SOON)
    }
}

/// How an agent exited, and its output.
#[derive(Clone, Debug)]
pub struct Done {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: String,
    pub took: Duration,
    /// Processor time of all its threads, user and system.
    pub cpu: Duration,
    /// Highest resident memory seen (sampled every 5 ms), in KiB.
    pub vm_hwm: u64,
}

impl Done {
    /// The exit code; `None` if a signal killed it.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }
    #[track_caller]
    pub fn expect_code(self, code: i32) -> Done {
        assert_eq!(
            self.status.code(),
            Some(code),
            "exit code (signal {:?}) after {:?}; its log:\n{}",
            self.status.signal(),
            self.took,
            self.stderr
        );
        self
    }
    /// The lines of standard output without their ends.
    pub fn lines(&self) -> Vec<Vec<u8>> {
        split_lines(&self.stdout)
    }
    /// The complete ones: a kill may cut off the last one, which is sent again.
    pub fn whole_lines(&self) -> Vec<Vec<u8>> {
        let whole = self.stdout.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        split_lines(&self.stdout[..whole])
    }
}

fn split_lines(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut lines: Vec<Vec<u8>> = bytes.split(|b| *b == b'\n').map(<[u8]>::to_vec).collect();
    if lines.last().is_some_and(Vec::is_empty) {
        lines.pop();
    }
    lines
}

/// A running agent. Killed when dropped.
pub struct Agent {
    child: Child,
    stdout: Capture,
    stderr: Capture,
    notify: Manager,
    watch: Watch,
    started: Instant,
    done: Option<Done>,
    args: Vec<OsString>,
}

impl Agent {
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for `READY=1` on `NOTIFY_SOCKET`: config, state and watches are in order (not Kafka).
    #[track_caller]
    pub fn wait_ready(&mut self) {
        self.wait_notify("READY=1");
    }
    /// SIGHUP; waits until the agent reports that it has read its config again.
    #[track_caller]
    pub fn reload(&mut self) {
        self.signal(Signal::HUP);
        self.wait_notify("RELOADING=1");
        self.wait_ready();
    }

    /// Waits for this line to the service manager; skips those before it.
    #[track_caller]
    pub fn wait_notify(&mut self, what: &str) {
        let end = Instant::now() + SOON;
        loop {
            if self.notify.next().is_some_and(|m| m.lines().any(|line| line == what)) {
                return;
            }
            if let Some(done) = self.ended() {
                panic!("the agent ended before {what}: {:?}\n{}", done.status, done.stderr);
            }
            assert!(Instant::now() < end, "no {what} within {SOON:?} of {:?}:\n{}", self.args, self.log());
            pause(millis(5));
        }
    }

    /// The messages it has sent to its service manager since the last call.
    pub fn notices(&self) -> Vec<String> {
        std::iter::from_fn(|| self.notify.next()).collect()
    }
    /// The names of the descriptors that the service manager keeps for it.
    pub fn kept(&self) -> Vec<String> {
        self.notify.kept()
    }
    /// Those descriptors, for the next run.
    pub fn take_kept(&self) -> Vec<(String, OwnedFd)> {
        self.notify.take()
    }
    /// The id of the thread with this name.
    #[track_caller]
    pub fn thread(&self, name: &str) -> u32 {
        self.find_thread(name).unwrap_or_else(|| panic!("no thread {name}"))
    }
    /// The same, if there is such a thread now.
    pub fn find_thread(&self, name: &str) -> Option<u32> {
        let mut tasks = fs::read_dir(format!("/proc/{}/task", self.id())).unwrap().flatten();
        let named = |task: &fs::DirEntry| {
            fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.trim_end() == name)
        };
        tasks.find(named)?.file_name().to_str()?.parse().ok()
    }

    pub fn signal(&self, signal: Signal) {
        if self.done.is_none() {
            let _ = kill_process(Pid::from_child(&self.child), signal);
        }
    }
    /// SIGSTOP: suspended until [`Agent::resume`].
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }
    /// SIGTERM; waits until it exits.
    #[track_caller]
    pub fn stop(&mut self) -> Done {
        self.signal(Signal::TERM);
        self.wait_exit(SOON)
    }
    /// SIGKILL; waits until it exits.
    #[track_caller]
    pub fn kill(&mut self) -> Done {
        self.signal(Signal::KILL);
        self.wait_exit(SOON)
    }

    /// `None` while it runs.
    pub fn ended(&mut self) -> Option<Done> {
        if self.done.is_none() {
            let cpu = cpu_time(self.id());
            let status = self.child.try_wait().expect("the state of the agent")?;
            ALIVE.lock().unwrap().retain(|id| *id != self.child.id());
            let took = self.started.elapsed();
            let (stdout, stderr) = (self.stdout.finish(), self.stderr.finish());
            let stderr = String::from_utf8_lossy(&stderr).into_owned();
            self.done = Some(Done { status, stdout, stderr, took, cpu, vm_hwm: self.watch.vm_hwm() });
        }
        self.done.clone()
    }
    #[track_caller]
    pub fn wait_exit(&mut self, limit: Duration) -> Done {
        let end = Instant::now() + limit;
        loop {
            if let Some(done) = self.ended() {
                return done;
            }
            assert!(
                Instant::now() < end,
                "{:?} did not end within {limit:?}; its log:\n{}",
                self.args,
                self.log()
            );
            pause(millis(2));
        }
    }

    /// Everything on standard error so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&self.stderr.bytes()).into_owned()
    }
    /// Waits for a line on standard error that contains `part`; returns it.
    #[track_caller]
    pub fn wait_log(&self, part: &str, limit: Duration) -> String {
        let end = Instant::now() + limit;
        loop {
            let log = self.log();
            if let Some(line) = log.lines().find(|line| line.contains(part)) {
                return line.to_owned();
            }
            assert!(Instant::now() < end, "no line with {part:?} within {limit:?} in:\n{log}");
            pause(millis(10));
        }
    }

    /// Everything on standard output so far, by lines, including an incomplete last one.
    pub fn lines(&self) -> Vec<Vec<u8>> {
        split_lines(&self.stdout.bytes())
    }
    pub fn stdout(&self) -> Vec<u8> {
        self.stdout.bytes()
    }
    /// Complete lines on standard output so far.
    pub fn count_lines(&self) -> usize {
        self.stdout.count_lines()
    }
    /// Waits until standard output has `n` complete lines, then a moment more to catch excess lines; returns them
    /// all.
    #[track_caller]
    pub fn wait_lines(&self, n: usize) -> Vec<Vec<u8>> {
        let end = Instant::now() + SOON;
        while self.stdout.count_lines() < n {
            let seen = self.stdout.count_lines();
            assert!(Instant::now() < end, "{seen} of {n} lines on standard output; its log:\n{}", self.log());
            pause(millis(5));
        }
        pause(millis(50));
        self.lines()
    }

    /// Highest resident memory so far, in KiB.
    pub fn vm_hwm(&self) -> u64 {
        status_field(self.id(), "VmHWM:").unwrap_or_else(|| self.watch.vm_hwm())
    }
    pub fn vm_rss(&self) -> u64 {
        status_field(self.id(), "VmRSS:").unwrap_or(0)
    }
    /// Processor time of all threads so far, in steps of 10 ms.
    pub fn cpu(&self) -> Duration {
        cpu_time(self.id())
    }
    /// Context switches so far of the threads that are alive: how often the agent woke up.
    pub fn switches(&self) -> u64 {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.id())).into_iter().flatten().flatten();
        tasks
            .filter_map(|task| fs::read_to_string(task.path().join("status")).ok())
            .map(|text| {
                field(&text, "voluntary_ctxt_switches:") + field(&text, "nonvoluntary_ctxt_switches:")
            })
            .sum()
    }
    pub fn threads(&self) -> u64 {
        status_field(self.id(), "Threads:").unwrap_or(0)
    }
    /// The targets of its descriptors.
    pub fn open_files(&self) -> Vec<PathBuf> {
        let fds = fs::read_dir(format!("/proc/{}/fd", self.id())).into_iter().flatten().flatten();
        fds.filter_map(|fd| fs::read_link(fd.path()).ok()).collect()
    }
    #[track_caller]
    pub fn wait_closed(&self, path: &Path, limit: Duration) {
        let deleted = PathBuf::from(format!("{} (deleted)", path.display()));
        wait_until(limit, &format!("{} is closed", path.display()), || {
            !self.open_files().iter().any(|open| open == path || *open == deleted)
        });
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if self.done.is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
            ALIVE.lock().unwrap().retain(|id| *id != self.child.id());
        }
        if thread::panicking() {
            let log = self.done.as_ref().map_or_else(|| self.log(), |done| done.stderr.clone());
            let from = log.len().saturating_sub(4000);
            let from = (from..=log.len()).find(|at| log.is_char_boundary(*at)).unwrap_or(0);
            eprintln!("--- log of the agent {:?}:\n{}---", self.args, &log[from..]);
        }
    }
}

/// `logagent status --json` for a state folder; fails unless it prints an object in time.
#[track_caller]
pub fn status_json(folder: &Folder, state_dir: &Path) -> serde_json::Value {
    let done = folder.agent(["status", "--json", "--state-dir"]).arg(state_dir).run().expect_code(0);
    let value: serde_json::Value = serde_json::from_slice(&done.stdout)
        .unwrap_or_else(|e| panic!("status --json: {e}: {}", String::from_utf8_lossy(&done.stdout)));
    assert!(value.is_object(), "status --json gives an object: {value}");
    value
}

/// Polls the status until `condition` holds.
#[track_caller]
pub fn wait_status(
    folder: &Folder,
    state_dir: &Path,
    what: &str,
    mut condition: impl FnMut(&serde_json::Value) -> bool,
) -> serde_json::Value {
    wait_for(SOON, what, || {
        let value = status_json(folder, state_dir);
        condition(&value).then_some(value)
    })
}

/// What a pipe has delivered so far, read by a thread so that the agent never waits for the test.
struct Capture {
    bytes: Arc<Mutex<Vec<u8>>>,
    newlines: Arc<AtomicU64>,
    reader: Option<thread::JoinHandle<()>>,
}

impl Capture {
    fn of(mut pipe: impl Read + Send + 'static) -> Capture {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let newlines = Arc::new(AtomicU64::new(0));
        let (into, count) = (bytes.clone(), newlines.clone());
        let reader = thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            while let Ok(n) = pipe.read(&mut buffer) {
                if n == 0 {
                    return;
                }
                into.lock().unwrap().extend_from_slice(&buffer[..n]);
                count.fetch_add(memchr::memchr_iter(b'\n', &buffer[..n]).count() as u64, Ordering::Release);
            }
        });
        Capture { bytes, newlines, reader: Some(reader) }
    }
    fn bytes(&self) -> Vec<u8> {
        self.bytes.lock().unwrap().clone()
    }
    fn count_lines(&self) -> usize {
        self.newlines.load(Ordering::Acquire) as usize
    }
    fn finish(&mut self) -> Vec<u8> {
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        self.bytes()
    }
}

/// Samples the highest resident memory, which the kernel discards when the process exits.
struct Watch {
    vm_hwm: Arc<AtomicU64>,
}

impl Watch {
    fn of(id: u32) -> Watch {
        let vm_hwm = Arc::new(AtomicU64::new(0));
        let seen = vm_hwm.clone();
        thread::spawn(move || {
            while let Some(kib) = status_field(id, "VmHWM:") {
                seen.fetch_max(kib, Ordering::Relaxed);
                pause(millis(5));
            }
        });
        Watch { vm_hwm }
    }
    fn vm_hwm(&self) -> u64 {
        self.vm_hwm.load(Ordering::Relaxed)
    }
}

fn status_field(id: u32, name: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    text.contains(name).then(|| field(&text, name))
}

fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("0");
    line.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// utime + stime of /proc/PID/stat, also of a zombie; 100 ticks a second on Linux whatever HZ is.
fn cpu_time(id: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    let after = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: u64 = after.split_whitespace().skip(11).take(2).filter_map(|t| t.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}
