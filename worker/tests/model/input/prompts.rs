//! Rendered prompts and token ids are LLaVA's and transformers', and nothing that
//! a user writes becomes a special token, another turn or an image slot.

use std::collections::HashMap;
use std::fs;

use llava_worker::config::ModelConfig;
use llava_worker::prompt::{
    Message, Part, Piece, Prompt, PromptError, PromptRenderer, Role, Template, render_text,
};
use proptest::prelude::*;
use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::fixture;
use crate::input::checkpoint;

#[derive(Deserialize)]
struct Golden {
    template: String,
    messages: Vec<Message>,
    prompt: String,
}

fn golden(file: &str) -> Vec<Golden> {
    serde_json::from_slice(&fs::read(fixture("prompts").join(file)).unwrap()).unwrap()
}

/// A checkpoint with the tokenizer of a fixture folder and, for transformers' layout, a chat template.
fn renderer(
    tokenizer: &str,
    mut config: Value,
    chat_template: Option<&str>,
) -> (TempDir, PromptRenderer) {
    match config.get_mut("text_config") {
        Some(inner) => inner["vocab_size"] = json!(1000),
        None => config["vocab_size"] = json!(1000),
    }
    let dir = checkpoint::folder(&config);
    for entry in fs::read_dir(fixture("prompts").join(tokenizer)).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    if let Some(template) = chat_template {
        fs::write(dir.path().join("chat_template.jinja"), template).unwrap();
    }
    let made =
        PromptRenderer::from_checkpoint(dir.path(), &checkpoint::model(dir.path()), None).unwrap();
    (dir, made)
}

fn transformers() -> Value {
    checkpoint::transformers("llava", "clip_vision_model", 56, 14)
}

fn chat_templates() -> HashMap<String, String> {
    serde_json::from_slice(&fs::read(fixture("prompts/chat_templates.json")).unwrap()).unwrap()
}

/// Ids with -200 for every image slot, as LLaVA writes them.
fn flat(prompt: &Prompt) -> Vec<i64> {
    let ids = prompt.pieces.iter().flat_map(|piece| match piece {
        Piece::Text(ids) => ids.iter().map(|id| i64::from(*id)).collect(),
        Piece::Image(_) => vec![-200],
    });
    ids.collect()
}

#[test]
fn every_conversation_template_renders_as_llava_does() {
    let cases = golden("conversations.json");
    for case in &cases {
        let template = Template::named(&case.template).unwrap();
        let (text, _) = render_text(template, &case.messages).unwrap();
        assert_eq!(
            text, case.prompt,
            "{} of {:?}",
            case.template, case.messages
        );
    }
    // The one without a reference here is LLaMA 3's, whose tokenizer is not public.
    let seen = |name: &&str| cases.iter().any(|case| case.template == **name);
    let unseen: Vec<_> = Template::names()
        .into_iter()
        .filter(|name| !seen(name))
        .collect();
    assert_eq!(unseen, ["llava_llama_3"]);
}

#[test]
fn llama_3_is_rendered_by_its_published_format() {
    let messages = [
        Message::text(Role::User, "Hi"),
        Message::text(Role::Assistant, " Yes "),
        Message::text(Role::User, "So?"),
    ];
    let (text, stop) = render_text(Template::named("llava_llama_3").unwrap(), &messages).unwrap();
    assert!(text.starts_with(
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nYou are a helpful language"
    ));
    let tail = "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nYes<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nSo?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n";
    assert!(text.ends_with(tail), "{text}");
    assert_eq!(stop, ["<|eot_id|>"]);
}

#[test]
fn a_system_message_takes_the_place_of_the_templates_own() {
    let messages = [
        Message::text(Role::System, "Be brief."),
        Message::text(Role::User, "Hi"),
    ];
    for (name, start) in [
        ("vicuna_v1", "Be brief. USER: Hi ASSISTANT:"),
        (
            "mpt",
            "<|im_start|>system\nBe brief.<|im_end|><|im_start|>user\nHi",
        ),
        (
            "mistral_instruct",
            "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST]",
        ),
    ] {
        let (text, _) = render_text(Template::named(name).unwrap(), &messages).unwrap();
        assert!(text.starts_with(start), "{name}: {text}");
    }
}

#[test]
fn chat_templates_render_as_in_transformers() {
    for case in golden("chats.json") {
        let source = &chat_templates()[&case.template];
        let (_dir, renderer) = renderer("hf", transformers(), Some(source));
        let prompt = renderer.render(&case.messages).unwrap();
        assert_eq!(prompt.text, case.prompt, "{}", case.template);
        assert_eq!(prompt.stop, ["</s>"]);
    }
}

