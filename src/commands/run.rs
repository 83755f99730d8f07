//! `logagent run`: follows files and delivers their lines. The only file that knows all stages: it creates them,
//! connects them, and ends them by dropping the channels they wait on.
//!
//! On SIGHUP the config is read again (`reload.rs`). Tails and the producer adopt the changes without stopping.
//!
//! Shutdown follows the data: the tails end, the producer sends the rest and waits for acknowledgements up to
//! `drain_timeout`, then the saver saves. A second signal exits immediately.

use super::journals::Journals;
use super::options::{self, Shares};
use super::recover::{Recovered, forget, recover};
use super::supervisor::Supervisor;
use super::watchdog::Watchdog;
use super::{drivers, inherited, reload};
use crate::budget::Budget;
use crate::cli;
use crate::config::{self, Config, Delivery, Output, Overrides};
use crate::error::{Error, ExitCode};
use crate::fdstore::{self, FdStore};
use crate::handover::{self, Outlet};
use crate::private_file;
use crate::producer::{self, BeforeSend, Dead, Halts, dead_letter};
use crate::report::Board;
use crate::report::live::{self, StatusServer};
use crate::report::snapshot::Snapshot;
use crate::signals::{self, Signal};
use crate::state::{self, Saver};
use crate::stop;
use crate::streams::mailbox::{self, Publisher};
use crate::streams::{Registry, Saved};
use crate::systemd::Notify;
use crate::tail::known::{Entry, Known};
use crate::waker::{Waker, Waking};
use crate::watch::WatchEvent;
use crossbeam_channel::{Receiver, after, bounded, never, select};
use log::{error, info, warn};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::collections::HashSet;
use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, Builder, Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

/// Chunks between the tails and the producer: enough that neither has to wait for the other's round.
const CHUNKS: usize = 64;
/// Bytes of a stage's stack.
const STACK: usize = 256 << 10;
/// `timeout(1)` and shells signal both the process and its group: a repeat within this time counts as the same
/// signal.
const SAME_SIGNAL: Duration = Duration::from_millis(50);
/// How long the first scan may take before readiness is reported without it: a file may hang on a dead NFS mount.
const FIRST_LOOK: Duration = Duration::from_secs(10);

