//! The committed demo checkpoint answers about scenes that nobody has seen, as well as its
//! model card says.

#![allow(clippy::unwrap_used, reason = "a helper that fails is a failed test")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use llava_worker::train::evaluate::Accuracy;

fn checkpoint() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/llava-shapes")
}

fn worker(arguments: &[&str]) {
    let program = env!("CARGO_BIN_EXE_llava-worker");
    let run = Command::new(program).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{arguments:?}: {said}");
}

fn accuracy(path: &Path) -> Accuracy {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn the_demo_checkpoint_is_as_good_on_new_scenes_as_its_figures_say() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let data = at("data");
    worker(&[
        "make-data",
        "shapes",
        "--out",
        &data,
        "--images",
        "0",
        "--held-out",
        "100",
        "--vocabulary",
        "0",
        "--seed",
        "4711",
    ]);
    let model = checkpoint();
    worker(&[
        "eval",
        "--model",
        model.to_str().unwrap(),
        "--data",
        &at("data/heldout.json"),
        "--json",
        &at("accuracy.json"),
    ]);
    let (found, stated) = (
        accuracy(&dir.path().join("accuracy.json")),
        accuracy(&model.join("accuracy.json")),
    );
    assert_eq!(
        found.kinds.keys().collect::<Vec<_>>(),
        stated.kinds.keys().collect::<Vec<_>>(),
        "every kind that is asked has a figure"
    );
    for (kind, stated) in &stated.kinds {
        let found = found.kinds[kind];
        let share = stated.share();
        // Four standard deviations of so many answers: chance alone never fails this.
        let chance = 4.0 * (share * (1.0 - share) / found.asked as f64).sqrt() + 0.01;
        assert!(
            found.share() > share - chance,
            "{kind}: {:.3} of {} right, the card says {share:.3}",
            found.share(),
            found.asked
        );
    }
}
