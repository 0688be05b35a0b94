//! Losses, gradients and updates equal PyTorch's over three steps of AdamW, whole and
//! with LoRA (`tests/reference/train.py` makes the fixtures).

#![allow(clippy::unwrap_used, reason = "a helper that fails is a failed test")]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, safetensors};
use llava_worker::config::ModelConfig;
use llava_worker::train::batch::Batch;
use llava_worker::train::lora::Lora;
use llava_worker::train::names;
use llava_worker::train::net::Net;
use llava_worker::train::optim::{self, Adam, AdamState, Gradients};
use llava_worker::train::params::Params;
use llava_worker::train::sample::{Sample, Slot};
use serde::Deserialize;

/// The token ids of a conversation, and the ranges of them that are learned.
type Conversation = (Vec<i64>, Vec<(usize, usize)>);

#[derive(Deserialize)]
struct Expected {
    conversations: Vec<Conversation>,
    samples: usize,
    full: Steps,
    lora: Lora,
    lora_run: Steps,
}

#[derive(Deserialize)]
struct Steps {
    losses: Vec<f64>,
    norms: Vec<f64>,
}

const TILE: usize = 32;
const PATCH: usize = 8;

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures")
}

fn expected() -> Expected {
    let text = std::fs::read(fixtures().join("train/expected.json")).unwrap();
    serde_json::from_slice(&text).unwrap()
}

/// The numbers that `pixels` in `tests/reference/models.py` makes.
fn pixels(seed: u64, count: usize) -> Vec<f32> {
    let m = 1u64 << 32;
    let one = |index: u64| {
        let mixed = index
            .wrapping_mul(2_654_435_761)
            .wrapping_add(seed * 40503 + 12345)
            % m;
        let mixed = (mixed ^ (mixed >> 15)).wrapping_mul(2_246_822_519) % m;
        ((mixed ^ (mixed >> 13)) as f64 / m as f64 * 4.0 - 2.0) as f32
    };
    (0..count as u64).map(one).collect()
}

fn batch(expected: &Expected) -> Batch {
    let samples: Vec<Sample> = (expected.conversations.iter())
        .map(|(ids, learned)| {
            let slot = |(at, id): (usize, &i64)| match u32::try_from(*id) {
                Ok(id) => Slot::Token(id, learned.iter().position(|(a, b)| (*a..*b).contains(&at))),
                Err(_) => Slot::Image,
            };
            Sample {
                slots: ids.iter().enumerate().map(slot).collect(),
            }
        })
        .collect();
    let images = samples
        .iter()
        .flat_map(|s| &s.slots)
        .filter(|s| **s == Slot::Image)
        .count();
    let (plane, grid) = (TILE * TILE, TILE / PATCH);
    let values = pixels(11, images * 3 * plane);
    let mut patches = Vec::new();
    for image in values.chunks(3 * plane) {
        for cell in 0..grid * grid {
            for channel in 0..3 {
                for i in 0..PATCH * PATCH {
                    let (x, y) = (
                        cell % grid * PATCH + i % PATCH,
                        cell / grid * PATCH + i / PATCH,
                    );
                    patches.push(image[channel * plane + y * TILE + x]);
                }
            }
        }
    }
    Batch::pack(
        &samples,
        patches,
        3 * PATCH * PATCH,
        grid * grid,
        &Device::Cpu,
    )
    .unwrap()
}

fn by_name(mut all: GradStore, params: &Params, trained: &BTreeSet<String>) -> Gradients {
    let one = |name: &String| Some((name.clone(), all.remove(params.get(name)?.as_tensor())?));
    trained.iter().filter_map(one).collect()
}

/// Layers that are computed again instead of kept give the same gradients.
fn same(kept: &Gradients, recomputed: &Gradients) {
    assert!(kept.keys().eq(recomputed.keys()));
    for (name, gradient) in kept {
        let apart = (gradient - &recomputed[name]).unwrap().abs().unwrap();
        let apart = apart.max_all().unwrap().to_scalar::<f32>().unwrap();
        let most = gradient.abs().unwrap().max_all().unwrap();
        let most = most.to_scalar::<f32>().unwrap();
        assert!(apart <= 1e-6 * most.max(1e-3), "{name}: {apart} of {most}");
    }
}

