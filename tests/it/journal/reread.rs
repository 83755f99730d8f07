//! Exactly-once: the agent is killed between sending and the acknowledgement, and the journal file moves before the restart.

use super::loss::numbered_file;
use super::*;
use std::fs;

/// What happens to the file while no agent runs.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Rotated,
    /// As by a backup: another inode, the same contents.
    Copied,
    Vacuumed,
}

/// Fails when the records of a rotated or copied file are not rebuilt, and so are doubled, missing or uncertain; or when those
/// of a removed file are not counted as uncertain.
#[test]
fn of_a_file_that_moves() {
    let broker = Broker::own(Version::V44);
    for fate in [Fate::Rotated, Fate::Copied, Fate::Vacuumed] {
        let topic = broker.topic(1);
        let folder = to_kafka(&topic, "delivery = \"exactly-once\"");
        append(&folder, "system.journal", "a", 5);
        let mut agent = folder.agent_line("run -c c.toml").start();
        topic.wait_count(5);
        broker.pause();
        agent.pause(); // so that they are one batch
        append(&folder, "system.journal", "b", 4);
        agent.resume();
        let state = folder.path("state");
        wait_status(&folder, &state, "it is sent", |s| {
            s["totals"]["read"] == 9 && s["exactly_once"]["open_intents"].as_u64() > Some(0)
        });
        agent.kill();
        broker.resume();
        let file = folder.path("journal/system.journal");
        match fate {
            Fate::Rotated => folder.rename("journal/system.journal", "journal/system@1.journal"),
            Fate::Copied => {
                fs::copy(&file, folder.path("journal/system@1.journal")).unwrap();
                fs::remove_file(&file).unwrap();
            }
            Fate::Vacuumed => fs::remove_file(&file).unwrap(),
        }
        numbered_file(&folder, "system.journal", "c", &[10, 11]);
        folder.agent_line("run -c c.toml --once").run_for(PATIENT).expect_code(0);
        let values: Vec<_> = topic.values().into_iter().map(|v| String::from_utf8(v).unwrap()).collect();
        let want = [numbered("a", 0..5), numbered("b", 0..4), numbered("c", 0..2)].concat();
        assert_eq!(values, want, "{fate:?}");
        let totals = status_json(&folder, &state)["totals"].clone();
        let uncertain = if matches!(fate, Fate::Vacuumed) { 4 } else { 0 };
        assert_eq!(totals["uncertain"], uncertain, "{fate:?}: {totals}");
    }
}
