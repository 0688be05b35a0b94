//! A panic shows in the log, for programs to read, and not what users wrote.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::process::Command;

use serde_json::Value;
use shell::{logs, panics};

const SECRET: &str = "xyzzyplugh";
/// Set for the process whose log is looked at.
const CHILD: &str = "LLAVA_PANICS_CHILD";

#[test]
fn a_panic_is_an_entry_of_the_log_with_its_place_and_without_what_users_wrote() {
    if std::env::var_os(CHILD).is_some() {
        return panic_in_every_way();
    }
    let this = std::env::current_exe().unwrap();
    let output = Command::new(this)
        .arg("--nocapture")
        .env(CHILD, "yes")
        .env_remove("RUST_BACKTRACE")
        .output()
        .unwrap();
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(!log.contains(SECRET), "{log}");
    let entries: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(entries.len(), 3, "{log}");
    for (entry, cause) in entries.iter().zip([
        "fixed in the code",
        "left out: its text is made of data",
        "left out: its text is made of data",
    ]) {
        assert_eq!(entry["level"], "ERROR");
        assert_eq!(entry["message"], "a thread panicked");
        assert_eq!(entry["thread"], "asked");
        assert_eq!(entry["cause"], cause);
        assert!(
            entry["at"].as_str().unwrap().contains("panics.rs:"),
            "{entry}"
        );
        assert_eq!(entry.get("backtrace"), None);
    }
}

fn panic_in_every_way() {
    logs::init("info", logs::Format::Json).unwrap();
    panics::into_log();
    // What no compiler knows beforehand.
    let written = std::env::var(CHILD).unwrap().replace("yes", SECRET);
    let ways: [Box<dyn FnOnce() + Send>; 3] = [
        Box::new(|| panic!("fixed in the code")),
        Box::new({
            let written = written.clone();
            move || panic!("cannot read {written}")
        }),
        // Inside a character.
        Box::new(move || assert!(!format!("é{written}")[1..].is_empty())),
    ];
    for way in ways {
        let thread = std::thread::Builder::new().name("asked".to_owned());
        assert!(thread.spawn(way).unwrap().join().is_err());
    }
}
