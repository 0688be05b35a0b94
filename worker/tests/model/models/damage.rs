//! Damaged checkpoints are refused at once, by a message that names the file
//! and the field or tensor; nothing panics.

use crate::models::vocabulary::folder;
use llava_worker::model::{LoadOptions, Model};
use llava_worker::weights::parse_header;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::error::Error;
use std::fs;
use std::path::Path;
use tempfile::TempDir;

/// A copy of a checkpoint to be damaged.
struct Copy(TempDir);

impl Copy {
    fn of(checkpoint: &str) -> Self {
        let dir = TempDir::new().unwrap();
        for entry in fs::read_dir(folder(checkpoint)).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
            }
        }
        Self(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn config(self, change: impl FnOnce(&mut Value)) -> Self {
        let path = self.path().join("config.json");
        let mut config = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut config);
        fs::write(&path, serde_json::to_vec(&config).unwrap()).unwrap();
        self
    }

    /// Changes the header and the data of `model.safetensors`.
    fn weights(self, change: impl FnOnce(&mut Value, &mut Vec<u8>)) -> Self {
        let path = self.path().join("model.safetensors");
        let bytes = fs::read(&path).unwrap();
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let mut header = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
        let mut data = bytes[8 + length..].to_vec();
        change(&mut header, &mut data);
        let header = serde_json::to_vec(&header).unwrap();
        let mut out = (header.len() as u64).to_le_bytes().to_vec();
        out.extend(header);
        out.extend(data);
        fs::write(&path, out).unwrap();
        self
    }

    fn error(&self) -> String {
        let error = Model::load(self.path(), &LoadOptions::default(), &|_| ()).unwrap_err();
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(inner) = source {
            text = format!("{text}: {inner}");
            source = inner.source();
        }
        text
    }

    fn is_refused_for(&self, words: &[&str]) {
        let error = self.error();
        for word in words {
            assert!(error.contains(word), "`{word}` is not in: {error}");
        }
    }
}

const QUERY: &str = "model.language_model.layers.1.self_attn.q_proj.weight";

#[test]
fn a_file_that_is_cut_short_is_named_with_the_tensor_that_it_lacks() {
    let copy = Copy::of("next-mistral");
    let path = copy.path().join("model.safetensors");
    let whole = fs::read(&path).unwrap();
    for length in [whole.len() - 1, whole.len() / 2] {
        fs::write(&path, &whole[..length]).unwrap();
        copy.is_refused_for(&["model.safetensors", "tensor `", "cut short"]);
    }
    for length in [0, 7, 100] {
        fs::write(&path, &whole[..length]).unwrap();
        copy.is_refused_for(&["model.safetensors", "cut short"]);
    }
}

/// A change to the header of a checkpoint, and the words that its refusal must hold.
type Damage = (fn(&mut Value), &'static [&'static str]);

#[test]
fn a_tensor_with_wrong_bytes_is_named() {
    let cases: [Damage; 6] = [
        (
            |h| h[QUERY]["data_offsets"][1] = json!(1u64 << 60),
            &[QUERY, "past the end", "cut short"][..1],
        ),
        (
            |h| h[QUERY]["shape"] = json!([64, 64]),
            &[QUERY, "[64, 64]"],
        ),
        (|h| h[QUERY]["shape"] = json!([u64::MAX, 2]), &[QUERY]),
        (|h| h[QUERY]["dtype"] = json!("F32"), &[QUERY, "F32"]),
        (
            |h| h[QUERY]["dtype"] = json!("Q9"),
            &[QUERY, "element type"],
        ),
        (
            |h| {
                let other =
                    h["model.language_model.layers.0.self_attn.q_proj.weight"]["data_offsets"]
                        .clone();
                h[QUERY]["data_offsets"] = other;
            },
            &[QUERY, "overlap"],
        ),
    ];
    for (change, words) in cases {
        let copy = Copy::of("next-mistral").weights(|header, _| change(header));
        copy.is_refused_for(&["model.safetensors"]);
        copy.is_refused_for(words);
    }
}

#[test]
fn whole_numbers_and_numbers_that_are_none_are_no_weights() {
    let copy = Copy::of("next-mistral").weights(|header, _| header[QUERY]["dtype"] = json!("I16"));
    copy.is_refused_for(&["model.safetensors", QUERY, "I16"]);
    for (name, bits) in [
        (QUERY, 0x7e00u16),
        ("model.language_model.embed_tokens.weight", 0x7c00),
    ] {
        let copy = Copy::of("next-mistral").weights(|header, data| {
            let start = header[name]["data_offsets"][0].as_u64().unwrap() as usize;
            data[start + 20..start + 22].copy_from_slice(&bits.to_le_bytes());
        });
        copy.is_refused_for(&["model.safetensors", name, "element 10"]);
    }
}

