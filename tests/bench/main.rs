//! The benchmark against other programs: `tests/bench/run`. Starts real brokers, ships the same lines with each
//! program in turn, checks every line at the other end, and draws tables and plots from the measurements. There are
//! no limits here; the agent's are in `tests/it`.
//!
//! Reading order: [`plan`] (the options), [`systems`] (the participants), [`running`] (a running program, observed
//! through /proc), [`corpus`] (the lines and their check), [`work`] (the workloads, one per file), [`results`], and
//! their presentation: [`tables`], [`plots`].
#![allow(clippy::unwrap_used, reason = "a failed measurement ends the run")]

#[allow(dead_code, unused_imports, reason = "shared with tests/it, which uses all of it")]
#[path = "../it/harness/mod.rs"]
mod harness;

mod corpus;
mod link;
mod offsets;
mod plan;
mod plots;
mod results;
mod running;
mod svg;
mod systems;
mod tables;
mod work;

fn main() {
    let plan = plan::Plan::from_args();
    if !plan.draw {
        work::run(&plan);
    }
    let results = results::Results::open(&plan.out);
    let text = tables::all(&results);
    std::fs::write(plan.out.join("tables.txt"), &text).unwrap();
    plots::draw(&results, &plan.out);
    println!("{text}");
    println!("measured.jsonl, tables.txt and plots (*.svg) are in {}", plan.out.display());
    if plan.readme {
        tables::into_documents(&results);
    }
}
