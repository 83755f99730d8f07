//! One partition against verdicts, step by step: what is sent, with which sequence numbers, and when.

use super::on_refused::ASK_TIMES;
use super::*;
use crate::producer::batch::Numbers;
use crate::producer::driver::Refusal;
use crate::producer::testing::{STAMP, batch, chunk, plain};

/// A partition, its clock, and the batches a driver would hold.
struct Bench {
    p: Partition,
    now: Now,
    rules: SendRules,
    rng: Rng,
    in_flight: Vec<Batch>,
    /// All actions except `Send`, as text.
    actions: Vec<String>,
    group_no: u64,
}

const NUMBERED: SendRules = SendRules::Idempotent { in_flight: 3, id: Some((7, 0)), once: false };

impl Bench {
    fn new(rules: SendRules) -> Self {
        let now = Now { at: Instant::now(), wall_ms: STAMP + 5 };
        let (p, rng) = (Partition::new(0), Rng::new(1));
        Bench { p, now, rules, rng, in_flight: vec![], actions: vec![], group_no: 0 }
    }

    /// A partition whose producer id the broker already knows.
    fn proven() -> Self {
        let mut b = Bench::new(NUMBERED);
        b.push(1);
        b.stored(0);
        b.actions.clear();
        b
    }

    fn push(&mut self, lines: usize) {
        self.group_no += 1;
        self.p.push(batch(self.group_no, vec![chunk(&plain(1), 0, &vec![&b"x"[..]; lines])]));
        self.launch();
    }

    fn launch(&mut self) {
        let mut actions = Vec::new();
        self.p.launch(self.now, self.rules, &mut actions);
        self.note(actions);
    }

    fn note(&mut self, actions: Vec<Action>) {
        for a in actions {
            match a {
                Action::Send(b) => self.in_flight.push(b),
                Action::Stored { batch, .. } => self.actions.push(format!("stored {}", batch.group_no.0)),
                Action::DeadLetter { batch, .. } => {
                    self.actions.push(format!("dead letter: {} of {}", batch.count, batch.group_no.0))
                }
                other => self.actions.push(format!("{other:?}")),
            }
        }
    }

    /// Returns the `i`-th batch in flight.
    fn back(&mut self, i: usize, verdict: Verdict) {
        let (batch, mut actions) = (self.in_flight.remove(i), Vec::new());
        self.p.done(batch, verdict, self.now, &mut self.rng, &mut actions);
        self.note(actions);
        self.launch();
    }

    fn stored(&mut self, i: usize) {
        self.back(i, Verdict::Stored { offset: None });
    }

    fn again(&mut self, i: usize, maybe_stored: bool, pace: Pace) {
        self.back(i, Verdict::Retry { maybe_stored, pace, why: "why".into() });
    }

    fn refused(&mut self, i: usize, what: Refusal) {
        self.back(i, Verdict::Refused { what, why: "bad".into() });
    }

    fn sequence_error(&mut self, i: usize, code: i16) {
        self.back(i, Verdict::SequenceError { new_id: code == 47, why: "code".into() });
    }

    fn pass(&mut self, ms: u64) {
        self.now.at += Duration::from_millis(ms);
        self.launch();
    }

    fn described(&mut self, last: Result<Option<(i16, i32)>, String>) {
        let mut actions = Vec::new();
        self.p.described(7, last, self.now, &mut actions);
        self.note(actions);
        self.launch();
    }

    /// Batch group, epoch and first sequence of each batch in flight.
    fn in_flight_now(&self) -> Vec<(u64, i16, i32)> {
        let of = |b: &Batch| {
            let Numbers { epoch, base, .. } = b.numbers.unwrap_or(Numbers { pid: 0, epoch: -1, base: -1 });
            (b.group_no.0, epoch, base)
        };
        self.in_flight.iter().map(of).collect()
    }
}

/// Fails when a broker that does not know the id can get two batches at once: it would take the second for the first.
#[test]
fn the_first_batch_of_an_id_is_sent_alone() {
    let mut b = Bench::new(NUMBERED);
    (0..5).for_each(|_| b.push(2));
    assert_eq!(b.in_flight_now(), [(1, 0, 0)]);
    b.stored(0);
    assert_eq!(b.in_flight_now(), [(2, 0, 2), (3, 0, 4), (4, 0, 6)]);
    b.stored(1);
    assert_eq!(b.in_flight_now(), [(2, 0, 2), (4, 0, 6), (5, 0, 8)], "answers may come in any order");
}

