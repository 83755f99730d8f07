//! Power cuts: the state folder is a file system of its own on a disk image. What the image holds at the cut is what the
//! next life finds, under another boot id; what was in the page cache alone is gone. Logs and broker lose nothing.

use crate::exactly_once::{announced, write_config};
use crate::harness::*;
use std::{fs, process::Command};

/// A box whose disk is an image, `disk`, that is mounted at `state` for the agent alone.
struct Machine {
    folder: Folder,
    boots: u32,
}

/// Arguments: the image, the file with the boot id, the agent and its arguments. Nothing is committed by itself meanwhile.
const BOOT: &str = "mount -o loop,commit=300 \"$1\" state && mount --bind \"$2\" /proc/sys/kernel/random/boot_id && \
                    shift 2 && exec \"$@\"";

fn run(program: &str, args: &[&str], folder: &Folder) {
    let done = Command::new(program).args(args).current_dir(folder.root()).output().unwrap();
    assert!(done.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&done.stderr));
}

impl Machine {
    fn new() -> Machine {
        for tool in ["unshare", "mkfs.ext4", "mount"] {
            need(tool);
        }
        let folder = Folder::new();
        fs::File::create(folder.path("disk")).unwrap().set_len(16 << 20).unwrap();
        run("mkfs.ext4", &["-q", "disk"], &folder);
        folder.mkdir("state");
        Machine { folder, boots: 0 }
    }

    /// Runs the agent with the disk in its place.
    fn boot(&mut self, args: &str) -> Setup {
        self.boots += 1;
        let id = format!("{:08x}-0000-4000-8000-000000000000\n", self.boots);
        let boot = self.folder.write("boot_id", id);
        let disk = self.folder.path("disk");
        let alone = ["unshare", "--mount", "sh", "-c", BOOT, "sh"].map(std::ffi::OsString::from);
        self.folder.agent_line(args).within(alone.into_iter().chain([disk.into(), boot.into()]))
    }

    /// The disk stays as it is at this moment.
    fn cut(&self, agent: &mut Agent) -> Done {
        agent.pause();
        run("cp", &["--sparse=always", "disk", "after"], &self.folder);
        let done = agent.kill();
        // The kernel writes the rest to the old image once nobody uses it.
        self.folder.rename("after", "disk");
        done
    }

    fn status(&mut self) -> serde_json::Value {
        let done = self.boot("status --json --state-dir state").run().expect_code(0);
        serde_json::from_slice(&done.stdout).unwrap()
    }
}

/// Two power cuts within seconds. Fails when the upper bound of what may stand twice is not on the disk before those lines
/// are handed on: the second cut then takes with it what the second life had counted.
#[test]
fn two_power_cuts_within_seconds_are_counted() {
    const RUN: &str = "run --output stdout --from beginning --state-dir state f.log";
    let mut machine = Machine::new();
    let mut next = 0;
    machine.folder.write("f.log", b"");
    machine.boot(RUN).arg("--once").run().expect_code(0);
    let mut all = Vec::new();
    for life in 0..3 {
        let mut agent = machine.boot(RUN).start();
        for _ in 0..4 {
            machine.folder.append("f.log", Lines::new("f", next..next + 100).bytes());
            next += 100;
            pause(millis(300));
        }
        agent.wait_lines(next as usize);
        let done = if life < 2 { machine.cut(&mut agent) } else { agent.stop().expect_code(0) };
        all.extend(done.whole_lines());
    }
    let delivered = Delivered::of(all);
    let doubled = delivered.assert_at_least_once(&[&Lines::new("f", 0..next)]) as u64;
    let at_most = machine.status()["totals"]["doubled_at_most"].as_u64().unwrap();
    assert!(doubled >= 1000, "{doubled}: the cuts have taken nothing with them");
    assert!((doubled..=2 * doubled).contains(&at_most), "{doubled} doubled, {at_most} at most");
}

/// The same with exactly-once and the default `sync`, which does not cover a power cut.
#[test]
fn two_power_cuts_within_seconds_are_counted_with_exactly_once() {
    let broker = Broker::shared(Version::V41);
    let topic = broker.topic(2);
    let mut machine = Machine::new();
    write_config(&machine.folder, &topic.name, &topic.address, "", "");
    let mut next = 0;
    machine.boot("run -c c.toml --once").run().expect_code(0);
    for life in 0..3 {
        let mut agent = machine.boot("run -c c.toml").start();
        for _ in 0..4 {
            machine.folder.append("f.log", Lines::new("f", next..next + 100).bytes());
            next += 100;
            pause(millis(300));
        }
        // What a life before has sent may count too; what this one sends last must be there.
        let last = Lines::new("f", next - 1..next).line(next - 1);
        wait_until(PATIENT, "the last line", || topic.values().contains(&last));
        if life < 2 {
            machine.cut(&mut agent)
        } else {
            agent.stop().expect_code(0)
        };
    }
    let doubled = Delivered::in_topic(&topic).assert_at_least_once(&[&Lines::new("f", 0..next)]) as u64;
    let status = machine.status();
    assert!(doubled > 0, "the cuts have taken nothing with them");
    assert!((doubled..=2 * doubled).contains(&announced(&status)), "{doubled} doubled: {}", status["totals"]);
}
