//! The merged config for `check --show`: every key with its value as written, and the place where it is written.

use super::keys::{Source, TABLES};
use super::problem::Problems;
use super::spec::{ShownValue, TableSpec};
use super::table::Described;
use std::fmt::Write as _;

/// As TOML. Keys that have no default and are not written are left out, and so are defaults that depend on other keys.
pub fn show(problems: &Problems) -> String {
    let mut out = String::new();
    for table in TABLES {
        let numbers = if table.name == Source::TABLE.name { usize::MAX } else { 1 };
        let written = (0..numbers).take_while(|n| problems.header_of((table.name, *n)).is_some());
        written.for_each(|number| show_table(&mut out, table, number, problems));
    }
    out
}

fn show_table(out: &mut String, table: &TableSpec, number: usize, problems: &Problems) {
    let _ = writeln!(out, "{}", table.name);
    for key in table.keys.iter().filter(|k| k.shown != ShownValue::Table) {
        let _ = match problems.source_of((table.name, number), key.name) {
            Some((value, place)) => writeln!(out, "{} = {value}  # {place}", key.name),
            None if matches!(key.shown, ShownValue::Default | ShownValue::Instance) => {
                writeln!(out, "{} = {}  # default", key.name, key.value)
            }
            None => Ok(()),
        };
    }
    out.push('\n');
}