#[test]
fn a_missing_tensor_or_shard_is_named() {
    let copy = Copy::of("next-mistral").weights(|header, _| {
        header.as_object_mut().unwrap().remove(QUERY);
    });
    copy.is_refused_for(&[QUERY, "missing"]);
    let copy = Copy::of("llava-classic");
    fs::remove_file(copy.path().join("model-00002-of-00003.safetensors")).unwrap();
    copy.is_refused_for(&["model-00002-of-00003.safetensors", "missing", "tensor `"]);
    let copy = Copy::of("llava-classic");
    fs::copy(
        copy.path().join("model-00001-of-00003.safetensors"),
        copy.path().join("model-00002-of-00003.safetensors"),
    )
    .unwrap();
    copy.is_refused_for(&["model-00002-of-00003.safetensors", "missing", "tensor `"]);
}

#[test]
fn an_index_never_leads_out_of_its_folder() {
    for file in ["../model.safetensors", "/etc/passwd", "model.bin"] {
        let copy = Copy::of("llava-classic");
        let path = copy.path().join("model.safetensors.index.json");
        fs::write(&path, json!({"weight_map": {"a": file}}).to_string()).unwrap();
        copy.is_refused_for(&["index.json", file]);
    }
}

#[test]
fn pickles_are_refused_with_the_command_that_converts_them() {
    let copy = Copy::of("next-mistral");
    fs::rename(
        copy.path().join("model.safetensors"),
        copy.path().join("pytorch_model.bin"),
    )
    .unwrap();
    copy.is_refused_for(&["pytorch_model.bin", "llava-worker convert"]);
}

#[test]
fn a_config_that_lies_is_refused_before_memory_is_sized_by_it() {
    let cases: [(&str, Value, &str); 14] = [
        ("/text_config/hidden_size", json!(1 << 23), "shape"),
        ("/text_config/hidden_size", json!(-4), "hidden_size"),
        ("/text_config/hidden_size", json!("big"), "hidden_size"),
        (
            "/text_config/num_attention_heads",
            json!(5),
            "num_attention_heads",
        ),
        (
            "/text_config/num_key_value_heads",
            json!(3),
            "num_key_value_heads",
        ),
        ("/text_config/num_hidden_layers", json!(1 << 24), "layers.2"),
        (
            "/text_config/num_hidden_layers",
            json!(0),
            "num_hidden_layers",
        ),
        ("/text_config/vocab_size", json!(1 << 24), "shape"),
        ("/text_config/rms_norm_eps", json!(0), "rms_norm_eps"),
        ("/text_config/model_type", json!("gpt2"), "gpt2"),
        ("/vision_config/image_size", json!(64), "pinpoints"),
        ("/vision_config/patch_size", json!(0), "patch_size"),
        ("/vision_feature_layer", json!(-9), "vision_feature_layer"),
        (
            "/image_grid_pinpoints",
            json!([[31, 77]]),
            "image_grid_pinpoints",
        ),
    ];
    for (pointer, value, word) in cases {
        let copy = Copy::of("next-mistral")
            .config(|config| *config.pointer_mut(pointer).unwrap() = value.clone());
        let error = copy.error();
        assert!(error.contains(word), "{pointer} = {value}: {error}");
        assert!(
            error.contains("config.json")
                || error.contains(".safetensors")
                || error.contains("tensor"),
            "{error}"
        );
    }
}

#[test]
fn a_folder_that_is_no_checkpoint_says_what_is_missing() {
    let dir = Copy(TempDir::new().unwrap());
    dir.is_refused_for(&["config.json"]);
    fs::write(dir.path().join("config.json"), "{ nonsense").unwrap();
    dir.is_refused_for(&["config.json", "JSON"]);
    fs::write(dir.path().join("config.json"), r#"{"model_type": "llama"}"#).unwrap();
    dir.is_refused_for(&["config.json", "llama"]);
}

#[test]
fn a_tower_that_is_only_named_is_asked_for() {
    let copy = Copy::of("original-outside").config(|config| {
        config["mm_vision_tower"] = json!("openai/clip-vit-large-patch14-336");
    });
    copy.is_refused_for(&["openai/clip-vit-large-patch14-336", "--vision-tower"]);
}

proptest! {
    #[test]
    fn no_header_makes_the_reader_panic(
        mut bytes in prop::collection::vec(any::<u8>(), 0..300),
        length in 0u64..400,
    ) {
        let _ = parse_header(&bytes);
        if bytes.len() >= 8 {
            bytes[..8].copy_from_slice(&length.to_le_bytes());
            let _ = parse_header(&bytes);
        }
    }

    #[test]
    fn every_tensor_of_an_accepted_header_lies_inside_the_file(
        tensors in prop::collection::vec((0u64..5, 0u64..5, 0u64..60, 0u64..60), 0..6),
        data in 0usize..60,
    ) {
        let mut header = serde_json::Map::new();
        for (index, (rows, columns, from, to)) in tensors.iter().enumerate() {
            let entry = json!({"dtype": "F16", "shape": [rows, columns], "data_offsets": [from, to]});
            header.insert(format!("t{index}"), entry);
        }
        let header = serde_json::to_vec(&header).unwrap();
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(&header);
        file.resize(file.len() + data, 0);
        if let Ok(entries) = parse_header(&file) {
            for entry in entries.values() {
                prop_assert!(entry.bytes.end <= file.len());
                prop_assert_eq!(entry.bytes.len(), entry.shape.iter().product::<usize>() * 2);
            }
        }
    }
}
