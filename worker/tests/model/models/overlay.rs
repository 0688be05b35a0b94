//! Checkpoints that hold only a part: LoRA adapters and projectors on a base.

use crate::models::vocabulary::{alone, cases, encode, expected, folder, load, worst};
use llava_worker::model::{LoadError, LoadOptions, Model};

fn on_base(base: &str) -> LoadOptions {
    LoadOptions {
        base: Some(folder(base)),
        ..LoadOptions::default()
    }
}

#[test]
fn an_adapter_of_peft_on_its_base_gives_the_merged_model() {
    let model = load("lora", &on_base("lora-base"));
    for case in cases("lora") {
        let features = encode(&model, &case.images());
        let (logits, tokens) = alone(&model, case.pieces(&features), case.greedy.len());
        let wanted = expected("lora", &format!("{}.logits", case.name));
        let difference = worst(&logits, &wanted);
        assert!(
            difference < 1e-3,
            "{}: logits differ by {difference}",
            case.name
        );
        assert_eq!(tokens, case.greedy, "{}", case.name);
    }
}

#[test]
fn a_projector_on_its_base_gives_the_whole_model() {
    let model = load("projector-only", &on_base("lora-base"));
    for case in cases("projector-only") {
        let features = encode(&model, &case.images());
        let (logits, tokens) = alone(&model, case.pieces(&features), case.greedy.len());
        let wanted = expected("projector-only", &format!("{}.logits", case.name));
        assert!(worst(&logits, &wanted) < 1e-3, "{}", case.name);
        assert_eq!(tokens, case.greedy, "{}", case.name);
    }
}

#[test]
fn without_their_base_they_ask_for_it() {
    for checkpoint in ["lora", "projector-only"] {
        let error = Model::load(&folder(checkpoint), &LoadOptions::default(), &|_| ()).unwrap_err();
        assert!(matches!(error, LoadError::NeedsBase { .. }), "{error}");
        assert!(error.to_string().contains("--base"));
    }
}
