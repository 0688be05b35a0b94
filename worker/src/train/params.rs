//! A model's weights by name: read from a checkpoint of either layout, drawn for
//! a new model, split into trained and frozen ones.
//!
//! Inside training every name is transformers' (`language_model.model.…`,
//! `multi_modal_projector.linear_1.…`, `vision_tower.vision_model.…`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::safetensors::MmapedSafetensors;
use candle_core::{DType, Device, Tensor, Var};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::names::{self, Shapes};
use crate::config::ModelConfig;

/// Why weights could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ParamsError {
    /// No weights in the folder.
    #[error("read weights: {dir} holds no *.safetensors")]
    Empty {
        /// The checkpoint's folder.
        dir: PathBuf,
    },
    /// A tensor that the configuration calls for is absent.
    #[error("read weights of {dir}: tensor {name} is missing")]
    Missing {
        /// The checkpoint's folder.
        dir: PathBuf,
        /// Its name in transformers' layout.
        name: String,
    },
    /// A tensor's shape contradicts the configuration.
    #[error("read weights of {dir}: {name} has shape {found:?}, config.json says {wanted:?}")]
    Shape {
        /// The checkpoint's folder.
        dir: PathBuf,
        /// The tensor.
        name: String,
        /// As stored.
        found: Vec<usize>,
        /// As configured.
        wanted: Vec<usize>,
    },
    /// A file could not be read.
    #[error("read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: candle_core::Error,
    },
    /// The device failed.
    #[error("hold weights on the device")]
    Device(#[from] candle_core::Error),
}

/// All weights of a model, each a variable.
#[derive(Debug, Clone, Default)]
pub struct Params {
    vars: BTreeMap<String, Var>,
}

impl Params {
    /// Weights for a model that starts from nothing: products at 1/√inputs, those that
    /// write to the residual stream smaller by its depth, norms at one.
    ///
    /// # Errors
    /// When the device fails.
    pub fn drawn(config: &ModelConfig, seed: u64, device: &Device) -> Result<Self, ParamsError> {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut params = Self::default();
        for (name, shape) in names::shapes(config) {
            let values = draw(&name, &shape, config, &mut rng);
            params.set(&name, &Tensor::from_vec(values, shape, device)?)?;
        }
        Ok(params)
    }

    /// Weights from the safetensors files of `dir`, whichever layout they are in.
    ///
    /// # Errors
    /// Names the file or the tensor that is missing or contradicts `config`.
    pub fn read(dir: &Path, config: &ModelConfig, device: &Device) -> Result<Self, ParamsError> {
        let mut found = BTreeMap::new();
        for path in safetensors_in(dir)? {
            #[allow(unsafe_code)]
            // SAFETY: the map is dropped before this function returns, and a checkpoint is
            // not written to while it is read.
            let file = unsafe { MmapedSafetensors::new(&path) };
            let read = |source| ParamsError::Read {
                path: path.clone(),
                source,
            };
            let file = file.map_err(read)?;
            for (name, _) in file.tensors() {
                let tensor = file
                    .load(&name, device)
                    .and_then(|t| t.to_dtype(DType::F32));
                found.insert(names::canonical(&name), tensor.map_err(read)?);
            }
        }
        let mut params = Self::default();
        for (name, shape) in names::shapes(config) {
            let missing = || ParamsError::Missing {
                dir: dir.to_owned(),
                name: name.clone(),
            };
            let tensor = found.get(&name).ok_or_else(missing)?;
            if tensor.dims() != shape {
                let (found, dir) = (tensor.dims().to_vec(), dir.to_owned());
                return Err(ParamsError::Shape {
                    dir,
                    name,
                    found,
                    wanted: shape,
                });
            }
            params.set(&name, tensor)?;
        }
        Ok(params)
    }

