//! The data of a stage: checked once, then read a few records at a time by
//! whichever thread needs them.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;

use candle_core::{Device, Tensor};
use serde::Deserialize;

use super::batch::{Batch, TowerBatch};
use super::ops::Targets;
use super::picture;
use super::record::{Fault, Record, RecordFile, plain};
use super::sample::{Encoder, Sample};
use super::sampler::Entry;
use crate::config::ModelConfig;

/// Why a few records could not become a batch.
#[derive(Debug, thiserror::Error)]
pub enum CorpusError {
    /// A record that cannot be trained on.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The device failed.
    #[error("build a batch")]
    Device(#[from] candle_core::Error),
}

/// Conversations with their images.
#[derive(Debug)]
pub struct Corpus {
    file: RecordFile,
    images: PathBuf,
    encoder: Encoder,
    system: f64,
    max_length: usize,
    image_tokens: usize,
    config: ModelConfig,
    seed: u64,
}

/// Records read for one pass, with what each answer is about.
#[derive(Debug)]
pub struct Loaded {
    /// The batch; none when no record was sound.
    pub batch: Option<Batch>,
    /// For each sample, its record.
    pub records: Vec<Record>,
    /// Records left out.
    pub faults: Vec<Fault>,
}

impl Corpus {
    /// Conversations of `file`; `system` is the share that begins with the template's system text.
    pub fn new(
        file: RecordFile,
        images: PathBuf,
        encoder: Encoder,
        system: f64,
        max_length: usize,
        config: &ModelConfig,
        seed: u64,
    ) -> Self {
        let side = config.vision.side();
        let image_tokens = side * side + usize::from(config.keep_class);
        Self {
            file,
            images,
            encoder,
            system,
            max_length,
            image_tokens,
            config: config.clone(),
            seed,
        }
    }

    /// Parses every record once: what can be dealt to steps, and what cannot and why.
    pub fn check(&self) -> (Vec<Entry>, Vec<Fault>) {
        let (mut entries, mut faults) = (Vec::new(), Vec::new());
        for index in 0..self.file.len() {
            match self.file.get(index) {
                Ok(record) => {
                    let missing = record
                        .images()
                        .iter()
                        .find(|name| !self.images.join(name).exists());
                    match missing {
                        Some(name) => faults.push(self.fault(
                            index,
                            &record,
                            format!("image {name} is missing"),
                        )),
                        None => {
                            let image = !record.images().is_empty();
                            entries.push(Entry {
                                index,
                                words: record.words(),
                                image,
                            });
                        }
                    }
                }
                Err(fault) => faults.push(fault),
            }
        }
        (entries, faults)
    }

    /// Reads `indices` into one batch; what proves unsound on the way is left out and named.
    /// `round` (the step) chooses which conversations begin with the system text.
    ///
    /// # Errors
    /// When the device fails.
    pub fn load(
        &self,
        indices: &[usize],
        round: u64,
        device: &Device,
    ) -> candle_core::Result<Loaded> {
        let (mut samples, mut pixels) = (Vec::new(), Vec::new());
        let (mut records, mut faults) = (Vec::new(), Vec::new());
        for &index in indices {
            match self.sample(index, round) {
                Ok((record, sample, patches)) => {
                    samples.push(sample);
                    pixels.extend(patches);
                    records.push(record);
                }
                Err(fault) => faults.push(fault),
            }
        }
        let patch = 3 * self.config.vision.patch_size * self.config.vision.patch_size;
        let batch = match samples.is_empty() {
            true => None,
            false => Some(Batch::pack(
                &samples,
                pixels,
                patch,
                self.image_tokens,
                device,
            )?),
        };
        Ok(Loaded {
            batch,
            records,
            faults,
        })
    }

