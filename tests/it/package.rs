//! What the Debian package installs besides the program. Builds and installs nothing: that is `tests/package`.

use crate::harness::page::text;

/// Fails when the package lists a file that does not exist, or leaves out a manual page.
#[test]
fn the_files_of_the_package_are_there() {
    let manifest: toml::Table = text("Cargo.toml").parse().unwrap();
    let deb = &manifest["package"]["metadata"]["deb"];
    let sources = deb["assets"].as_array().unwrap().iter().map(|a| a[0].as_str().unwrap());
    let mut kept = sources.filter(|s| !s.starts_with("target/")).map(text);
    assert!(kept.all(|text| !text.is_empty()));
    for page in ["logagent.1", "logagent.toml.5", "logagent-status.7"] {
        let folder = format!("usr/share/man/man{}/", &page[page.len() - 1..]);
        let installed = |asset: &toml::Value| {
            asset[0].as_str() == Some(&format!("systemd/{page}")) && asset[1].as_str() == Some(&folder)
        };
        assert!(deb["assets"].as_array().unwrap().iter().any(installed), "{page} in {folder}");
    }
    assert!(text("systemd/postrm").contains("\n#DEBHELPER#\n"), "where cargo-deb inserts its part");
}
