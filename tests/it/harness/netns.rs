//! A network namespace joined to this one by a veth pair, whose counters are the kernel's own count of what a program in
//! it sent and received, with all headers. Needs root and iproute2.

use super::{agent::surround, need};
use std::{
    fs,
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

/// Bytes or packets sent and received by the programs in the namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    pub sent: u64,
    pub received: u64,
}

impl Traffic {
    pub fn both(self) -> u64 {
        self.sent + self.received
    }
    pub fn since(self, before: Traffic) -> Traffic {
        Traffic { sent: self.sent - before.sent, received: self.received - before.received }
    }
}

/// Deleted when dropped, and by the next one if this process is killed.
pub struct NetNs {
    pub name: String,
    /// This end's interface.
    veth: String,
    /// This end's address: programs in the namespace reach servers that listen on all addresses here at it.
    pub host: String,
}

impl NetNs {
    /// Whether this user may create one.
    pub fn is_possible() -> bool {
        rustix::process::geteuid().is_root() && run("ip", &["netns", "list"]).is_ok()
    }
    #[track_caller]
    pub fn new() -> NetNs {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        need("ip");
        sweep();
        let (pid, nth) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        assert!(nth < 60, "more namespaces than addresses for them");
        let name = format!("logagent-{pid}-{nth}");
        let veth = format!("la{pid}-{nth}");
        let peer = format!("lb{pid}-{nth}");
        let address = |last: u32| format!("10.{}.{}.{}", 64 + pid / 256 % 64, pid % 256, nth * 4 + last);
        let (host, inside) = (address(1), address(2));
        let ns = NetNs { name, veth, host };
        let n = ns.name.as_str();
        let here = format!("{}/30", ns.host);
        let there = format!("{inside}/30");
        for args in [
            &["netns", "add", n][..],
            &["link", "add", &ns.veth, "type", "veth", "peer", "name", &peer, "netns", n],
            &["addr", "add", &here, "dev", &ns.veth],
            &["-n", n, "addr", "add", &there, "dev", &peer],
        ] {
            run("ip", args).unwrap_or_else(|why| panic!("ip {}: {why}", args.join(" ")));
        }
        // IPv6 would send packets of its own.
        let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{}/disable_ipv6", ns.veth), "1");
        let silent = "echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6 2>/dev/null || true";
        run("ip", &["netns", "exec", n, "sh", "-c", silent]).unwrap();
        for args in [
            &["link", "set", &ns.veth, "up"][..],
            &["-n", n, "link", "set", "lo", "up"],
            &["-n", n, "link", "set", &peer, "up"],
            // To the addresses of other namespaces' brokers.
            &["-n", n, "route", "add", "default", "via", &ns.host],
        ] {
            run("ip", args).unwrap_or_else(|why| panic!("ip {}: {why}", args.join(" ")));
        }
        ns
    }
    /// A command that becomes this one inside the namespace.
    pub fn wrap(&self, inner: &Command) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(inner.get_program()).args(inner.get_args());
        surround(&mut command, inner);
        command
    }
    /// Bytes of the open TCP connections of programs in it, without headers and what was sent again (`TCP_INFO`).
    pub fn tcp_bytes(&self) -> Traffic {
        let output = Command::new("ip").args(["netns", "exec", &self.name, "ss", "-tinHO"]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let sum = |name: &str| {
            let words = text.split_whitespace().filter_map(|word| word.strip_prefix(name));
            words.filter_map(|n| n.parse::<u64>().ok()).sum()
        };
        Traffic { sent: sum("bytes_acked:"), received: sum("bytes_received:") }
    }
    /// With Ethernet, IP and TCP headers: 66 bytes a segment.
    pub fn bytes(&self) -> Traffic {
        self.count("bytes")
    }
    pub fn packets(&self) -> Traffic {
        self.count("packets")
    }
    /// What the namespace sends arrives at this end.
    fn count(&self, of: &str) -> Traffic {
        let read = |direction: &str| {
            let path = format!("/sys/class/net/{}/statistics/{direction}_{of}", self.veth);
            let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
            text.trim().parse().unwrap()
        };
        Traffic { sent: read("rx"), received: read("tx") }
    }
}

impl Drop for NetNs {
    fn drop(&mut self) {
        let _ = run("ip", &["link", "del", &self.veth]);
        let _ = run("ip", &["netns", "del", &self.name]);
    }
}

fn run(program: &str, args: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output().map_err(|e| e.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
}

/// Deletes the namespaces of processes that no longer exist.
fn sweep() {
    for entry in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = name.strip_prefix("logagent-").and_then(|rest| rest.split('-').next());
        if pid.is_some_and(|pid| !fs::exists(format!("/proc/{pid}")).unwrap_or(true)) {
            let _ = run("ip", &["netns", "del", &name]);
        }
    }
}
