//! AdamW with decoupled decay, the learning rate's course, and clipping.

use std::collections::BTreeMap;

use candle_core::{DType, Result, Tensor, Var};
use serde::{Deserialize, Serialize};

use super::names;
use super::ops::{AdamStep, adamw_update, floats, sum_of_squares};

/// The optimiser's settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Adam {
    /// Peak learning rate.
    pub rate: f64,
    /// Peak rate of the projector, where it differs.
    pub projector_rate: Option<f64>,
    /// Share of the steps over which the rate rises from zero.
    pub warm_up: f64,
    /// Share of the peak rate that remains at the last step; the course between is a cosine.
    pub floor: f64,
    /// Decay of matrices; norms and biases have none.
    pub weight_decay: f64,
    /// Decay of the gradient's mean.
    pub beta1: f64,
    /// Decay of the gradient's square.
    pub beta2: f64,
    /// Added to the root of the square.
    pub epsilon: f64,
    /// Largest norm of all gradients together; 0 never clips.
    pub clip: f64,
}

impl Default for Adam {
    fn default() -> Self {
        Self {
            rate: 2e-5,
            projector_rate: None,
            warm_up: 0.03,
            floor: 0.0,
            weight_decay: 0.0,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            clip: 1.0,
        }
    }
}

impl Adam {
    /// The share of the peak rate at `step` (from 0) of `steps`.
    pub fn course(&self, step: usize, steps: usize) -> f64 {
        let warm = (self.warm_up * steps as f64).ceil() as usize;
        if step < warm {
            return (step + 1) as f64 / warm as f64;
        }
        let done = (step - warm) as f64 / (steps - warm).max(1) as f64;
        self.floor + (1.0 - self.floor) * 0.5 * (1.0 + (std::f64::consts::PI * done).cos())
    }

    fn peak(&self, name: &str) -> f64 {
        self.projector_rate
            .filter(|_| names::in_projector(name))
            .unwrap_or(self.rate)
    }
}

/// The optimiser's memory of one weight.
#[derive(Debug, Clone)]
pub struct Moments {
    /// Running mean of the gradient.
    pub mean: Tensor,
    /// Running mean of its square.
    pub square: Tensor,
}

/// The optimiser's memory of all trained weights.
#[derive(Debug, Clone, Default)]
pub struct AdamState {
    /// By the weight's name.
    pub moments: BTreeMap<String, Moments>,
    /// Updates made.
    pub updates: u64,
}

/// The gradient of one weight.
pub type Gradients = BTreeMap<String, Tensor>;

/// The norm of all gradients together.
///
/// # Errors
/// When the device fails.
pub fn norm(gradients: &Gradients) -> Result<f64> {
    let mut total = 0f64;
    for gradient in gradients.values() {
        total += match gradient.device().is_cpu() && gradient.dtype() == DType::F32 {
            true => f64::from(sum_of_squares(&floats(gradient)?)),
            false => f64::from(
                gradient
                    .to_dtype(DType::F32)?
                    .sqr()?
                    .sum_all()?
                    .to_scalar::<f32>()?,
            ),
        };
    }
    Ok(total.sqrt())
}

impl AdamState {
    /// Updates `var` by its gradient times `scale`, at `course` of the peak rate. Call
    /// [`AdamState::next`] once before the updates of a step.
    ///
    /// # Errors
    /// When the device fails.
    pub fn update(
        &mut self,
        adam: &Adam,
        name: &str,
        var: &Var,
        gradient: &Tensor,
        scale: f64,
        course: f64,
    ) -> Result<()> {
        let moments = match self.moments.remove(name) {
            Some(moments) => moments,
            None => {
                let zero = var.as_tensor().zeros_like()?;
                Moments {
                    mean: zero.clone(),
                    square: zero,
                }
            }
        };
        let rate = adam.peak(name) * course;
        let decay = if decays(name) { adam.weight_decay } else { 0.0 };
        let t = i32::try_from(self.updates).unwrap_or(i32::MAX);
        let fixes = (1.0 - adam.beta1.powi(t), 1.0 - adam.beta2.powi(t));
        let (weight, moments) = if var.device().is_cpu() && var.dtype() == DType::F32 {
            let [mut w, mut m, mut v] = [
                floats(var.as_tensor())?.to_vec(),
                floats(&moments.mean)?.to_vec(),
                floats(&moments.square)?.to_vec(),
            ];
            let step = AdamStep {
                scale: scale as f32,
                rate: rate as f32,
                decay: decay as f32,
                beta1: adam.beta1 as f32,
                beta2: adam.beta2 as f32,
                epsilon: adam.epsilon as f32,
                fix1: fixes.0 as f32,
                fix2: fixes.1 as f32,
            };
            adamw_update(&mut w, &mut m, &mut v, &floats(gradient)?, &step);
            let tensor = |values| Tensor::from_vec(values, var.shape(), var.device());
            (
                tensor(w)?,
                Moments {
                    mean: tensor(m)?,
                    square: tensor(v)?,
                },
            )
        } else {
            let g = (gradient.to_dtype(DType::F32)? * scale)?;
            let mean = ((&moments.mean * adam.beta1)? + (&g * (1.0 - adam.beta1))?)?;
            let square = ((&moments.square * adam.beta2)? + (g.sqr()? * (1.0 - adam.beta2))?)?;
            let root = ((&square / fixes.1)?.sqrt()? + adam.epsilon)?;
            let step = ((&mean / fixes.0)? / root)?;
            let weight = ((var.as_tensor() * (1.0 - rate * decay))? - (step * rate)?)?;
            (weight, Moments { mean, square })
        };
        var.set(&weight)?;
        self.moments.insert(name.to_owned(), moments);
        Ok(())
    }

    /// Counts one more update.
    pub fn next(&mut self) {
        self.updates += 1;
    }
}

/// Norms, biases and single vectors are not decayed.
fn decays(name: &str) -> bool {
    !(name.ends_with(".bias") || name.contains("norm") || name.ends_with("class_embedding"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn the_rate_rises_peaks_and_falls_to_its_floor() {
        let adam = Adam {
            warm_up: 0.1,
            floor: 0.1,
            ..Adam::default()
        };
        let course: Vec<f64> = (0..100).map(|s| adam.course(s, 100)).collect();
        assert!((course[0] - 0.1).abs() < 1e-9 && (course[9] - 1.0).abs() < 1e-9);
        assert!(course[10..].windows(2).all(|w| w[1] <= w[0]));
        assert!((course[99] - 0.1).abs() < 1e-2);
    }

    #[test]
    fn a_first_update_moves_each_value_by_the_rate_against_its_gradient() {
        let adam = Adam {
            rate: 0.1,
            weight_decay: 0.0,
            ..Adam::default()
        };
        let var = Var::new(&[1f32, 1.0, 1.0], &Device::Cpu).unwrap();
        let gradient = Tensor::new(&[0.5f32, -3.0, 0.0], &Device::Cpu).unwrap();
        let mut state = AdamState::default();
        state.next();
        state
            .update(&adam, "a.weight", &var, &gradient, 1.0, 1.0)
            .unwrap();
        let values = var.to_vec1::<f32>().unwrap();
        for (value, wanted) in values.iter().zip([0.9, 1.1, 1.0]) {
            assert!((value - wanted).abs() < 1e-4, "{values:?}");
        }
    }
}
