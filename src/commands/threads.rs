//! Limits on the number of threads: one thread reads one file, and the drivers need some too.

use rustix::process::{Resource, getrlimit, getuid};
use std::fs;
use std::path::{Path, PathBuf};

/// Threads left free by the tails, for later connections and other users of the same limit.
const RESERVE: u64 = 32;

/// Threads in addition to one per file: main, signals, watch, the producer, saver, status and a driver's.
pub const OTHERS: usize = 12;

/// The service's control group under systemd. `check` inspects it, because `check` itself runs elsewhere.
const UNIT: &str = "system.slice/logagent.service";

/// A limit on the number of threads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ThreadLimit {
    pub most: u64,
    pub used: u64,
    /// The name of the limit, and where to raise it.
    pub what: String,
}

impl ThreadLimit {
    /// How many threads tails may use in addition to `others`.
    pub fn for_tails(&self, others: u64) -> u64 {
        self.most.saturating_sub(others + RESERVE.min(self.most / 4))
    }
}

/// Called before a tail is started. Returns how many more may be started before the limits must be checked again,
/// given `granted` from the last call. An error names the limit reached.
pub fn grant(granted: u64) -> Result<u64, String> {
    if granted > 0 {
        return Ok(granted - 1);
    }
    let Some(limit) = limits().into_iter().min_by_key(|l| l.for_tails(l.used)) else { return Ok(UNLIMITED) };
    match limit.for_tails(limit.used) {
        0 => Err(format!(
            "{} allows {} threads and {} are in use; raise it",
            limit.what, limit.most, limit.used
        )),
        // Half of it, because others may start threads too.
        free => Ok(free / 2),
    }
}

/// Tails started between two checks if no limit is known.
const UNLIMITED: u64 = 64;

/// The limits that apply to this process.
fn limits() -> Vec<ThreadLimit> {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mut all = control_groups(Path::new("/sys/fs/cgroup"), &own);
    let total = total_threads();
    if let Ok(most) = fs::read_to_string("/proc/sys/kernel/threads-max")
        && let (Ok(most), Some(used)) = (most.trim().parse(), total)
    {
        all.push(ThreadLimit { most, used, what: "the kernel's limit (sysctl kernel.threads-max)".into() });
    }
    if !getuid().is_root()
        && let Some(most) = getrlimit(Resource::Nproc).current
    {
        // Count only if the limit is near, because counting is slow.
        let far = total.filter(|total| most > 2 * (total + RESERVE));
        let used = far.unwrap_or_else(|| threads_of(getuid().as_raw()));
        all.push(ThreadLimit { most, used, what: "the user's limit (ulimit -u, LimitNPROC=)".into() });
    }
    all
}

/// The lowest limit regardless of current use, including that of the systemd service.
pub fn lowest() -> Option<ThreadLimit> {
    let unit = format!("0::/{UNIT}\n1:pids:/{UNIT}\n");
    let service = control_groups(Path::new("/sys/fs/cgroup"), &unit);
    limits().into_iter().chain(service).min_by_key(|l| l.most)
}

/// `pids.max` of a control group and all its parents; `own` is the content of `/proc/self/cgroup` (cgroups(7)).
fn control_groups(mount: &Path, own: &str) -> Vec<ThreadLimit> {
    let mut all: Vec<ThreadLimit> = Vec::new();
    for line in own.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let folder = match controllers {
            "" => mount.into(),
            _ if controllers.split(',').any(|c| c == "pids") => mount.join(controllers),
            _ => continue,
        };
        if path.split('/').any(|name| name == "..") {
            continue; // outside this cgroup namespace (cgroup_namespaces(7))
        }
        let inner = folder.join(path.trim_start_matches('/'));
        for group in inner.ancestors().take_while(|g| g.starts_with(&folder)) {
            all.extend(control_group(group));
        }
    }
    all
}

fn control_group(group: &Path) -> Option<ThreadLimit> {
    let number = |name: &str| fs::read_to_string(group.join(name)).ok()?.trim().parse().ok();
    let (most, used) = (number("pids.max")?, number("pids.current")?);
    Some(ThreadLimit { most, used, what: format!("pids.max of {} (TasksMax=)", group.display()) })
}

/// All threads of the machine: the fourth field of `/proc/loadavg`, "running/all".
fn total_threads() -> Option<u64> {
    let text = fs::read_to_string("/proc/loadavg").ok()?;
    text.split(' ').nth(3)?.split_once('/')?.1.parse().ok()
}

/// Threads of a user, as far as visible to this process.
fn threads_of(user: u32) -> u64 {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbered = processes.filter(|p| p.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit));
    let threads = |process: PathBuf| {
        let status = fs::read_to_string(process.join("status")).ok()?;
        let field = |name: &str| {
            status.lines().find_map(|l| l.strip_prefix(name))?.split_whitespace().next()?.parse::<u64>().ok()
        };
        field("Threads:").filter(|_| field("Uid:") == Some(user.into()))
    };
    numbered.filter_map(|p| threads(p.path())).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both versions of control groups. Fails when the limit of a parent group is missed, or "max" counts as a
    /// number.
    #[test]
    fn limits_of_control_groups() {
        let dir = tempfile::tempdir().unwrap();
        let group = |path: &str, most: &str, used: &str| {
            let folder = dir.path().join(path);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("pids.max"), most).unwrap();
            fs::write(folder.join("pids.current"), used).unwrap();
        };
        group("system.slice", "50\n", "45\n");
        group("system.slice/a.service", "max\n", "3\n");
        group("pids/x", "20\n", "1\n");
        let free =
            |own: &str| control_groups(dir.path(), own).iter().map(|l| l.most - l.used).collect::<Vec<_>>();
        assert_eq!(free("0::/system.slice/a.service\n"), [5]);
        assert_eq!(free("3:cpu,cpuacct:/x\n2:pids:/x/gone\n"), [19]);
        assert_eq!(free("0::/\nnonsense\n"), [0u64; 0]);
    }

    /// Fails when tails may use the last threads, or none of a low limit.
    #[test]
    fn threads_that_tails_may_use() {
        let free = |most, used| ThreadLimit { most, used, what: String::new() }.for_tails(used);
        assert_eq!([free(1000, 10), free(1000, 967), free(1000, 968), free(1000, 2000)], [958, 1, 0, 0]);
        assert_eq!([free(20, 12), free(20, 15)], [3, 0]);
    }

    /// Fails when the threads of this process are not among the user's.
    #[test]
    fn threads_of_this_user() {
        let (hold, on) = std::sync::mpsc::channel::<()>();
        let waits = std::thread::spawn(move || on.recv().is_ok());
        assert!(threads_of(getuid().as_raw()) >= 2);
        assert!(total_threads().unwrap() >= 2);
        drop(hold);
        assert!(!waits.join().unwrap());
    }

    /// Fails when a malformed `/proc/self/cgroup` leads outside the groups, or loops forever.
    #[test]
    fn fuzz_control_groups() {
        let dir = tempfile::tempdir().unwrap();
        let mount = dir.path().join("a/b");
        fs::create_dir_all(&mount).unwrap();
        fs::write(dir.path().join("pids.max"), "5").unwrap();
        fs::write(dir.path().join("pids.current"), "1").unwrap();
        let samples =
            [b"0::/system.slice/x.service\n".to_vec(), b"3:cpu,pids:/a/b\n0::/\n12:pids:/../..\n".to_vec()];
        crate::fuzz::damaged(
            &samples,
            |_| 0,
            |text| control_groups(&mount, &String::from_utf8_lossy(text)).len(),
        );
    }
}
