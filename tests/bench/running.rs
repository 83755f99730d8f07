//! A running program, observed from outside through /proc: processor time, memory and wake-ups of the process and all
//! its children, without shells that only start others.
//!
//! Processor time is the larger of the scheduler's count (`schedstat`, nanoseconds) over live threads and the
//! process's ticks of 10 ms (`stat`, which include threads that have exited): both only round down.

use crate::{
    harness::{millis, pause, secs},
    systems::{Job, System},
};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    process::{Child, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

pub struct Running {
    child: Child,
    pub started: Instant,
    log: PathBuf,
    peak: Arc<AtomicU64>,
    /// Its processor time, once it has exited on its own.
    spent: Option<Duration>,
    gone: bool,
}

impl Running {
    pub fn start(system: &System, job: &Job<'_>) -> Running {
        let mut command = system.command(job);
        let log = job.state.join("log");
        let said = fs::OpenOptions::new().create(true).append(true).open(&log).unwrap();
        command.stdin(Stdio::null()).stdout(said.try_clone().unwrap()).stderr(said).current_dir(job.state);
        let started = Instant::now();
        let child = command.spawn().unwrap_or_else(|e| panic!("{}: {e}", system.name));
        let peak = Arc::new(AtomicU64::new(0));
        let (seen, id) = (peak.clone(), child.id());
        thread::spawn(move || {
            while !is_zombie(id) {
                seen.fetch_max(sum(id, |pid| kib(pid, "VmHWM:")), Ordering::Relaxed);
                pause(millis(20));
            }
        });
        Running { child, started, log, peak, spent: None, gone: false }
    }

    /// Whether it exited on its own.
    pub fn ended(&mut self) -> bool {
        if !self.gone && is_zombie(self.child.id()) {
            self.spent = Some(ticks(self.child.id()));
            let _ = self.child.wait();
            self.gone = true;
        }
        self.gone
    }
    /// Processor time so far.
    pub fn cpu(&mut self) -> Duration {
        if self.ended() { self.spent.unwrap_or_default() } else { cpu_of(self.child.id()) }
    }
    /// Highest resident memory, in KiB.
    pub fn peak(&mut self) -> u64 {
        if !self.ended() {
            self.peak.fetch_max(sum(self.child.id(), |pid| kib(pid, "VmHWM:")), Ordering::Relaxed);
        }
        self.peak.load(Ordering::Relaxed)
    }
    /// Resident memory now, in KiB.
    pub fn resident(&self) -> u64 {
        sum(self.child.id(), |pid| kib(pid, "VmRSS:"))
    }
    /// Context switches so far of the threads that are alive.
    pub fn switches(&self) -> u64 {
        let of_task = |status: &str| {
            let of = |name: &str| value(status, name);
            of("voluntary_ctxt_switches:") + of("nonvoluntary_ctxt_switches:")
        };
        sum(self.child.id(), |pid| each_task(pid, "status").iter().map(|text| of_task(text)).sum())
    }
    /// Bytes of the program and of the libraries and modules it has mapped.
    pub fn installed(&self) -> u64 {
        let mut files = BTreeMap::new();
        for pid in family(self.child.id()) {
            let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
            for line in maps.lines() {
                let mut words = line.split_whitespace();
                let (executable, path) = (words.nth(1).is_some_and(|w| w.contains('x')), words.nth(3));
                if let Some(path) = path.filter(|p| executable && p.starts_with('/')) {
                    files.insert(path.to_owned(), fs::metadata(path).map_or(0, |m| m.len()));
                }
            }
        }
        files.values().sum()
    }
    /// The end of its output.
    pub fn said(&self) -> String {
        let text = String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned();
        text.lines().rev().take(3).collect::<Vec<_>>().join(" / ")
    }
    /// SIGTERM; how long it took to exit, `None` if it needed SIGKILL after `limit`.
    pub fn stop(&mut self, limit: Duration) -> Option<Duration> {
        if self.ended() {
            return Some(Duration::ZERO);
        }
        let asked = Instant::now();
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        while asked.elapsed() < limit {
            if self.ended() {
                return Some(asked.elapsed());
            }
            pause(millis(1));
        }
        self.kill();
        None
    }
    fn kill(&mut self) {
        for pid in everyone(self.child.id()) {
            if let Some(pid) = Pid::from_raw(pid as i32) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        let _ = self.child.wait();
        self.gone = true;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.ended() {
            let _ = self.stop(secs(3));
        }
    }
}

fn read(pid: u32, name: &str) -> String {
    fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default()
}

/// The process and its children, parents first.
fn everyone(root: u32) -> Vec<u32> {
    let mut all = vec![root];
    let mut at = 0;
    while at < all.len() {
        let children = read(all[at], &format!("task/{}/children", all[at]));
        all.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
        at += 1;
    }
    all
}

/// Without shells.
fn family(root: u32) -> Vec<u32> {
    everyone(root).into_iter().filter(|pid| read(*pid, "comm").trim() != "bash").collect()
}

fn sum(root: u32, of: impl Fn(u32) -> u64) -> u64 {
    family(root).into_iter().map(of).sum()
}

fn each_task(pid: u32, name: &str) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks.filter_map(|task| fs::read_to_string(task.path().join(name)).ok()).collect()
}

fn kib(pid: u32, name: &str) -> u64 {
    value(&read(pid, "status"), name)
}

fn value(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("0");
    line.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0)
}

fn is_zombie(pid: u32) -> bool {
    let stat = read(pid, "stat");
    stat.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with('Z'))
}

/// Of all processes since boot, without idle time and I/O wait.
pub fn machine_ticks() -> Duration {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let of = |at: usize| stat.split_whitespace().nth(1 + at).and_then(|t| t.parse::<u64>().ok()).unwrap_or(0);
    Duration::from_millis([0, 1, 2, 5, 6].into_iter().map(of).sum::<u64>() * 10)
}

/// User and system time, with children that were waited for; 100 ticks a second on Linux whatever HZ is.
pub fn ticks(pid: u32) -> Duration {
    let stat = read(pid, "stat");
    let after = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let four = after.split_whitespace().skip(11).take(4).filter_map(|t| t.parse::<u64>().ok());
    Duration::from_millis(four.sum::<u64>() * 10)
}

fn cpu_of(root: u32) -> Duration {
    let of_process = |pid: u32| {
        let first = |text: &String| text.split_whitespace().next().and_then(|n| n.parse::<u64>().ok());
        let alive = each_task(pid, "schedstat").iter().filter_map(first).sum();
        Duration::from_nanos(alive).max(ticks(pid))
    };
    everyone(root).into_iter().map(of_process).sum()
}
