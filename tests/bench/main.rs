//! The benchmark against the peers: `tests/bench/run`. Starts real brokers, ships the same lines with each program in turn,
//! checks every line at the other end, and draws tables and plots from what it measured. Judges nobody: there are no limits
//! here, those of the agent are in `tests/it`.
//!
//! Reading order: [`plan`] (what is asked for), [`systems`] (who takes part), [`running`] (a program at work, watched through
//! /proc), [`corpus`] (lines, and what became of them), [`work`] (what each has to do, one file per kind of work),
//! [`results`], and what is made of these: [`tables`], [`plots`].
#![allow(clippy::unwrap_used, reason = "a measurement that cannot go on ends")]

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
