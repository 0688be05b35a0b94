//! Pickled checkpoints become safetensors, and nothing in them runs.

#![allow(clippy::unwrap_used, reason = "a helper that fails is a failed test")]

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;

use candle_core::{DType, Device, Tensor};
use llava_worker::convert::{ConvertError, pickles_to_safetensors};

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/fixtures/pickles")
        .join(name)
}

fn load(path: PathBuf) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor
        .to_dtype(DType::F64)
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1()
        .unwrap()
}

#[test]
fn every_tensor_keeps_its_type_shape_and_values() {
    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("converted");
    pickles_to_safetensors(&fixture("checkpoint"), &out, &|_| ()).unwrap();
    let mut made = load(out.join("model-00001-of-00002.safetensors"));
    made.extend(load(out.join("model-00002-of-00002.safetensors")));
    let wanted = load(fixture("expected.safetensors"));
    assert_eq!(made.len(), wanted.len());
    for (name, wanted) in wanted {
        let made = &made[&name];
        assert_eq!(
            (made.dtype(), made.dims()),
            (wanted.dtype(), wanted.dims()),
            "{name}"
        );
        assert_eq!(values(made), values(&wanted), "{name}");
    }
    let index: serde_json::Value =
        serde_json::from_slice(&fs::read(out.join("model.safetensors.index.json")).unwrap())
            .unwrap();
    assert_eq!(
        index["weight_map"]["whole"],
        "model-00002-of-00002.safetensors"
    );
    assert!(out.join("config.json").is_file());
    assert_eq!(
        fs::read_dir(place.path()).unwrap().count(),
        1,
        "nothing half done stays"
    );
}

#[test]
fn a_call_in_a_pickle_is_not_made_and_the_tensors_beside_it_survive() {
    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("converted");
    pickles_to_safetensors(&fixture("hostile"), &out, &|_| ()).unwrap();
    let made = load(out.join("model.safetensors"));
    assert_eq!(made.keys().collect::<Vec<_>>(), ["weight"]);
    // The call would have made this file where the program runs.
    assert!(!PathBuf::from("pwned").exists());
}

#[test]
fn an_existing_folder_is_never_written_over() {
    let place = tempfile::tempdir().unwrap();
    let error = pickles_to_safetensors(&fixture("checkpoint"), place.path(), &|_| ()).unwrap_err();
    assert!(matches!(error, ConvertError::Exists { .. }), "{error}");
}

#[test]
fn a_cut_pickle_is_an_error_that_names_the_file() {
    let place = tempfile::tempdir().unwrap();
    let from = place.path().join("checkpoint");
    fs::create_dir(&from).unwrap();
    let whole = fs::read(fixture("checkpoint/pytorch_model-00001-of-00002.bin")).unwrap();
    for keep in [0, 10, whole.len() / 2, whole.len() - 1] {
        fs::write(from.join("pytorch_model.bin"), &whole[..keep]).unwrap();
        let error = pickles_to_safetensors(&from, &place.path().join("out"), &|_| ()).unwrap_err();
        assert!(error.to_string().contains("pytorch_model.bin"), "{error}");
    }
}
