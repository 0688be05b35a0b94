//! The files that a checkpoint's tokenizer is spread over.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tokenizers::Tokenizer;
use tokenizers::tokenizer::AddedToken;

use super::TokenizerError;
use super::sentencepiece::{DummyPrefix, SentencePiece};
use crate::json_file::{JsonFileError, read_bytes, read_json_if_there};

/// Special tokens and habits, from `tokenizer_config.json` and its older companions.
#[derive(Debug, Clone, Default)]
pub(crate) struct SpecialTokens {
    pub(crate) bos: Option<String>,
    pub(crate) eos: Option<String>,
    pub(crate) unk: Option<String>,
    pub(crate) pad: Option<String>,
    /// Tokens beyond the model's own vocabulary, and flags for those within it.
    pub(super) added: Vec<(u32, AddedToken)>,
    /// Whether texts start with BOS; `None` where the file does not say.
    pub(super) adds_bos: Option<bool>,
    /// LLaMA's tokenizer puts its dummy space after special tokens too.
    pub(super) legacy: bool,
    /// The chat template that is kept with the tokenizer.
    pub(crate) chat_template: Option<Value>,
}

impl SpecialTokens {
    pub(super) fn read(dir: &Path) -> Result<Self, JsonFileError> {
        let mut config: Value =
            read_json_if_there(&dir.join("tokenizer_config.json"))?.unwrap_or_default();
        let map: Value =
            read_json_if_there(&dir.join("special_tokens_map.json"))?.unwrap_or_default();
        let more: Value = read_json_if_there(&dir.join("added_tokens.json"))?.unwrap_or_default();
        let named = |name: &str| text_of(&config[name]).or_else(|| text_of(&map[name]));
        let mut special = Self {
            bos: named("bos_token"),
            eos: named("eos_token"),
            unk: named("unk_token"),
            pad: named("pad_token"),
            adds_bos: config["add_bos_token"].as_bool(),
            legacy: config["legacy"].as_bool().unwrap_or(true),
            ..Self::default()
        };
        for (id, token) in config["added_tokens_decoder"]
            .as_object()
            .into_iter()
            .flatten()
        {
            let (Ok(id), Some(content)) = (id.parse(), text_of(token)) else {
                continue;
            };
            let flag = |name: &str| token[name].as_bool().unwrap_or(false);
            let token = AddedToken::from(content, flag("special"))
                .lstrip(flag("lstrip"))
                .rstrip(flag("rstrip"))
                .single_word(flag("single_word"))
                .normalized(flag("normalized"));
            special.added.push((id, token));
        }
        for (content, id) in more.as_object().into_iter().flatten() {
            let Some(id) = id.as_u64().and_then(|id| u32::try_from(id).ok()) else {
                continue;
            };
            if special.added.iter().all(|(known, _)| *known != id) {
                special
                    .added
                    .push((id, AddedToken::from(content.clone(), true)));
            }
        }
        special.added.sort_by_key(|(id, _)| *id);
        special.chat_template = config.get_mut("chat_template").map(Value::take);
        Ok(special)
    }
}

/// A token is written as text, or as an object with its content and flags.
fn text_of(value: &Value) -> Option<String> {
    value
        .as_str()
        .or_else(|| value["content"].as_str())
        .map(str::to_owned)
}

/// A tokenizer from whichever file there is.
pub(super) struct Loaded {
    pub(super) path: PathBuf,
    pub(super) tokenizer: Tokenizer,
    pub(super) dummy_prefix: DummyPrefix,
}

pub(super) fn load(dir: &Path, special: &SpecialTokens) -> Result<Loaded, TokenizerError> {
    let path = dir.join("tokenizer.json");
    if let Some(bytes) = read_bytes(&path)? {
        return match Tokenizer::from_bytes(bytes) {
            Ok(tokenizer) => Ok(Loaded {
                path,
                tokenizer,
                dummy_prefix: DummyPrefix::Never,
            }),
            Err(source) => Err(TokenizerError::Load { path, source }),
        };
    }
    let path = dir.join("tokenizer.model");
    let bytes = read_bytes(&path)?.ok_or_else(|| TokenizerError::Missing {
        dir: dir.to_owned(),
    })?;
    let converted = SentencePiece::parse(&bytes)
        .and_then(|model| Ok((model.tokenizer(special)?, model.prefix(special))));
    match converted {
        Ok((tokenizer, dummy_prefix)) => Ok(Loaded {
            path,
            tokenizer,
            dummy_prefix,
        }),
        Err(source) => Err(TokenizerError::SentencePiece { path, source }),
    }
}
