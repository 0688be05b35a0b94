//! From a checkpoint's files to a model in memory.

use super::device::{DeviceChoice, DeviceError};
use super::{Model, ModelInfo, kv_shape};
use crate::arch::decoder::Decoder;
use crate::arch::linear::Reader;
use crate::arch::projector::Projector;
use crate::arch::tower::Tower;
use crate::checkpoint;
use crate::config::ConfigError;
use crate::kernels::beside::Beside;
use crate::matmul::{Maker, WeightFormat};
use crate::weights::WeightsError;
use candle_core::DType;
use rayon::ThreadPoolBuilder;
use std::cell::Cell;
use std::io;
use std::path::{Path, PathBuf};

/// How to load a checkpoint.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// In what form the weights are kept.
    pub format: WeightFormat,
    /// Where the model runs.
    pub device: DeviceChoice,
    /// Number format of the computation on a CUDA device; processors know f32 alone.
    pub dtype: Option<Dtype>,
    /// Longest sequence in tokens; the checkpoint's own where absent or shorter.
    pub context: Option<usize>,
    /// The language model under a checkpoint that holds only a projector or LoRA.
    pub base: Option<PathBuf>,
    /// Folder of the vision tower, for checkpoints of the original layout that only name it.
    pub vision_tower: Option<PathBuf>,
    /// Threads for the CPU; one for each processor where absent.
    pub threads: Option<usize>,
}

/// Number format of the computation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Dtype {
    /// 32 bits.
    F32,
    /// 16 bits, IEEE.
    F16,
    /// 16 bits, wide range.
    Bf16,
}

impl LoadOptions {
    /// The number format that the model is computed in.
    fn computed_in(&self) -> DType {
        match (self.device, self.dtype) {
            (DeviceChoice::Cpu, _) | (_, Some(Dtype::F32)) => DType::F32,
            (_, Some(Dtype::F16)) => DType::F16,
            (_, Some(Dtype::Bf16) | None) => DType::BF16,
        }
    }
}

/// Why a checkpoint could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// `config.json` cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The weights cannot be used.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// There is no such device.
    #[error(transparent)]
    NoDevice(#[from] DeviceError),
    /// A checkpoint that holds only a part needs the rest.
    #[error("{dir} holds only {what}: name the language model that it belongs to with --base")]
    NeedsBase {
        /// The checkpoint.
        dir: PathBuf,
        /// What it holds.
        what: &'static str,
    },
    /// A tower that is only named was not found.
    #[error(
        "{dir} names the vision tower `{name}` and does not hold it: put the tower's folder beside the checkpoint \
         or name it with --vision-tower"
    )]
    NeedsTower {
        /// The checkpoint.
        dir: PathBuf,
        /// The tower's name in `config.json`.
        name: String,
    },
    /// The device refused.
    #[error("failed to place the model on its device")]
    Device(#[from] candle_core::Error),
    /// The threads could not be started.
    #[error("failed to start the model's threads")]
    Threads(#[from] io::Error),
}

impl Model {
    /// Loads the checkpoint in `dir`. `progress` is called with the share of
    /// the weights that has been read, from 0, when the files are mapped, to 1.
    ///
    /// # Errors
    /// Names the file, and the field or tensor, that cannot be used.
    pub fn load(
        dir: &Path,
        options: &LoadOptions,
        progress: &dyn Fn(f64),
    ) -> Result<Self, LoadError> {
        let (config, weights) = checkpoint::open(dir, options)?;
        progress(0.0);
        let device = options.device.open()?;
        let threads = ThreadPoolBuilder::new()
            .num_threads(options.threads.unwrap_or(0))
            .thread_name(|index| format!("model-{index}"))
            .build()
            .map_err(io::Error::other)?;
        let beside = Beside::new(threads.current_num_threads())?;
        let maker = Maker::new(device, options.computed_in());
        let (total, read) = (weights.elements().max(1), Cell::new(0usize));
        let count = |elements: usize| {
            read.set(read.get() + elements);
            progress((read.get() as f64 / total as f64).min(1.0));
        };
        let reader = Reader {
            weights: &weights,
            maker: &maker,
            progress: &count,
        };
        let text_maker = maker.with_format(options.format);
        let head_maker = maker.with_format(options.format.of_head());
        let text_reader = Reader {
            maker: &text_maker,
            ..reader
        };
        let head_reader = Reader {
            maker: &head_maker,
            ..reader
        };
        let newline = if config.image.newline {
            Some(reader.tensor("newline", &[config.text.hidden])?)
        } else {
            None
        };
        let tower = Tower::load(reader, &config)?;
        let projector = Projector::load(text_reader, &config)?;
        let decoder = Decoder::load(text_reader, head_reader, &config.text)?;
        progress(1.0);
        let shape = kv_shape(&config);
        let info = ModelInfo {
            family: config.family,
            vocab: config.text.vocab,
            context: options.context.unwrap_or(usize::MAX).min(config.max_length),
            eos: config.text.eos.clone(),
            image_token: config.image_token,
            kv_bytes_per_token: shape.bytes_per_token(maker.device(), maker.dtype()),
            image_bytes_per_token: config.text.hidden * maker.dtype().size_in_bytes(),
            weight_bytes: decoder.bytes() + tower.bytes() + projector.bytes(),
        };
        Ok(Self {
            config,
            info,
            maker,
            tower,
            projector,
            newline,
            decoder,
            threads,
            beside,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_computes_in_what_is_asked_for_and_the_processors_in_f32() {
        let cuda = DeviceChoice::Cuda(0);
        for (device, dtype, expected) in [
            (cuda, None, DType::BF16),
            (cuda, Some(Dtype::Bf16), DType::BF16),
            (cuda, Some(Dtype::F16), DType::F16),
            (cuda, Some(Dtype::F32), DType::F32),
            (DeviceChoice::Cpu, None, DType::F32),
            (DeviceChoice::Cpu, Some(Dtype::F16), DType::F32),
        ] {
            let options = LoadOptions {
                device,
                dtype,
                ..LoadOptions::default()
            };
            assert_eq!(options.computed_in(), expected, "{device:?} {dtype:?}");
        }
    }
}
