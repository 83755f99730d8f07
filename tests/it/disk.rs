//! The disk under the state folder is an image. A power cut: the next run finds what the image holds at that moment,
//! under another boot id; what was only in the page cache is lost. Also a disk that turns read-only.

use crate::exactly_once::{announced, write_config};
use crate::harness::*;
use std::{fs, process::Command};

/// A machine whose disk is an image, `disk`, mounted at `state` for the agent only.
struct Machine {
    folder: Folder,
    boots: u32,
}

/// Arguments: the image, the file with the boot id, the agent and its arguments. The file system commits nothing on
/// its own meanwhile.
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

    /// Runs the agent with the disk mounted.
    fn boot(&mut self, args: &str) -> Setup {
        self.boots += 1;
        let id = format!("{:08x}-0000-4000-8000-000000000000\n", self.boots);
        let boot = self.folder.write("boot_id", id);
        let disk = self.folder.path("disk");
        let namespaces = ["unshare", "--mount", "sh", "-c", BOOT, "sh"].map(std::ffi::OsString::from);
        self.folder.agent_line(args).wrapped_in(namespaces.into_iter().chain([disk.into(), boot.into()]))
    }

    /// Freezes the disk in its current state.
    fn cut_power(&self, agent: &mut Agent) -> Done {
        agent.pause();
        run("cp", &["--sparse=always", "disk", "after"], &self.folder);
        let done = agent.kill();
        // The kernel writes the rest to the old image once it is unmounted.
        self.folder.rename("after", "disk");
        done
    }

    /// Runs a command in the agent's namespaces.
    fn beside(&self, agent: &Agent, args: &[&str]) -> Done {
        let pid = agent.id().to_string();
        let nsenter = ["nsenter", "--mount", "--target", &pid].map(str::to_owned);
        let state = self.folder.path("state");
        self.folder.agent(args).arg("--state-dir").arg(state).wrapped_in(nsenter).run()
    }

    fn status(&mut self) -> serde_json::Value {
        let done = self.boot("status --json --state-dir state").run().expect_code(0);
        serde_json::from_slice(&done.stdout).unwrap()
    }
}

/// Two power cuts within seconds. Fails when the upper bound of possible duplicates is not on disk before those lines
/// are sent on: the second cut then erases what the second run had counted.
#[test]
fn two_power_cuts_within_seconds() {
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
        let done = if life < 2 { machine.cut_power(&mut agent) } else { agent.stop().expect_code(0) };
        all.extend(done.whole_lines());
    }
    let delivered = Delivered::of(all);
    let doubled = delivered.assert_at_least_once(&[&Lines::new("f", 0..next)]) as u64;
    let at_most = machine.status()["totals"]["doubled_at_most"].as_u64().unwrap();
    assert!(doubled >= 1000, "{doubled}: the power cuts have erased nothing");
    assert!((doubled..=2 * doubled).contains(&at_most), "{doubled} doubled, {at_most} at most");
}

/// The same with exactly-once and the default `sync`, which does not survive a power cut.
#[test]
fn two_power_cuts_within_seconds_with_exactly_once() {
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
        // Lines sent by an earlier run may be counted too; the last line this run sends must be there.
        let last = Lines::new("f", next - 1..next).line(next - 1);
        wait_until(PATIENT, "the last line", || topic.values().contains(&last));
        if life < 2 {
            machine.cut_power(&mut agent)
        } else {
            agent.stop().expect_code(0)
        };
    }
    let doubled = Delivered::in_topic(&topic).assert_at_least_once(&[&Lines::new("f", 0..next)]) as u64;
    let status = machine.status();
    assert!(doubled > 0, "the cuts have erased nothing");
    assert!((doubled..=2 * doubled).contains(&announced(&status)), "{doubled} doubled: {}", status["totals"]);
}

/// A power cut after a line was refused, with every save synced. Fails when the saved position is beyond the line and its
/// dead letter is gone: the letter must be on disk before the position is.
#[test]
fn a_dead_letter_survives_a_power_cut() {
    let broker = Broker::shared(Version::V41);
    let topic = broker.topic_with(1, &["max.message.bytes=2000"]);
    let mut machine = Machine::new();
    write_config(&machine.folder, &topic.name, &topic.address, "sync = \"always\"", "");
    machine.folder.append("f.log", Lines::new("f", 0..10).bytes());
    let mut agent = machine.boot("run -c c.toml").start();
    wait_until(PATIENT, "the first lines are stored", || topic.end_offsets() == 10);
    machine.folder.append("f.log", format!("{}\n", "long ".repeat(1000)));
    wait_until(PATIENT, "the refused line is saved", || {
        let said: serde_json::Value =
            serde_json::from_slice(&machine.beside(&agent, &["status", "--json"]).stdout).unwrap();
        said["totals"]["dead_lettered"] == 1 && said["files"][0]["saved"] == said["files"][0]["size"]
    });
    machine.cut_power(&mut agent);
    let mut agent = machine.boot("run -c c.toml").start();
    let path = machine.folder.path("state/dead-letter");
    let cat = ["--mount", "--target", &agent.id().to_string(), "cat", path.to_str().unwrap()];
    let letters = Command::new("nsenter").args(cat).output().unwrap();
    assert!(String::from_utf8_lossy(&letters.stdout).contains("long long"), "{letters:?}");
    agent.stop().expect_code(0);
}