/// `at_once` exits immediately, for the second signal.
pub fn run(asked: cli::RunArgs, at_once: fn(ExitCode) -> !) -> Result<ExitCode, Error> {
    let given = fdstore::inherited();
    let signals = signals::start().map_err(Error::no_signals)?;
    let asked = asked.overrides();
    let config = config::load(&asked)?;
    raise_descriptor_limit();
    let board = Arc::new(Board::default());
    let watchdog = Watchdog::from_env(&board.heartbeats);
    let budget = Arc::new(Budget::new(config.agent.memory));
    let _ = board.budget.set(budget.clone());
    let waker = Waker::new().map_err(Error::no_eventfd)?;
    let (publisher, mailbox) = mailbox::pair(&waker);
    let (mut folder, mut saved) = state::open(state_options(&config, publisher), &board)?;
    let mut shares = Shares::of(&budget);
    // After damage to the state, `start` does not apply to any file.
    let is_known = |pattern: &[u8]| saved.from_beginning || saved.sources.iter().any(|s| s == pattern);
    let sources = options::sources(&config, &mut shares, is_known);
    let journals = options::journals(&config, &shares, is_known);
    if let (Some(file), limit) = options::dead_letter(&config) {
        let trouble = |e| {
            let fix = private_file::fix(&e, "let the agent's user read it, or move it away");
            Error::failed(format_args!("read {}", file.display()), e, fix)
        };
        let _ = board.quota.set(dead_letter::quota(&file, limit).map_err(trouble)?);
    }
    let notify = Notify::from_env();
    let store = config.agent.state_dir.as_ref().map(|_| FdStore::new(&notify)).unwrap_or_default();
    inherited::adopt(given, &store, &saved, &sources);
    let recovered = match exactly_once(&config) {
        Some(settings) => {
            let sources = (&*sources, &*journals, &budget);
            Some(recover(settings, sources, &mut folder, &mut saved, mailbox, &store, &board)?)
        }
        None => {
            config.agent.state_dir.as_deref().map_or(Ok(()), forget)?;
            None
        }
    };
    let registry = folder.registry(&board);
    let saver = Saver::start(folder, registry.clone(), &board)?;
    let (intents, once) = match recovered {
        Some(Recovered { intents, once, for_tails }) => {
            saved = for_tails;
            (Some(Box::new(intents) as Box<dyn BeforeSend>), Some(once))
        }
        None => (None, None),
    };
    let known = Known::new(entries(&saved), saved.next_stream).saved_at(saved.written).keeping(store);
    let (chunks, inbox) = handover::chunks(CHUNKS, &waker);
    let outlet = Outlet::new(registry.clone(), chunks);
    let (give_up, give_up_on) = stop::pair();
    let (halt, halt_on) = stop::pair();
    let (give_up, halt) = (Waking::new(give_up, &waker), Waking::new(halt, &waker));
    // Without saved positions the next start knows nothing of the rest, so the producer gets the whole time.
    let stuck = config.agent.state_dir.is_some().then_some(halt_on);
    let left = left(&config);
    let (changes, changed) = producer::Changes::new(&waker);
    let live = live::start(board.clone(), config.agent.state_dir.as_deref());
    let live = live.map_err(|e| Error::no_thread("status", e))?;
    let context = producer::driver::Context { board: board.clone(), waker };
    let ended = thread::scope(|scope| {
        let (board, registry): (&Board, &Registry) = (&board, &registry);
        let (gone, ship_gone) = bounded::<Infallible>(0);
        let shipping = start(scope, "producer", {
            let producer = producer::Producer {
                options: producer::ProducerOptions {
                    once,
                    saved_ms: saved.wall_ms,
                    ..options::producer(&config)
                },
                inbox,
                changes: changed,
                drive: drivers::drive(&config),
                context,
                intents,
                registry,
                halts: Halts { stuck, now: give_up_on },
            };
            move || {
                let _gone = gone;
                producer::run(producer)
            }
        })?;
        let saves = config.agent.state_dir.is_some();
        let journals =
            Journals::start(scope, &journals, &saved, (&known, board), saves.then_some(registry), &outlet)?;
        let supervisor = Supervisor::start(scope, (&known, board), sources, config.once, saves, outlet)?;
        let mut run_loop = RunLoop {
            supervisor,
            journals: Some(journals),
            board,
            asked,
            config,
            shares,
            known: saved.sources.into_iter().collect(),
            changes,
            opening: true,
            reload: false,
            all_read: false,
            registry,
            saver: &saver,
            give_up: Some(give_up),
            halt: Some(halt),
            notify,
            watchdog,
            stopping: None,
            live,
            at_once,
        };
        let ended = run_loop.work(&signals.inbox, &ship_gone);
        drop(run_loop);
        let shipped = shipping.join();
        ended?;
        if let Ok(Err(Dead { why })) = shipped {
            return Err(Error::failed("deliver", why, format!("unacknowledged data {left}")));
        }
        Ok(ExitCode::Done)
    });
    let saved = saver.finish();
    ended.and_then(|code| saved.map(|()| code))
}

fn start<'s, T: Send + 's>(
    scope: &'s Scope<'s, '_>,
    name: &str,
    body: impl FnOnce() -> T + Send + 's,
) -> Result<ScopedJoinHandle<'s, T>, Error> {
    let thread = Builder::new().name(name.into()).stack_size(STACK);
    thread.spawn_scoped(scope, body).map_err(|e| Error::no_thread(name, e))
}

