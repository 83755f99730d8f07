//! The command line options, and the sizes derived from them.

use argh::FromArgs;
use std::path::PathBuf;

/// Compare the agent with other log shippers, checking each line at the other end.
#[derive(FromArgs)]
#[argh(name = "tests/bench/run")]
struct Args {
    /// workloads, `a,b,…`: a ship a file, b latency, c broker down, d idle, e 200 files, f slow uplink, g start-up and
    /// size, i growth, t trickle, s steady 10 MB/s, q quiet hour; all by default
    #[argh(option)]
    only: Option<String>,
    /// only these systems, by the start of their names, with commas
    #[argh(option)]
    systems: Option<String>,
    /// only these rates of the trickle, in lines/s, with commas
    #[argh(option)]
    rates: Option<String>,
    /// rounds; figures are their medians
    #[argh(option, default = "3")]
    runs: u32,
    /// small amounts and one round: shows that everything works, not how fast
    #[argh(switch)]
    short: bool,
    /// add rounds to those in the folder instead of replacing them
    #[argh(switch)]
    add: bool,
    /// folder for measurements, tables and plots
    #[argh(option, default = "PathBuf::from(\"target/bench\")")]
    out: PathBuf,
    /// measure nothing: redraw from the folder
    #[argh(switch)]
    draw: bool,
    /// write tables and plots into tests/bench/README.md, and the summary into README
    #[argh(switch)]
    readme: bool,
}

pub struct Plan {
    pub only: Vec<char>,
    pub systems: Option<Vec<String>>,
    pub rates: Option<Vec<u64>>,
    pub runs: u32,
    pub short: bool,
    pub add: bool,
    pub out: PathBuf,
    pub draw: bool,
    pub readme: bool,
}

impl Plan {
    pub fn from_args() -> Plan {
        let args: Args = argh::from_env();
        let only = args.only.unwrap_or_else(|| "a,b,c,d,e,f,g,i,t,s,q".into());
        std::fs::create_dir_all(&args.out).unwrap();
        Plan {
            only: only.split(',').filter_map(|w| w.chars().next()).collect(),
            systems: args.systems.map(|list| list.split(',').map(str::to_owned).collect()),
            rates: args.rates.map(|list| list.split(',').map(|n| n.parse().expect("a rate")).collect()),
            runs: if args.short { 1 } else { args.runs },
            short: args.short,
            add: args.add,
            out: args.out,
            draw: args.draw,
            readme: args.readme,
        }
    }
    /// Picks the amount for the full or the short form.
    pub fn size(&self, long: u64, short: u64) -> u64 {
        if self.short { short } else { long }
    }
}
