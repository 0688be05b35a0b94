//! Trains a small byte-pair tokenizer and writes it in the shape that LLaMA
//! checkpoints ship: `▁` for spaces, bytes as a fallback, `<s>` in front.

use std::collections::HashMap;
use std::path::Path;

use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::pre_tokenizers::punctuation::Punctuation;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::{AddedToken, TokenizerImpl};
use tokenizers::{DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper};

/// Why a tokenizer could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The texts could not be turned into a vocabulary.
    #[error("train a tokenizer of {size} entries: {reason}")]
    Train {
        /// Entries asked for.
        size: usize,
        /// What the trainer said.
        reason: String,
    },
    /// The file could not be written.
    #[error("write {path}")]
    Write {
        /// Where.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Entries before the learned ones: `<unk>`, `<s>`, `</s>` and 256 bytes.
const FIRST: usize = 3 + 256;

/// Learns entries from `texts`, fills up to `size` with unused ones, and writes
/// `tokenizer.json` and `tokenizer_config.json` under `dir`. Returns the number of entries;
/// `<image>` and `<pad>` come behind them.
///
/// # Errors
/// [`TokenizerError`] when the texts are empty or a file cannot be written.
pub fn train(texts: &[String], size: usize, dir: &Path) -> Result<usize, TokenizerError> {
    let failed = |reason: String| TokenizerError::Train { size, reason };
    let (learned, merges) = learn(texts, size).map_err(|e| failed(e.to_string()))?;
    let mut vocab: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).into();
    vocab.extend((0..=255u8).map(|byte| format!("<0x{byte:02X}>")));
    vocab.extend(learned);
    // Texts of few words fill no large vocabulary; the model's shape is that of the size asked for.
    let unused = size.saturating_sub(vocab.len());
    vocab.extend((0..unused).map(|i| format!("<unused_{i}>")));
    let file = tokenizer_json(&vocab, &merges);
    let config = serde_json::json!({
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>",
        "add_bos_token": true, "add_eos_token": false, "legacy": true,
        "padding_side": "right", "clean_up_tokenization_spaces": false,
        "model_max_length": 1024,
    });
    for (name, value) in [("tokenizer.json", file), ("tokenizer_config.json", config)] {
        let path = dir.join(name);
        std::fs::write(&path, format!("{value:#}\n")).map_err(|source| TokenizerError::Write {
            path: path.display().to_string(),
            source,
        })?;
    }
    Ok(vocab.len())
}

type Merges = Vec<(String, String)>;

/// The learned entries in id order, and the merges in rank order. Merges cross neither a
/// space nor punctuation, so the shipped tokenizer needs no splitting step to repeat them,
/// and a word is one entry whatever stands behind it.
fn learn(texts: &[String], size: usize) -> tokenizers::Result<(Vec<String>, Merges)> {
    let mut tokenizer: TokenizerImpl<
        BPE,
        NormalizerWrapper,
        PreTokenizerWrapper,
        PostProcessorWrapper,
        DecoderWrapper,
    > = TokenizerImpl::new(BPE::default());
    tokenizer.with_pre_tokenizer(Some(Sequence::new(vec![
        Metaspace::new('▁', PrependScheme::Always, true).into(),
        Punctuation::default().into(),
    ])));
    let mut trainer = BpeTrainerBuilder::new()
        .vocab_size(size.saturating_sub(FIRST))
        .min_frequency(2)
        .show_progress(false)
        .build();
    tokenizer.train(&mut trainer, texts.iter())?;
    let vocab = tokenizer.get_model().get_vocab();
    let mut entries: Vec<(String, u32)> = vocab.into_iter().collect();
    entries.sort_by_key(|(_, id)| *id);
    let model = serde_json::to_value(tokenizer.get_model())?;
    let merges = model["merges"].as_array().cloned().unwrap_or_default();
    let pair = |m: &serde_json::Value| {
        Some((
            m.get(0)?.as_str()?.to_owned(),
            m.get(1)?.as_str()?.to_owned(),
        ))
    };
    let merges: Merges = merges.iter().filter_map(pair).collect();
    Ok((
        entries.into_iter().map(|(token, _)| token).collect(),
        merges,
    ))
}

fn tokenizer_json(vocab: &[String], merges: &[(String, String)]) -> serde_json::Value {
    let ids: HashMap<&str, usize> = vocab
        .iter()
        .enumerate()
        .map(|(i, t)| (t.as_str(), i))
        .collect();
    let ids: serde_json::Map<String, serde_json::Value> = vocab
        .iter()
        .map(|t| (t.clone(), ids[t.as_str()].into()))
        .collect();
    // The slot of an image and padding stand behind the learned entries, as in
    // transformers' LLaVA checkpoints.
    let behind = [("<image>", vocab.len()), ("<pad>", vocab.len() + 1)];
    let first = [("<unk>", 0), ("<s>", 1), ("</s>", 2)];
    let special: Vec<_> = (first.iter().chain(&behind))
        .map(|(content, id)| {
            let token = AddedToken::from(*content, true);
            serde_json::json!({
                "id": id, "content": token.content, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true,
            })
        })
        .collect();
    serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": special,
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ]},
        "pre_tokenizer": null,
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [
                {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "<s>", "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>",
            "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": ids,
            "merges": merges.iter().map(|(a, b)| format!("{a} {b}")).collect::<Vec<_>>()},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_text_comes_back_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let texts = vec!["What color is the star? Red. A large red star.".to_owned(); 4];
        let size = train(&texts, 300, dir.path()).unwrap();
        assert_eq!(size, 300, "the size asked for, however few the words");
        let tokenizer =
            tokenizers::Tokenizer::from_file(dir.path().join("tokenizer.json")).unwrap();
        for text in ["the red star", "zebra Ünïcode 東京 \n two  spaces", ""] {
            let ids = tokenizer.encode(text, true).unwrap().get_ids().to_vec();
            assert_eq!(ids.first(), Some(&1), "<s> comes first");
            assert_eq!(tokenizer.decode(&ids, true).unwrap(), text);
        }
        let word = tokenizer.encode("star", false).unwrap().get_ids().to_vec();
        assert_eq!(word.len(), 1, "a frequent word is one entry");
        for text in ["star?", "star.", "star, star"] {
            let ids = tokenizer.encode(text, false).unwrap().get_ids().to_vec();
            assert_eq!(ids[0], word[0], "{text}: the same one before punctuation");
        }
    }
}
