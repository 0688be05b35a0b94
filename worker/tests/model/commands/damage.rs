//! Damaged input is refused within a second of processor time and 256 MiB above what was in
//! use before, by a message that names it. Each case runs in a process of its own, whose
//! memory is the kernel's count of its peak.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use llava_worker::image::{Limits, decode};
use llava_worker::model::{LoadOptions, Model};
use llava_worker::prompt::PromptRenderer;
use llava_worker::tokenize::TextTokenizer;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::input::pixels;
use crate::models::speaker;
use crate::models::vocabulary::folder;

/// Names the case that a process of its own runs.
const CASE: &str = "LLAVA_DAMAGE_CASE";
const MEMORY_KIB: u64 = 256 << 10;
/// Of processor time. The promise is that of the program as it ships; parsers built without
/// optimisation, on processors that others use too, are given four times as much.
const HUNDREDTHS: u64 = if cfg!(debug_assertions) { 400 } else { 100 };

/// Makes the damage in a folder, then does what refuses it; gives the message.
type Case = (&'static str, &'static [&'static str], fn(&Path) -> String);

const QUERY: &str = "model.language_model.layers.1.self_attn.q_proj.weight";

/// What a template that wants too much is told.
const TEMPLATE: &[&str] = &["chat template", "ran out of fuel"];

const CASES: &[Case] = &[
    ("cut weights", &["model.safetensors", "cut short"], |dir| {
        let path = checkpoint(dir).join("model.safetensors");
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        load(dir)
    }),
    ("overlapping tensors", &["overlap"], |dir| {
        header(dir, |header| {
            let other = "model.language_model.layers.0.self_attn.q_proj.weight";
            header[QUERY]["data_offsets"] = header[other]["data_offsets"].clone();
        });
        load(dir)
    }),
    ("a tensor beyond all memory", &[QUERY], |dir| {
        header(dir, |header| {
            header[QUERY]["data_offsets"][1] = json!(1u64 << 62);
        });
        load(dir)
    }),
    (
        "whole numbers for weights",
        &["model.safetensors", QUERY, "I16"],
        |dir| {
            header(dir, |header| header[QUERY]["dtype"] = json!("I16"));
            load(dir)
        },
    ),
    (
        "a shard that is missing",
        &["model-00002-of-00003.safetensors", "missing"],
        |dir| {
            fs::create_dir_all(dir).unwrap();
            for entry in fs::read_dir(folder("llava-classic")).unwrap() {
                let path = entry.unwrap().path();
                fs::copy(&path, dir.join(path.file_name().unwrap())).unwrap();
            }
            fs::remove_file(dir.join("model-00002-of-00003.safetensors")).unwrap();
            load(dir)
        },
    ),
    ("a header as long as it may be", &["missing"], |dir| {
        let mut text = String::from("{");
        while text.len() < (8 << 20) - 100 {
            text += &format!(
                "\"{}\":{{\"dtype\":\"F16\",\"shape\":[0],\"data_offsets\":[0,0]}},",
                text.len()
            );
        }
        text.pop();
        text.push('}');
        write_header(dir, &text);
        load(dir)
    }),
    ("a longer header", &["model.safetensors", "header"], |dir| {
        write_header(dir, &" ".repeat(40 << 20));
        load(dir)
    }),
    ("a deep header", &["model.safetensors", "header"], |dir| {
        write_header(dir, &"[".repeat(8 << 20));
        load(dir)
    }),
    ("a wide model that is not there", &["shape"], |dir| {
        config(dir, "/text_config/hidden_size", json!(1 << 23));
        load(dir)
    }),
    ("sixteen million layers", &["layers.2"], |dir| {
        config(dir, "/text_config/num_hidden_layers", json!(1 << 24));
        load(dir)
    }),
    ("sixteen million words", &["shape"], |dir| {
        config(dir, "/text_config/vocab_size", json!(1 << 24));
        load(dir)
    }),
    ("sixteen million layers of the tower", &["vision"], |dir| {
        config(dir, "/vision_config/num_hidden_layers", json!(1 << 24));
        load(dir)
    }),
    ("not a number", &["model.safetensors", QUERY], |dir| {
        let path = checkpoint(dir).join("model.safetensors");
        let mut bytes = fs::read(&path).unwrap();
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
        let at = 8 + length + header[QUERY]["data_offsets"][0].as_u64().unwrap() as usize;
        bytes[at..at + 2].copy_from_slice(&0x7e00u16.to_le_bytes());
        fs::write(&path, bytes).unwrap();
        load(dir)
    }),
    ("a picture of 60,000 x 60,000", &["60000"], |_| {
        picture(&png(60_000, 60_000, &[]))
    }),
    ("a picture of one column", &["65535"], |_| {
        picture(&png(1, 65_535, &[]))
    }),
    (
        "a line as long as a picture may be, for every processor",
        &["prepared"],
        |_| {
            let line = png(16_384, 1, &[(b"IDAT", packed_zeros(16_384 * 3 + 1))]);
            reset_peak();
            let picture = decode("picture", &line, &Limits::default()).unwrap();
            for name in ["crop", "pad", "stretch", "next", "onevision"] {
                let made = pixels::processor(name).process(&picture, 1);
                assert!(made.values.iter().all(|value| value.is_finite()));
            }
            "prepared".to_owned()
        },
    ),
    ("a bomb in a picture's pixels", &["was read"], |_| {
        let bomb = packed_zeros(200 << 20);
        reset_peak();
        picture(&png(2, 2, &[(b"IDAT", bomb)]))
    }),
    ("a bomb in a picture's text", &["picture"], |_| {
        let text = [b"a\0\0".to_vec(), packed_zeros(200 << 20)].concat();
        reset_peak();
        picture(&png(40, 40, &[(b"zTXt", text)]))
    }),
    ("a template that doubles a text", TEMPLATE, |dir| {
        template(
            dir,
            "{% set ns = namespace(x='xx') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
        )
    }),
    ("a template that repeats a text", TEMPLATE, |dir| {
        template(dir, "{% set n = 99999999 %}{{ 'x' * n }}")
    }),
    ("a template that never ends", TEMPLATE, |dir| {
        let body = "{% for b in range(99999) %}words{% endfor %}";
        template(
            dir,
            &format!("{{% for a in range(99999) %}}{body}{{% endfor %}}"),
        )
    }),
    ("a template that keeps what it makes", TEMPLATE, |dir| {
        template(
            dir,
            "{% set ns = namespace(x=[]) %}{% for i in range(99999) %}{% set ns.x = ns.x + [range(99999)|list] %}{% endfor %}",
        )
    }),
    (
        "a template that nests what it makes",
        &["chat template", "deep"],
        |dir| {
            template(
                dir,
                "{% set ns = namespace(x=[]) %}{% for i in range(99999) %}{% set ns.x = [ns.x] %}{% endfor %}",
            )
        },
    ),
    (
        "a template of one endless expression",
        &["chat template", "tokens"],
        |dir| template(dir, &format!("{{{{ 1{} }}}}", "+1".repeat(50_000))),
    ),
    (
        "a template that the compiler computes",
        &["chat template", "constants"],
        |dir| template(dir, &"{{ 'x' * 99999999 }}".repeat(100)),
    ),
    (
        "a template as long as a book",
        &["chat template", "longer"],
        |dir| template(dir, &"word ".repeat(1 << 20)),
    ),
    (
        "a tokenizer of another model",
        &["tokenizer.json", "vocabulary"],
        |dir| {
            spoken(dir);
            let path = dir.join("tokenizer.json");
            let mut tokenizer: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            tokenizer["model"]["vocab"]["beyond"] = json!(5000);
            fs::write(&path, tokenizer.to_string()).unwrap();
            renderer(dir)
        },
    ),
    (
        "a tokenizer of nothing but brackets",
        &["tokenizer.json"],
        |dir| {
            fs::create_dir_all(dir).unwrap();
            fs::write(dir.join("tokenizer.json"), "[".repeat(4 << 20)).unwrap();
            chain(&TextTokenizer::from_checkpoint(dir).unwrap_err())
        },
    ),
];

#[test]
fn damage_is_refused_within_a_second_and_256_mib() {
    for (name, words, _) in CASES {
        let mut child = Command::new(std::env::current_exe().unwrap());
        let output = child
            .args(["--exact", "commands::damage::one_case", "--nocapture"])
            .env(CASE, name)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name}: {said}{errors}");
        let figures = said
            .lines()
            .find_map(|line| Some(line.split_once("figures ")?.1));
        let figures = figures.unwrap_or_else(|| panic!("{name}: {said}{errors}"));
        let (message, numbers) = figures.rsplit_once('|').unwrap();
        for word in *words {
            assert!(
                message.contains(word),
                "{name}: `{word}` is not in: {message}"
            );
        }
        let (hundredths, memory) = numbers.split_once(' ').unwrap();
        let (hundredths, memory): (u64, u64) =
            (hundredths.parse().unwrap(), memory.parse().unwrap());
        assert!(
            hundredths <= HUNDREDTHS,
            "{name}: {hundredths} hundredths of a second"
        );
        assert!(memory <= MEMORY_KIB, "{name}: {memory} KiB");
    }
}

/// Does nothing unless the test above runs it, in a process of its own.
#[test]
fn one_case() {
    let Ok(name) = std::env::var(CASE) else {
        return;
    };
    let (_, _, run) = CASES.iter().find(|(case, ..)| *case == name).unwrap();
    let dir = TempDir::new().unwrap();
    // What a first use sets up belongs to the program: threads, tables, the allocator's pools.
    load(&folder("nowhere"));
    reset_peak();
    let message = run(&dir.path().join("damaged"));
    let (end, ended) = (memory("VmHWM:"), processor_time());
    let (before, began) = START.with(std::cell::Cell::get);
    println!(
        "figures {}|{} {}",
        message.replace('\n', " "),
        ended - began,
        end.saturating_sub(before)
    );
}

thread_local! {
    /// Resident KiB and processor time when the damage was ready.
    static START: std::cell::Cell<(u64, u64)> = const { std::cell::Cell::new((0, 0)) };
}

/// Counts from here; what made the damage does not count.
fn reset_peak() {
    fs::write("/proc/self/clear_refs", "5").unwrap();
    START.with(|start| start.set((memory("VmRSS:"), processor_time())));
}

/// KiB of this process.
fn memory(field: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(field))
        .unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Hundredths of a second of all threads.
fn processor_time() -> u64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

fn load(dir: &Path) -> String {
    reset_peak();
    chain(&Model::load(dir, &LoadOptions::default(), &|_| ()).unwrap_err())
}

fn picture(bytes: &[u8]) -> String {
    reset_peak();
    match decode("picture", bytes, &Limits::default()) {
        Ok(_) => "the picture was read".to_owned(),
        Err(error) => chain(&error),
    }
}

/// A checkpoint with a tokenizer.
fn spoken(dir: &Path) {
    fs::create_dir_all(dir).unwrap();
    let from = speaker::checkpoint();
    for entry in fs::read_dir(from.path()).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, dir.join(path.file_name().unwrap())).unwrap();
    }
}

