//! Gradients of one step: the step's records are dealt to threads in small passes,
//! each pass on one thread, and summed in a fixed order, so that the result depends
//! on neither timing nor load.

use std::collections::BTreeSet;

use candle_core::{DType, Device, Result, Tensor};
use serde::{Deserialize, Serialize};
use shell::clock;

use super::corpus::{Corpus, CorpusError, PatchCorpus};
use super::lora::Lora;
use super::net::Net;
use super::ops::Rope;
use super::optim::Gradients;
use super::params::Params;
use super::record::Fault;
use crate::config::ModelConfig;

/// Everything a pass reads.
#[derive(Debug)]
pub struct Scene<'a> {
    /// The architecture.
    pub config: &'a ModelConfig,
    /// The weights.
    pub params: &'a Params,
    /// Names of those that learn.
    pub trained: &'a BTreeSet<String>,
    /// Rotary angles.
    pub rope: &'a Rope,
    /// Adapters, where the stage has them.
    pub lora: Option<&'a Lora>,
    /// Type of the arithmetic.
    pub dtype: DType,
    /// Whether layers are computed again in the backward pass instead of kept.
    pub checkpointing: bool,
    /// Where it runs.
    pub device: &'a Device,
    /// Threads to use.
    pub threads: usize,
}

/// Where the records of a pass come from.
#[derive(Debug)]
pub enum Source {
    /// Conversations.
    Talk(Box<Corpus>),
    /// Per-patch labels.
    Patches(Box<PatchCorpus>),
}

/// What a step's passes add up to.
#[derive(Debug, Default)]
pub struct Summed {
    /// Sum of the gradients, not yet divided by `weight`.
    pub gradients: Gradients,
    /// Sum of the losses.
    pub loss: f64,
    /// What the loss and gradients are divided by: learned tokens, or weighted labels.
    pub weight: f64,
    /// Positions that went through the model.
    pub tokens: usize,
    /// Floating-point operations, forward and backward.
    pub flops: f64,
    /// Where the time went.
    pub spent: Spent,
    /// Records left out.
    pub faults: Vec<Fault>,
}

/// Where the time of some steps went, in seconds. What threads do side by side counts once
/// for all of them; what is missing to the whole is waiting for the slowest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Spent {
    /// Reading, decoding and tokenising records.
    pub load: f64,
    /// Forward passes.
    pub forward: f64,
    /// Backward passes, with the layers computed again for gradient checkpointing.
    pub backward: f64,
    /// Adding up gradients with the other processes.
    pub exchange: f64,
    /// The optimiser.
    pub update: f64,
}

