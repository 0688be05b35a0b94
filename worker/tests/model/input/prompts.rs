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

/// Messages and what the reference renders of them.
#[derive(Deserialize)]
pub(crate) struct Golden {
    pub(crate) template: String,
    pub(crate) messages: Vec<Message>,
    pub(crate) prompt: String,
}

pub(crate) fn golden(file: &str) -> Vec<Golden> {
    serde_json::from_slice(&fs::read(fixture("prompts").join(file)).unwrap()).unwrap()
}

/// A checkpoint with the tokenizer of a fixture folder, and a template: in transformers' layout a chat template, in
/// LLaVA's the name of a conversation template.
pub(crate) fn renderer(
    tokenizer: &str,
    mut config: Value,
    template: Option<&str>,
) -> (TempDir, PromptRenderer) {
    let nested = config.get("text_config").is_some();
    match config.get_mut("text_config") {
        Some(inner) => inner["vocab_size"] = json!(1000),
        None => config["vocab_size"] = json!(1000),
    }
    let dir = checkpoint::folder(&config);
    for entry in fs::read_dir(fixture("prompts").join(tokenizer)).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    let model = checkpoint::model(dir.path());
    let made = match template {
        Some(source) if nested => {
            fs::write(dir.path().join("chat_template.jinja"), source).unwrap();
            PromptRenderer::from_checkpoint(dir.path(), &model, None)
        }
        name => PromptRenderer::from_checkpoint(dir.path(), &model, name),
    };
    (dir, made.unwrap())
}

fn transformers() -> Value {
    checkpoint::transformers("llava", "clip_vision_model", 56, 14)
}

fn chat_templates() -> HashMap<String, String> {
    serde_json::from_slice(&fs::read(fixture("prompts/chat_templates.json")).unwrap()).unwrap()
}

/// A text and its ids in the reference.
#[derive(Deserialize)]
pub(crate) struct Tokenised {
    pub(crate) text: String,
    pub(crate) ids: Vec<i64>,
}

/// Texts by tokenizer.
pub(crate) fn tokenised() -> HashMap<String, Vec<Tokenised>> {
    serde_json::from_slice(&fs::read(fixture("prompts/tokens.json")).unwrap()).unwrap()
}

/// Ids with -200 for every image slot, as LLaVA writes them.
pub(crate) fn flat(prompt: &Prompt) -> Vec<i64> {
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
    let seen = |name: &&str| cases.iter().any(|case| case.template == **name);
    let mut names = Template::names().into_iter();
    assert_eq!(names.find(|name| !seen(name)), None, "without a reference");
}

#[test]
fn every_conversation_template_stops_where_llava_does() {
    #[derive(Deserialize)]
    struct Stop {
        template: String,
        style: String,
        /// The web page's stop text.
        page: Option<String>,
        /// The terminal's.
        terminal: String,
        ids: Vec<u32>,
    }
    let cases: Vec<Stop> =
        serde_json::from_slice(&fs::read(fixture("prompts/stops.json")).unwrap()).unwrap();
    for case in &cases {
        let expected = match (&case.page, case.style.as_str()) {
            (Some(page), _) => vec![page.clone()],
            (None, "PLAIN") => Vec::new(),
            // The page leaves newer styles to the tokens that end an answer: these are the same in words.
            (None, "CHATML" | "LLAMA_3" | "GEMMA") => vec![case.terminal.trim_end().to_owned()],
            (None, style) => panic!("{style} has no stop text"),
        };
        let template = Template::named(&case.template).unwrap();
        assert_eq!(template.stop, expected, "{}", case.template);
        // Token 128009 is LLaMA 3's `<|eot_id|>`.
        let by_id = case.template == "llava_llama_3";
        assert_eq!(case.ids, if by_id { vec![128_009] } else { Vec::new() });
    }
    let mut names = Template::names().into_iter();
    let unseen = names.find(|name| cases.iter().all(|case| case.template != *name));
    assert_eq!(unseen, None, "without a reference");
}

