//! A checkpoint of the original layout from the fixtures, with a tokenizer of
//! one token a character.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;
use tempfile::TempDir;

const VOCABULARY: usize = 128;

/// Writes the checkpoint; it goes with the directory.
pub(crate) fn write() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let fixture =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/models/original-inside");
    copy(&fixture, dir.path());
    write_json(&dir.path().join("tokenizer.json"), &tokenizer());
    let names = json!({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": true});
    write_json(&dir.path().join("tokenizer_config.json"), &names);
    let processor = json!({
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32},
        "do_center_crop": true, "do_resize": true, "resample": 3,
        "image_mean": [0.481_454_66, 0.457_827_5, 0.408_210_73],
        "image_std": [0.268_629_54, 0.261_302_58, 0.275_777_11],
    });
    write_json(
        &dir.path().join("vision_tower/preprocessor_config.json"),
        &processor,
    );
    dir
}

fn tokenizer() -> serde_json::Value {
    let special = ["<unk>", "<s>", "</s>"];
    let mut vocabulary = serde_json::Map::new();
    let characters = (' '..='~').chain(['\n', 'é', '漢']).map(String::from);
    let filler = (0..VOCABULARY).map(|n| char::from_u32(0x3b1 + n as u32).unwrap().to_string());
    let all = special
        .iter()
        .map(|&text| text.to_owned())
        .chain(characters)
        .chain(filler);
    for (id, text) in all.take(VOCABULARY).enumerate() {
        vocabulary.insert(text, json!(id));
    }
    let added = special.iter().enumerate().map(|(id, text)| {
        json!({"id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    });
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": added.collect::<Vec<_>>(),
        "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": {"type": "Fuse"},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocabulary, "merges": []},
    })
}

fn write_json(path: &Path, value: &serde_json::Value) {
    fs::write(path, serde_json::to_vec(value).unwrap()).unwrap();
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}
