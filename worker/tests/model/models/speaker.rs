//! What `generate` and `chat` say: the model's own greedy answer, streamed,
//! and the same whether a conversation is read at once or turn by turn.

use crate::models::vocabulary::folder;
use llava_worker::model::{LoadOptions, Model};
use llava_worker::prompt::{Message, Part, Role};
use llava_worker::sampling::SamplingParams;
use llava_worker::speaker::{AnswerOptions, Speaker};
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A small checkpoint as a user would have it, with a tokenizer of words.
pub(crate) fn checkpoint() -> TempDir {
    let dir = TempDir::new().unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(folder("llava-v5").join(file), dir.path().join(file)).unwrap();
    }
    let mut vocabulary = serde_json::Map::new();
    for id in 0..127 {
        vocabulary.insert(format!("w{id}"), json!(id));
    }
    vocabulary.insert("<image>".to_owned(), json!(127));
    let special = json!({"id": 127, "content": "<image>", "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false, "special": true});
    let tokenizer = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [special],
        "normalizer": null, "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "w0"}});
    fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let processor = json!({"image_processor_type": "CLIPImageProcessor", "crop_size": {"height": 32, "width": 32},
        "size": {"shortest_edge": 32}, "do_center_crop": true, "do_resize": true, "do_rescale": true,
        "do_normalize": true, "do_convert_rgb": true, "resample": 3, "rescale_factor": 1.0 / 255.0,
        "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]});
    fs::write(
        dir.path().join("preprocessor_config.json"),
        processor.to_string(),
    )
    .unwrap();
    dir
}

pub(crate) fn picture(dir: &Path, shade: u8) -> PathBuf {
    let path = dir.join(format!("{shade}.png"));
    let paint = |x: u32, y: u32| image::Rgb([(x * 5) as u8, (y * 3) as u8, shade]);
    image::RgbImage::from_fn(40, 50, paint).save(&path).unwrap();
    path
}

fn speaker(dir: &Path) -> Speaker {
    let model = Model::load(dir, &LoadOptions::default(), &|_| ()).unwrap();
    Speaker::new(model, dir, None).unwrap()
}

fn say(speaker: &mut Speaker, messages: &[Message]) -> String {
    let options = AnswerOptions {
        sampling: SamplingParams::greedy(),
        max_tokens: 10,
    };
    let mut streamed = String::new();
    let answer = speaker
        .answer(messages, &options, &mut |text| {
            streamed.push_str(text);
            Ok(())
        })
        .unwrap();
    assert_eq!(streamed, answer, "what is streamed is the answer");
    answer
}

fn question(images: usize, text: &str) -> Message {
    let mut parts = vec![Part::Image; images];
    parts.push(Part::text(text));
    Message::parts(Role::User, parts)
}

#[test]
fn a_conversation_read_turn_by_turn_is_answered_as_one_read_at_once() {
    let dir = checkpoint();
    let (cat, dog) = (picture(dir.path(), 10), picture(dir.path(), 200));
    let mut chat = speaker(dir.path());
    chat.show(&cat).unwrap();
    let mut messages = vec![question(1, "w5 w9 w33")];
    let mut answers = Vec::new();
    for next in ["w7", "w21 w4"] {
        let answer = say(&mut chat, &messages);
        let mut fresh = speaker(dir.path());
        fresh.show(&cat).unwrap();
        assert_eq!(say(&mut fresh, &messages), answer);
        messages.push(Message::text(Role::Assistant, answer.clone()));
        messages.push(question(0, next));
        answers.push(answer);
    }
    assert!(
        answers.iter().all(|answer| answer.contains('w')),
        "{answers:?}"
    );
    chat.clear();
    chat.show(&dog).unwrap();
    let other = say(&mut chat, &messages[..1]);
    let mut fresh = speaker(dir.path());
    fresh.show(&dog).unwrap();
    assert_eq!(
        say(&mut fresh, &messages[..1]),
        other,
        "nothing is left of the first picture"
    );
}

#[test]
fn an_answer_ends_at_a_special_token_that_the_tokenizer_alone_names() {
    let dir = checkpoint();
    let write = |file: &str, text: &str| fs::write(dir.path().join(file), text).unwrap();
    write(
        "chat_template.jinja",
        "{% for message in messages %}{% for part in message.content %}{{ part.text }} {% endfor %}{% endfor %}",
    );
    let asked = [question(0, "w7 w21")];
    let whole = say(&mut speaker(dir.path()), &asked);
    let words: Vec<&str> = whole.split_whitespace().collect();
    let at = words.iter().position(|word| *word != words[0]).unwrap();
    // config.json says nothing of this token, and an answer has no text of it.
    let end = words[at];
    let file = fs::read(dir.path().join("tokenizer.json")).unwrap();
    let mut tokenizer: serde_json::Value = serde_json::from_slice(&file).unwrap();
    let mut token = tokenizer["added_tokens"][0].clone();
    token["content"] = json!(end);
    token["id"] = tokenizer["model"]["vocab"][end].clone();
    let added = tokenizer["added_tokens"].as_array_mut().unwrap();
    added.insert(0, token);
    write("tokenizer.json", &tokenizer.to_string());
    write(
        "tokenizer_config.json",
        &json!({ "eos_token": end }).to_string(),
    );
    let answer = say(&mut speaker(dir.path()), &asked);
    let said: Vec<&str> = answer.split_whitespace().collect();
    assert_eq!(said, words[..at]);
}

#[test]
fn a_prompt_longer_than_the_context_is_refused_with_both_numbers() {
    let dir = checkpoint();
    let options = LoadOptions {
        context: Some(30),
        ..LoadOptions::default()
    };
    let model = Model::load(dir.path(), &options, &|_| ()).unwrap();
    let mut speaker = Speaker::new(model, dir.path(), None).unwrap();
    let long = vec!["w3"; 60].join(" ");
    let options = AnswerOptions {
        sampling: SamplingParams::greedy(),
        max_tokens: 4,
    };
    let error = speaker
        .answer(&[question(0, &long)], &options, &mut |_| Ok(()))
        .unwrap_err();
    assert!(error.to_string().contains("context has 30"), "{error}");
}
