//! Selects the entries to send. Entries that are filtered out still advance the position.

use super::file::JournalEntry;
use super::header::Id128;

/// A source's selection; an empty list selects everything.
#[derive(Clone, Debug, Default)]
pub struct EntryFilter {
    pub units: Vec<String>,
    pub exclude_units: Vec<String>,
    pub identifiers: Vec<String>,
    /// This priority and higher ones (smaller numbers).
    pub priority: Option<u8>,
    pub transports: Vec<String>,
    /// Only this boot.
    pub boot: Option<Id128>,
}

impl EntryFilter {
    pub fn takes(&self, e: &JournalEntry) -> bool {
        let is_one = |names: &[String], field: &[u8]| {
            e.values(field).any(|v| names.iter().any(|name| name.as_bytes() == v))
        };
        let asks = |names: &[String], field: &[u8]| names.is_empty() || is_one(names, field);
        let important = |least: u8| {
            let mut all = e.values(b"PRIORITY").peekable();
            // An entry without a priority passes.
            all.peek().is_none() || all.any(|p| matches!(p, [p] if *p <= b'0' + least))
        };
        self.boot.is_none_or(|boot| e.boot_id == boot)
            && self.priority.is_none_or(important)
            && asks(&self.identifiers, b"SYSLOG_IDENTIFIER")
            && asks(&self.transports, b"_TRANSPORT")
            && (self.units.is_empty() || self.units.iter().any(|unit| is_about(e, unit.as_bytes())))
            && !is_one(&self.exclude_units, b"_SYSTEMD_UNIT")
    }
}

/// As `journalctl -u`: messages of the unit, or of the units in a slice, and messages about it from systemd and other
/// privileged processes.
fn is_about(e: &JournalEntry, unit: &[u8]) -> bool {
    let has = |name: &[u8], value: &[u8]| e.values(name).any(|v| v == value);
    has(b"_SYSTEMD_UNIT", unit)
        || unit.ends_with(b".slice") && has(b"_SYSTEMD_SLICE", unit)
        || has(b"UNIT", unit) && has(b"_PID", b"1")
        || (has(b"OBJECT_SYSTEMD_UNIT", unit) || has(b"COREDUMP_UNIT", unit)) && has(b"_UID", b"0")
}

/// The unit this process runs in. Shipping its own messages would feed on itself.
pub fn own_unit() -> Option<String> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    unit_in(&groups)
}

fn unit_in(groups: &str) -> Option<String> {
    let of_systemd = |l: &&str| l.starts_with("0::") || l.contains(":name=systemd:");
    let path = groups.lines().find(of_systemd)?;
    let unit = path.split('/').rfind(|part| part.ends_with(".service"))?;
    Some(unit.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails when the agent does not find its own unit and so ships its own messages in a loop.
    #[test]
    fn own_unit_of_cgroups() {
        let unit = Some("logagent.service".to_owned());
        assert_eq!(unit_in("0::/system.slice/logagent.service\n"), unit);
        assert_eq!(unit_in("2:cpu:/\n1:name=systemd:/system.slice/logagent.service/sub\n"), unit);
        assert_eq!(unit_in("0::/user.slice/user-0.slice/session-1.scope\n"), None);
    }
}