impl Scene<'_> {
    fn net(&self) -> Result<Net<'_>> {
        Net::new(
            self.config,
            self.params,
            self.trained,
            self.rope,
            self.lora,
            self.dtype,
        )
    }

    /// The summed gradients of `records` in passes of `micro`; `step` seeds dropout.
    ///
    /// # Errors
    /// When the device fails, or a labelled image cannot be read.
    pub fn gradients(
        &self,
        source: &Source,
        records: &[usize],
        micro: usize,
        step: u64,
    ) -> std::result::Result<Summed, CorpusError> {
        let passes: Vec<(usize, &[usize])> = records.chunks(micro).enumerate().collect();
        let threads = self.threads.min(passes.len()).max(1);
        let work = |thread: usize| {
            let mut sum = Summed::default();
            for (at, records) in passes.iter().skip(thread).step_by(threads) {
                let seed = step.wrapping_mul(0x1_0000).wrapping_add(*at as u64);
                sum.add(self.pass(source, records, step, seed)?)?;
            }
            Ok::<_, CorpusError>(sum)
        };
        let parts = std::thread::scope(|scope| {
            let work = &work;
            let others: Vec<_> = (1..threads).map(|t| scope.spawn(move || work(t))).collect();
            let first = work(0);
            let joined = others.into_iter().map(|other| match other.join() {
                Ok(part) => part,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            std::iter::once(first).chain(joined).collect::<Vec<_>>()
        });
        let mut total = Summed::default();
        for part in parts {
            total.add(part?)?;
        }
        let share = 1.0 / threads as f64;
        total.spent.load *= share;
        total.spent.forward *= share;
        total.spent.backward *= share;
        Ok(total)
    }

    fn pass(
        &self,
        source: &Source,
        records: &[usize],
        round: u64,
        seed: u64,
    ) -> std::result::Result<Summed, CorpusError> {
        let net = (self.net()?.with_noise(seed)).with_checkpointing(self.checkpointing);
        let mut sum = Summed::default();
        let began = clock::now();
        let loss = match source {
            Source::Talk(corpus) => {
                let loaded = corpus.load(records, round, self.device)?;
                sum.spent.load = began.elapsed().as_secs_f64();
                sum.faults = loaded.faults;
                let Some(batch) = loaded.batch else {
                    return Ok(sum);
                };
                sum.tokens = batch.tokens();
                sum.weight = batch.targets.entries.len() as f64;
                sum.flops = 3.0 * net.flops(&batch.segments, batch.images, batch.learned.len());
                net.loss(&batch)?
            }
            Source::Patches(corpus) => {
                let batch = corpus.load(records, self.device)?;
                sum.spent.load = began.elapsed().as_secs_f64();
                sum.tokens = batch.images * self.config.vision.side().pow(2);
                sum.weight = batch
                    .targets
                    .iter()
                    .flat_map(|t| t.weights.iter())
                    .map(|w| f64::from(*w))
                    .sum();
                sum.flops = 3.0 * net.flops(&[], batch.images, 0);
                net.tower_loss(&batch)?
            }
        };
        sum.loss = f64::from(loss.to_dtype(DType::F32)?.to_scalar::<f32>()?);
        sum.spent.forward = began.elapsed().as_secs_f64() - sum.spent.load;
        let began = clock::now();
        let mut grads = net.gradients(&loss)?;
        sum.spent.backward = began.elapsed().as_secs_f64();
        for name in self.trained {
            let var = self.params.get(name);
            if let Some(gradient) = var.and_then(|var| grads.remove(var.as_tensor())) {
                sum.gradients.insert(name.clone(), gradient);
            }
        }
        Ok(sum)
    }
}

impl Spent {
    /// Adds what another part took.
    pub fn add(&mut self, other: Self) {
        self.load += other.load;
        self.forward += other.forward;
        self.backward += other.backward;
        self.exchange += other.exchange;
        self.update += other.update;
    }
}

impl Summed {
    fn add(&mut self, other: Self) -> Result<()> {
        for (name, gradient) in other.gradients {
            match self.gradients.get_mut(&name) {
                Some(sum) => *sum = (&*sum + gradient)?,
                None => {
                    self.gradients.insert(name, gradient);
                }
            }
        }
        self.loss += other.loss;
        self.weight += other.weight;
        self.tokens += other.tokens;
        self.flops += other.flops;
        self.spent.add(other.spent);
        self.faults.extend(other.faults);
        Ok(())
    }

    /// Every trained weight's gradient, and the counts, as one row for exchange with other
    /// processes; a weight without a gradient counts as zeros.
    pub fn flatten(&self, params: &Params, trained: &BTreeSet<String>) -> Result<Vec<f32>> {
        let mut row = vec![
            self.loss as f32,
            self.weight as f32,
            self.tokens as f32,
            self.flops as f32,
        ];
        for name in trained {
            match (self.gradients.get(name), params.get(name)) {
                (Some(g), _) => {
                    row.extend(g.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?);
                }
                (None, Some(var)) => row.resize(row.len() + var.elem_count(), 0.0),
                (None, None) => {}
            }
        }
        Ok(row)
    }

    /// Takes back what [`Self::flatten`] gave, after the exchange.
    pub fn unflatten(
        &mut self,
        row: &[f32],
        params: &Params,
        trained: &BTreeSet<String>,
        device: &Device,
    ) -> Result<()> {
        [self.loss, self.weight] = [f64::from(row[0]), f64::from(row[1])];
        (self.tokens, self.flops) = (row[2] as usize, f64::from(row[3]));
        let mut at = 4;
        for name in trained {
            if let Some(var) = params.get(name) {
                let end = at + var.elem_count();
                let gradient = Tensor::from_slice(&row[at..end], var.shape(), device)?;
                self.gradients.insert(name.clone(), gradient);
                at = end;
            }
        }
        Ok(())
    }
}