/// Fails when the broker is trusted to know the producer after a long time without writes.
#[test]
fn after_long_idleness_the_first_batch_is_sent_alone_again() {
    let mut b = Bench::proven();
    b.pass(IDLE.as_millis() as u64 + 1);
    (0..3).for_each(|_| b.push(1));
    assert_eq!(b.in_flight_now(), [(2, 0, 1)]);
    b.stored(0);
    assert_eq!(b.in_flight_now().len(), 2);
}

/// Fails when no id is requested, or batches are sent before it arrives.
#[test]
fn without_an_id_nothing_is_sent() {
    let mut b = Bench::new(SendRules::Idempotent { in_flight: 5, id: None, once: false });
    b.push(1);
    assert!(b.in_flight_now().is_empty());
    b.rules = NUMBERED;
    b.launch();
    assert_eq!(b.in_flight_now(), [(1, 0, 0)]);
}

/// Fails when a batch in trouble is overtaken, or sent early, not alone, or out of order.
#[test]
fn trouble_drains_waits_and_resends_in_order() {
    let mut b = Bench::proven();
    (0..4).for_each(|_| b.push(1));
    assert_eq!(b.in_flight_now(), [(2, 0, 1), (3, 0, 2), (4, 0, 3)]);
    b.again(1, false, Pace::Backoff);
    b.pass(60_000);
    assert_eq!(b.in_flight_now(), [(2, 0, 1), (4, 0, 3)], "nothing is sent while others are in flight");
    assert!(!b.p.is_up());
    b.sequence_error(1, 45);
    b.stored(0);
    assert!(b.in_flight_now().is_empty() && b.p.trouble().is_some_and(|t| t.0 == 1));
    b.pass(70);
    assert!(b.in_flight_now().is_empty(), "sent too early");
    b.pass(60);
    assert_eq!(b.in_flight_now(), [(3, 0, 2)]);
    b.stored(0);
    assert_eq!(b.in_flight_now(), [(4, 0, 3), (5, 0, 4)]);
    assert!(b.p.is_up() && b.p.trouble().is_none());
}

/// Fails when backoff does not grow, a blocked batch is retried more than once a minute, or "now" becomes a busy loop.
#[test]
fn paces() {
    for (pace, waits) in [
        (Pace::Backoff, &[100, 200, 400, 800, 1600, 3200, 4000, 4000][..]),
        (Pace::Blocked, &[60_000, 60_000]),
        (Pace::Now, &[0, 0, 0, 800, 1600]),
    ] {
        let mut longest = vec![0; waits.len()];
        for seed in 0..50 {
            let mut b = Bench { rng: Rng::new(seed), ..Bench::new(SendRules::Plain) };
            b.push(1);
            for (wait, longest) in waits.iter().zip(&mut longest) {
                b.again(0, false, pace);
                let (start, due) = (b.now.at, b.p.wake().unwrap_or(b.now.at));
                let ms = (due - start).as_millis() as u64;
                let least = if pace == Pace::Blocked { *wait } else { 50.min(*wait) };
                assert!((least..=*wait).contains(&ms), "{pace:?}: {ms} ms, not up to {wait}");
                *longest = ms.max(*longest);
                b.pass(ms + 1);
                assert_eq!(b.in_flight_now().len(), 1);
            }
            assert_eq!(b.in_flight[0].attempts, waits.len() as u32);
        }
        let grown = longest.iter().zip(waits).all(|(longest, wait)| *longest >= wait * 8 / 10);
        assert!(grown, "{pace:?}: {longest:?}");
    }
}

/// Fails when a batch that may be stored gets other numbers, or others are sent beside it.
#[test]
fn a_batch_of_unknown_outcome_is_resent_alone_and_unchanged() {
    let mut b = Bench::proven();
    (0..3).for_each(|_| b.push(1));
    (0..3).for_each(|_| b.again(0, true, Pace::Now));
    for (group_no, base) in [(2, 1), (3, 2), (4, 3)] {
        assert_eq!(b.in_flight_now(), [(group_no, 0, base)]);
        b.stored(0);
    }
    assert_eq!(b.actions, ["stored 2", "stored 3", "stored 4"]);
    // Nor is it sent beside batches that were certainly not stored.
    (0..3).for_each(|_| b.push(1));
    for maybe_stored in [false, false, true] {
        b.again(0, maybe_stored, Pace::Now);
    }
    b.stored(0);
    assert_eq!(b.in_flight_now(), [(6, 0, 5)]);
    b.stored(0);
    assert_eq!(b.in_flight_now(), [(7, 0, 6)]);
}

