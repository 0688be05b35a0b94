//! A batch gives every sequence what it would get alone: any mix of up to 16
//! sequences, with and without images, admitted at any step, whole or in
//! chunks, into any slot.

use crate::models::vocabulary::{Case, alone, cases, encode, greedy, load};
use llava_worker::input::{Piece, positions, slice};
use llava_worker::matmul::WeightFormat;
use llava_worker::model::{LoadOptions, Model, Part};
use proptest::prelude::*;
use std::collections::VecDeque;
use std::sync::OnceLock;

const ANSWER: usize = 12;

/// A model with its prompts and what each answers alone.
struct Bench {
    model: Model,
    prompts: Vec<Vec<Piece>>,
    answers: Vec<(Vec<f32>, Vec<u32>)>,
}

impl Bench {
    fn new(checkpoint: &str, format: WeightFormat) -> Self {
        let options = LoadOptions {
            format,
            ..LoadOptions::default()
        };
        let model = load(checkpoint, &options);
        let prompt = |case: &Case| case.pieces(&encode(&model, &case.images()));
        let prompts: Vec<_> = cases(checkpoint).iter().map(prompt).collect();
        let answers = prompts
            .iter()
            .map(|prompt| alone(&model, prompt.clone(), ANSWER))
            .collect();
        Self {
            model,
            prompts,
            answers,
        }
    }
}

fn benches() -> &'static [Bench] {
    static BENCHES: OnceLock<Vec<Bench>> = OnceLock::new();
    BENCHES.get_or_init(|| {
        vec![
            Bench::new("next-mistral", WeightFormat::Dense),
            Bench::new("onevision", WeightFormat::Dense),
            Bench::new("llava-v5", WeightFormat::Int8),
            Bench::new("next-yi", WeightFormat::Int4),
        ]
    })
}

/// A sequence that is to be answered.
#[derive(Debug, Clone)]
struct Arrival {
    prompt: usize,
    step: usize,
    chunk: usize,
}

struct Running {
    prompt: usize,
    slot: usize,
    chunk: usize,
    at: usize,
    tokens: Vec<u32>,
}

fn run(bench: &Bench, mut arrivals: Vec<Arrival>, slots: usize) {
    arrivals.sort_by_key(|arrival| arrival.step);
    let mut waiting: VecDeque<Arrival> = arrivals.into();
    let longest = bench
        .prompts
        .iter()
        .map(|prompt| positions(prompt))
        .max()
        .unwrap();
    let mut kv = bench.model.new_kv(slots, longest + ANSWER).unwrap();
    let mut free: Vec<usize> = (0..slots).collect();
    let mut running: Vec<Running> = Vec::new();
    let mut step = 0;
    while !waiting.is_empty() || !running.is_empty() {
        while waiting.front().is_some_and(|arrival| arrival.step <= step)
            && let Some(slot) = free.pop()
        {
            let arrival = waiting.pop_front().unwrap();
            running.push(Running {
                prompt: arrival.prompt,
                slot,
                chunk: arrival.chunk,
                at: 0,
                tokens: Vec::new(),
            });
        }
        let batch: Vec<Part> = running
            .iter()
            .map(|sequence| match sequence.tokens.last() {
                Some(token) => Part::token(sequence.slot, sequence.at, *token),
                None => {
                    let prompt = &bench.prompts[sequence.prompt];
                    let input = slice(prompt, sequence.at..sequence.at + sequence.chunk);
                    let last = sequence.at + sequence.chunk >= positions(prompt);
                    Part {
                        logits: last,
                        ..Part::prompt(sequence.slot, sequence.at, input)
                    }
                }
            })
            .collect();
        let logits = bench.model.forward(&mut kv, &batch).unwrap();
        for (index, (sequence, part)) in running.iter_mut().zip(&batch).enumerate() {
            sequence.at += positions(&part.input);
            if let Some(row) = logits.row(index) {
                let (first, _) = &bench.answers[sequence.prompt];
                if sequence.tokens.is_empty() {
                    assert_eq!(row, first, "the first logits have the same bits as alone");
                }
                sequence.tokens.push(greedy(row));
            }
        }
        running.retain(|sequence| {
            let done = sequence.tokens.len() == ANSWER;
            if done {
                assert_eq!(sequence.tokens, bench.answers[sequence.prompt].1);
                kv.truncate(sequence.slot, 0);
                free.push(sequence.slot);
            }
            !done
        });
        step += 1;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]
    #[test]
    fn any_mix_of_sequences_answers_as_each_alone(
        which in 0usize..4,
        arrivals in prop::collection::vec((0usize..8, 0usize..20, prop::sample::select(vec![3usize, 17, 64, 4096])), 1..17),
        slots in 1usize..17,
    ) {
        let bench = &benches()[which];
        let arrivals = arrivals
            .into_iter()
            .map(|(prompt, step, chunk)| Arrival { prompt: prompt % bench.prompts.len(), step, chunk })
            .collect();
        run(bench, arrivals, slots);
    }
}

