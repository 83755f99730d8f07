//! Command lines, right and wrong.

use super::*;
use crate::error::ExitCode;
use proptest::prelude::*;
use std::path::Path;

fn command(line: &str) -> Command {
    match parse(line.split(' ').map(OsString::from)) {
        Ok(Invocation::Command(c)) => c,
        other => panic!("{line}: {other:?}"),
    }
}

fn refused(args: &[&str]) -> String {
    let error = parse(args.iter().map(OsString::from)).expect_err(&format!("{args:?} was accepted"));
    assert_eq!(error.code, ExitCode::Usage);
    let text = error.to_string();
    assert!(text.starts_with("logagent: ") && text.lines().count() == 1 && text.contains("--help"), "{text}");
    text
}

#[test]
fn both_forms_of_a_value() {
    for line in [
        "run -c /c --brokers a:1,b:2 --topic t --output kafka --from end --state-dir /s --driver modern --once f g",
        "run --config=/c --brokers=a:1,b:2 --topic=t --output=kafka --from=end --state-dir=/s --driver=modern --once f g",
    ] {
        let Command::Run(run) = command(line) else { panic!() };
        let o = run.overrides();
        assert_eq!(
            (o.config.as_deref(), o.state_dir.as_deref()),
            (Some(Path::new("/c")), Some(Path::new("/s")))
        );
        assert_eq!(o.brokers.unwrap().len(), 2);
        assert_eq!((o.topic.as_deref(), o.output), (Some("t"), Some(OutputName::Kafka)));
        assert_eq!((o.from, o.driver, o.once), (Some(Start::End), Some(DriverChoice::Modern), true));
        assert_eq!(o.files, [Path::new("f"), Path::new("g")]);
    }
}

#[test]
fn the_other_commands() {
    let Command::Tail(t) = command("tail --from beginning a") else { panic!() };
    assert_eq!((t.from, t.files.len()), (Start::Beginning, 1));
    let Command::Send(s) =
        command("send --brokers k:1 --topic t --key=a=b --partition 2 --acks=0 x -- --y=z")
    else {
        panic!()
    };
    assert_eq!((s.key.as_deref(), s.partition, s.acks), (Some(&b"a=b"[..]), Some(2), Some(Acks::Zero)));
    assert_eq!(s.values, [b"x".to_vec(), b"--y=z".to_vec()]);
    // A value may look like an option with a value.
    let Command::Send(s) = command("send --brokers k:1 --topic t --key --acks=1") else { panic!() };
    assert_eq!((s.key.as_deref(), s.acks), (Some(&b"--acks=1"[..]), None));
    let Command::Tail(t) = command("tail help") else { panic!() };
    assert_eq!(t.files, [Path::new("help")]);
}

#[test]
fn wrong_lines() {
    for (args, said) in [
        (&[][..], "no command"),
        (&["rnu"], "rnu"),
        (&["run", "--form", "end", "f"], "--form"),
        (&["run", "--from", "middle", "f"], "none of end, beginning"),
        (&["run", "--driver=clasic"], "did you mean \"classic\"?"),
        (&["run", "--brokers", "k"], "the port is missing"),
        (&["run", "--topic", "a b"], "Kafka accepts"),
        (&["run", "--once=yes"], "--once=yes"),
        (&["run", "-c"], "No value provided"),
        (&["run", "-c", ""], "it is empty"),
        (
            &["run", "--topic", "a", "--topic", "b"],
            "'--topic' with value 'b': duplicate values provided; see",
        ),
        (&["run", "--from=end", "--from=end"], "'--from' with value 'end': duplicate values provided; see"),
        (&["tail"], "no FILE"),
        (&["tail", "--journal", "f"], "give only one"),
        (&["tail", "-u", "a.service", "f"], "needs --journal"),
        (&["tail", "-"], "only send reads standard input"),
        (&["run", "--once", "f", "-"], "only send reads standard input"),
        (&["run", "--topic", "-", "--x", "--", "-"], "--x"),
        (&["send", "--topic", "t"], "--brokers"),
        (&["send", "--brokers", "k:1", "--topic", "t", "--partition", "-1"], "--partition"),
        (
            &["send", "--brokers", "k:1", "--topic", "t", "--acks", "2"],
            "'--acks' with value '2': \"2\" is none of all, 1, 0; see",
        ),
        (&["send", "--brokers", "k:1"], "--brokers and --topic are needed, or a config file with -c"),
        (&["check", "extra"], "extra"),
        (&["status", "-c", "a", "--state-dir", "b"], "give only one"),
        (&["run", "--x\u{1b}[2J"], "\\x1b"),
    ] {
        let text = refused(args);
        assert!(text.contains(said), "{args:?}: {text}");
    }
}

#[test]
fn texts_for_standard_output() {
    for (line, said) in [
        ("--version", env!("CARGO_PKG_VERSION")),
        ("-V", "logagent "),
        ("--help", "status"),
        ("help", "Exit codes"),
        ("run --help", "--state-dir"),
        ("run -h", "Usage: logagent run"),
        ("send --help", "pid:<partition> offset:<offset>"),
    ] {
        match parse(line.split(' ').map(OsString::from)) {
            Ok(Invocation::Text(text)) => assert!(text.contains(said), "{line}: {text}"),
            other => panic!("{line}: {other:?}"),
        }
    }
}

#[test]
fn check_and_status() {
    assert_eq!(command("check"), Command::Check(CheckArgs { config: None, connect: false, show: false }));
    assert_eq!(
        command("check --connect -c x"),
        Command::Check(CheckArgs { config: Some("x".into()), connect: true, show: false })
    );
    let Command::Status(s) = command("status --json --shipped=/var/log/a") else { panic!() };
    assert!(s.json && !s.watch && s.shipped.as_deref() == Some(Path::new("/var/log/a")));
}

/// Fails when an argument goes through `String`: file names on Linux are any bytes.
#[test]
fn paths_need_not_be_utf8() {
    let name = OsString::from_vec(b"/var/log/\xff\xfe.log".to_vec());
    let with_value = OsString::from_vec(b"--state-dir=/s\xff".to_vec());
    let args = [OsString::from("run"), with_value, name.clone()];
    let Ok(Invocation::Command(Command::Run(run))) = parse(args) else { panic!() };
    assert_eq!(run.files, [PathBuf::from(name)]);
    assert_eq!(run.state_dir.unwrap().as_os_str().as_bytes(), b"/s\xff");
    let topic = OsString::from_vec(b"t\xff".to_vec());
    assert!(parse([OsString::from("run"), "--topic".into(), topic]).is_err());
}

proptest! {
    #[test]
    fn escaping_loses_nothing(bytes in proptest::collection::vec(any::<u8>(), 0..32), c in any::<char>()) {
        let mut all = bytes;
        all.extend_from_slice(c.to_string().as_bytes());
        all.extend_from_slice("\u{10ffaa}\u{10ff00}".as_bytes());
        prop_assert_eq!(unescape(&escape(OsStr::from_bytes(&all))), all);
    }
}