/// The kernel remounts the file system read-only under a running agent, as after a disk error. Fails when status, the
/// metrics or the log do not report within 2 s that delivery is blocked and why, when a log line claims that delivery
/// continues, or when the next start with a sound disk loses or doubles a line.
#[test]
fn read_only_disk_is_reported_as_blocking_delivery() {
    need("nsenter");
    let broker = Broker::shared(Version::V41);
    let topic = broker.topic(1);
    let mut machine = Machine::new();
    write_config(&machine.folder, &topic.name, &topic.address, "sync = \"always\"", "");
    let metrics = machine.folder.path("m.prom");
    machine.folder.append("c.toml", format!("[metrics]\ntextfile = {metrics:?}\n"));
    machine.folder.append("f.log", Lines::new("f", 0..10).bytes());
    let mut agent = machine.boot("run -c c.toml").start();
    let status = |machine: &Machine, agent: &Agent| -> serde_json::Value {
        let done = machine.beside(agent, &["status", "--json"]).expect_code(0);
        serde_json::from_slice(&done.stdout).unwrap()
    };
    wait_until(SOON, "the first lines are saved", || {
        let file = &status(&machine, &agent)["files"][0];
        file["saved"] == file["size"] && file["saved"].as_u64() > Some(0)
    });
    let pid = agent.id().to_string();
    let state = machine.folder.path("state");
    let abort = ["--mount", "--target", &pid, "mount", "-o", "remount,abort", state.to_str().unwrap()];
    run("nsenter", &abort, &machine.folder);
    machine.folder.append("f.log", Lines::new("f", 10..20).bytes());
    let before = std::time::Instant::now();
    let limit = optimized(secs(2), secs(6));
    let said = wait_for(SOON, "status reports it", || {
        let said = status(&machine, &agent);
        let because = said["files"][0]["stuck_because"].as_str()?;
        because.contains("state folder").then_some(said)
    });
    wait_until(SOON, "the metrics report it", || {
        let text = fs::read_to_string(&metrics).unwrap_or_default();
        let is = |line: &str| text.lines().any(|l| l.starts_with(line) && l.ends_with(" 1"));
        is("logagent_file_stuck{") && is("logagent_state_degraded")
    });
    let log = agent.wait_log("nothing is sent until this succeeds", SOON);
    assert!(before.elapsed() < limit, "{:?}", before.elapsed());
    for reported in
        [&said["state"]["degraded"], &said["files"][0]["stuck_because"], &said["topics"][0]["last_error"]]
    {
        assert!(reported.as_str().unwrap_or_default().contains("Read-only file system"), "{said:#}");
    }
    assert!(log.contains("Read-only file system"), "{log}");
    let log = machine.cut_power(&mut agent).stderr;
    assert!(!log.contains("delivery continues"), "{log}");
    assert_eq!(topic.end_offsets(), 10);
    machine.boot("run -c c.toml --once").run_for(PATIENT).expect_code(0);
    Delivered::in_topic(&topic).assert_exactly_once(&[&Lines::new("f", 0..20)]);
}

/// The file system is frozen: each write to it waits, as on a flash that does not answer. Fails when status or log do not say
/// within 2 s that nothing is sent and why, also when a tail waits for the producer by
/// then; or when a line is lost or doubled.
#[test]
fn a_disk_that_does_not_answer_is_reported() {
    for tool in ["nsenter", "fsfreeze"] {
        need(tool);
    }
    let broker = Broker::shared(Version::V41);
    for delivery in ["at-least-once", "exactly-once"] {
        let topic = broker.topic(1);
        let mut machine = Machine::new();
        write_config(&machine.folder, &topic.name, &topic.address, "", "");
        let text = fs::read_to_string(machine.folder.path("c.toml")).unwrap();
        machine.folder.write("c.toml", text.replace("exactly-once", delivery));
        machine.folder.append("f.log", Lines::new("f", 0..10).bytes());
        let mut agent = machine.boot("run -c c.toml").start();
        wait_until(SOON, "the first lines are stored", || topic.end_offsets() == 10);
        pause(secs(1));
        let state = machine.folder.path("state");
        let script = "fsfreeze -f \"$1\"; sleep 7; fsfreeze -u \"$1\"";
        let mut frozen = Command::new("nsenter")
            .args(["--mount", "--target", &agent.id().to_string(), "sh", "-c", script, "sh"])
            .arg(&state)
            .spawn()
            .unwrap();
        pause(millis(300));
        let before = std::time::Instant::now();
        for line in 10..200 {
            machine.folder.append("f.log", Lines::new("f", line..line + 1).bytes());
            pause(millis(5));
        }
        let log = agent.wait_log("the disk of the state folder has not answered", SOON);
        assert!(log.contains("nothing is sent until it does"), "{log}");
        wait_until(SOON, "status reports it", || {
            let done = machine.beside(&agent, &["status", "--json"]).expect_code(0);
            let said: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
            let has = |why: &serde_json::Value| why.as_str().is_some_and(|w| w.contains("has not answered"));
            has(&said["state"]["degraded"]) && has(&said["files"][0]["stuck_because"])
        });
        let limit = optimized(millis(3500), secs(6));
        assert!(before.elapsed() < limit, "{:?}", before.elapsed());
        frozen.wait().unwrap();
        machine.folder.append("f.log", Lines::new("f", 200..201).bytes());
        agent.wait_log("the disk of the state folder answers again", SOON);
        wait_until(SOON, "all lines are stored", || topic.end_offsets() >= 201);
        agent.stop().expect_code(0);
        Delivered::in_topic(&topic).assert_exactly_once(&[&Lines::new("f", 0..201)]);
    }
}