/// The main thread's loop: handles watch events, signals and the ends of stages.
struct RunLoop<'s, 'e> {
    supervisor: Supervisor<'s, 'e>,
    journals: Option<Journals>,
    board: &'e Board,
    asked: Overrides,
    config: Config,
    shares: Shares,
    /// Patterns whose first scan is done, in this run or before.
    known: HashSet<Vec<u8>>,
    changes: producer::Changes,
    /// The first scan is in progress, also after a reload: readiness has not been reported yet.
    opening: bool,
    /// A reload was requested; deferred while `opening`.
    reload: bool,
    /// `--once`: every file was read to its end.
    all_read: bool,
    registry: &'e Registry,
    saver: &'e Saver,
    give_up: Option<Waking<stop::Handle>>,
    /// Dropped at the first stop signal.
    halt: Option<Waking<stop::Handle>>,
    notify: Notify,
    watchdog: Watchdog,
    /// When the first stop signal came.
    stopping: Option<Instant>,
    live: StatusServer,
    at_once: fn(ExitCode) -> !,
}

impl RunLoop<'_, '_> {
    fn work(&mut self, signals: &Receiver<Signal>, ship_gone: &Receiver<Infallible>) -> Result<(), Error> {
        let mut deadline = never();
        let mut scanned = self.supervisor.scanned.clone();
        let mut looked = self.journals.as_ref().map(|journals| journals.looked.clone());
        let mut too_slow = never();
        let mut flushed = never();
        let mut watchdog_due = self.watchdog.next();
        loop {
            select! {
                recv(self.supervisor.watch_events) -> event => match event {
                    Ok(WatchEvent::Found(found)) => self.supervisor.follow(found),
                    Ok(WatchEvent::Walked { missing }) => {
                        self.supervisor.walked(&missing)?;
                        too_slow = after(FIRST_LOOK);
                    }
                    Err(_) => self.supervisor.watch_ended(),
                },
                recv(self.supervisor.retry) -> _ => self.supervisor.retry_waiting(),
                recv(self.supervisor.ends) -> end => if let Ok(end) = end { self.supervisor.ended(end) },
                recv(scanned) -> _ => { // closed: every tail of the first walk has checked its file
                    scanned = looked.take().unwrap_or_else(|| {
                        too_slow = never();
                        flushed = self.save_first_scan();
                        never()
                    });
                }
                recv(too_slow) -> _ => {
                    warn!("some file could not be examined within {FIRST_LOOK:?}; reporting ready without it");
                    scanned = never();
                    too_slow = never();
                    flushed = self.save_first_scan();
                }
                recv(flushed) -> _ => {
                    flushed = never();
                    self.ready();
                }
                recv(signals) -> signal => match signal {
                    Ok(Signal::Stop) => deadline = self.stop(),
                    Ok(Signal::Report) => self.log_status(),
                    Ok(Signal::Reload) => self.reload = true,
                    Err(_) => {}
                },
                recv(deadline) -> _ => {
                    deadline = never();
                    let time = self.config.agent.drain_timeout;
                    warn!("not everything was acknowledged within drain_timeout ({time:?}); the rest {}", left(&self.config));
                    self.give_up = None;
                }
                recv(watchdog_due) -> _ => {
                    let line = || Snapshot::take(self.board, Instant::now()).line();
                    self.watchdog.look(self.board, &self.notify, line);
                    watchdog_due = self.watchdog.next();
                }
                recv(ship_gone) -> _ => return match self.stopping {
                    None => self.supervisor.verdict(),
                    Some(_) => Ok(()),
                },
            }
            if self.reload && !self.opening && self.stopping.is_none() {
                self.reload = false;
                if self.read_again() {
                    scanned = self.supervisor.scanned.clone();
                }
            }
            if self.config.once
                && self.supervisor.files() == 0
                && self.supervisor.is_closed()
                && !std::mem::replace(&mut self.all_read, true)
            {
                // The tails may have ended before their first checks were noticed here.
                drop(self.save_first_scan());
            }
        }
    }