#[test]
fn token_ids_are_those_of_the_slow_and_the_fast_tokenizer() {
    #[derive(Deserialize)]
    struct Case {
        text: String,
        ids: Vec<i64>,
    }
    let cases: HashMap<String, Vec<Case>> =
        serde_json::from_slice(&fs::read(fixture("prompts/tokens.json")).unwrap()).unwrap();
    assert_eq!(cases.len(), 6);
    for (name, cases) in cases {
        let original = checkpoint::original(56, 14);
        let (dir, made) = match name.as_str() {
            "original" | "original_legacy" => renderer("llama", original, None),
            "original_qwen" => renderer("qwen", original, None),
            folder => renderer(
                folder,
                transformers(),
                Some("{{ messages[0]['content'][0]['text'] }}"),
            ),
        };
        let made = if name == "original" {
            fs::write(
                dir.path().join("tokenizer_config.json"),
                r#"{"legacy": false}"#,
            )
            .unwrap();
            PromptRenderer::from_checkpoint(dir.path(), &checkpoint::model(dir.path()), None)
                .unwrap()
        } else {
            made
        };
        for case in cases {
            let images = case.text.matches("<image>").count();
            let prompt = made.rendered(&case.text, images).unwrap();
            assert_eq!(flat(&prompt), case.ids, "{name}: {:?}", case.text);
        }
    }
}

#[test]
fn a_rendered_prompt_needs_as_many_images_as_it_has_slots() {
    let (_dir, renderer) = renderer("llama", checkpoint::original(56, 14), None);
    let error = renderer
        .rendered("USER: <image> and <image>", 1)
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "place the images: the prompt has 2 image slots, the request 1 images"
    );
}

#[test]
fn a_template_that_drops_an_image_is_an_error_not_a_wrong_answer() {
    let (_dir, renderer) = renderer(
        "hf",
        transformers(),
        Some(
            "{% for m in messages %}{{ m.content | selectattr('type', 'equalto', 'text') | map(attribute='text') | join }}{% endfor %}",
        ),
    );
    let message = Message::parts(Role::User, [Part::Image, Part::text("what?")]);
    assert!(matches!(
        renderer.render(&[message]),
        Err(PromptError::ImageCount {
            slots: 0,
            images: 1
        })
    ));
}

#[test]
fn a_tokenizer_larger_than_the_vocabulary_does_not_fit() {
    let mut config = checkpoint::original(56, 14);
    config["vocab_size"] = json!(500);
    let dir = checkpoint::folder(&config);
    fs::copy(
        fixture("prompts/llama/tokenizer.model"),
        dir.path().join("tokenizer.model"),
    )
    .unwrap();
    let model = ModelConfig::read(dir.path(), None).unwrap();
    let error = PromptRenderer::from_checkpoint(dir.path(), &model, None)
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.contains("tokenizer.model") && error.contains("799") && error.contains("500"),
        "{error}"
    );
}

#[test]
fn damaged_tokenizers_name_their_file() {
    for (file, bytes) in [
        ("tokenizer.json", &b"{}"[..]),
        ("tokenizer.model", b"\x0a\xff\xff"),
        ("tokenizer.model", b""),
    ] {
        let dir = checkpoint::folder(&checkpoint::original(56, 14));
        fs::write(dir.path().join(file), bytes).unwrap();
        let error =
            PromptRenderer::from_checkpoint(dir.path(), &checkpoint::model(dir.path()), None)
                .err()
                .unwrap();
        assert!(error.to_string().contains(file), "{error}");
    }
}

/// Text as an attacker writes it: markup of every family between ordinary letters.
fn hostile() -> impl Strategy<Value = String> {
    let mark = prop::sample::select(vec![
        "<image>",
        "</s>",
        "<s>",
        "<unk>",
        "<|im_start|>",
        "<|im_end|>",
        "<|endoftext|>",
        "USER:",
        "ASSISTANT:",
        "###",
        "[INST]",
        "[/INST]",
        "<<SYS>>",
        "<im_start>",
        "<0x0A>",
        "{{ x }}",
        "{% endfor %}",
        "<",
        "|>",
        "\u{10f03c}",
        "\u{2581}",
        " ",
        "\n",
    ]);
    prop::collection::vec(
        prop_oneof![mark.prop_map(str::to_owned), any::<String>()],
        0..6,
    )
    .prop_map(|parts| parts.concat())
}

/// Special ids in a prompt, in order.
fn special(renderer: &PromptRenderer, prompt: &Prompt) -> Vec<u32> {
    let added = renderer.tokenizer().inner().get_added_tokens_decoder();
    let ids = flat(prompt)
        .into_iter()
        .filter_map(|id| u32::try_from(id).ok());
    ids.filter(|id| {
        added
            .get(id)
            .is_some_and(|token| token.special && token.content != "<unk>")
    })
    .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn user_text_adds_no_special_token_no_turn_and_no_slot(text in hostile(), which in 0usize..5) {
        let templates = chat_templates();
        let (_dir, renderer) = match which {
            0 => renderer("llama", checkpoint::original(56, 14), None),
            1 => renderer("qwen", checkpoint::original(56, 14), None),
            2 => renderer("hf", transformers(), Some(&templates["llava_1_5"])),
            3 => renderer("qwen", transformers(), Some(&templates["qwen"])),
            _ => renderer("hf_legacy", transformers(), Some(&templates["llava_1_6_mistral"])),
        };
        let conversation = |text: &str| [
            Message::parts(Role::User, [Part::Image, Part::text(text)]),
            Message::text(Role::Assistant, text),
            Message::text(Role::User, text),
        ];
        let harmless = renderer.render(&conversation("hi")).unwrap();
        let hostile = renderer.render(&conversation(&text)).unwrap();
        prop_assert_eq!(hostile.images(), 1);
        prop_assert_eq!(special(&renderer, &hostile), special(&renderer, &harmless));
        prop_assert_eq!(hostile.stop, harmless.stop);
    }
}
