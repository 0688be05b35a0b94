//! `inspect` answers from configuration and headers alone.

use std::fs;

use llava_worker::image::Size;
use llava_worker::inspect::{InspectError, Question, report};
use llava_worker::prompt::{Message, Part, Role};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::fixture;
use crate::input::checkpoint;

fn next_checkpoint() -> TempDir {
    let mut config = checkpoint::original(336, 14);
    config["image_aspect_ratio"] = json!("anyres");
    config["mm_patch_merge_type"] = json!("spatial_unpad");
    config["image_grid_pinpoints"] =
        json!([[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]);
    config["vocab_size"] = json!(1000);
    let dir = checkpoint::folder(&config);
    fs::copy(
        fixture("prompts/llama/tokenizer.model"),
        dir.path().join("tokenizer.model"),
    )
    .unwrap();
    dir
}

fn answer(question: &Question) -> Value {
    serde_json::to_value(report(question).unwrap()).unwrap()
}

#[test]
fn a_checkpoint_says_what_messages_and_images_cost() {
    let dir = next_checkpoint();
    let asked = Question {
        model: Some(dir.path().to_owned()),
        images: vec![fixture("images/files/turned_6.jpg")],
        sizes: vec![Size::new(640, 480)],
        messages: Some(vec![Message::parts(
            Role::User,
            [Part::Image, Part::Image, Part::text("Which?")],
        )]),
        ..Question::default()
    };
    let answer = answer(&asked);
    assert_eq!(answer["model"]["family"], "llava_next");
    assert_eq!(answer["template"], "llava_v1");
    assert_eq!(answer["stop"], json!(["</s>"]));
    let prompt = answer["prompt"].as_str().unwrap();
    assert!(
        prompt.ends_with("USER: <image>\n<image>\nWhich? ASSISTANT:"),
        "{prompt}"
    );
    let ids = answer["token_ids"].as_array().unwrap();
    assert_eq!(ids.iter().filter(|id| **id == -200).count(), 2);
    // The file is 32x16, turned a quarter by its EXIF data.
    assert_eq!(
        (
            &answer["images"][0]["width"],
            &answer["images"][0]["height"]
        ),
        (&json!(16), &json!(32))
    );
    assert_eq!(answer["images"][1]["tokens"], 2340);
    assert_eq!(answer["images"][1]["tiles"], 5);
    let total = ids.len() as u64 - 2 + answer["images"][0]["tokens"].as_u64().unwrap() + 2340;
    assert_eq!(answer["tokens"]["total"], total);
    assert!(answer["memory"]["per_token"].as_u64() > Some(0));
}

#[test]
fn pictures_that_were_not_given_are_in_no_count() {
    let dir = next_checkpoint();
    let with = |parts: Vec<Part>| {
        answer(&Question {
            model: Some(dir.path().to_owned()),
            messages: Some(vec![Message::parts(Role::User, parts)]),
            ..Question::default()
        })
    };
    let tokens = with(vec![Part::Image, Part::text("Which?")])["tokens"].clone();
    let text = tokens["text"].as_u64().unwrap();
    assert_eq!(tokens, json!({ "text": text }));
    let tokens = with(vec![Part::text("Which?")])["tokens"].clone();
    assert_eq!(
        (&tokens["images"], &tokens["total"]),
        (&json!(0), &tokens["text"])
    );
}

#[test]
fn a_template_alone_needs_no_checkpoint() {
    let answer = answer(&Question {
        template: Some("mistral_instruct".to_owned()),
        messages: Some(vec![Message::text(Role::User, "Hi")]),
        ..Question::default()
    });
    assert_eq!(
        answer,
        json!({ "template": "mistral_instruct", "prompt": "[INST] Hi [/INST]", "stop": ["</s>"], "images": [] })
    );
}

#[test]
fn images_and_slots_must_agree() {
    let dir = next_checkpoint();
    let error = report(&Question {
        model: Some(dir.path().to_owned()),
        sizes: vec![Size::new(5, 5)],
        messages: Some(vec![Message::text(Role::User, "Hi <image>")]),
        ..Question::default()
    });
    assert!(matches!(
        error,
        Err(InspectError::ImageCount {
            slots: 0,
            images: 1
        })
    ));
}
