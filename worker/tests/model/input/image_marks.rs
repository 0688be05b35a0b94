//! Checkpoints with `mm_use_im_start_end` see each image between two tokens, as LLaVA's worker puts it, whether their
//! tokenizer knows these tokens or LLaVA adds them when it loads it.

use std::fs;
use std::path::Path;

use llava_worker::prompt::{PromptError, PromptRenderer};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::fixture;
use crate::input::checkpoint;
use crate::input::prompts::{flat, golden, tokenised};

fn config(vocab: usize) -> Value {
    let mut config = checkpoint::original(56, 14);
    config["mm_use_im_start_end"] = json!(true);
    config["vocab_size"] = json!(vocab);
    config
}

/// A checkpoint with LLaMA's tokenizer and those of the files beside it that are named.
fn folder(config: &Value, beside: &[&str]) -> TempDir {
    let dir = checkpoint::folder(config);
    let copy = |from: &str, file: &str| {
        let from = fixture("prompts").join(from).join(file);
        fs::copy(from, dir.path().join(file)).unwrap();
    };
    copy("llama", "tokenizer.model");
    for file in beside {
        copy("llama_enclosed", file);
    }
    dir
}

fn renderer(dir: &Path) -> Result<PromptRenderer, PromptError> {
    PromptRenderer::from_checkpoint(dir, &checkpoint::model(dir), None)
}

#[test]
fn images_are_marked_and_tokenised_as_by_llavas_worker() {
    for beside in [
        &[
            "tokenizer_config.json",
            "special_tokens_map.json",
            "added_tokens.json",
        ][..],
        // Of before transformers kept added tokens elsewhere too.
        &["added_tokens.json"],
        // As LLaMA's tokenizer comes: LLaVA adds the tokens.
        &[],
    ] {
        let dir = folder(&config(803), beside);
        let renderer = renderer(dir.path()).unwrap();
        for case in &tokenised()["original_enclosed"] {
            let images = case.text.matches("<image>").count();
            let prompt = renderer.rendered(&case.text, images).unwrap();
            assert_eq!(flat(&prompt), case.ids, "{beside:?}: {:?}", case.text);
        }
    }
}

#[test]
fn messages_are_rendered_with_the_marks_around_each_image() {
    let dir = folder(&config(803), &["added_tokens.json"]);
    let renderer = renderer(dir.path()).unwrap();
    for case in golden("conversations.json") {
        if case.template == "llava_v1" {
            let prompt = renderer.render(&case.messages).unwrap();
            let marked = case.prompt.replace("<image>", "<im_start><image><im_end>");
            assert_eq!(prompt.text, marked);
        }
    }
}

#[test]
fn a_model_without_embeddings_for_the_marks_does_not_fit() {
    let dir = folder(&config(802), &[]);
    let error = renderer(dir.path()).err().unwrap().to_string();
    assert!(
        error.contains("\"<im_end>\" has id 802") && error.contains("ends before 802"),
        "{error}"
    );
    // Without the token for patches, which no prompt has, the marks come one earlier.
    let mut config = config(802);
    config["mm_use_im_patch_token"] = json!(false);
    assert!(renderer(folder(&config, &[]).path()).is_ok());
}
