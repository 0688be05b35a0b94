//! Rounded weights stay close to the dense model.

use crate::models::vocabulary::{CHECKPOINTS, alone, cases, encode, load, worst};
use llava_worker::matmul::WeightFormat;
use llava_worker::model::LoadOptions;

fn probabilities(logits: &[f32]) -> Vec<f32> {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f32> = logits.iter().map(|logit| (logit - most).exp()).collect();
    let sum: f32 = weights.iter().sum();
    weights.iter().map(|weight| weight / sum).collect()
}

fn worst_probability(format: WeightFormat) -> f32 {
    let mut most: f32 = 0.0;
    for checkpoint in CHECKPOINTS {
        let dense = load(checkpoint, &LoadOptions::default());
        let rounded = load(
            checkpoint,
            &LoadOptions {
                format,
                ..LoadOptions::default()
            },
        );
        for case in cases(checkpoint) {
            let images = case.images();
            let (wanted, _) = alone(&dense, case.pieces(&encode(&dense, &images)), 1);
            let (found, _) = alone(&rounded, case.pieces(&encode(&rounded, &images)), 1);
            most = most.max(worst(&probabilities(&wanted), &probabilities(&found)));
        }
    }
    most
}

#[test]
fn int8_is_within_a_twentieth_of_the_dense_probabilities() {
    let worst = worst_probability(WeightFormat::Int8);
    assert!(worst < 0.05, "{worst}");
}

#[test]
fn int4_is_not_nonsense() {
    let worst = worst_probability(WeightFormat::Int4);
    assert!(worst < 0.5, "{worst}");
}

#[test]
fn rounded_weights_take_the_memory_they_promise() {
    let bytes = |format| {
        let options = LoadOptions {
            format,
            ..LoadOptions::default()
        };
        load("llava-v5", &options).info().weight_bytes
    };
    let (dense, int8, int4) = (
        bytes(WeightFormat::Dense),
        bytes(WeightFormat::Int8),
        bytes(WeightFormat::Int4),
    );
    assert!(int4 < int8 && int8 < dense, "{int4} {int8} {dense}");
}