/// Fails when 45 is believed although an earlier batch explains it, or not believed when none does.
#[test]
fn out_of_order_at_the_head_means_state_lost() {
    let mut b = Bench::proven();
    (0..2).for_each(|_| b.push(2));
    b.sequence_error(1, 45);
    b.stored(0);
    assert_eq!(b.in_flight_now(), [(3, 0, 3)], "caused by the earlier batch");
    b.sequence_error(0, 45);
    assert_eq!(b.in_flight_now(), [(3, 1, 0)], "a new epoch, sequence 0");
    assert!(b.actions.iter().all(|t| t.starts_with("stored")), "nothing is uncertain: {:?}", b.actions);
}

/// Fails when the leader's state is not requested, or not used: stored lines would be sent again.
#[test]
fn the_leader_is_asked_about_a_lost_answer() {
    for (last, in_flight_now, actions) in [
        (Ok(Some((0, 2))), vec![], "stored 2"),
        (Ok(Some((0, 0))), vec![(2, 1, 0)], ""),
        (Ok(None), vec![(2, 1, 0)], "Uncertain(2)"),
        (Ok(Some((0, 99))), vec![(2, 1, 0)], "Uncertain(2)"),
    ] {
        let mut b = Bench::proven();
        b.push(2);
        b.again(0, true, Pace::Now);
        b.sequence_error(0, 59);
        assert_eq!((b.actions.pop().unwrap(), b.in_flight_now()), ("Ask { pid: 7 }".into(), vec![]));
        b.described(last.clone());
        assert_eq!((b.in_flight_now(), b.actions.join(" ")), (in_flight_now, actions.into()), "{last:?}");
    }
}

/// Fails when a temporarily absent leader counts as one that knows nothing, or one that never answers blocks
/// indefinitely.
#[test]
fn a_leader_that_cannot_be_asked() {
    let mut b = Bench::proven();
    b.push(2);
    b.again(0, true, Pace::Now);
    for _ in 0..ASK_TIMES {
        b.sequence_error(0, 45);
        b.described(Err("away".into()));
        b.pass(10_000);
        assert_eq!(b.in_flight_now(), [(2, 0, 1)]);
    }
    b.sequence_error(0, 45);
    b.pass(PATIENCE.as_millis() as u64);
    assert_eq!(b.in_flight_now(), [(2, 1, 0)]);
    assert_eq!(b.actions.last().unwrap(), "Uncertain(2)");
}

/// Fails when a fenced id is still used, or its batches are lost.
#[test]
fn a_fenced_id_is_replaced() {
    let mut b = Bench::proven();
    (0..2).for_each(|_| b.push(1));
    b.sequence_error(0, 47);
    assert_eq!(b.actions, ["NewId { pid: 7 }"]);
    b.rules = SendRules::Idempotent { in_flight: 3, id: None, once: false };
    b.sequence_error(0, 47);
    b.pass(1000);
    assert!(b.in_flight_now().is_empty());
    b.rules = SendRules::Idempotent { in_flight: 3, id: Some((8, 0)), once: false };
    b.pass(1000);
    assert_eq!((b.in_flight_now(), b.in_flight[0].numbers.map(|n| n.pid)), (vec![(2, 0, 0)], Some(8)));
}

/// Fails when a refusal costs a good record, leaves a sequence gap, or is not narrowed down to one record.
#[test]
fn refusals() {
    let mut b = Bench::proven();
    (0..2).for_each(|_| b.push(4));
    b.refused(0, Refusal::Records(vec![2, 0, 2, 9]));
    assert_eq!(b.actions, ["dead letter: 2 of 2"]);
    b.sequence_error(0, 45);
    assert_eq!((b.in_flight_now(), b.in_flight[0].count), (vec![(2, 0, 1)], 2));
    b.stored(0);
    assert_eq!(b.in_flight_now(), [(3, 0, 3)], "two sequence numbers are free again");
    b.refused(0, Refusal::TooLarge);
    assert_eq!((b.in_flight_now(), b.in_flight[0].count), (vec![(3, 0, 3)], 2));
    b.refused(0, Refusal::Records(vec![9])); // none of these
    assert_eq!((b.in_flight_now(), b.in_flight[0].count), (vec![(3, 0, 3)], 1));
    b.refused(0, Refusal::TooLarge);
    b.stored(0);
    b.stored(0);
    assert_eq!(b.actions[1..], ["stored 2", "TooLarge(4)", "dead letter: 1 of 3", "stored 3", "stored 3"]);
    assert!(b.p.is_up() && b.p.open() == 0);
}

/// Fails when parts of a batch that may be stored keep its epoch: the broker could confuse them with it.
#[test]
fn parts_of_a_batch_that_may_be_stored_begin_a_new_epoch() {
    let mut b = Bench::proven();
    b.push(2);
    b.again(0, true, Pace::Now);
    b.refused(0, Refusal::Something);
    assert_eq!(b.in_flight_now(), [(2, 1, 0)]);
    b.stored(0);
    assert_eq!(b.in_flight_now(), [(2, 1, 1)]);
    assert_eq!(b.actions, ["Uncertain(1)", "stored 2", "Uncertain(1)"]);
}