/// Three steps, compared with the reference after each backward pass.
fn compare(
    params: &Params,
    config: &ModelConfig,
    trained: &BTreeSet<String>,
    lora: Option<&Lora>,
    wanted: &Steps,
    file: &str,
) {
    let expected = expected();
    let batch = batch(&expected);
    let rope = Net::rope(config).unwrap();
    let adam = Adam {
        rate: 2e-3,
        beta2: 0.98,
        weight_decay: 0.1,
        clip: 1.0,
        ..Adam::default()
    };
    let mut state = AdamState::default();
    let samples: HashMap<String, Tensor> =
        safetensors::load(fixtures().join("train").join(file), &Device::Cpu).unwrap();
    let weight = 1.0 / batch.targets.entries.len() as f64;
    let mut compared = 0;
    for step in 0..wanted.losses.len() {
        let net = Net::new(config, params, trained, &rope, lora, DType::F32).unwrap();
        let loss = net.loss(&batch).unwrap();
        let value = f64::from(loss.to_scalar::<f32>().unwrap()) * weight;
        assert!(
            (value - wanted.losses[step]).abs() < 1e-4,
            "step {step}: loss {value} against {}",
            wanted.losses[step]
        );
        let gradients = by_name(net.gradients(&loss).unwrap(), params, trained);
        let net = Net::new(config, params, trained, &rope, lora, DType::F32).unwrap();
        let net = net.with_checkpointing(true);
        let recomputed = net.gradients(&net.loss(&batch).unwrap()).unwrap();
        same(&gradients, &by_name(recomputed, params, trained));
        let norm = optim::norm(&gradients).unwrap() * weight;
        assert!(
            (norm - wanted.norms[step]).abs() < 1e-4 * norm,
            "step {step}: norm {norm} against {}",
            wanted.norms[step]
        );
        for (name, sample) in samples
            .iter()
            .filter_map(|(n, s)| Some((n.strip_prefix(&format!("{step}."))?, s)))
        {
            let ours = &gradients[&names::canonical(name)];
            let flat = ours.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let sample = sample.to_vec1::<f32>().unwrap();
            let stride = (flat.len() / expected.samples).max(1);
            for (ours, theirs) in flat.iter().step_by(stride).zip(&sample) {
                let ours = ours * weight as f32;
                assert!(
                    (ours - theirs).abs() < 1e-4,
                    "step {step} {name}: {ours} against {theirs}"
                );
            }
            compared += 1;
        }
        let clip = (adam.clip / norm).min(1.0);
        state.next();
        for (name, gradient) in &gradients {
            state
                .update(
                    &adam,
                    name,
                    params.get(name).unwrap(),
                    gradient,
                    weight * clip,
                    1.0,
                )
                .unwrap();
        }
    }
    assert_eq!(
        compared,
        samples.len(),
        "every sampled gradient was compared"
    );
}

fn model() -> (ModelConfig, Params) {
    let dir = fixtures().join("models/llava-v5");
    let config = ModelConfig::read(&dir, None).unwrap();
    let params = Params::read(&dir, &config, &Device::Cpu).unwrap();
    (config, params)
}

fn adapted(lora: &Lora, config: &ModelConfig, params: &mut Params) {
    params
        .add(&lora.shapes(&names::shapes(config)), 0, &Device::Cpu)
        .unwrap();
    let adapters =
        safetensors::load(fixtures().join("train/adapters.safetensors"), &Device::Cpu).unwrap();
    for (name, tensor) in adapters {
        let name = names::canonical(&name);
        assert!(
            params.get(&name).is_some(),
            "{name} has an adapter here too"
        );
        params.set(&name, &tensor).unwrap();
    }
}

#[test]
fn three_steps_of_every_weight_equal_pytorchs() {
    let (config, params) = model();
    let trained = params.iter().map(|(name, _)| name.to_owned()).collect();
    compare(
        &params,
        &config,
        &trained,
        None,
        &expected().full,
        "full.safetensors",
    );
}

#[test]
fn three_steps_of_adapters_and_projector_equal_pytorchs() {
    let (config, mut params) = model();
    let lora = expected().lora;
    adapted(&lora, &config, &mut params);
    let trained = (params.iter().map(|(name, _)| name.to_owned()))
        .filter(|name| name.contains("lora_") || names::in_projector(name))
        .collect();
    compare(
        &params,
        &config,
        &trained,
        Some(&lora),
        &expected().lora_run,
        "lora.safetensors",
    );
}

#[test]
fn merged_adapters_give_the_logits_of_unmerged_ones() {
    let (config, mut params) = model();
    let expected = expected();
    adapted(&expected.lora, &config, &mut params);
    let (batch, rope, none) = (
        batch(&expected),
        Net::rope(&config).unwrap(),
        BTreeSet::new(),
    );
    let logits = |params: &Params, lora: Option<&Lora>| {
        let net = Net::new(&config, params, &none, &rope, lora, DType::F32).unwrap();
        net.logits(&batch)
            .unwrap()
            .flatten_all()
            .unwrap()
            .to_vec1::<f32>()
            .unwrap()
    };
    let apart = logits(&params, Some(&expected.lora));
    let weights: BTreeMap<String, Tensor> = params
        .iter()
        .map(|(name, var)| (name.to_owned(), var.as_detached_tensor()))
        .collect();
    let mut merged = Params::default();
    for (name, tensor) in expected.lora.merge(weights).unwrap() {
        merged.set(&name, &tensor).unwrap();
    }
    assert!(merged.iter().all(|(name, _)| !name.contains("lora_")));
    for (a, b) in apart.iter().zip(&logits(&merged, None)) {
        assert!((a - b).abs() < 1e-4, "{a} against {b}");
    }
    let plain = logits(&merged, None)
        .iter()
        .zip(&logits(&model().1, None))
        .map(|(a, b)| (a - b).abs())
        .fold(0f32, f32::max);
    assert!(plain > 0.1, "the adapters change the logits, by {plain}");
}