#[test]
fn a_stop_text_that_is_a_special_token_ends_the_answer_by_its_id() {
    // Special tokens have no text in an answer: the text alone would never be found.
    let (_dir, qwen) = renderer("qwen", checkpoint::original(56, 14), Some("qwen_1_5"));
    let end = qwen.tokenizer().inner().token_to_id("<|im_end|>").unwrap();
    assert_eq!(qwen.end_tokens(), [end]);
    let (_dir, words) = renderer("llama", checkpoint::original(56, 14), Some("llava_v0"));
    assert_eq!(words.end_tokens(), [0; 0], "### is found in the text");
}

#[test]
fn a_checkpoint_without_a_template_gets_that_of_its_language_model() {
    let chosen = |model_type: &str, vocab: usize| {
        let mut config = checkpoint::original(56, 14);
        config["model_type"] = json!(model_type);
        config["vocab_size"] = json!(vocab);
        let dir = checkpoint::folder(&config);
        let tokenizer = fixture("prompts/llama/tokenizer.model");
        fs::copy(tokenizer, dir.path().join("tokenizer.model")).unwrap();
        let model = checkpoint::model(dir.path());
        let renderer = PromptRenderer::from_checkpoint(dir.path(), &model, None).unwrap();
        renderer.template().unwrap().names[0]
    };
    // LLaMA's configuration is also that of Yi-34B (64,000 tokens) and LLaMA 3 (128,256), padded or not.
    for (model_type, vocab, template) in [
        ("llava_llama", 32_000, "llava_v1"),
        ("llava", 32_064, "llava_v1"),
        ("llava_llama", 64_000, "chatml_direct"),
        ("llava_llama", 64_064, "chatml_direct"),
        ("llava_llama", 128_256, "llava_llama_3"),
        ("llava_llama", 128_320, "llava_llama_3"),
        ("llava_mistral", 32_000, "mistral_instruct"),
        ("llava_qwen", 152_000, "qwen_1_5"),
    ] {
        assert_eq!(chosen(model_type, vocab), template, "{model_type} {vocab}");
    }
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
fn a_chat_template_is_looked_for_where_transformers_looks_in_its_order() {
    let (dir, _) = renderer("hf", transformers(), None);
    let rendered = || {
        let model = checkpoint::model(dir.path());
        let renderer = PromptRenderer::from_checkpoint(dir.path(), &model, None).unwrap();
        let message = Message::text(Role::User, "Hi");
        renderer.render(&[message]).unwrap().text
    };
    let vicuna = rendered();
    assert!(vicuna.ends_with("USER: Hi ASSISTANT:"), "{vicuna}");
    // From the last place to the first.
    let template = |name: &str| format!("{name}: {{{{ messages[0]['content'][0]['text'] }}}}");
    let named = json!([{ "name": "default", "template": template("tokenizer") }]);
    let inside = |value: Value| json!({ "chat_template": value }).to_string();
    for (file, written, expected) in [
        ("tokenizer_config.json", inside(named), "tokenizer: Hi"),
        ("chat_template.jinja", template("file"), "file: Hi"),
        (
            "chat_template.json",
            inside(json!(template("older"))),
            "older: Hi",
        ),
        (
            "processor_config.json",
            json!({ "image_token": "<image>" }).to_string(),
            "older: Hi",
        ),
        (
            "processor_config.json",
            inside(json!(template("first"))),
            "first: Hi",
        ),
    ] {
        fs::write(dir.path().join(file), written).unwrap();
        assert_eq!(rendered(), expected, "{file}");
    }
}

#[test]
fn token_ids_are_those_of_the_slow_and_the_fast_tokenizer() {
    let cases = tokenised();
    assert_eq!(cases.len(), 7);
    for (name, cases) in cases {
        // Its marks around images are `image_marks`' own promise.
        if name == "original_enclosed" {
            continue;
        }
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
