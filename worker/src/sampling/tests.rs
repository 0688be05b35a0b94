//! Choices by hand, by the definition and by `tests/reference/sampling.py`.

use proptest::prelude::*;

use super::*;

fn draws(params: &SamplingParams, logits: &[f32], count: usize) -> Vec<u32> {
    let mut sampler = Sampler::new(params.clone(), []);
    (0..count).map(|_| sampler.next(logits).unwrap()).collect()
}

#[test]
fn greedy_takes_the_first_of_equals() {
    let logits = [0.0, 3.0, f32::NAN, 3.0];
    assert_eq!(draws(&SamplingParams::greedy(), &logits, 3), [1, 1, 1]);
    assert_eq!(
        Sampler::new(SamplingParams::greedy(), []).next(&[f32::NAN]),
        None
    );
}

#[test]
fn only_above_a_thousandth_a_temperature_samples() {
    let logits = [1.0, 1.0 + 1e-6, 0.0];
    let drawn = |temperature| {
        let params = SamplingParams {
            temperature,
            ..SamplingParams::default()
        };
        let mut seen = draws(&params, &logits, 200);
        seen.sort_unstable();
        seen.dedup();
        seen
    };
    assert_eq!(drawn(0.0), [1]);
    assert_eq!(drawn(0.001), [1]);
    assert_eq!(drawn(0.00101), [0, 1]);
}

#[derive(serde::Deserialize)]
struct Reference {
    changes: Vec<Change>,
    cuts: Vec<Cut>,
}

#[derive(serde::Deserialize)]
struct Change {
    logits: Vec<f32>,
    prompt: Vec<u32>,
    answer: Vec<u32>,
    bias: Vec<(u32, f32)>,
    repetition: f32,
    presence: f32,
    frequency: f32,
    changed: Vec<f32>,
}

#[derive(serde::Deserialize)]
struct Cut {
    logits: Vec<f32>,
    temperature: f32,
    top_k: usize,
    top_p: f32,
    kept: Vec<u32>,
}

/// What `tests/reference/sampling.py` wrote.
fn reference() -> Reference {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read(root.join("../tests/fixtures/sampling.json")).unwrap();
    serde_json::from_slice(&text).unwrap()
}

#[test]
fn penalties_and_bias_change_logits_as_the_reference_does() {
    for case in reference().changes {
        let params = SamplingParams {
            repetition_penalty: case.repetition,
            presence_penalty: case.presence,
            frequency_penalty: case.frequency,
            logit_bias: case.bias,
            ..SamplingParams::default()
        };
        let mut sampler = Sampler::new(params, case.prompt);
        for token in case.answer {
            *sampler.counts.entry(token).or_default() += 1;
        }
        let changed = sampler.changed(&case.logits);
        for (ours, theirs) in changed.iter().zip(&case.changed) {
            assert!(
                (ours - theirs).abs() < 1e-5,
                "{changed:?}\n{:?}",
                case.changed
            );
        }
    }
}

#[test]
fn what_may_be_drawn_is_what_the_reference_keeps() {
    for case in reference().cuts {
        let params = SamplingParams {
            temperature: case.temperature,
            top_k: case.top_k,
            top_p: case.top_p,
            ..SamplingParams::default()
        };
        let mut drawn = draws(&params, &case.logits, 5_000);
        drawn.sort_unstable();
        drawn.dedup();
        assert_eq!(drawn, case.kept);
    }
}

#[test]
fn draws_follow_the_distribution() {
    let logits = [0.7f32.ln(), 0.2f32.ln(), 0.1f32.ln()];
    let drawn = draws(&SamplingParams::default(), &logits, 20_000);
    for (token, expected) in [(0, 0.7), (1, 0.2), (2, 0.1)] {
        let share = drawn.iter().filter(|&&t| t == token).count() as f64 / 20_000.0;
        assert!((share - expected).abs() < 0.015, "token {token}: {share}");
    }
}

#[test]
fn top_p_and_top_k_cut_the_tail() {
    let logits = [0.5f32.ln(), 0.3f32.ln(), 0.2f32.ln()];
    let p = SamplingParams {
        top_p: 0.7,
        ..SamplingParams::default()
    };
    assert!(draws(&p, &logits, 500).iter().all(|&token| token < 2));
    let k = SamplingParams {
        top_k: 1,
        ..SamplingParams::default()
    };
    assert!(draws(&k, &logits, 50).iter().all(|&token| token == 0));
}

#[test]
fn penalties_and_bias_move_the_choice() {
    let logits = [1.0, 0.9, -5.0];
    let once = SamplingParams {
        presence_penalty: 0.5,
        ..SamplingParams::greedy()
    };
    assert_eq!(draws(&once, &logits, 3), [0, 1, 0]);
    let bias = SamplingParams {
        logit_bias: vec![(2, 100.0)],
        ..SamplingParams::greedy()
    };
    assert_eq!(draws(&bias, &logits, 1), [2]);
    let mut repeated = Sampler::new(
        SamplingParams {
            repetition_penalty: 2.0,
            ..SamplingParams::greedy()
        },
        [0],
    );
    assert_eq!(repeated.next(&logits), Some(1));
}

#[test]
fn probabilities_are_those_of_the_softmax() {
    let logits = [1.0, 2.0, 3.0];
    let total: f32 = (0..3).map(|token| logprob(&logits, token).exp()).sum();
    assert!((total - 1.0).abs() < 1e-6);
    let best = top(&logits, 2);
    assert_eq!(best[0].token, 2);
    assert!((best[1].logprob - logprob(&logits, 1)).abs() < 1e-6);
}

proptest! {
    #[test]
    fn a_seed_repeats_its_draws(seed: u64, top_p in 0.1f32..1.0, logits in prop::collection::vec(-4f32..4.0, 2..40)) {
        let params = SamplingParams { seed, top_p, ..SamplingParams::default() };
        prop_assert_eq!(draws(&params, &logits, 20), draws(&params, &logits, 20));
    }
}
