//! SIGTERM: the agent exits within `drain_timeout`, whatever it is waiting for, with code 0 and the positions saved.

use crate::harness::*;
use std::time::Instant;

/// A config for `brokers` and a file that is larger than memory; `drain_timeout` is 1 s.
fn config(folder: &Folder, brokers: &str, driver: &str) {
    let here = folder.root().display();
    let text = format!(
        "[agent]\nstate_dir = \"{here}/state\"\ndrain_timeout = \"1s\"\n[kafka]\nbrokers = [\"{brokers}\"]\ntopic = \"t\"\n\
         driver = \"{driver}\"\n[[files]]\npaths = [\"{here}/f.log\"]\nstart = \"beginning\"\n"
    );
    folder.write("c.toml", text);
    if !folder.path("f.log").exists() {
        Lines::new("f", 0..60_000).append_to(&folder.path("f.log"));
    }
}

/// SIGTERM after `wait`. Allows 1 s for the drain and 2 s for a busy machine.
#[track_caller]
fn exits_in_time(what: &str, setup: Setup, wait: impl FnOnce(&Agent)) {
    let mut agent = setup.start();
    wait(&agent);
    let start = Instant::now();
    let done = agent.stop().expect_code(0);
    assert!(
        start.elapsed() < secs(3),
        "{what}: {:?} with drain_timeout = 1 s:\n{}",
        start.elapsed(),
        done.stderr
    );
    let why = ["sent at the next start", "the remaining lines cannot be delivered now"];
    assert!(why.iter().any(|said| done.stderr.contains(said)), "{what}: {}", done.stderr);
}

/// Backing off, connecting, waiting for the first answer, waiting for the answer to a batch, each with memory full of
/// lines, with each driver and before one is chosen. Fails when the drain has no limit, or a thread that waits for a
/// broker is joined.
#[test]
fn whatever_state_the_broker_is_in() {
    let (black_hole, _held, _listener) = full_backlog();
    let mute = Scripted::start(1);
    mute.topic("t", &[0]);
    mute.script(|_| Reply::Mute);
    let swallows = Scripted::start(1);
    swallows.topic("t", &[0]);
    swallows.script(|r| if r.api == Api::Produce { Reply::Swallow } else { Reply::Default });
    for driver in ["classic", "modern", "auto"] {
        for (what, address) in [
            ("backing off", "127.0.0.1:1".to_owned()),
            ("connecting", black_hole.to_string()),
            ("no answer", mute.address()),
            ("no answer to a batch", swallows.address()),
        ] {
            let folder = Folder::new();
            config(&folder, &address, driver);
            let before = swallows.count(Api::Produce);
            exits_in_time(
                &format!("{driver}, {what}"),
                folder.agent_line("run -c c.toml"),
                |agent| match what {
                    "backing off" => drop(agent.wait_log("down", SOON)),
                    "no answer to a batch" => {
                        wait_until(SOON, "a batch is in flight", || swallows.count(Api::Produce) > before);
                    }
                    _ => pause(millis(500)),
                },
            );
        }
    }
}

/// A name server that does not answer, in a network namespace: `perl` binds its port and executes the agent. Fails
/// when shutdown waits for the resolver, which cannot be interrupted.
#[test]
fn while_a_name_is_resolved() {
    for tool in ["unshare", "ip", "perl"] {
        need(tool);
    }
    const SHELL: &str = "ip link set lo up && mount --bind \"$1\" /etc/resolv.conf && shift && exec \"$@\"";
    const PERL: &str = "$^F = 99; socket(S, AF_INET, SOCK_DGRAM, 0) && bind(S, sockaddr_in(53, INADDR_LOOPBACK)) \
        or die $!; exec @ARGV";
    for driver in ["classic", "modern", "auto"] {
        let folder = Folder::new();
        config(&folder, "kafka.example:9092", driver);
        let resolver = folder.write("resolv.conf", "nameserver 127.0.0.1\n");
        let resolver = resolver.to_str().unwrap();
        let namespaces = ["unshare", "--map-root-user", "--mount", "--net"];
        let inside = ["sh", "-c", SHELL, "sh", resolver, "perl", "-MSocket", "-e", PERL];
        let setup = folder.agent_line("run -c c.toml").wrapped_in(namespaces.into_iter().chain(inside));
        exits_in_time(driver, setup, |agent| {
            pause(secs(1));
            assert!(
                !agent.log().contains("down"),
                "it should still wait for the name server:\n{}",
                agent.log()
            );
        });
    }
}

/// Fails when a signal that the agent does not use kills it, or one that asks for an exit is not an orderly stop.
#[test]
fn signals_of_every_kind() {
    let folder = Folder::new();
    let args = "run --output stdout --from beginning --state-dir state f.log";
    folder.write("f.log", Lines::new("f", 0..10).bytes());
    let mut next = 10;
    // SIGQUIT, SIGXCPU, SIGPWR.
    for ends in [3, 24, 30] {
        let mut agent = folder.agent_line(args).start();
        let send = |signal: i32| {
            let script = format!("kill -{signal} {}", agent.id());
            assert!(std::process::Command::new("sh").args(["-c", &script]).status().unwrap().success());
        };
        // SIGUSR2, SIGALRM, SIGSTKFLT, SIGXFSZ, SIGVTALRM, SIGPROF, SIGIO, and the real-time signals that libc does
        // not reserve.
        [12, 14, 16, 25, 26, 27, 29].into_iter().chain(35..=64).for_each(send);
        folder.append("f.log", Lines::new("f", next..next + 10).bytes());
        next += 10;
        agent.wait_lines(if next == 20 { 20 } else { 10 }); // the first run has the first ten as well
        send(ends);
        let done = agent.wait_exit(SOON).expect_code(0);
        assert!(done.stderr.contains("stopping"), "{ends}: {}", done.stderr);
    }
    let status = status_json(&folder, &folder.path("state"));
    assert_eq!(status["files"][0]["saved"], Lines::new("f", 0..next).bytes().len());
}
