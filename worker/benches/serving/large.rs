//! What the scheduler adds to a model of a usual size, and how long a short
//! request waits beside a long one. The weights are random: only their shape counts.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::Duration;

use futures::future::join_all;
use serde_json::{Map, Value, json};

use crate::batch::times;
use crate::streams::{median, millis, read};
use crate::table::Table;
use crate::worker::{Worker, ask, demo};

const HIDDEN: usize = 2048;
const INNER: usize = 5632;
const LAYERS: usize = 22;
const HEADS: usize = 32;
const KV_HEADS: usize = 4;
const VOCAB: usize = 32_000;

pub(crate) async fn measure(table: &mut Table) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    write(dir.path());
    let flags = ["--quantization", "int4", "--kv-memory", "1000000000"];
    let worker = Worker::serve(dir.path(), &flags).await;
    // It has been read into packed weights.
    fs::remove_dir_all(dir.path()).unwrap();
    for (how, temperature) in [("greedy", 0.0), ("sampled", 1.0)] {
        overhead(table, &worker, how, temperature).await;
    }
    first_tokens(table, &worker).await;
}

async fn overhead(table: &mut Table, worker: &Worker, how: &str, temperature: f64) {
    let before = times(worker).await;
    let bodies = (0..8).map(|n| {
        let mut body = ask(&format!("{how} {n}"), 48);
        body["temperature"] = json!(temperature);
        body["top_p"] = json!(if temperature > 0.0 { 0.95 } else { 1.0 });
        body
    });
    join_all(bodies.map(|body| read(worker, body))).await;
    let after = times(worker).await;
    let (step, model) = (after[0] - before[0], after[1] - before[1]);
    let share = (step - model) / step;
    table.check(
        &format!("1.1 B model in int4, 8 streams, {how}: share of a step that is not the model"),
        format!(
            "{:.2} % of {:.1} ms",
            share * 100.0,
            step / (after[2] - before[2]) * 1e3
        ),
        "≤ 5 %",
        share <= 0.05,
    );
}

async fn first_tokens(table: &mut Table, worker: &Worker) {
    // What random weights say may be no text; this token always is. No two share a beginning.
    let visible = |mut body: Value| {
        body["logit_bias"] = json!({"300": 100});
        body
    };
    let short = |n: usize| visible(ask(&format!("{n} is short"), 2));
    let long = |n: usize| visible(ask(&format!("{n} {}", "zq ".repeat(655)), 1));
    let mut lone = Vec::new();
    for n in 0..5 {
        lone.push(read(worker, short(n)).await.first());
    }
    let lone = median(lone);
    let before = [
        worker.metric("llava_prompt_tokens_total", "").await,
        times(worker).await[2],
    ];
    let prefill = read(worker, long(100)).await.first();
    let tokens = worker.metric("llava_prompt_tokens_total", "").await - before[0];
    let chunks = (tokens / 128.0).ceil();
    let chunk = prefill.div_f64(chunks);
    // A stream beside another such prompt pauses for each of its chunks, which cost the more the
    // more comes before them, and more often for nothing but its own step.
    let (stream, _) = tokio::join!(
        read(worker, visible(ask("a stream", 64))),
        after(Duration::from_millis(300), read(worker, long(200)))
    );
    let pauses = stream.pauses();
    let pause = *pauses.iter().max().unwrap();
    let longest = pause - median(pauses);
    table.note(
        &format!("prefill of {tokens:.0} tokens alone"),
        format!(
            "{}; a chunk of 128 takes {}",
            millis(prefill),
            millis(chunk)
        ),
    );
    table.note(
        "longest pause of a stream beside such a prefill",
        format!("{}, {} of it the chunk", millis(pause), millis(longest)),
    );
    let mut beside = Vec::new();
    for n in 0..9usize {
        let wait = prefill.mul_f64(0.1 + 0.09 * n as f64);
        let (_, seen) = tokio::join!(
            read(worker, long(300 + n)),
            after(wait, read(worker, short(300 + n)))
        );
        beside.push(seen.first());
    }
    let worst = *beside.iter().max().unwrap();
    table.check(
        &format!(
            "time to the first token of a short request beside a prefill of {tokens:.0} tokens"
        ),
        format!(
            "median {}, worst of 9 {} (alone {})",
            millis(median(beside)),
            millis(worst),
            millis(lone)
        ),
        &format!("≤ alone + the longest chunk = {}", millis(lone + longest)),
        worst <= lone + longest,
    );
}

async fn after<T>(wait: Duration, work: impl Future<Output = T>) -> T {
    tokio::time::sleep(wait).await;
    work.await
}

