//! Rotary positions: the angle of each channel pair at each position, in f32
//! as the reference computes it.

use crate::config::{RopeScaling, TextConfig};
use std::f64::consts::TAU;

/// The frequencies of one model.
#[derive(Debug, Clone)]
pub(crate) struct Rope {
    inverse: Vec<f32>,
}

impl Rope {
    pub(crate) fn new(config: &TextConfig) -> Self {
        let half = config.head_dim / 2;
        let inverse = (0..half)
            .map(|i| {
                let exponent = (2 * i) as f32 / config.head_dim as f32;
                let plain = 1.0 / (config.rope_theta as f32).powf(exponent);
                scaled(plain, config.rope_scaling)
            })
            .collect();
        Self { inverse }
    }

    /// Cosines and sines of `positions`, each `[positions, channels / 2]`.
    pub(crate) fn angles(&self, positions: impl Iterator<Item = usize>) -> (Vec<f32>, Vec<f32>) {
        positions
            .flat_map(|position| {
                self.inverse
                    .iter()
                    .map(move |inverse| position as f32 * inverse)
            })
            .map(|angle| (angle.cos(), angle.sin()))
            .unzip()
    }
}

fn scaled(plain: f32, scaling: RopeScaling) -> f32 {
    match scaling {
        RopeScaling::None => plain,
        RopeScaling::Linear(factor) => plain / factor as f32,
        RopeScaling::Llama3 {
            factor,
            low,
            high,
            original_context,
        } => {
            let frequency = f64::from(plain);
            let wavelength = TAU / frequency;
            if wavelength > original_context / low {
                (frequency / factor) as f32
            } else if wavelength < original_context / high {
                plain
            } else {
                let smooth = (original_context / wavelength - low) / (high - low);
                ((1.0 - smooth) * frequency / factor + smooth * frequency) as f32
            }
        }
    }
}