    /// Adds `count` drawn output layers for per-patch labels of the given sizes.
    ///
    /// # Errors
    /// When the device fails.
    pub fn add(&mut self, shapes: &Shapes, seed: u64, device: &Device) -> Result<(), ParamsError> {
        let mut rng = StdRng::seed_from_u64(seed);
        for (name, shape) in shapes {
            let std = match name.starts_with("patch_head.") {
                true => HEAD,
                false => 1.0 / (shape[shape.len() - 1] as f32).sqrt(),
            };
            let zero = name.ends_with("lora_B.weight") || name.ends_with("bias");
            let count = shape.iter().product();
            let values = if zero {
                vec![0.0; count]
            } else {
                normal(count, std, &mut rng)
            };
            self.set(name, &Tensor::from_vec(values, shape.as_slice(), device)?)?;
        }
        Ok(())
    }

    /// Sets a weight, adding it where it is new.
    ///
    /// # Errors
    /// When the device fails or the shape differs from the weight's.
    pub fn set(&mut self, name: &str, value: &Tensor) -> candle_core::Result<()> {
        match self.vars.get(name) {
            Some(var) => var.set(value),
            None => {
                let var = Var::from_tensor(&value.copy()?)?;
                self.vars.insert(name.to_owned(), var);
                Ok(())
            }
        }
    }

    /// Drops every weight whose name does not pass.
    pub fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.vars.retain(|name, _| keep(name));
    }

    /// All weights in name order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Var)> {
        self.vars.iter().map(|(name, var)| (name.as_str(), var))
    }

    /// The weight of this name.
    pub fn get(&self, name: &str) -> Option<&Var> {
        self.vars.get(name)
    }

    /// Number of values in all weights.
    pub fn count(&self) -> usize {
        self.vars.values().map(|var| var.elem_count()).sum()
    }
}

/// Standard deviation of the output layers for per-patch labels. They are small and are not
/// trained, so that the tower itself has to say every label equally loud: the language model
/// then begins sooner to find shapes by their outlines.
const HEAD: f32 = 0.04;

fn safetensors_in(dir: &Path) -> Result<Vec<PathBuf>, ParamsError> {
    let empty = || ParamsError::Empty {
        dir: dir.to_owned(),
    };
    let entries = std::fs::read_dir(dir).map_err(|_| empty())?;
    let mut files: Vec<PathBuf> = (entries.flatten().map(|e| e.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "safetensors"))
        .collect();
    files.sort();
    if files.is_empty() {
        Err(empty())
    } else {
        Ok(files)
    }
}

fn draw(name: &str, shape: &[usize], config: &ModelConfig, rng: &mut StdRng) -> Vec<f32> {
    let count = shape.iter().product();
    if name.ends_with(".bias") {
        return vec![0.0; count];
    }
    if shape.len() == 1 && !name.ends_with("class_embedding") {
        return vec![1.0; count];
    }
    let inputs: usize = shape[1..].iter().product();
    let deep = |layers: usize| (2.0 * layers as f32).sqrt();
    let std = match name {
        // Where a patch lies must be plain from the first step: with the usual 0.02 the
        // model spends most of a short run on finding it out.
        n if n.ends_with("position_embedding.weight") => 0.5,
        n if n.ends_with("class_embedding") => 0.5,
        // As large as what the layers add: a word that drowns in their first, random output
        // is not found again for thousands of steps.
        n if n.ends_with("embed_tokens.weight") => 0.5,
        n if n.ends_with("o_proj.weight") || n.ends_with("down_proj.weight") => {
            1.0 / (inputs as f32).sqrt() / deep(config.text.layers)
        }
        n if n.ends_with("out_proj.weight") || n.ends_with("fc2.weight") => {
            1.0 / (inputs as f32).sqrt() / deep(config.vision.layers)
        }
        _ => 1.0 / (inputs as f32).sqrt(),
    };
    normal(count, std, rng)
}

/// Normal values by Box and Muller's transform.
fn normal(count: usize, std: f32, rng: &mut StdRng) -> Vec<f32> {
    let mut one = || {
        let (u, v): (f64, f64) = (rng.random_range(1e-12..1.0), rng.random());
        ((-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32 * std
    };
    (0..count).map(|_| one()).collect()
}
