//! The training loop: stages in order, each a course of steps, with checkpoints,
//! measurements and a journal along the way.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use candle_core::{DType, Device};
use tokenizers::Tokenizer;

use super::checkpoint::{self, CheckpointError, Progress};
use super::corpus::{Corpus, CorpusError, PatchCorpus};
use super::evaluate::{Accuracy, accuracy};
use super::export::{self, ExportError};
use super::group::{Group, GroupError};
use super::journal::{Event, Journal, JournalError, StepEvent};
use super::names::{self, Shapes};
use super::net::{Net, head_name};
use super::ops::Rope;
use super::optim::{self, AdamState};
use super::params::{Params, ParamsError};
use super::pass::{Scene, Source, Summed};
use super::record::{DataError, Fault, RecordFile};
use super::sample::Encoder;
use super::sampler::Sampler;
use super::settings::{BadRecords, Kind, Settings, Stage};
use crate::config::{ConfigError, ModelConfig};
use crate::model::DeviceError;

/// Why a run stopped.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum RunError {
    #[error("read the model's configuration")]
    Config(#[from] ConfigError),
    #[error("load tokenizer {path}: {reason}")]
    Tokenizer { path: PathBuf, reason: String },
    #[error(transparent)]
    Params(#[from] ParamsError),
    #[error(transparent)]
    Data(#[from] DataError),
    #[error("record cannot be trained on; bad_records: skip leaves such records out")]
    Fault(#[from] Fault),
    #[error("{path} holds no record that can be trained on")]
    Nothing { path: PathBuf },
    #[error(transparent)]
    Corpus(#[from] CorpusError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Group(#[from] GroupError),
    #[error(transparent)]
    Export(#[from] ExportError),
    #[error("make folder {path}")]
    Folder {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error(
        "the loss became {loss} at step {step}: lower the rate, or resume from the last checkpoint"
    )]
    Diverged { loss: f64, step: usize },
    #[error("{output} holds a checkpoint: continue it with --resume, or choose another output")]
    Occupied { output: PathBuf },
    #[error(transparent)]
    NoDevice(#[from] DeviceError),
    #[error("the device failed")]
    Device(#[from] candle_core::Error),
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// Every stage is done; the last accuracy where a held-out file was given.
    Done(Option<Accuracy>),
    /// Interrupted; a checkpoint was saved at this step of the whole run.
    Stopped(usize),
}

/// A training run.
#[derive(Debug)]
pub struct Run {
    settings: Settings,
    config: ModelConfig,
    rope: Rope,
    device: Device,
    dtype: DType,
    threads: usize,
    group: Group,
    stop: Arc<AtomicBool>,
    params: Params,
    adam: AdamState,
    progress: Progress,
}

/// Steps between journal entries.
const REPORT_EVERY: usize = 10;

impl Run {
    /// Prepares a run: from its newest checkpoint with `resume`, else from the start. It ends
    /// early, with a checkpoint, once `stop` is set.
    ///
    /// # Errors
    /// Names what is missing or contradicts itself.
    pub fn new(
        settings: Settings,
        group: Group,
        resume: bool,
        stop: Arc<AtomicBool>,
    ) -> Result<Self, RunError> {
        let device = settings.device.open()?;
        let config = ModelConfig::read(&settings.model, None)?;
        let rope = Net::rope(&config)?;
        std::fs::create_dir_all(&settings.output).map_err(|source| RunError::Folder {
            path: settings.output.clone(),
            source,
        })?;
        let saved = checkpoint::load(&settings.output, &device)?;
        let (progress, params, adam) = match saved {
            Some(saved) if resume => saved,
            Some(_) => {
                return Err(RunError::Occupied {
                    output: settings.output,
                });
            }
            None => {
                let params = match settings.from_scratch {
                    true => Params::drawn(&config, settings.seed, &device)?,
                    false => Params::read(&settings.model, &config, &device)?,
                };
                (Progress::default(), params, AdamState::default())
            }
        };
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        let threads = settings.threads.unwrap_or_else(cores).max(1);
        // Half precision halves memory and doubles speed where the device has it.
        let dtype = if device.is_cuda() {
            DType::BF16
        } else {
            DType::F32
        };
        Ok(Self {
            settings,
            config,
            rope,
            device,
            dtype,
            threads,
            group,
            stop,
            params,
            adam,
            progress,
        })
    }

    /// The weights as they stand.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// Records left out so far.
    pub fn skipped(&self) -> usize {
        self.progress.skipped
    }

    /// Trains to the end, or until stopped.
    ///
    /// # Errors
    /// Names the step, file or record that failed.
    pub fn run(&mut self) -> Result<Outcome, RunError> {
        let mut journal = Journal::open(&self.settings.output, self.progress.total)?;
        let mut last = None;
        while let Some(stage) = self.settings.stages.get(self.progress.stage).cloned() {
            match self.stage(&stage, &mut journal)? {
                Outcome::Done(accuracy) => last = accuracy,
                stopped @ Outcome::Stopped(_) => return Ok(stopped),
            }
            self.progress = Progress {
                stage: self.progress.stage + 1,
                step: 0,
                updates: 0,
                ..self.progress
            };
            self.adam = AdamState::default();
            self.save()?;
        }
        if self.group.rank() == 0 {
            journal.plot(&self.settings.output)?;
            let lora = self.settings.stages.iter().rev().find_map(Stage::lora);
            export::finished(&self.settings, &self.config, &self.params, lora)?;
        }
        Ok(Outcome::Done(last))
    }

    fn stage(&mut self, stage: &Stage, journal: &mut Journal) -> Result<Outcome, RunError> {
        let (source, mut sampler) = self.source(stage)?;
        let trained = self.trained(stage);
        let held_out = stage
            .held_out
            .as_deref()
            .map(|path| self.held_out(stage, path))
            .transpose()?;
        let epochs = stage.epochs * sampler.steps_per_epoch() as f64;
        let steps = stage
            .steps
            .unwrap_or_else(|| (epochs.ceil() as usize).max(1));
        let number = self.progress.stage;
        tracing::info!(
            stage = number,
            steps,
            weights = self.params.count(),
            trained = trained.len(),
            threads = self.threads,
            ranks = self.group.world(),
            "training"
        );
        let began = shell::clock::now();
        let (first, mut window, mut since) = (self.progress.step, Summed::default(), began);
        let mut norm = 0.0;
        while self.progress.step < steps {
            let step = self.progress.step;
            let mut summed = self.gradients(stage, &source, &trained, &mut sampler, step)?;
            if !summed.loss.is_finite() {
                return Err(RunError::Diverged {
                    loss: summed.loss,
                    step,
                });
            }
            self.note(&summed.faults)?;
            let updating = shell::clock::now();
            norm = self.update(stage, &summed, steps)?;
            summed.spent.update = updating.elapsed().as_secs_f64();
            self.progress = Progress {
                step: step + 1,
                total: self.progress.total + 1,
                ..self.progress
            };
            window.loss += summed.loss;
            window.weight += summed.weight;
            window.tokens += summed.tokens;
            window.flops += summed.flops;
            window.spent.add(summed.spent);
            let done = step + 1;
            if done.is_multiple_of(REPORT_EVERY) || done == steps {
                let elapsed = since.elapsed().as_secs_f64().max(1e-9);
                let event = StepEvent {
                    stage: number,
                    step: done,
                    steps,
                    total: self.progress.total,
                    loss: window.loss / window.weight.max(1.0),
                    rate: stage.optimizer.rate * stage.optimizer.course(step, steps),
                    norm,
                    tokens_per_second: window.tokens as f64 / elapsed,
                    gflops: window.flops / elapsed / 1e9,
                    seconds: began.elapsed().as_secs_f64(),
                    spent: window.spent,
                };
                let left = began
                    .elapsed()
                    .mul_f64((steps - done) as f64 / (done - first) as f64);
                self.report(journal, event, left)?;
                (window, since) = (Summed::default(), shell::clock::now());
            }
            let measure = stage.evaluate_every > 0
                && done.is_multiple_of(stage.evaluate_every)
                && done < steps;
            if let Some((corpus, records)) = held_out.as_ref().filter(|_| measure) {
                let few = &records[..records.len().min(stage.evaluate_records)];
                self.measure(stage, corpus, few, journal)?;
                since = shell::clock::now();
            }
            if self.stop.load(Ordering::Relaxed) && done < steps {
                self.save()?;
                return Ok(Outcome::Stopped(self.progress.total));
            }
            if done.is_multiple_of(self.settings.checkpoint_every) && done < steps {
                self.save()?;
            }
        }
        tracing::debug!(norm, "last gradients");
        match held_out {
            Some((corpus, records)) => Ok(Outcome::Done(Some(
                self.measure(stage, &corpus, &records, journal)?,
            ))),
            None => Ok(Outcome::Done(None)),
        }
    }

    /// This process's share of a step, added up with the others'.
    fn gradients(
        &mut self,
        stage: &Stage,
        source: &Source,
        trained: &BTreeSet<String>,
        sampler: &mut Sampler,
        step: usize,
    ) -> Result<Summed, RunError> {
        let records = sampler.records(step);
        let (rank, world) = (self.group.rank(), self.group.world());
        let cut = |part: usize| records.len() * part / world;
        let mine = &records[cut(rank)..cut(rank + 1)];
        let scene = self.scene(stage, trained);
        let mut summed = scene.gradients(source, mine, stage.micro_batch, step as u64)?;
        if world > 1 {
            let exchanging = shell::clock::now();
            let mut row = summed.flatten(&self.params, trained)?;
            self.group.sum(&mut row)?;
            summed.unflatten(&row, &self.params, trained, &self.device)?;
            summed.spent.exchange = exchanging.elapsed().as_secs_f64();
        }
        Ok(summed)
    }

    fn scene<'a>(&'a self, stage: &'a Stage, trained: &'a BTreeSet<String>) -> Scene<'a> {
        Scene {
            config: &self.config,
            params: &self.params,
            trained,
            rope: &self.rope,
            lora: stage.lora(),
            dtype: self.dtype,
            checkpointing: stage.gradient_checkpointing,
            device: &self.device,
            threads: self.threads,
        }
    }

    fn update(&mut self, stage: &Stage, summed: &Summed, steps: usize) -> Result<f64, RunError> {
        let adam = &stage.optimizer;
        let mean = 1.0 / summed.weight.max(1.0);
        let norm = optim::norm(&summed.gradients)? * mean;
        let clip = if adam.clip > 0.0 && norm > adam.clip {
            adam.clip / norm
        } else {
            1.0
        };
        let course = adam.course(self.progress.step, steps);
        self.adam.next();
        for (name, gradient) in &summed.gradients {
            if let Some(var) = self.params.get(name) {
                self.adam
                    .update(adam, name, var, gradient, mean * clip, course)?;
            }
        }
        self.progress.updates = self.adam.updates;
        Ok(norm)
    }

    fn source(&mut self, stage: &Stage) -> Result<(Source, Sampler), RunError> {
        let file = RecordFile::open(&stage.data)?;
        let (source, entries) = match stage.kind {
            Kind::Tower => {
                let corpus =
                    PatchCorpus::new(file, stage.image_folder(), &self.config, stage.background);
                let (entries, classes) = corpus.check()?;
                let mut heads = Shapes::new();
                for (i, count) in classes.iter().enumerate() {
                    heads.insert(
                        format!("{}.weight", head_name(i)),
                        vec![*count, self.config.vision.hidden],
                    );
                    heads.insert(format!("{}.bias", head_name(i)), vec![*count]);
                }
                self.extend(&heads)?;
                (Source::Patches(Box::new(corpus)), entries)
            }
            _ => {
                let corpus = self.corpus(stage, file, stage.system)?;
                let (entries, faults) = corpus.check();
                if self.progress.step == 0 {
                    self.note(&faults)?;
                }
                (Source::Talk(Box::new(corpus)), entries)
            }
        };
        if let Some(lora) = stage.lora() {
            self.extend(&lora.shapes(&names::shapes(&self.config)))?;
        }
        if entries.is_empty() {
            return Err(RunError::Nothing {
                path: stage.data.clone(),
            });
        }
        let seed = self
            .settings
            .seed
            .wrapping_add(self.progress.stage as u64 * 1000);
        Ok((
            source,
            Sampler::new(entries, stage.batch, stage.group_by_modality_length, seed),
        ))
    }

    /// Adds a stage's own weights at its start; a resumed stage has them already.
    fn extend(&mut self, shapes: &Shapes) -> Result<(), RunError> {
        let fresh: Shapes = shapes
            .iter()
            .filter(|(name, _)| self.params.get(name).is_none())
            .map(|(n, s)| (n.clone(), s.clone()))
            .collect();
        Ok(self
            .params
            .add(&fresh, self.settings.seed.wrapping_add(77), &self.device)?)
    }

    fn corpus(&self, stage: &Stage, file: RecordFile, system: f64) -> Result<Corpus, RunError> {
        let path = self.settings.tokenizer_path();
        let tokenizer = Tokenizer::from_file(&path).map_err(|e| RunError::Tokenizer {
            path: path.clone(),
            reason: e.to_string(),
        })?;
        let encoder = Encoder {
            tokenizer,
            templates: stage.templates().unwrap_or_default(),
        };
        let longest = stage
            .max_length
            .unwrap_or(usize::MAX)
            .min(self.rope.positions());
        let seed = self.settings.seed;
        Ok(Corpus::new(
            file,
            stage.image_folder(),
            encoder,
            system,
            longest,
            &self.config,
            seed,
        ))
    }

    fn held_out(&self, stage: &Stage, path: &Path) -> Result<(Corpus, Vec<usize>), RunError> {
        let corpus = self.corpus(stage, RecordFile::open(path)?, stage.system.floor())?;
        let (entries, faults) = corpus.check();
        match faults.into_iter().next() {
            // A held-out file is small and its figures are quoted: nothing is left out of it.
            Some(fault) => Err(fault.into()),
            None => Ok((corpus, entries.into_iter().map(|e| e.index).collect())),
        }
    }

    fn measure(
        &self,
        stage: &Stage,
        corpus: &Corpus,
        records: &[usize],
        journal: &mut Journal,
    ) -> Result<Accuracy, RunError> {
        let none = BTreeSet::new();
        let accuracy = accuracy(&self.scene(stage, &none), corpus, records)?;
        let kinds: Vec<String> = (accuracy.kinds.iter())
            .map(|(kind, score)| format!("{kind} {:.3}", score.share()))
            .collect();
        if self.group.rank() == 0 {
            tracing::info!(
                all = format!("{:.4}", accuracy.all.share()),
                kinds = kinds.join(" "),
                "held out"
            );
            journal.write(&Event::Accuracy {
                stage: self.progress.stage,
                step: self.progress.step,
                total: self.progress.total,
                accuracy: accuracy.clone(),
            })?;
            journal.plot(&self.settings.output)?;
        }
        Ok(accuracy)
    }

    fn report(
        &self,
        journal: &mut Journal,
        event: StepEvent,
        left: Duration,
    ) -> Result<(), RunError> {
        if self.group.rank() == 0 {
            tracing::info!("{}", event.line(left));
            journal.write(&Event::Step(event))?;
        }
        Ok(())
    }

    fn note(&mut self, faults: &[Fault]) -> Result<(), RunError> {
        for fault in faults {
            match self.settings.bad_records {
                BadRecords::Fail => return Err(fault.clone().into()),
                BadRecords::Skip => tracing::warn!("left out {fault}"),
            }
        }
        self.progress.skipped += faults.len();
        Ok(())
    }

    fn save(&self) -> Result<(), RunError> {
        if self.group.rank() == 0 {
            checkpoint::save(
                &self.settings.output,
                self.progress,
                &self.params,
                &self.adam,
            )?;
        }
        Ok(())
    }

    /// The weights that a stage trains. Layers of the tower behind the one whose features are
    /// used take no part in anything.
    fn trained(&self, stage: &Stage) -> BTreeSet<String> {
        let tower = |name: &str| {
            let layer = name
                .split("encoder.layers.")
                .nth(1)
                .and_then(|rest| rest.split('.').next());
            let used = layer
                .and_then(|l| l.parse::<usize>().ok())
                .is_none_or(|l| l < self.config.tower_layers);
            names::in_tower(name) && used && !name.contains("post_layernorm")
        };
        let adapter = |name: &str| name.contains(".lora_");
        let text = |name: &str| name.starts_with("language_model.") && !adapter(name);
        let chosen = |name: &str| match stage.kind {
            // The output layers stay as drawn, so that the tower itself has to set apart what
            // they read: see `Params::add`.
            Kind::Tower => tower(name),
            Kind::Pretrain => names::in_projector(name),
            Kind::Finetune => names::in_projector(name) || text(name),
            Kind::Full => names::in_projector(name) || text(name) || tower(name),
            Kind::Lora(_) => names::in_projector(name) || adapter(name),
        };
        self.params
            .iter()
            .map(|(name, _)| name)
            .filter(|n| chosen(n))
            .map(str::to_owned)
            .collect()
    }
}
