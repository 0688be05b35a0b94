//! A LoRA adapter as peft saves it: pairs of thin matrices whose product is
//! added to a weight while it is read.

use super::error::WeightsError;
use super::header::parse as parse_header;
use super::map::Mapped;
use super::names::Naming;
use crate::config::{Fields, read_object};
use rayon::prelude::*;
use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The matrices of an adapter by the weight that they change.
#[derive(Debug)]
pub struct Adapter {
    path: PathBuf,
    scale: f32,
    pairs: HashMap<String, Pair>,
}

#[derive(Debug, Default)]
struct Pair {
    /// `[rank, inputs]`.
    down: Option<Matrix>,
    /// `[outputs, rank]`.
    up: Option<Matrix>,
}

#[derive(Debug)]
struct Matrix {
    rows: usize,
    columns: usize,
    values: Vec<f32>,
}

impl Adapter {
    /// Reads `adapter_config.json` and `adapter_model.safetensors` in `dir`.
    pub fn open(dir: &Path) -> Result<Self, WeightsError> {
        let path = dir.join("adapter_model.safetensors");
        let wrong = |problem: String| WeightsError::Adapter {
            path: path.clone(),
            problem,
        };
        let (rank, scale) = rank_and_scale(&dir.join("adapter_config.json"))?;
        if !path.is_file() && dir.join("adapter_model.bin").is_file() {
            return Err(WeightsError::Pickle {
                file: dir.join("adapter_model.bin"),
                dir: dir.to_owned(),
            });
        }
        let bytes = Mapped::open(&path).map_err(|source| WeightsError::Read {
            path: path.clone(),
            source,
        })?;
        let entries = parse_header(&bytes).map_err(|source| WeightsError::Header {
            path: path.clone(),
            source,
        })?;
        let names: Vec<_> = entries.keys().map(|name| module(name)).collect();
        let naming = Naming::detect(&names.iter().copied());
        let mut pairs: HashMap<String, Pair> = HashMap::new();
        for (name, entry) in &entries {
            let stem = module(name);
            let (stem, down) = match (
                stem.strip_suffix(".lora_A.weight"),
                stem.strip_suffix(".lora_B.weight"),
            ) {
                (Some(stem), _) => (stem, true),
                (_, Some(stem)) => (stem, false),
                _ => {
                    return Err(wrong(format!(
                        "tensor `{name}` is neither lora_A nor lora_B of a product"
                    )));
                }
            };
            let ours = naming.ours(&format!("{stem}.weight")).ok_or_else(|| {
                wrong(format!(
                    "tensor `{name}` belongs to no weight of this model"
                ))
            })?;
            let [rows, columns] = entry.shape[..] else {
                return Err(wrong(format!(
                    "tensor `{name}` has shape {:?}, not two sizes",
                    entry.shape
                )));
            };
            let inner = if down { rows } else { columns };
            if inner != rank {
                return Err(wrong(format!(
                    "tensor `{name}` has shape {:?}, of rank {inner}, but `r` of adapter_config.json is {rank}",
                    entry.shape
                )));
            }
            let values =
                super::floats(&bytes[entry.bytes.clone()], entry.kind).ok_or_else(|| {
                    WeightsError::Kind {
                        path: path.clone(),
                        name: name.clone(),
                        kind: entry.kind,
                    }
                })?;
            let pair = pairs.entry(ours).or_default();
            let matrix = Some(Matrix {
                rows,
                columns,
                values,
            });
            if down {
                pair.down = matrix;
            } else {
                pair.up = matrix;
            }
        }
        Ok(Self { path, scale, pairs })
    }

    /// Whether the weight that we call `ours` gets a part of the adapter.
    pub(super) fn changes(&self, ours: &str) -> bool {
        self.pairs.contains_key(ours)
    }

    /// Checks that the model has every weight that the adapter changes.
    pub(super) fn check_fits(&self, has: impl Fn(&str) -> bool) -> Result<(), WeightsError> {
        match self.pairs.keys().filter(|ours| !has(ours)).min() {
            Some(ours) => Err(self.wrong(format!(
                "changes weight `{ours}`, which the model does not have: is the base another model?"
            ))),
            None => Ok(()),
        }
    }

