//! Every family in every layout gives what transformers gives: image features,
//! logits and greedy tokens (`tests/reference/models.py` makes the fixtures).

use crate::models::vocabulary::{CHECKPOINTS, alone, cases, encode, expected, load, worst};
use llava_worker::input::Piece;
use llava_worker::model::LoadOptions;

#[test]
fn logits_are_within_a_thousandth_of_the_reference_and_64_greedy_tokens_are_equal() {
    for checkpoint in CHECKPOINTS {
        let model = load(checkpoint, &LoadOptions::default());
        for case in cases(checkpoint) {
            let features = encode(&model, &case.images());
            let (logits, tokens) = alone(&model, case.pieces(&features), case.greedy.len());
            let wanted = expected(checkpoint, &format!("{}.logits", case.name));
            let difference = worst(&logits, &wanted);
            assert!(
                difference < 1e-3,
                "{checkpoint} {}: logits differ by {difference}",
                case.name
            );
            assert_eq!(tokens, case.greedy, "{checkpoint} {}", case.name);
        }
    }
}

#[test]
fn image_tokens_are_counted_as_they_are_encoded() {
    for checkpoint in CHECKPOINTS {
        let model = load(checkpoint, &LoadOptions::default());
        for case in cases(checkpoint) {
            let images = case.images();
            for ((image, pixels), features) in
                case.images.iter().zip(&images).zip(encode(&model, &images))
            {
                assert_eq!(
                    features.tokens(),
                    image.tokens,
                    "{checkpoint} {}",
                    case.name
                );
                let counted = model.config().image_tokens(pixels.original, pixels.grid);
                assert_eq!(counted, image.tokens, "{checkpoint} {}", case.name);
            }
        }
    }
}

#[test]
fn image_features_are_within_a_thousandth_of_the_reference() {
    for checkpoint in CHECKPOINTS {
        let model = load(checkpoint, &LoadOptions::default());
        for case in cases(checkpoint) {
            let encoded = encode(&model, &case.images());
            for (index, features) in encoded.iter().enumerate() {
                let wanted = |what: &str| {
                    expected(
                        checkpoint,
                        &format!("{}.features.{index}.{what}", case.name),
                    )
                };
                let rows = features.to_rows().unwrap();
                let count = rows.len();
                let ends = [&rows[..2], &rows[count - 2..]].concat().concat();
                let place = format!("{checkpoint} {} image {index}", case.name);
                assert!(worst(&ends, &wanted("ends")) < 1e-3, "{place}: ends");
                let mean: Vec<f32> = (0..rows[0].len())
                    .map(|at| rows.iter().map(|row| row[at]).sum::<f32>() / count as f32)
                    .collect();
                assert!(worst(&mean, &wanted("mean")) < 1e-3, "{place}: mean");
            }
        }
    }
}

#[test]
fn a_prompt_in_chunks_gives_the_same_bits_as_in_one_piece() {
    use llava_worker::input::{positions, slice};
    use llava_worker::model::Part;
    let model = load("next-mistral", &LoadOptions::default());
    let case = cases("next-mistral").pop().unwrap();
    let prompt = case.pieces(&encode(&model, &case.images()));
    let (whole, _) = alone(&model, prompt.clone(), 1);
    let length = positions(&prompt);
    for chunk in [1, 7, 13, 32] {
        let mut kv = model.new_kv(2, length).unwrap();
        let mut last = Vec::new();
        for start in (0..length).step_by(chunk) {
            let input: Vec<Piece> = slice(&prompt, start..start + chunk);
            let logits = model
                .forward(&mut kv, &[Part::prompt(1, start, input)])
                .unwrap();
            last = logits.row(0).unwrap().to_vec();
        }
        assert_eq!(last, whole, "chunks of {chunk}");
    }
}
