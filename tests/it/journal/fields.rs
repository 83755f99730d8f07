//! Fields that are large, or that the entry has twice: neither may hide what is sent or what filters compare.

use super::*;

/// Printable, and hardly compressible.
fn noise(len: usize, mut state: u32) -> Vec<u8> {
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        b'!' + (state >> 24) as u8 % 94
    };
    (0..len).map(|_| next()).collect()
}

/// Fails when an entry with more bytes than `max_line`, or with fields over it, loses its message or escapes the filters.
#[test]
fn large_fields_hide_no_others() {
    let entry = |n: u64, large: usize, unit: &str| {
        let (a, b) = (noise(large, n as u32), noise(large, n as u32 + 1000));
        let rest = [("MESSAGE", format!("m {n}")), ("_SYSTEMD_UNIT", unit.into()), ("PRIORITY", "3".into())];
        let mut fields = vec![("AAA", &a[..]), ("BBB", &b[..])];
        fields.extend(rest.iter().map(|(name, value)| (*name, value.as_bytes())));
        export(n, &fields)
    };
    for (large, more) in [(200, "max_line = 100"), (6000, "max_line = 100"), (1_100_000, "")] {
        let folder =
            with_journal(&format!("{more}\nunits = [\"a.service\"]\nexclude_units = [\"b.service\"]"));
        let entries =
            [entry(1, large, "a.service"), entry(2, large, "b.service"), entry(3, large, "a.service")];
        write_journal(&folder.path("journal/system.journal"), true, &entries.concat());
        assert_eq!(once(&folder), ["m 1", "m 3"], "{large} {more}");
    }
}

/// Fails when a message whose compressed form exceeds `max_line` is emptied rather than cut.
#[test]
fn a_message_that_does_not_compress() {
    let folder = with_journal("");
    let (large, even) = (noise(3_000_000, 1), vec![b'x'; 3_000_000]);
    let entries = [export(1, &[("MESSAGE", &large)]), export(2, &[("MESSAGE", &even)]), messages("m", 1)];
    write_journal(&folder.path("journal/system.journal"), true, &entries.concat());
    let lines = once(&folder);
    assert_eq!((lines.len(), lines[2].as_str()), (3, "m 0"));
    assert!(lines[0].as_bytes() == &large[..1_000_000], "{} bytes", lines[0].len());
    assert!(lines[1].as_bytes() == &even[..1_000_000], "{} bytes", lines[1].len());
}

/// Fails when the filters select anything else than `journalctl -u` and `-p` do: of a slice, with a repeated field, and
/// for a unit without its type.
#[test]
fn filters_as_journalctl_has_them() {
    let folder = with_journal("units = [\"a\", \"x.slice\"]\npriority = \"err\"");
    let entries = [
        &[("MESSAGE", "of the unit"), ("_SYSTEMD_UNIT", "a.service")][..],
        &[("MESSAGE", "in the slice"), ("_SYSTEMD_UNIT", "b.service"), ("_SYSTEMD_SLICE", "x.slice")],
        &[("MESSAGE", "in another"), ("_SYSTEMD_UNIT", "b.service"), ("_SYSTEMD_SLICE", "y.slice")],
        &[("MESSAGE", "twice"), ("_SYSTEMD_UNIT", "a.service"), ("PRIORITY", "6"), ("PRIORITY", "3")],
        &[("MESSAGE", "info"), ("_SYSTEMD_UNIT", "a.service"), ("PRIORITY", "6")],
    ];
    let mut bytes = Vec::new();
    for (fields, n) in entries.iter().zip(1..) {
        let fields: Vec<_> = fields.iter().map(|(name, value)| (*name, value.as_bytes())).collect();
        bytes.extend(export(n, &fields));
    }
    write_journal(&folder.path("journal/system.journal"), true, &bytes);
    assert_eq!(once(&folder), ["of the unit", "in the slice", "twice"]);
}