    /// Adds `scale * up * down` to the rows `rows` of the `[outputs, inputs]` weight `ours`.
    pub(super) fn add_to(
        &self,
        ours: &str,
        shape: &[usize],
        rows: Range<usize>,
        values: &mut [f32],
    ) -> Result<(), WeightsError> {
        let Some(pair) = self.pairs.get(ours) else {
            return Ok(());
        };
        let (Some(up), Some(down)) = (&pair.up, &pair.down) else {
            return Err(self.wrong(format!("weight `{ours}` has only one of lora_A and lora_B")));
        };
        let fits = shape.len() == 2
            && up.rows == shape[0]
            && down.columns == shape[1]
            && up.columns == down.rows;
        if !fits {
            return Err(self.wrong(format!(
                "the adapter of `{ours}` is {}x{} by {}x{}, but the weight is {shape:?}",
                up.rows, up.columns, down.rows, down.columns
            )));
        }
        values
            .par_chunks_mut(down.columns)
            .zip(up.values[rows.start * up.columns..rows.end * up.columns].par_chunks(up.columns))
            .for_each(|(row, factors)| {
                for (factor, line) in factors.iter().zip(down.values.chunks(down.columns)) {
                    let factor = factor * self.scale;
                    for (value, x) in row.iter_mut().zip(line) {
                        *value += factor * x;
                    }
                }
            });
        Ok(())
    }

    fn wrong(&self, problem: String) -> WeightsError {
        WeightsError::Adapter {
            path: self.path.clone(),
            problem,
        }
    }
}

/// The module's name without peft's wrappers.
fn module(name: &str) -> &str {
    name.strip_prefix("base_model.model.").unwrap_or(name)
}

/// What `adapter_config.json` says of all pairs: their inner size, 1 or more, and what their products are multiplied by.
fn rank_and_scale(path: &Path) -> Result<(usize, f32), WeightsError> {
    let wrong = |problem: String| WeightsError::Adapter {
        path: path.to_owned(),
        problem,
    };
    let config = |error: crate::config::ConfigError| wrong(error.to_string());
    let object = read_object(path).map_err(config)?;
    let fields = Fields::new(path, &object);
    for key in ["rank_pattern", "alpha_pattern"] {
        let patterns = fields.object(key).map_err(config)?;
        if patterns.is_some_and(|patterns| !patterns.is_empty()) {
            return Err(wrong(format!("`{key}` is set, which is not supported")));
        }
    }
    if fields.flag("use_dora", false).map_err(config)? {
        return Err(wrong(
            "`use_dora` is true, which is not supported".to_owned(),
        ));
    }
    let rank = fields.count("r", 8).map_err(config)?;
    let alpha = fields.positive("lora_alpha", 8.0).map_err(config)?;
    let root = fields.flag("use_rslora", false).map_err(config)?;
    let divisor = if root {
        (rank as f64).sqrt()
    } else {
        rank as f64
    };
    Ok((rank, (alpha / divisor) as f32))
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::tensor::{Dtype, TensorView};

    /// An adapter of one product of 3 inputs and 2 outputs with this inner size.
    fn open(rank: usize) -> Result<Adapter, WeightsError> {
        let dir = tempfile::tempdir().unwrap();
        let config = r#"{"r": 4, "lora_alpha": 8}"#;
        std::fs::write(dir.path().join("adapter_config.json"), config).unwrap();
        let zeros = vec![0; 4 * 3 * rank];
        let view = |shape: [usize; 2]| {
            let bytes = &zeros[..4 * shape[0] * shape[1]];
            TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap()
        };
        let product = "base_model.model.model.layers.0.self_attn.q_proj";
        let tensors = [
            (format!("{product}.lora_A.weight"), view([rank, 3])),
            (format!("{product}.lora_B.weight"), view([2, rank])),
        ];
        let path = dir.path().join("adapter_model.safetensors");
        safetensors::serialize_to_file(tensors, None, &path).unwrap();
        Adapter::open(dir.path())
    }

    #[test]
    fn matrices_of_another_rank_than_their_configuration_says_are_refused() {
        assert_eq!(open(4).unwrap().pairs.len(), 1);
        for rank in [0, 2, 5] {
            let error = open(rank).unwrap_err().to_string();
            for words in ["lora_", &format!("of rank {rank},"), "`r`", "is 4"] {
                assert!(error.contains(words), "{error}");
            }
        }
    }
}