    /// Reloads the config on SIGHUP. A config with problems changes nothing. Returns `true` if the first scan of the
    /// new sources has begun.
    fn read_again(&mut self) -> bool {
        if self.config.once || self.config.read_from.is_empty() {
            info!("SIGHUP: there is no config file to reload");
            return false;
        }
        self.notify.reloading();
        let (config, changes) = match reload::read(&self.asked, &self.config) {
            Ok(read) => read,
            Err(problems) => {
                let all = problems.to_string();
                all.lines().for_each(|line| error!("SIGHUP: the config is unchanged: {line}"));
                self.notify.ready(&self.line());
                return false;
            }
        };
        let sources = options::sources(&config, &mut self.shares, |p| self.known.contains(p));
        match changes.needs_restart() {
            true => warn!("SIGHUP: {changes}"),
            false => info!("SIGHUP: {changes}"),
        }
        self.config = config;
        // Before the sources change, so that no driver gets a line meant for the next one.
        self.changes.send(producer::Change {
            options: options::producer(&self.config),
            drive: changes.driver.then(|| drivers::drive(&self.config)),
            elsewhere: changes.elsewhere,
        });
        self.opening = true;
        self.supervisor.change(sources);
        true
    }

    /// Saves identity and size of every file before readiness is reported, so that a crash cannot turn an old file
    /// into a new one.
    fn save_first_scan(&mut self) -> Receiver<Infallible> {
        let (done, flushed) = bounded(1);
        if self.stopping.is_none() {
            for pattern in self.supervisor.patterns() {
                if self.known.insert(pattern.clone()) {
                    self.registry.pattern_known(pattern);
                }
            }
            self.saver.first_scan_done(done);
        }
        flushed
    }

    fn ready(&mut self) {
        self.opening = false;
        if self.stopping.is_some() {
            return;
        }
        if !self.config.once {
            info!("following {} file(s)", self.supervisor.files());
        }
        self.live.metrics(self.config.textfile.clone());
        self.notify.ready(&self.line());
    }

    /// First signal: the tails end and the producer drains. Second signal: exit immediately.
    fn stop(&mut self) -> Receiver<Instant> {
        if let Some(since) = self.stopping {
            if since.elapsed() < SAME_SIGNAL {
                return after(
                    (since + self.config.agent.drain_timeout).saturating_duration_since(Instant::now()),
                );
            }
            warn!("stopped by a second signal; unacknowledged data {}", left(&self.config));
            (self.at_once)(ExitCode::Failed);
        }
        self.stopping = Some(Instant::now());
        info!("stopping: waiting for acknowledgements");
        self.notify.stopping("waiting for acknowledgements");
        self.supervisor.stop();
        self.journals = None;
        self.halt = None;
        after(self.config.agent.drain_timeout)
    }

    fn line(&self) -> String {
        Snapshot::take(self.board, Instant::now()).line()
    }

    fn log_status(&self) {
        Snapshot::take(self.board, Instant::now()).log();
    }
}

/// What happens to unacknowledged lines when the agent ends.
fn left(config: &Config) -> &'static str {
    match config.agent.state_dir {
        Some(_) => "is sent at the next start",
        None => "is forgotten: positions are saved only with --state-dir",
    }
}

/// Each file needs a descriptor. The soft limit of 1024 exists for programs that use select(2).
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(e) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        warn!("descriptors: the limit cannot be raised: {e}");
    }
}

/// The state folder, and whether each write is synced. `None`: at-least-once, or standard output, which has no
/// sequence numbers.
fn exactly_once(config: &Config) -> Option<(&Path, bool)> {
    let once = config.agent.delivery == Delivery::ExactlyOnce && matches!(config.output, Output::Kafka(_));
    let folder = config.agent.state_dir.as_deref().filter(|_| once)?;
    Some((folder, config.agent.sync == config::Sync::Always))
}

fn state_options(config: &Config, publisher: Publisher) -> state::StateOptions {
    state::StateOptions {
        state_dir: config.agent.state_dir.clone(),
        sync: config.agent.sync,
        damaged: config.agent.damaged_state,
        exactly_once: exactly_once(config).map(|_| publisher),
    }
}

/// The streams that tails continue: not those of journals.
pub fn entries(saved: &Saved) -> impl Iterator<Item = Entry> + '_ {
    saved.streams.iter().filter(|s| s.at.mark.seqnum().is_none()).map(|s| Entry {
        stream: s.stream,
        path: s.path.to_path_buf(),
        at: s.at,
        beyond: s.beyond.clone(),
        size: s.size,
        finished: s.finished,
        ..Entry::of(s.identity.clone())
    })
}