/// Fails when batches that come back behind a refused one count as trouble: each refusal would log a warning that names
/// no cause.
#[test]
fn batches_behind_a_refused_one_are_no_trouble() {
    for lines in [4, 1] {
        let mut b = Bench::proven();
        (0..3).for_each(|_| b.push(lines));
        b.refused(0, Refusal::TooLarge);
        b.again(0, false, Pace::Now);
        b.again(0, false, Pace::Now);
        assert_eq!(b.p.trouble(), None);
        assert_eq!(b.in_flight.len(), 1, "the next one is sent at once, alone");
    }
}

/// Fails when a refused timestamp becomes a dead letter, loses the sequence numbers, or is retried endlessly without a
/// pause.
#[test]
fn a_refused_timestamp_is_replaced() {
    let mut b = Bench::proven();
    b.push(2);
    assert_eq!(b.in_flight[0].stamp_ms(), STAMP);
    b.refused(0, Refusal::Timestamp);
    assert_eq!((b.in_flight[0].stamp_ms(), b.in_flight_now()), (STAMP + 5, vec![(2, 0, 1)]));
    b.refused(0, Refusal::Timestamp);
    assert_eq!(b.in_flight[0].stamp_ms(), -1);
    b.refused(0, Refusal::Timestamp);
    assert_eq!((b.in_flight_now(), b.p.wake()), (vec![], Some(b.now.at + BLOCKED)));
    assert!(b.actions.is_empty(), "{:?}", b.actions);
}

/// Fails when dead letters that cannot be written are dropped, or retried without a pause.
#[test]
fn a_full_dead_letter_file_holds() {
    let mut b = Bench::proven();
    b.push(1);
    let mut actions = Vec::new();
    b.p.done(
        b.in_flight.remove(0),
        Verdict::Refused { what: Refusal::Something, why: String::new() },
        b.now,
        &mut b.rng,
        &mut actions,
    );
    let Some(Action::DeadLetter { batch, .. }) = actions.pop() else { panic!("no dead letter") };
    b.p.hold(batch, "full".into(), b.now, &mut b.rng, &mut actions);
    b.push(1);
    b.pass(59_000);
    assert!(b.in_flight_now().is_empty() && b.p.trouble() == Some((1, "full")));
    b.pass(1000);
    assert_eq!(b.in_flight_now(), [(2, 0, 1)]);
}

/// Fails when a plain driver gets sequence numbers or two batches at once, or a possible duplicate is not reported.
#[test]
fn plain_rules() {
    let mut b = Bench::new(SendRules::Plain);
    (0..2).for_each(|_| b.push(3));
    assert_eq!(b.in_flight_now(), [(1, -1, -1)]);
    b.again(0, true, Pace::Now);
    assert_eq!(
        (b.in_flight_now(), b.actions.as_slice()),
        (vec![(1, -1, -1)], &["Doubled(3)".to_owned()][..])
    );
    b.again(0, false, Pace::Now);
    b.stored(0);
    assert_eq!((b.in_flight_now(), b.actions.len()), (vec![(2, -1, -1)], 2));
}

/// Fails when one driver's sequence numbers are used by another, or resending under new numbers is not reported.
#[test]
fn the_driver_changes() {
    let mut b = Bench::new(SendRules::Plain);
    b.push(3);
    b.again(0, true, Pace::Backoff);
    b.rules = NUMBERED;
    b.pass(1000);
    assert_eq!(
        (b.in_flight_now(), b.actions.as_slice()),
        (vec![(1, 0, 0)], &["Uncertain(3)".to_owned()][..])
    );
    b.again(0, true, Pace::Backoff);
    b.rules = SendRules::Plain;
    b.pass(1000);
    assert_eq!((b.in_flight_now(), b.actions.last().unwrap().as_str()), (vec![(1, -1, -1)], "Doubled(3)"));
}

/// Fails when a new id is used while batches of the old one are in flight: their order would be lost.
#[test]
fn a_new_id_waits_for_batches_in_flight() {
    let mut b = Bench::proven();
    b.push(1);
    b.rules = SendRules::Idempotent { in_flight: 3, id: Some((8, 4)), once: false };
    (0..2).for_each(|_| b.push(1));
    assert_eq!(b.in_flight_now(), [(2, 0, 1)]);
    b.stored(0);
    assert_eq!(b.in_flight_now(), [(3, 4, 0)], "it is sent alone as well");
}
