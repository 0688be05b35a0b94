//! OpenAI's own clients, in pinned versions from their registries, against a
//! worker. They are installed once, into the cache directory of this project.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sha2::{Digest, Sha256};

use crate::worker::Worker;

/// A Python that has OpenAI's package.
fn python() -> Command {
    let sources = clients().join("python");
    let home = installed("openai-python", &sources, &["requirements.txt"], |home| {
        run(Command::new("python3").args(["-m", "venv"]).arg(home));
        let pip = [
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--requirement",
        ];
        run(Command::new(home.join("bin/python"))
            .args(pip)
            .arg(sources.join("requirements.txt")));
    });
    Command::new(home.join("bin/python"))
}

#[tokio::test]
async fn the_sdk_openai_python_gets_everything_it_promises() {
    holds(python().arg(clients().join("python/matrix.py"))).await;
}

#[tokio::test]
async fn the_sdk_openai_python_raises_what_breaks_a_stream_off() {
    breaks(python().arg(clients().join("python/broken.py"))).await;
}

#[tokio::test]
async fn the_python_example_of_the_documentation_prints_an_answer() {
    let worker = Worker::start(&[]).await;
    let page = include_str!("../../../docs/api.md");
    let example = page.split("```python\n").nth(1).unwrap();
    let example = example.split("```").next().unwrap();
    assert!(example.contains("http://localhost:8000/"), "{example}");
    let here = format!("http://{}/", worker.api);
    let example = example.replace("http://localhost:8000/", &here);
    let printed = run(python().arg("-c").arg(example));
    assert!(!printed.is_empty());
}

/// Node with a script beside OpenAI's package.
fn node(script: &str) -> Command {
    let sources = clients().join("node");
    let files = [
        "package.json",
        "package-lock.json",
        "matrix.mjs",
        "broken.mjs",
    ];
    let home = installed("openai-node", &sources, &files, |home| {
        for file in files {
            fs::copy(sources.join(file), home.join(file)).unwrap();
        }
        let quiet = ["ci", "--silent", "--no-audit", "--no-fund"];
        run(Command::new("npm").args(quiet).current_dir(home));
    });
    let mut command = Command::new("node");
    command.arg(home.join(script));
    command
}

#[tokio::test]
async fn the_sdk_openai_node_gets_everything_it_promises() {
    holds(&mut node("matrix.mjs")).await;
}

#[tokio::test]
async fn the_sdk_openai_node_throws_what_breaks_a_stream_off() {
    breaks(&mut node("broken.mjs")).await;
}

/// Runs a matrix against a worker of its own.
async fn holds(matrix: &mut Command) {
    let worker = Worker::start(&[]).await;
    run(matrix.arg(format!("http://{}", worker.api)).arg("tiny"));
    worker.at_rest().await;
}

/// Has a client read a stream from a worker that ends without waiting for it.
async fn breaks(client: &mut Command) {
    // On one slot the answers come one after the other, and outlast the signal.
    let flags = ["--max-running-requests", "1", "--drain-timeout", "0"];
    let mut worker = Worker::start(&flags).await;
    client.arg(format!("http://{}", worker.api)).arg("tiny");
    let piped = client.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().unwrap();
    let mut said = String::new();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.read_line(&mut said).unwrap();
    worker.terminate();
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(said, "streaming\n", "{errors}");
    assert!(output.status.success(), "{errors}");
    assert!(worker.ended().await.success());
}

/// Runs it to its end; gives what it printed.
fn run(command: &mut Command) -> Vec<u8> {
    let output = command.output();
    let output = output.unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

fn clients() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/clients")
}

/// The directory where `install` has put what `files` ask for. Two runs at once
/// wait for one another; one that broke off is begun again.
fn installed(name: &str, sources: &Path, files: &[&str], install: impl FnOnce(&Path)) -> PathBuf {
    let mut hash = Sha256::new();
    for file in files {
        hash.update(fs::read(sources.join(file)).unwrap());
    }
    let digest = hash.finalize();
    let version: String = digest[..6]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let cache = std::env::var_os("XDG_CACHE_HOME").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache"),
        PathBuf::from,
    );
    let cache = cache.join("llava-operator");
    fs::create_dir_all(&cache).unwrap();
    let lock = File::create(cache.join(format!("{name}.lock"))).unwrap();
    lock.lock().unwrap();
    let home = cache.join(format!("{name}-{version}"));
    let done = home.join("installed");
    if !done.exists() {
        // What a broken run left.
        let _ = fs::remove_dir_all(&home);
        fs::create_dir_all(&home).unwrap();
        install(&home);
        fs::write(done, "").unwrap();
    }
    home
}
