//! README's "tested with": kills of broker and agent on thirteen releases of Kafka, with each driver that supports
//! them, and exactly-once. `tests/run --long versions`; `LOGAGENT_KAFKA=3.5.2,4.0.2` limits it to these releases.

use crate::exactly_once::announced;
use crate::harness::page::{between, text};
use crate::harness::*;
use crate::versions::{Pipeline, Way};

use Way::{Classic, ExactlyOnce, Modern};

const RELEASES: [(&str, &[Way]); 13] = [
    ("0.11.0.3", &[Classic, Modern]),
    ("1.1.1", &[Classic, Modern]),
    ("2.0.1", &[Classic, Modern]),
    ("2.4.1", &[Classic, Modern]),
    ("2.8.2", &[Classic, Modern, ExactlyOnce]),
    ("3.0.2", &[Classic, Modern, ExactlyOnce]),
    ("3.5.2", &[Classic, Modern, ExactlyOnce]),
    ("3.9.2", &[Classic, Modern, ExactlyOnce]),
    ("4.0.2", &[Modern, ExactlyOnce]),
    ("4.1.2", &[Modern, ExactlyOnce]),
    ("4.2.2", &[Modern, ExactlyOnce]),
    ("4.3.1", &[Modern, ExactlyOnce]),
    ("4.4.0", &[Modern, ExactlyOnce]),
];

/// Writes to each pipeline at 10,000 lines a second, once every 20 ms.
fn write_for(pipelines: &mut [Pipeline], writes: u32) {
    for _ in 0..writes {
        for pipeline in pipelines.iter_mut() {
            pipeline.write(200);
        }
        pause(millis(20));
    }
}

/// The topic's contents after rotations, two kills of the broker, one of the agent, and a stop of each.
fn survive(release: &'static str, ways: &[Way]) -> Vec<(Way, Verdict, u64)> {
    let broker = Broker::own(Version::Release(release));
    let mut pipelines: Vec<Pipeline> = ways.iter().map(|way| Pipeline::start(&broker, *way)).collect();
    for round in 0..6 {
        write_for(&mut pipelines, 40);
        pipelines.iter().for_each(Pipeline::rotate);
        write_for(&mut pipelines, 10);
        match round {
            0 | 3 => broker.kill(),
            2 => broker.stop(),
            1 => pipelines.iter_mut().for_each(|p| drop(p.agent.kill())),
            4 => pipelines.iter_mut().for_each(|p| drop(p.agent.stop().expect_code(0))),
            _ => {}
        }
        write_for(&mut pipelines, 5);
        match round {
            0 | 2 | 3 => broker.restart(),
            1 | 4 => {
                pipelines.iter_mut().for_each(|p| p.agent = p.folder.agent_line("run -c c.toml").start())
            }
            _ => {}
        }
    }
    let measure = |mut pipeline: Pipeline| {
        pipeline.agent.stop().expect_code(0);
        // To the end of the log: a record count would not do, since duplicates count too.
        let rest = pipeline.folder.agent_line("run -c c.toml --once").run_for(super::LONG).expect_code(0);
        drop(rest);
        let verdict = Delivered::in_topic(&pipeline.topic).against(&[&pipeline.lines()]);
        let status = status_json(&pipeline.folder, &pipeline.folder.path("state"));
        (pipeline.way, verdict, announced(&status))
    };
    pipelines.into_iter().map(measure).collect()
}

/// Fails when README or logagent(1) claim a test with other releases than these.
#[test]
fn documents_name_these_releases() {
    let tested = |way: Way| {
        let mut with = RELEASES.iter().filter(|(_, ways)| ways.contains(&way)).map(|(release, _)| release);
        let first = with.next().unwrap();
        format!("(tested with {first} to {})", with.next_back().unwrap())
    };
    for (document, ways) in [("README.md", &[Classic, Modern][..]), ("systemd/logagent.1", &[ExactlyOnce])] {
        let claimed: Vec<String> =
            between(&text(document), "(tested with ", ')').map(|c| format!("(tested with {c})")).collect();
        assert_eq!(claimed, ways.iter().copied().map(tested).collect::<Vec<_>>(), "{document}");
    }
}

/// Fails when a line is missing or changed, when exactly-once stores one twice, or when more are doubled than `status` says.
#[test]
#[ignore = "long form: tests/run --long"]
fn versions() {
    let only = std::env::var("LOGAGENT_KAFKA").ok();
    let wanted = |release: &str| only.as_ref().is_none_or(|only| only.split(',').any(|name| name == release));
    let mut failed = Vec::new();
    println!(
        "\n{:<10}{:<14}{:>8}{:>8}{:>8}{:>8}{:>8}",
        "Kafka", "way", "sent", "stored", "lost", "doubled", "claimed"
    );
    for (release, ways) in RELEASES.into_iter().filter(|(release, _)| wanted(release)) {
        for (way, verdict, claimed) in survive(release, ways) {
            let Verdict { written, arrived, missing, doubled, strange } = &verdict;
            println!(
                "{release:<10}{way:<14}{written:>8}{arrived:>8}{:>8}{doubled:>8}{claimed:>8}",
                missing.len(),
                way = format!("{way:?}"),
            );
            let most = if way == ExactlyOnce { 0 } else { claimed };
            if !missing.is_empty() || !strange.is_empty() || *doubled as u64 > most {
                failed.push(format!("{release} {way:?}: {verdict}, {claimed} claimed"));
            }
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}