#[test]
fn a_copied_prefix_goes_on_as_the_original_would() {
    let bench = &benches()[0];
    let (prompt, (first, tokens)) = (&bench.prompts[1], &bench.answers[1]);
    let length = positions(prompt);
    let mut kv = bench.model.new_kv(3, length + 8).unwrap();
    bench
        .model
        .forward(&mut kv, &[Part::prompt(0, 0, prompt.clone())])
        .unwrap();
    // Slot 2 held something longer before.
    bench
        .model
        .forward(&mut kv, &[Part::prompt(2, 0, prompt.clone())])
        .unwrap();
    for shared in [1, 31, 32, 33, length - 1] {
        kv.copy_prefix(0, 2, shared).unwrap();
        let rest = slice(prompt, shared..length);
        let logits = bench
            .model
            .forward(&mut kv, &[Part::prompt(2, shared, rest)])
            .unwrap();
        assert_eq!(logits.row(0).unwrap(), first, "{shared} tokens shared");
    }
    let logits = bench
        .model
        .forward(&mut kv, &[Part::token(2, length, tokens[0])])
        .unwrap();
    assert_eq!(greedy(logits.row(0).unwrap()), tokens[1]);
}

#[test]
fn images_encoded_together_have_the_same_bits_as_alone() {
    let model = &benches()[1].model;
    let images: Vec<_> = cases("onevision").iter().flat_map(Case::images).collect();
    let together = encode(model, &images);
    for (image, features) in images.iter().zip(together) {
        let case = Case {
            name: String::new(),
            prompt: vec![5, -1, 6],
            images: Vec::new(),
            greedy: Vec::new(),
        };
        let lone = encode(model, std::slice::from_ref(image));
        assert_eq!(
            alone(model, case.pieces(&lone), 1),
            alone(model, case.pieces(&[features]), 1)
        );
    }
}

#[test]
fn a_part_that_cannot_be_is_refused_and_leaves_the_cache_as_it_was() {
    let model = &benches()[0].model;
    let mut kv = model.new_kv(2, 40).unwrap();
    let tokens = |ids: &[u32]| vec![Piece::Tokens(ids.to_vec())];
    model
        .forward(&mut kv, &[Part::prompt(0, 0, tokens(&[1, 2, 3]))])
        .unwrap();
    for (part, word) in [
        (Part::token(7, 0, 1), "slot 7"),
        (Part::token(0, 5, 1), "position 5"),
        (Part::token(0, 3, 128), "token 128"),
        (Part::prompt(0, 3, Vec::new()), "empty"),
        (Part::prompt(1, 0, tokens(&[1; 65])), "65 tokens"),
    ] {
        let good = Part::token(0, 3, 9);
        let batch = if part.slot == 0 {
            vec![part]
        } else {
            vec![good, part]
        };
        let error = model.forward(&mut kv, &batch).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
        assert_eq!((kv.len(0), kv.len(1)), (3, 0));
    }
}
