//! What a training run is told: one YAML file, the stages in order.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::export::Layout;
use super::lora::Lora;
use super::optim::Adam;
use crate::model::DeviceChoice;
use crate::prompt::Template;

/// A whole run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Folder with `config.json`, and the weights unless `from_scratch`.
    pub model: PathBuf,
    /// Draw the weights instead of reading them.
    #[serde(default)]
    pub from_scratch: bool,
    /// The tokenizer; `tokenizer.json` of `model` by default.
    #[serde(default)]
    pub tokenizer: Option<PathBuf>,
    /// Folder for checkpoints, journal, plot and the finished model.
    pub output: PathBuf,
    /// Every random choice follows from it.
    #[serde(default)]
    pub seed: u64,
    /// Where the arithmetic is done: in f32 on processors, in bf16 on a CUDA device.
    #[serde(default)]
    pub device: DeviceChoice,
    /// Threads of this process; all cores by default.
    #[serde(default)]
    pub threads: Option<usize>,
    /// Steps between checkpoints.
    #[serde(default = "every_200")]
    pub checkpoint_every: usize,
    /// What to do with a record that cannot be trained on.
    #[serde(default)]
    pub bad_records: BadRecords,
    /// Layouts that the finished model is written in; that of `model` by default.
    #[serde(default)]
    pub layouts: Vec<Layout>,
    /// What is trained, in order.
    pub stages: Vec<Stage>,
}

/// What to do with a record that cannot be trained on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BadRecords {
    /// Name it, count it, leave it out.
    #[default]
    Skip,
    /// Name it and stop.
    Fail,
}

/// One stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// Which weights learn what.
    pub kind: Kind,
    /// Conversations, or per-patch labels for the tower.
    pub data: PathBuf,
    /// Folder that the records' images are relative to; the data file's by default.
    #[serde(default)]
    pub images: Option<PathBuf>,
    /// Conversations that accuracy is measured on.
    #[serde(default)]
    pub held_out: Option<PathBuf>,
    /// Steps between measurements of accuracy; 0 measures at the end alone.
    #[serde(default)]
    pub evaluate_every: usize,
    /// Records of the held-out file that are measured on the way; the end measures all.
    #[serde(default = "first_2000")]
    pub evaluate_records: usize,
    /// How conversations are written; each takes one of these conversation templates.
    #[serde(default = "v1")]
    pub templates: Vec<String>,
    /// Share of conversations that begin with the template's system text.
    #[serde(default = "always")]
    pub system: f64,
    /// Passes over the data, where `steps` is not given.
    #[serde(default = "once")]
    pub epochs: f64,
    /// Optimiser steps.
    #[serde(default)]
    pub steps: Option<usize>,
    /// Records of one optimiser step, over all processes.
    #[serde(default = "records_32")]
    pub batch: usize,
    /// Records of one forward pass; a step adds up as many passes as it needs.
    #[serde(default = "records_4")]
    pub micro_batch: usize,
    /// Batches of one modality and similar length.
    #[serde(default)]
    pub group_by_modality_length: bool,
    /// Longest conversation in tokens, images included; the model's by default.
    #[serde(default)]
    pub max_length: Option<usize>,
    /// Recompute each layer in the backward pass instead of keeping its activations.
    #[serde(default)]
    pub gradient_checkpointing: bool,
    /// Weight of background patches in the tower's loss.
    #[serde(default = "third")]
    pub background: f32,
    /// The optimiser.
    #[serde(default)]
    pub optimizer: Adam,
}

/// Which weights a stage trains.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The vision tower, on per-patch labels: for models that start from nothing.
    Tower,
    /// The projector alone.
    Pretrain,
    /// Projector and language model.
    Finetune,
    /// Everything, the tower too.
    Full,
    /// Adapters of the language model, and the projector.
    Lora(Lora),
}

/// Why settings are no good.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file could not be read.
    #[error("read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not settings.
    #[error("parse {path}: {reason}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and what.
        reason: String,
    },
    /// A value out of range.
    #[error("stage {stage} of {path}: {reason}")]
    Stage {
        /// The file.
        path: PathBuf,
        /// The stage, from 0.
        stage: usize,
        /// What is wrong.
        reason: &'static str,
    },
}

impl Settings {
    /// Reads and checks the settings in `path`.
    ///
    /// # Errors
    /// Names the file and what in it is wrong.
    pub fn read(path: &Path) -> Result<Self, SettingsError> {
        let text = std::fs::read_to_string(path).map_err(|source| SettingsError::Read {
            path: path.to_owned(),
            source,
        })?;
        let settings: Self = serde_saphyr::from_str(&text).map_err(|e| SettingsError::Parse {
            path: path.to_owned(),
            reason: e.to_string(),
        })?;
        for (stage, one) in settings.stages.iter().enumerate() {
            if let Some(reason) = one.defect() {
                return Err(SettingsError::Stage {
                    path: path.to_owned(),
                    stage,
                    reason,
                });
            }
        }
        Ok(settings)
    }

    /// The tokenizer's file.
    pub fn tokenizer_path(&self) -> PathBuf {
        self.tokenizer
            .clone()
            .unwrap_or_else(|| self.model.join("tokenizer.json"))
    }
}

impl Stage {
    fn defect(&self) -> Option<&'static str> {
        let share = |v: f64| (0.0..=1.0).contains(&v);
        match () {
            () if self.batch == 0 || self.micro_batch == 0 => {
                Some("batch and micro_batch must be at least 1")
            }
            () if self.templates.is_empty() || self.templates().is_none() => {
                Some("templates names none, or one that is not known")
            }
            () if !share(self.system) => Some("system is a share from 0 to 1"),
            () if !share(self.optimizer.warm_up) => {
                Some("optimizer.warm_up is a share from 0 to 1")
            }
            () if self.optimizer.rate <= 0.0 => Some("optimizer.rate must be above 0"),
            () if self.steps.is_none() && self.epochs <= 0.0 => Some("epochs must be above 0"),
            () => match &self.kind {
                Kind::Lora(lora) if lora.r == 0 => Some("lora.r must be at least 1"),
                Kind::Lora(lora) if !(0.0..1.0).contains(&lora.dropout) => {
                    Some("lora.dropout is a share from 0 to below 1")
                }
                _ => None,
            },
        }
    }

    /// The named templates; `None` where one is not known.
    pub fn templates(&self) -> Option<Vec<&'static Template>> {
        self.templates
            .iter()
            .map(|name| Template::named(name))
            .collect()
    }

    /// The folder that images are relative to.
    pub fn image_folder(&self) -> PathBuf {
        let beside = || self.data.parent().unwrap_or(Path::new(".")).to_owned();
        self.images.clone().unwrap_or_else(beside)
    }

    /// The adapters that this stage trains.
    pub fn lora(&self) -> Option<&Lora> {
        match &self.kind {
            Kind::Lora(lora) => Some(lora),
            _ => None,
        }
    }
}

fn every_200() -> usize {
    200
}

fn first_2000() -> usize {
    2000
}

fn v1() -> Vec<String> {
    vec!["vicuna_v1".to_owned()]
}

fn always() -> f64 {
    1.0
}

fn once() -> f64 {
    1.0
}

fn records_32() -> usize {
    32
}

fn records_4() -> usize {
    4
}

fn third() -> f32 {
    0.3
}
