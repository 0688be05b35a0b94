//! LLaVA's deltas: what a model adds to its base.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use llava_worker::convert::{ConvertError, apply_delta, make_delta};
use tempfile::TempDir;

fn write(dir: &Path, tensors: &[(&str, &[f32], (usize, usize))]) {
    std::fs::create_dir_all(dir).unwrap();
    let tensors: HashMap<_, _> = tensors
        .iter()
        .map(|(name, values, shape)| {
            let tensor = Tensor::from_slice(values, *shape, &Device::Cpu).unwrap();
            ((*name).to_owned(), tensor.to_dtype(DType::F16).unwrap())
        })
        .collect();
    candle_core::safetensors::save(&tensors, dir.join("model.safetensors")).unwrap();
    std::fs::write(dir.join("config.json"), "{}").unwrap();
}

fn read(dir: &Path) -> HashMap<String, Vec<f32>> {
    let tensors = candle_core::safetensors::load(dir.join("model.safetensors"), &Device::Cpu);
    let floats = |tensor: Tensor| {
        assert_eq!(tensor.dtype(), DType::F16);
        let flat = tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap();
        flat.to_vec1().unwrap()
    };
    let named = tensors.unwrap().into_iter();
    named.map(|(name, tensor)| (name, floats(tensor))).collect()
}

const QUERY: &str = "model.layers.0.self_attn.q_proj.weight";
const WORDS: &str = "model.embed_tokens.weight";
const PROJECTOR: &str = "model.mm_projector.weight";

#[test]
fn a_delta_on_its_base_gives_the_model_that_it_was_made_from() {
    let place = TempDir::new().unwrap();
    let at = |name: &str| place.path().join(name);
    write(
        &at("base"),
        &[(QUERY, &[1.0, -2.0], (1, 2)), (WORDS, &[0.5, 0.25], (1, 2))],
    );
    // One word more than the base, and a projector that it has not.
    write(
        &at("model"),
        &[
            (QUERY, &[1.5, 4.0], (1, 2)),
            (WORDS, &[0.5, 8.0, 3.0, 4.0], (2, 2)),
            (PROJECTOR, &[7.0, 9.0], (1, 2)),
        ],
    );
    make_delta(&at("model"), &at("base"), &at("delta"), &|_| ()).unwrap();
    let delta = read(&at("delta"));
    assert_eq!(delta[QUERY], [0.5, 6.0]);
    assert_eq!(delta[WORDS], [0.0, 7.75, 3.0, 4.0]);
    assert_eq!(delta[PROJECTOR], [7.0, 9.0]);
    apply_delta(&at("delta"), &at("base"), &at("again"), &|_| ()).unwrap();
    assert_eq!(read(&at("again")), read(&at("model")));
    assert!(at("again").join("config.json").is_file());
}

#[test]
fn a_base_of_another_shape_is_refused_with_the_tensor() {
    let place = TempDir::new().unwrap();
    let at = |name: &str| place.path().join(name);
    write(&at("delta"), &[(QUERY, &[1.0, -2.0], (1, 2))]);
    write(&at("wide"), &[(QUERY, &[1.0, 2.0, 3.0], (1, 3))]);
    write(&at("other"), &[(WORDS, &[1.0], (1, 1))]);
    for base in ["wide", "other"] {
        let error = apply_delta(&at("delta"), &at(base), &at("out"), &|_| ()).unwrap_err();
        assert!(matches!(error, ConvertError::Apart { .. }), "{error}");
        assert!(error.to_string().contains(QUERY), "{error}");
        assert!(!at("out").exists());
    }
}