/// A checkpoint with the demo's tower and tokenizer under a language model of 1.1 B parameters.
fn write(dir: &Path) {
    for file in fs::read_dir(demo()).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_some_and(|end| end == "json") {
            fs::copy(&path, dir.join(path.file_name().unwrap())).unwrap();
        }
    }
    let mut config: Value =
        serde_json::from_slice(&fs::read(demo().join("config.json")).unwrap()).unwrap();
    let text = &mut config["text_config"];
    text["hidden_size"] = json!(HIDDEN);
    text["intermediate_size"] = json!(INNER);
    text["num_hidden_layers"] = json!(LAYERS);
    text["num_attention_heads"] = json!(HEADS);
    text["num_key_value_heads"] = json!(KV_HEADS);
    text["vocab_size"] = json!(VOCAB);
    text["max_position_embeddings"] = json!(4096);
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let tensors = tensors();
    let mut header = Map::new();
    let mut at = 0;
    for (name, shape) in &tensors {
        let bytes = 2 * shape.iter().product::<usize>();
        header.insert(
            name.clone(),
            json!({"dtype": "F16", "shape": shape, "data_offsets": [at, at + bytes]}),
        );
        at += bytes;
    }
    let header = Value::Object(header).to_string();
    let mut file = BufWriter::new(File::create(dir.join("model.safetensors")).unwrap());
    file.write_all(&(header.len() as u64).to_le_bytes())
        .unwrap();
    file.write_all(header.as_bytes()).unwrap();
    let noise = noise();
    let one = half::f16::ONE.to_le_bytes();
    for (name, shape) in &tensors {
        let mut left = 2 * shape.iter().product::<usize>();
        if name.contains("norm") {
            file.write_all(&one.repeat(left / 2)).unwrap();
            continue;
        }
        while left > 0 {
            let part = left.min(noise.len());
            file.write_all(&noise[..part]).unwrap();
            left -= part;
        }
    }
    file.flush().unwrap();
}

/// Some 2 MiB of small numbers, a prime count of them so that rows differ.
fn noise() -> Vec<u8> {
    let mut state = 1u64;
    let numbers = (0..1_048_573).flat_map(|_| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let unit = (state >> 40) as f32 / (1u64 << 24) as f32;
        half::f16::from_f32((unit - 0.5) * 0.07).to_le_bytes()
    });
    numbers.collect()
}

fn tensors() -> Vec<(String, Vec<usize>)> {
    let mut all = Vec::new();
    let mut add = |name: String, shape: &[usize]| all.push((name, shape.to_vec()));
    add("language_model.lm_head.weight".into(), &[VOCAB, HIDDEN]);
    add(
        "language_model.model.embed_tokens.weight".into(),
        &[VOCAB, HIDDEN],
    );
    add("language_model.model.norm.weight".into(), &[HIDDEN]);
    let kv = HIDDEN / HEADS * KV_HEADS;
    for layer in 0..LAYERS {
        for (name, shape) in [
            ("input_layernorm", vec![HIDDEN]),
            ("post_attention_layernorm", vec![HIDDEN]),
            ("mlp.gate_proj", vec![INNER, HIDDEN]),
            ("mlp.up_proj", vec![INNER, HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, INNER]),
            ("self_attn.q_proj", vec![HIDDEN, HIDDEN]),
            ("self_attn.k_proj", vec![kv, HIDDEN]),
            ("self_attn.v_proj", vec![kv, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, HIDDEN]),
        ] {
            add(
                format!("language_model.model.layers.{layer}.{name}.weight"),
                &shape,
            );
        }
    }
    for (name, shape) in [("linear_1", [HIDDEN, 128]), ("linear_2", [HIDDEN, HIDDEN])] {
        add(format!("multi_modal_projector.{name}.weight"), &shape);
        add(format!("multi_modal_projector.{name}.bias"), &[HIDDEN]);
    }
    let tower = "vision_tower.vision_model";
    add(format!("{tower}.embeddings.class_embedding"), &[128]);
    add(
        format!("{tower}.embeddings.patch_embedding.weight"),
        &[128, 3, 16, 16],
    );
    add(
        format!("{tower}.embeddings.position_embedding.weight"),
        &[37, 128],
    );
    for layer in 0..4 {
        for (name, shape) in [
            ("layer_norm1", vec![128]),
            ("layer_norm2", vec![128]),
            ("mlp.fc1", vec![512, 128]),
            ("mlp.fc2", vec![128, 512]),
            ("self_attn.q_proj", vec![128, 128]),
            ("self_attn.k_proj", vec![128, 128]),
            ("self_attn.v_proj", vec![128, 128]),
            ("self_attn.out_proj", vec![128, 128]),
        ] {
            add(
                format!("{tower}.encoder.layers.{layer}.{name}.weight"),
                &shape,
            );
            add(
                format!("{tower}.encoder.layers.{layer}.{name}.bias"),
                &shape[..1],
            );
        }
    }
    for name in ["pre_layrnorm", "post_layernorm"] {
        add(format!("{tower}.{name}.weight"), &[128]);
        add(format!("{tower}.{name}.bias"), &[128]);
    }
    all
}