/// A checkpoint with a chat template.
fn template(dir: &Path, source: &str) -> String {
    spoken(dir);
    fs::write(dir.join("chat_template.jinja"), source).unwrap();
    renderer(dir)
}

/// Why prompts of the checkpoint cannot be rendered.
fn renderer(dir: &Path) -> String {
    reset_peak();
    let model = llava_worker::config::ModelConfig::read(dir, None).unwrap();
    let refused = PromptRenderer::from_checkpoint(dir, &model, None).err();
    chain(&refused.unwrap())
}

fn packed_zeros(count: u64) -> Vec<u8> {
    let mut packed = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut zeros = std::io::Read::take(std::io::repeat(0), count);
    std::io::copy(&mut zeros, &mut packed).unwrap();
    packed.finish().unwrap()
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}

/// A copy of a small checkpoint.
fn checkpoint(dir: &Path) -> &Path {
    fs::create_dir_all(dir).unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(folder("next-mistral").join(file), dir.join(file)).unwrap();
    }
    dir
}

fn config(dir: &Path, pointer: &str, value: Value) {
    let path = checkpoint(dir).join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    *config.pointer_mut(pointer).unwrap() = value;
    fs::write(path, config.to_string()).unwrap();
}

fn header(dir: &Path, change: impl FnOnce(&mut Value)) {
    let path = checkpoint(dir).join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    change(&mut header);
    let text = header.to_string();
    let parts = [
        &(text.len() as u64).to_le_bytes()[..],
        text.as_bytes(),
        &bytes[8 + length..],
    ];
    fs::write(path, parts.concat()).unwrap();
}

fn write_header(dir: &Path, text: &str) {
    let path = checkpoint(dir).join("model.safetensors");
    let parts = [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()];
    fs::write(path, parts.concat()).unwrap();
}

/// A PNG of a size, with chunks before its (missing) pixels.
fn png(width: u32, height: u32, chunks: &[(&[u8; 4], Vec<u8>)]) -> Vec<u8> {
    let mut bytes = b"\x89PNG\r\n\x1a\n".to_vec();
    let mut chunk = |kind: &[u8], data: &[u8]| {
        bytes.extend((data.len() as u32).to_be_bytes());
        let body = [kind, data].concat();
        bytes.extend(&body);
        bytes.extend(crc32fast::hash(&body).to_be_bytes());
    };
    let size = [width.to_be_bytes(), height.to_be_bytes()].concat();
    chunk(b"IHDR", &[&size[..], &[8, 2, 0, 0, 0]].concat());
    for (kind, data) in chunks {
        chunk(*kind, data);
    }
    chunk(b"IEND", &[]);
    bytes
}
