//! Pickled checkpoints become safetensors, and nothing in them runs.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use llava_worker::convert::{ConvertError, Skipped, pickles_to_safetensors};

fn fixture(name: &str) -> PathBuf {
    crate::fixture("pickles").join(name)
}

fn convert(from: &Path, out: &Path) -> Vec<String> {
    let skipped = pickles_to_safetensors(from, out, &|_| ()).unwrap();
    skipped
        .into_iter()
        .map(|Skipped { what, .. }| what)
        .collect()
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

fn assert_expected(made: &HashMap<String, Tensor>) {
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
}

#[test]
fn every_tensor_keeps_its_type_shape_and_values() {
    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("converted");
    assert_eq!(convert(&fixture("checkpoint"), &out), [""; 0]);
    let mut made = load(out.join("model-00001-of-00002.safetensors"));
    made.extend(load(out.join("model-00002-of-00002.safetensors")));
    assert_expected(&made);
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
fn files_of_before_pytorch_1_6_are_read_too() {
    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("converted");
    assert_eq!(convert(&fixture("legacy"), &out), [""; 0]);
    assert_expected(&load(out.join("model.safetensors")));
}

#[test]
fn what_is_no_tensor_is_left_out_and_told() {
    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("converted");
    let skipped = convert(&fixture("trainer"), &out);
    assert_eq!(
        skipped,
        ["complex (an element type that safetensors lacks)"]
    );
    let file = fs::read(out.join("model.safetensors")).unwrap();
    let made = safetensors::SafeTensors::deserialize(&file).unwrap();
    let mut names: Vec<_> = made.names();
    names.sort_unstable();
    assert_eq!(names, ["gaps", "mask", "parameter"]);
    assert_eq!(made.tensor("mask").unwrap().data(), [1, 0]);
    let floats = |name: &str| -> Vec<f32> {
        let (all, _) = made.tensor(name).unwrap().data().as_chunks::<4>();
        all.iter().map(|four| f32::from_le_bytes(*four)).collect()
    };
    let whole = floats("parameter");
    let gaps = [(1, 0), (1, 3), (3, 0), (3, 3), (5, 0), (5, 3)];
    assert_eq!(made.tensor("gaps").unwrap().shape(), [3, 2]);
    assert_eq!(
        floats("gaps"),
        gaps.map(|(row, column)| whole[row * 5 + column])
    );
}

#[test]
fn a_call_in_a_pickle_is_not_made_and_the_tensors_beside_it_survive() {
    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("converted");
    let skipped = convert(&fixture("hostile"), &out);
    assert_eq!(skipped, ["hook (a call of posix.system)"]);
    let made = load(out.join("model.safetensors"));
    assert_eq!(made.keys().collect::<Vec<_>>(), ["weight"]);
    // The call would have made this file where the program runs.
    assert!(!PathBuf::from("pwned").exists());
}

#[test]
fn the_list_of_safe_shards_stays_where_only_a_file_beside_them_is_pickled() {
    let place = tempfile::tempdir().unwrap();
    let from = place.path().join("checkpoint");
    fs::create_dir(&from).unwrap();
    let shard = "model-00001-of-00001.safetensors";
    let index = "model.safetensors.index.json";
    fs::copy(fixture("expected.safetensors"), from.join(shard)).unwrap();
    fs::write(from.join(index), "{}").unwrap();
    fs::write(from.join("pytorch_model.bin.index.json"), "{}").unwrap();
    let pickle = fixture("legacy/pytorch_model.bin");
    fs::copy(&pickle, from.join("mm_projector.bin")).unwrap();
    let out = place.path().join("converted");
    convert(&from, &out);
    for name in [shard, index, "mm_projector.safetensors"] {
        assert!(out.join(name).is_file(), "{name}");
    }
    assert!(!out.join("pytorch_model.bin.index.json").exists());
    // The model itself is pickled: the list would be of other files.
    fs::copy(&pickle, from.join("pytorch_model.bin")).unwrap();
    let out = place.path().join("again");
    convert(&from, &out);
    assert!(!out.join(index).exists());
}

#[test]
fn what_a_killed_conversion_left_is_removed_by_the_next_and_what_is_in_use_is_not() {
    let place = tempfile::tempdir().unwrap();
    let folder = |name: &str| {
        let path = place.path().join(name);
        fs::create_dir(&path).unwrap();
        fs::write(path.join("model.safetensors"), "half").unwrap();
        path
    };
    let left = folder(".converting-out-aB3dE9");
    let in_use = folder(".converting-out-f0Qz71");
    let held = fs::File::open(&in_use).unwrap();
    held.lock().unwrap();
    let others = [
        folder(".converting-other-aB3dE9"),
        folder(".converting-out-of-hand-aB3dE9"),
        folder("out-aB3dE9"),
    ];
    convert(&fixture("legacy"), &place.path().join("out"));
    assert!(!left.exists());
    assert!(in_use.join("model.safetensors").is_file());
    for other in others {
        assert!(other.join("model.safetensors").is_file(), "{other:?}");
    }
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
    for file in [
        "checkpoint/pytorch_model-00001-of-00002.bin",
        "legacy/pytorch_model.bin",
    ] {
        let whole = fs::read(fixture(file)).unwrap();
        for keep in [0, 10, whole.len() / 2, whole.len() - 1] {
            fs::write(from.join("pytorch_model.bin"), &whole[..keep]).unwrap();
            let error =
                pickles_to_safetensors(&from, &place.path().join("out"), &|_| ()).unwrap_err();
            assert!(error.to_string().contains("pytorch_model.bin"), "{error}");
        }
    }
    assert!(!place.path().join("out").exists());
}
