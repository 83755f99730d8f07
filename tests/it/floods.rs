//! An event that happens a thousand times is logged a few times, with a count.

use crate::harness::*;

fn config(folder: &Folder, brokers: &str, more: &str) {
    let here = folder.root().display();
    let text = format!(
        "[agent]\nstate_dir = \"{here}/state\"\n[kafka]\nbrokers = [\"{brokers}\"]\ntopic = \"t\"\ndriver = \"modern\"\n\
         [[files]]\npaths = [\"{here}/f.log\"]\n{more}"
    );
    folder.write("c.toml", text);
}

fn total(folder: &Folder, name: &str) -> u64 {
    status_json(folder, &folder.path("state"))["totals"][name].as_u64().unwrap()
}

/// Every record is refused: each is a dead letter of its own. Fails when each is logged on its own line, or when no
/// line gives their number.
#[test]
fn dead_letters() {
    const N: u64 = 2000;
    let kafka = Scripted::start(1);
    kafka.topic("t", &[0]);
    kafka.script(|r| if r.api == Api::Produce { Reply::Code(10) } else { Reply::Default });
    let folder = Folder::new();
    config(&folder, &kafka.address(), "");
    folder.write("f.log", Lines::new("f", 0..N).bytes());
    let done = folder.agent_line("run -c c.toml --once").run_for(PATIENT).expect_code(0);
    assert_eq!(total(&folder, "dead_lettered"), N);
    let letters = std::fs::read_to_string(folder.path("state/dead-letter")).unwrap();
    assert_eq!(letters.lines().count() as u64, N);
    let said: Vec<&str> = done.stderr.lines().filter(|l| l.contains("cannot be delivered")).collect();
    assert!((2..=11).contains(&said.len()) && said.last().unwrap().contains("(1024 recently)"), "{said:#?}");
    assert!(done.stderr.lines().count() < 40, "{}", done.stderr);
}

/// Fails when each chunk that contains a line over `max_line` is logged.
#[test]
fn cut_lines() {
    const N: u64 = 40_000;
    let folder = Folder::new();
    folder.write("f.log", Lines::new("f", 0..N).bytes());
    config(&folder, "unused:9092", "max_line = 100\n");
    let done = folder.agent_line("run -c c.toml --output stdout --once").run_for(PATIENT).expect_code(0);
    assert_eq!((total(&folder, "cut"), done.lines().len() as u64), (N, N));
    let said: Vec<&str> = done.stderr.lines().filter(|l| l.contains("cut near offset")).collect();
    assert!((2..=8).contains(&said.len()), "{said:#?}");
}