    fn sample(&self, index: usize, round: u64) -> Result<(Record, Sample, Vec<f32>), Fault> {
        let record = self.file.get(index)?;
        let mut hasher = DefaultHasher::new();
        (self.seed, round, index).hash(&mut hasher);
        let dice = hasher.finish();
        let system = (dice >> 11) as f64 / ((1u64 << 53) as f64) < self.system;
        let sample = (self.encoder.encode(&record, dice, system))
            .map_err(|e| self.fault(index, &record, format!("cannot be tokenised: {e}")))?;
        let len = sample.len(self.image_tokens);
        if len > self.max_length {
            let reason = format!(
                "takes {len} tokens; at most {} fit: shorten it or raise max_length",
                self.max_length
            );
            return Err(self.fault(index, &record, reason));
        }
        if sample.is_empty() {
            return Err(self.fault(
                index,
                &record,
                "holds nothing to learn: every answer is empty",
            ));
        }
        let mut patches = Vec::new();
        for name in record.images() {
            let read = picture::patches(&self.images.join(name), &self.config.vision);
            patches.extend(
                read.map_err(|e| self.fault(index, &record, format!("image {name}: {e}")))?,
            );
        }
        Ok((record, sample, patches))
    }

    fn fault(&self, index: usize, record: &Record, reason: impl Into<String>) -> Fault {
        self.file.fault(index, &plain(&record.id), reason)
    }
}

/// Images with per-patch labels.
#[derive(Debug)]
pub struct PatchCorpus {
    file: RecordFile,
    images: PathBuf,
    config: ModelConfig,
    background: f32,
}

#[derive(Debug, Deserialize)]
struct PatchRecord {
    image: String,
    labels: Vec<Vec<u32>>,
}

impl PatchCorpus {
    /// Labelled images of `file`; a patch labelled 0 counts `background` instead of 1.
    pub fn new(file: RecordFile, images: PathBuf, config: &ModelConfig, background: f32) -> Self {
        Self {
            file,
            images,
            config: config.clone(),
            background,
        }
    }

    /// Every record, and for each kind of label the number of classes in the whole file.
    ///
    /// # Errors
    /// The first record that is not labelled as the others are.
    pub fn check(&self) -> Result<(Vec<Entry>, Vec<usize>), Fault> {
        let (mut entries, mut classes) = (Vec::new(), Vec::<usize>::new());
        let patches = self.config.vision.side().pow(2);
        for index in 0..self.file.len() {
            let record = self.record(index)?;
            classes.resize(classes.len().max(record.labels.len()), 1);
            if record.labels.len() != classes.len()
                || record.labels.iter().any(|l| l.len() != patches)
            {
                let reason = format!("needs {} lists of {patches} labels", classes.len());
                return Err(self.file.fault(index, &record.image, reason));
            }
            for (most, labels) in classes.iter_mut().zip(&record.labels) {
                *most = labels.iter().fold(*most, |m, l| m.max(*l as usize + 1));
            }
            entries.push(Entry {
                index,
                words: 0,
                image: true,
            });
        }
        Ok((entries, classes))
    }

    /// Reads `indices` into one batch.
    ///
    /// # Errors
    /// Names a record whose image cannot be read.
    pub fn load(&self, indices: &[usize], device: &Device) -> Result<TowerBatch, CorpusError> {
        let (mut pixels, mut labels) = (Vec::new(), Vec::<Vec<u32>>::new());
        for &index in indices {
            let record = self.record(index)?;
            let path = self.images.join(&record.image);
            pixels.extend(
                picture::patches(&path, &self.config.vision)
                    .map_err(|e| self.file.fault(index, &record.image, e.to_string()))?,
            );
            labels.resize_with(record.labels.len(), Vec::new);
            for (all, one) in labels.iter_mut().zip(record.labels) {
                all.extend(one);
            }
        }
        let patch = 3 * self.config.vision.patch_size * self.config.vision.patch_size;
        let rows = pixels.len() / patch;
        let weigh = |label: &u32| if *label == 0 { self.background } else { 1.0 };
        let targets = labels.into_iter().map(|entries| Targets {
            weights: entries.iter().map(weigh).collect(),
            entries: entries.into(),
        });
        Ok(TowerBatch {
            patches: Tensor::from_vec(pixels, (rows, patch), device)?,
            images: indices.len(),
            targets: targets.collect(),
        })
    }

    fn record(&self, index: usize) -> Result<PatchRecord, Fault> {
        let text = self.file.text(index)?;
        serde_json::from_str(&text).map_err(|e| {
            self.file
                .fault(index, "", format!("is not a labelled image: {e}"))
        })
    }
}
