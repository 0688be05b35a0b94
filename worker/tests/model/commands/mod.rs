//! The commands as programs: what they print, where, and how they end.

mod damage;

use std::fs;
use std::io::{BufRead, BufReader, Write};
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
#[cfg(target_os = "linux")]
fn loading_shows_how_far_it_is_where_somebody_watches() {
    let dir = speaker::checkpoint();
    let asked = format!(
        "{} generate --model {} --prompt w1 --temperature 0 --max-tokens 2",
        env!("CARGO_BIN_EXE_llava-worker"),
        text(dir.path())
    );
    // `script` (util-linux, on every Debian) runs it on a terminal.
    let output = Command::new("script")
        .args(["--quiet", "--return", "--command", &asked, "/dev/null"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{shown}");
    let percents: Vec<u32> = shown
        .split(" … ")
        .skip(1)
        .map(|after| after.split(' ').next().unwrap().parse().unwrap())
        .collect();
    assert_eq!(
        (percents.first(), percents.last()),
        (Some(&0), Some(&100)),
        "{shown}"
    );
    assert!(percents.is_sorted(), "{percents:?}");
    // On no terminal there is nothing but the answer.
    let quiet = run(&asked.split(' ').skip(1).collect::<Vec<_>>());
    assert!(quiet.status.success() && quiet.stderr.is_empty());
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
fn a_conversion_that_is_killed_leaves_nothing_under_its_name() {
    let (from, place) = (wide(), TempDir::new().unwrap());
    let out = place.path().join("out");
    let asked = ["convert", text(from.path()), "--layout", "original"];
    let mut child = worker(&[&asked[..], &["--out", text(&out)]].concat())
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stderr.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    child.kill().unwrap();
    let status = child.wait().unwrap();
    assert!(line.starts_with("writing "), "{line}");
    assert_eq!(status.code(), None, "it was under way");
    assert!(!out.exists());
    // What it began does not stand in the way of another.
    let small = folder("llava-v5");
    let asked = ["convert", text(&small), "--layout", "original"];
    printed(&[&asked[..], &["--out", text(&out)]].concat());
    assert!(out.join("config.json").is_file());
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
        "within weights + kv + 300 MiB",
        "vision s",
        "prefill s",
        "step s",
        "\n    1 ",
        "\n    4 ",
    ] {
        assert!(table.contains(word), "{word} is not in {table}");
    }
    let report = json(&[&asked[..], &["--json"]].concat());
    assert_eq!(report["prompt_tokens"], 16 + 32);
    for (index, batch) in [1, 4].into_iter().enumerate() {
        let stage = &report["stages"][index];
        assert_eq!(stage["batch"], batch);
        for figure in ["vision_seconds", "prefill_seconds", "step_seconds"] {
            assert!(stage[figure].as_f64().unwrap() > 0.0, "{figure}: {report}");
        }
    }
    let memory = &report["memory"];
    let tokens = 4 * (16 + 32 + 3);
    assert_eq!(
        memory["kv_bytes"],
        tokens * report["kv_bytes_per_token"].as_u64().unwrap()
    );
    assert_eq!(memory["within"], true);
}

/// A checkpoint of two layers of 150 million weights each, all of them zero: holes in the file.
fn wide() -> TempDir {
    let (hidden, inner) = (2048, 24_576);
    let dir = TempDir::new().unwrap();
    let mut config: Value =
        serde_json::from_slice(&fs::read(folder("llava-v5").join("config.json")).unwrap()).unwrap();
    config["text_config"]["hidden_size"] = hidden.into();
    config["text_config"]["intermediate_size"] = inner.into();
    config["text_config"]["num_attention_heads"] = 16.into();
    config["text_config"]["num_key_value_heads"] = 16.into();
    config["text_config"]["head_dim"] = 128.into();
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let small = fs::read(folder("llava-v5").join("model.safetensors")).unwrap();
    let length = u64::from_le_bytes(small[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&small[8..8 + length]).unwrap();
    let mut end = 0;
    for (name, entry) in header.as_object_mut().unwrap() {
        if name == "__metadata__" {
            continue;
        }
        let mut shape: Vec<u64> = serde_json::from_value(entry["shape"].clone()).unwrap();
        if name.starts_with("language_model") {
            for size in &mut shape {
                *size = match *size {
                    32 => hidden,
                    64 => inner,
                    vocabulary => vocabulary,
                };
            }
        } else if name.starts_with("multi_modal_projector") {
            shape[0] = hidden;
            if name.ends_with("linear_2.weight") {
                shape[1] = hidden;
            }
        }
        let bytes = 2 * shape.iter().product::<u64>();
        entry["shape"] = shape.into();
        entry["data_offsets"] = vec![end, end + bytes].into();
        end += bytes;
    }
    let header = header.to_string();
    let mut file = fs::File::create(dir.path().join("model.safetensors")).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes())
        .unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.set_len(8 + header.len() as u64 + end).unwrap();
    dir
}

#[test]
fn large_weights_are_packed_within_300_mib_beside_weights_keys_and_values() {
    let dir = wide();
    let report = json(&[
        "bench",
        "--json",
        "--model",
        text(dir.path()),
        "--quantization",
        "int4",
        "--batch",
        "1",
        "--steps",
        "1",
        "--repeat",
        "1",
        "--prompt-tokens",
        "1",
    ]);
    let memory = &report["memory"];
    let number = |name: &str| memory[name].as_u64().unwrap();
    assert!(number("weight_bytes") > 150 << 20, "{report}");
    assert!(number("peak_bytes") > number("weight_bytes"), "{report}");
    assert_eq!(memory["within"], true, "{report}");
}
