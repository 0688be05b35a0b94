//! The commands as programs: what they print, where, and how they end.

mod damage;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::fixture;
use crate::models::speaker;
use crate::models::vocabulary::folder;

fn worker(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_llava-worker"));
    command.args(arguments).env_remove("RUST_LOG");
    command
}

fn run(arguments: &[&str]) -> Output {
    worker(arguments).stdin(Stdio::null()).output().unwrap()
}

/// What a run that succeeds prints.
fn printed(arguments: &[&str]) -> String {
    let output = run(arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// What a run that fails says on standard error; it prints nothing else.
fn refusal(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}");
    assert!(output.stdout.is_empty(), "{arguments:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn json(arguments: &[&str]) -> Value {
    serde_json::from_str(&printed(arguments)).unwrap()
}

#[test]
fn generate_streams_the_greedy_answer_and_repeats_it() {
    let dir = speaker::checkpoint();
    let cat = speaker::picture(dir.path(), 10);
    let ask = |prompt: &str| {
        let model = text(dir.path());
        let greedy = ["--temperature", "0", "--max-tokens", "8"];
        let asked = [
            "generate",
            "--model",
            model,
            "--image",
            text(&cat),
            "--prompt",
            prompt,
        ];
        printed(&[&asked[..], &greedy[..]].concat())
    };
    let answer = ask("w5 w9");
    assert!(answer.ends_with('\n') && answer.contains('w'), "{answer:?}");
    assert_eq!(ask("w5 w9"), answer);
    assert_ne!(ask("w6 w6 w6"), answer);
}

#[test]
fn generate_names_the_picture_and_the_folder_that_it_cannot_read() {
    let dir = speaker::checkpoint();
    let model = text(dir.path());
    let refused = refusal(&[
        "generate", "--model", model, "--image", "no.png", "--prompt", "w1",
    ]);
    assert!(refused.contains("no.png"), "{refused}");
    let refused = refusal(&["generate", "--model", "nowhere", "--prompt", "w1"]);
    assert!(refused.contains("nowhere/config.json"), "{refused}");
}

#[test]
fn chat_talks_until_its_input_ends() {
    let dir = speaker::checkpoint();
    let cat = speaker::picture(dir.path(), 10);
    let mut child = worker(&[
        "chat",
        "--model",
        text(dir.path()),
        "--temperature",
        "0",
        "--max-tokens",
        "4",
    ])
    .stdin(Stdio::piped())
    .stdout(Stdio::piped())
    .stderr(Stdio::piped())
    .spawn()
    .unwrap();
    let lines = format!(
        "/image {}\nw5 w9\n/image no.png\nw7\n/clear\nw5\n",
        text(&cat)
    );
    child
        .stdin
        .take()
        .unwrap()
        .write_all(lines.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let (said, aside) = (
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    );
    assert!(output.status.success(), "{aside}");
    assert_eq!(
        said.lines().filter(|line| line.contains('w')).count(),
        3,
        "{said}"
    );
    assert!(aside.contains("no.png"), "{aside}");
}

#[test]
fn inspect_counts_the_memory_of_every_part() {
    let of = |arguments: &[&str]| json(&[&["inspect", "--json"], arguments].concat());
    let size = |path: &str| fs::metadata(folder(path)).unwrap().len();
    let model = folder("original-outside");
    let memory = &of(&["--model", text(&model)])["memory"];
    let number = |memory: &Value, part: &str| memory[part].as_u64().unwrap();
    // The tower lies in a folder of its own; its last layer is never read.
    assert!(number(memory, "vision_tower") > 0);
    assert!(number(memory, "vision_tower") < size("clip-tiny/model.safetensors"));
    assert!(number(memory, "language_model") < size("original-outside/model.safetensors"));
    assert_eq!(
        number(memory, "per_sequence"),
        2048 * number(memory, "per_token")
    );
    let parts = ["language_model", "vision_tower", "per_sequence"];
    let sum: u64 = parts.iter().map(|part| number(memory, part)).sum();
    assert_eq!(number(memory, "total"), sum);

    let rounded = &of(&["--model", text(&model), "--quantization", "int4"])["memory"];
    assert!(number(rounded, "language_model") < number(memory, "language_model"));

    let (lora, base) = (folder("lora"), folder("lora-base"));
    let merged = &of(&["--model", text(&lora), "--base", text(&base)])["memory"];
    assert!(number(merged, "language_model") > number(memory, "language_model"));
    let alone = &of(&["--model", text(&lora)])["memory"];
    assert!(
        alone["missing"].as_str().unwrap().contains("--base"),
        "{alone}"
    );
    assert!(number(alone, "per_sequence") > 0);
}

#[test]
fn inspect_prints_lines_for_people_and_json_for_programs() {
    let dir = TempDir::new().unwrap();
    let messages = dir.path().join("messages.json");
    fs::write(&messages, r#"[{"role": "user", "content": "Hi"}]"#).unwrap();
    let asked = [
        "inspect",
        "--template",
        "llava_v1",
        "--messages",
        text(&messages),
    ];
    let lines = printed(&asked);
    assert!(
        lines.contains("template: \"llava_v1\"") && lines.contains("USER: Hi ASSISTANT:"),
        "{lines}"
    );
    let value = json(&[&asked[..], &["--json"]].concat());
    assert_eq!(value["stop"], serde_json::json!(["</s>"]));
    let refused = refusal(&["inspect", "--template", "nonsense"]);
    assert!(
        refused.contains("nonsense") && refused.contains("llava_v1"),
        "{refused}"
    );
}

#[test]
fn convert_writes_once_and_tells_what_it_left_out() {
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("out");
    let pickles = fixture("pickles/hostile");
    let asked = ["convert", text(&pickles), "--out", text(&out)];
    let output = run(&asked);
    let aside = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{aside}");
    assert!(
        aside.contains("left out") && aside.contains("hook (a call of posix.system)"),
        "{aside}"
    );
    assert!(out.join("model.safetensors").is_file());
    let refused = refusal(&asked);
    assert!(refused.contains("exists already"), "{refused}");
    let model = folder("llava-v5");
    let original = dir.path().join("original");
    printed(&[
        "convert",
        text(&model),
        "--layout",
        "original",
        "--out",
        text(&original),
    ]);
    assert!(original.join("vision_tower/model.safetensors").is_file());
    let nothing = refusal(&[
        "convert",
        text(&model),
        "--out",
        text(&dir.path().join("none")),
    ]);
    assert!(nothing.contains("--layout"), "{nothing}");
}

#[test]
fn fetch_prints_where_the_checkpoint_lies() {
    let model = folder("llava-v5");
    assert_eq!(printed(&["fetch", text(&model)]).trim(), text(&model));
    let refused = refusal(&["fetch", "nowhere/at/all"]);
    assert!(refused.contains("nowhere/at/all"), "{refused}");
    let wrong = run(&["fetch", "s3://bucket"]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("s3://bucket/path"));
}

#[test]
fn bench_reports_every_stage_as_a_table_and_as_json() {
    let model = folder("llava-v5");
    let asked = [
        "bench",
        "--model",
        text(&model),
        "--steps",
        "3",
        "--batch",
        "1,4",
    ];
    let table = printed(&asked);
    for word in [
        "weights",
        "kv",
        "vision",
        "prefill",
        "decode   1",
        "decode   4",
    ] {
        assert!(table.contains(word), "{word} is not in {table}");
    }
    let report = json(&[&asked[..], &["--json"]].concat());
    assert_eq!(report["decode"][1]["batch"], 4);
    assert!(report["vision_seconds_per_tile"].as_f64().unwrap() > 0.0);
    assert_eq!(report["prompt_tokens"], 16 + 32);
    // 300 MiB beside the weights and the keys and values.
    let number = |name: &str| report[name].as_u64().unwrap();
    let kv = number("kv_bytes_per_token") * 4 * (48 + 3);
    assert!(
        number("peak_memory_bytes") < number("weight_bytes") + kv + (300 << 20),
        "{report}"
    );
}
