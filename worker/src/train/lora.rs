//! Low-rank adapters: which products have one, how they are drawn and dropped,
//! and how they fold into the weights.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use candle_core::{Result, Tensor};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use super::names::Shapes;

/// The adapters of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lora {
    /// Inner width.
    pub r: usize,
    /// The adapter's output is multiplied by `alpha / r`.
    pub alpha: f64,
    /// Share of an adapter's inputs that a training step drops, 0 to 1.
    #[serde(default)]
    pub dropout: f64,
    /// Last names of the language model's products that get one.
    #[serde(default = "all_products")]
    pub targets: Vec<String>,
}

fn all_products() -> Vec<String> {
    [
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    ]
    .map(str::to_owned)
    .into()
}

impl Lora {
    /// What an adapter's output is multiplied by.
    pub fn scale(&self) -> f64 {
        self.alpha / self.r as f64
    }

    /// The adapters' own weights for a model with these.
    pub fn shapes(&self, model: &Shapes) -> Shapes {
        let mut shapes = Shapes::new();
        for (name, shape) in model {
            let Some(product) = name.strip_suffix(".weight") else {
                continue;
            };
            let leaf = product.rsplit('.').next().unwrap_or_default();
            let chosen = self.targets.iter().any(|target| target == leaf);
            if chosen && name.starts_with("language_model.model.layers.") {
                shapes.insert(format!("{product}.lora_A.weight"), vec![self.r, shape[1]]);
                shapes.insert(format!("{product}.lora_B.weight"), vec![shape[0], self.r]);
            }
        }
        shapes
    }

    /// `x` with a share of its values dropped and the rest scaled up, the same ones for the
    /// same product and seed.
    pub(super) fn drop(&self, x: &Tensor, product: &str, seed: u64) -> Result<Tensor> {
        let mut hasher = DefaultHasher::new();
        (product, seed).hash(&mut hasher);
        let mut rng = StdRng::seed_from_u64(hasher.finish());
        let keep = (1.0 / (1.0 - self.dropout)) as f32;
        let mask = (0..x.elem_count()).map(|_| {
            if rng.random_bool(self.dropout) {
                0.0
            } else {
                keep
            }
        });
        x * Tensor::from_iter(mask, x.device())?
            .reshape(x.dims())?
            .to_dtype(x.dtype())?
    }

    /// `weights` with every adapter folded in and gone.
    ///
    /// # Errors
    /// When the device fails.
    pub fn merge(&self, mut weights: BTreeMap<String, Tensor>) -> Result<BTreeMap<String, Tensor>> {
        let adapted: Vec<String> = (weights.keys())
            .filter_map(|name| name.strip_suffix(".lora_A.weight").map(str::to_owned))
            .collect();
        for product in adapted {
            let a = weights.remove(&format!("{product}.lora_A.weight"));
            let b = weights.remove(&format!("{product}.lora_B.weight"));
            let (Some(a), Some(b), Some(w)) = (a, b, weights.get_mut(&format!("{product}.weight")))
            else {
                continue;
            };
            *w = (&*w + (b.matmul(&a)? * self.scale())?)?;
        }
        Ok(weights)
    }
}
