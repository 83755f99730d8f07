//! (q) An idle hour with one broker over TLS: bytes, wake-ups and CPU. All systems at the same time, each in a network
//! namespace of its own, on one file; each has delivered its lines and had time to close connections it does not need
//! (the agent does so after three minutes). In the first round only.

use super::{AtWork, Bench, PARTITIONS, Work, checked, trickle::takes};
use crate::{
    corpus::Corpus,
    harness::{Broker, NetNs, Version, millis, pause, secs},
    plan::Plan,
    systems::How,
};

pub const WORK: Work = Work { letter: 'q', settings, takes, round };

fn settle(plan: &Plan) -> u64 {
    plan.size(240, 8)
}

fn settings(plan: &Plan) -> String {
    format!(
        "one file, over TLS; for {} s after {} s to settle; per hour; bytes with all headers",
        plan.size(3600, 10),
        settle(plan)
    )
}

fn round(bench: &mut Bench<'_>, round: u32) {
    if round > 1 {
        return;
    }
    if !NetNs::is_possible() {
        return eprintln!("no network namespaces for this user: no idle hour");
    }
    let order = bench.order(&WORK, round);
    let networks: Vec<NetNs> = order.iter().map(|_| NetNs::new()).collect();
    let Some(first) = networks.first() else { return };
    let broker = Broker::secure_at(Version::V41, &first.host);
    let corpus = Corpus::one(100);
    let data = bench.data("quiet", corpus);
    let (ca, address) = (broker.key("ca.crt"), broker.listener("tls"));
    let mut all: Vec<AtWork> = Vec::new();
    for (system, ns) in order.iter().zip(&networks) {
        let how = How { ca: Some(&ca), netns: Some(ns), ..How::compressed("none") };
        let topic = broker.topic(PARTITIONS);
        all.push(bench.begin_at(system, &data, corpus, how, topic, &address));
    }
    for one in &mut all {
        if one.wait(millis(50), secs(30)).is_none() {
            one.remark("not all lines arrived");
        }
    }
    pause(secs(settle(bench.plan)));
    let mut now = || -> Vec<_> {
        let each = all.iter_mut().zip(&networks);
        each.map(|(one, ns)| (one.running.cpu(), one.running.switches(), ns.bytes().both())).collect()
    };
    let before = now();
    let time = bench.plan.size(3600, 10);
    pause(secs(time));
    let after = now();
    let an_hour = 3600.0 / time as f64;
    for ((one, before), after) in all.into_iter().zip(before).zip(after) {
        let mut figures = vec![
            ("cpu_s", after.0.saturating_sub(before.0).as_secs_f64() * an_hour),
            ("wakeups", after.1.saturating_sub(before.1) as f64 * an_hour),
            ("wire_bytes", after.2.saturating_sub(before.2) as f64 * an_hour),
            ("resident_kib", one.running.resident() as f64),
        ];
        let name = one.system.name;
        let (check, note) = one.end();
        figures.extend(checked(&check));
        bench.add(&WORK, "an idle hour", round, name, &figures, &note);
    }
}
