//! What the tests of models have in common: the small checkpoints in
//! `tests/fixtures/models`, their expected results, and a lone greedy answer.

use llava_worker::input::{ImageFeatures, Piece, positions};
use llava_worker::model::{LoadOptions, Model, Part};
use llava_worker::pixels::{Grid, PixelValues};
use safetensors::SafeTensors;
use serde::Deserialize;
use std::path::PathBuf;

/// One prompt with what transformers makes of it.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Case {
    pub(crate) name: String,
    /// Token ids; -1 is an image slot.
    pub(crate) prompt: Vec<i64>,
    pub(crate) images: Vec<CaseImage>,
    pub(crate) greedy: Vec<u32>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct CaseImage {
    pub(crate) size: (u32, u32),
    pub(crate) tiles: usize,
    pub(crate) grid: Option<(usize, usize)>,
    pub(crate) tokens: usize,
}

/// Every checkpoint in the fixtures that holds a whole model.
pub(crate) const CHECKPOINTS: &[&str] = &[
    "llava-classic",
    "llava-nested",
    "llava-v5",
    "original-outside",
    "original-inside",
    "next-vicuna",
    "original-next",
    "original-flat",
    "original-spatial",
    "next-mistral",
    "next-yi",
    "interleave",
    "onevision",
    "original-onevision",
    "original-linear",
    "original-mlp3x",
    "original-identity",
];

pub(crate) fn folder(checkpoint: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/fixtures/models")
        .join(checkpoint)
}

pub(crate) fn load(checkpoint: &str, options: &LoadOptions) -> Model {
    Model::load(&folder(checkpoint), options, &|_| ()).unwrap()
}

pub(crate) fn cases(checkpoint: &str) -> Vec<Case> {
    let text = std::fs::read(folder(checkpoint).join("expected.json")).unwrap();
    serde_json::from_slice(&text).unwrap()
}

/// The expected tensor `name` of a checkpoint.
pub(crate) fn expected(checkpoint: &str, name: &str) -> Vec<f32> {
    let bytes = std::fs::read(folder(checkpoint).join("expected.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let (numbers, _) = file.tensor(name).unwrap().data().as_chunks::<4>();
    numbers
        .iter()
        .map(|four| f32::from_le_bytes(*four))
        .collect()
}

/// The numbers that `pixels` in `tests/reference/models.py` makes.
fn pixels(seed: u64, count: usize) -> Vec<f32> {
    let m = 1u64 << 32;
    (0..count as u64)
        .map(|index| {
            let mixed = index
                .wrapping_mul(2_654_435_761)
                .wrapping_add(seed.wrapping_mul(40503))
                .wrapping_add(12345)
                % m;
            let mixed = (mixed ^ (mixed >> 15)).wrapping_mul(2_246_822_519) % m;
            let mixed = mixed ^ (mixed >> 13);
            (mixed as f64 / m as f64 * 4.0 - 2.0) as f32
        })
        .collect()
}

impl Case {
    /// The tiles that the reference gave to its tower.
    pub(crate) fn images(&self) -> Vec<PixelValues> {
        let side = 32;
        let image = |(index, image): (usize, &CaseImage)| PixelValues {
            values: pixels(index as u64, image.tiles * 3 * side * side),
            tiles: image.tiles,
            side,
            original: image.size,
            grid: image.grid.map(|(columns, rows)| Grid { columns, rows }),
        };
        self.images.iter().enumerate().map(image).collect()
    }

    /// The prompt with its images encoded.
    pub(crate) fn pieces(&self, features: &[ImageFeatures]) -> Vec<Piece> {
        let mut features = features.iter();
        let mut pieces = Vec::new();
        for token in &self.prompt {
            match (u32::try_from(*token), pieces.last_mut()) {
                (Ok(id), Some(Piece::Tokens(ids))) => ids.push(id),
                (Ok(id), _) => pieces.push(Piece::Tokens(vec![id])),
                (Err(_), _) => pieces.push(Piece::image(features.next().unwrap().clone())),
            }
        }
        pieces
    }
}

pub(crate) fn encode(model: &Model, images: &[PixelValues]) -> Vec<ImageFeatures> {
    model
        .encode_images(&images.iter().collect::<Vec<_>>())
        .unwrap()
}

/// The logits after a prompt and `count` greedy tokens, alone in the model.
pub(crate) fn alone(model: &Model, prompt: Vec<Piece>, count: usize) -> (Vec<f32>, Vec<u32>) {
    let mut at = positions(&prompt);
    let mut kv = model.new_kv(1, at + count).unwrap();
    let first = model
        .forward(&mut kv, &[Part::prompt(0, 0, prompt)])
        .unwrap();
    let first = first.row(0).unwrap().to_vec();
    let mut tokens = vec![greedy(&first)];
    while tokens.len() < count {
        let part = Part::token(0, at, *tokens.last().unwrap());
        let logits = model.forward(&mut kv, &[part]).unwrap();
        tokens.push(greedy(logits.row(0).unwrap()));
        at += 1;
    }
    (first, tokens)
}

pub(crate) fn greedy(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (index, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = index;
        }
    }
    best as u32
}

/// The largest difference between two rows of the same length.
pub(crate) fn worst(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max)
}
