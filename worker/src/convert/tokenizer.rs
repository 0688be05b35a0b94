//! The tokenizer on the way to transformers' layout, which needs a token for images
//! that LLaVA's own does without.

use std::path::Path;

use serde_json::{Value, json};

use super::configuration::IMAGE_WORD;
use super::folder::Folder;
use super::{ConvertError, files};
use crate::json_file::read_json;
use crate::tokenize::{TextTokenizer, TokenizerError};

/// Files that a tokenizer is spread over.
const FILES: [&str; 7] = [
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
];

/// The id of the image token: the tokenizer's, or the first that is free.
pub(super) struct ImageToken {
    pub(super) id: u32,
    /// Whether the tokenizer's files have to learn it.
    new: bool,
}

impl ImageToken {
    /// `known` is what the configuration says, `rows` the embedding's.
    pub(super) fn find(dir: &Path, known: Option<u32>, rows: usize) -> Result<Self, ConvertError> {
        let tokenizer = match TextTokenizer::from_checkpoint(dir) {
            Ok(tokenizer) => tokenizer,
            // Weights alone can be converted too.
            Err(TokenizerError::Missing { .. }) => {
                let id = known.unwrap_or(u32::try_from(rows).unwrap_or(u32::MAX));
                return Ok(Self { id, new: false });
            }
            Err(error) => return Err(error.into()),
        };
        let inner = tokenizer.inner();
        if let Some(id) = inner.token_to_id(IMAGE_WORD) {
            return Ok(Self { id, new: false });
        }
        let highest = inner.get_vocab(true).into_values().max();
        let id = known.unwrap_or(highest.map_or(0, |id| id + 1));
        Ok(Self { id, new: true })
    }

    /// Copies the tokenizer of `dir` with this token in it.
    pub(super) fn write(&self, dir: &Path, to: &Folder) -> Result<(), ConvertError> {
        copy(
            dir,
            to,
            &[
                "tokenizer.json",
                "tokenizer_config.json",
                "added_tokens.json",
            ],
        )?;
        let token = json!({
            "content": IMAGE_WORD, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        });
        let path = dir.join("tokenizer.json");
        let fast = path.is_file();
        if fast {
            let mut file: Value = read_json(&path)?;
            if let (true, Some(added)) = (self.new, file["added_tokens"].as_array_mut()) {
                let mut token = token.clone();
                token["id"] = json!(self.id);
                added.push(token);
            }
            to.json("tokenizer.json", &file)?;
        }
        let path = dir.join("tokenizer_config.json");
        if path.is_file() {
            let mut file: Value = read_json(&path)?;
            if self.new && file["added_tokens_decoder"].is_object() {
                file["added_tokens_decoder"][self.id.to_string()] = token;
            }
            to.json("tokenizer_config.json", &file)?;
        }
        let path = dir.join("added_tokens.json");
        let mut added: Value = match path.is_file() {
            true => read_json(&path)?,
            false => json!({}),
        };
        if self.new && (!fast || path.is_file()) && dir.join("tokenizer.model").is_file() {
            added[IMAGE_WORD] = json!(self.id);
        }
        if added.as_object().is_some_and(|added| !added.is_empty()) {
            to.json("added_tokens.json", &added)?;
        }
        Ok(())
    }
}

/// Copies a tokenizer's files but those in `except`, and those that `to` has already.
pub(super) fn copy(dir: &Path, to: &Folder, except: &[&str]) -> Result<(), ConvertError> {
    for (name, path) in files(dir)? {
        let name = name.as_str();
        if FILES.contains(&name) && !except.contains(&name) && !to.has(name) {
            to.copy(&path, name)?;
        }
    }
    Ok(())
}
