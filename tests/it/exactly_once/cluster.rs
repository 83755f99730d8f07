//! Three brokers; leaders are killed under load, and while an agent that was killed is proving its open batches.

use super::{SHORT, announced, config, totals, write_some};
use crate::harness::*;

/// This many runs of the agent; in every third a broker is killed, and stays down for the next.
pub fn leaders_killed(rounds: u64, seed: u64) {
    let cluster = Cluster::start(Version::V41, &[]);
    let topic = cluster.topic(3);
    let folder = Folder::new();
    config(&folder, &topic, &SHORT);
    let (mut dice, mut next) = (Dice(seed), 0);
    let mut down = None;
    for round in 0..rounds {
        let mut agent = folder.agent_line("run -c c.toml").spawn();
        let steps = 5 + dice.below(60);
        let kill_at = dice.below(steps);
        for step in 0..steps {
            write_some(&folder, &mut next, 100, &["a.log", "b.log"]);
            if round % 3 == 0 && step == kill_at && down.is_none() {
                let node = 1 + dice.below(3) as usize;
                cluster.kill(node);
                down = Some(node);
            }
            pause(millis(30));
        }
        agent.kill();
        if round % 3 == 2
            && let Some(node) = down.take()
        {
            cluster.restart(node);
        }
    }
    if let Some(node) = down {
        cluster.restart(node);
    }
    let mut agent = folder.agent_line("run -c c.toml").start();
    topic.wait_count_for(2 * next, PATIENT);
    let log = agent.stop().expect_code(0).stderr;
    let written = [Lines::new("a", 0..next), Lines::new("b", 0..next)];
    let verdict = Delivered::in_topic(&topic).against(&[&written[0], &written[1]]);
    eprintln!("{verdict}; {}", totals(&folder)["exactly_once"]);
    assert!(verdict.missing.is_empty() && verdict.doubled == 0, "{verdict}\n{log}");
    assert_eq!(announced(&totals(&folder)), 0, "{log}");
}

/// Fails when a leader's report counts although the leader then lost that state, or when a batch goes to the new leader
/// under other sequence numbers.
#[test]
fn leaders_and_agent_killed() {
    leaders_killed(9, 32);
}
