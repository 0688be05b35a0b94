//! `bench`: how fast this machine runs a checkpoint, stage by stage and at
//! several batch sizes, and what memory it takes, as a table and as JSON.

mod memory;
mod report;

use crate::commands::model_args::ModelArgs;
use crate::config::ModelConfig;
use crate::input::{Piece, positions, slice};
use crate::model::{Model, Part};
use crate::pixels::PixelValues;
use anyhow::Context;
use memory::Watch;
use report::{Memory, Report, Stage};
use std::time::Duration;

/// Images that are encoded together; their features are held no longer.
const IMAGES_AT_ONCE: usize = 4;
/// Positions of a prompt in one call, which bounds what the model holds while it runs.
const CHUNK: usize = 512;

/// Measures vision, prefill and decode.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Text tokens in each prompt, beside one image
    #[arg(long, default_value_t = 32)]
    prompt_tokens: usize,
    /// Decode steps to measure at each batch size
    #[arg(long, default_value_t = 32)]
    steps: usize,
    /// How often vision and prefill are measured at each batch size
    #[arg(long, default_value_t = 3)]
    repeat: usize,
    /// Requests to run together
    #[arg(long, value_delimiter = ',', default_value = "1,4,8,16")]
    batch: Vec<usize>,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

impl Args {
    pub(super) fn run(self) -> anyhow::Result<()> {
        anyhow::ensure!(
            self.steps > 0 && self.prompt_tokens > 0 && self.repeat > 0,
            "nothing to measure"
        );
        anyhow::ensure!(
            self.batch.iter().all(|batch| (1..=1024).contains(batch)),
            "a batch has 1 to 1024 requests"
        );
        let watch = Watch::start()?;
        let (model, load) = timed(|| self.model.load())?;
        let image = grey_noise(model.config());
        let features = model.encode_images(&[&image])?;
        let features = features
            .into_iter()
            .next()
            .context("one image gives one set of features")?;
        let seen = Seen {
            image,
            features: Piece::image(features),
        };
        let stages = self
            .batch
            .iter()
            .map(|batch| self.stage(&model, &seen, *batch))
            .collect::<anyhow::Result<_>>()?;
        let info = model.info();
        let prompt_tokens = seen.features.len() + self.prompt_tokens;
        let held = self.batch.iter().max().unwrap_or(&0) * (prompt_tokens + self.steps);
        let report = Report {
            format: self.model.format.to_string(),
            threads: model.threads(),
            load_seconds: load.as_secs_f64(),
            prompt_tokens,
            kv_bytes_per_token: info.kv_bytes_per_token,
            stages,
            memory: Memory::new(
                info.weight_bytes,
                held * info.kv_bytes_per_token,
                watch.finish(),
            ),
        };
        if self.json {
            println!("{}", serde_json::to_string_pretty(&report)?);
        } else {
            report.print();
        }
        Ok(())
    }

    /// `batch` requests together: images, then prompts, then one token of each at a time.
    fn stage(&self, model: &Model, seen: &Seen, batch: usize) -> anyhow::Result<Stage> {
        let images = vec![&seen.image; batch];
        let vision = median(self.repeat, || {
            let all = || -> anyhow::Result<()> {
                for images in images.chunks(IMAGES_AT_ONCE) {
                    model.encode_images(images)?;
                }
                Ok(())
            };
            Ok(timed(all)?.1)
        })?;
        let prompts: Vec<_> = (0..batch)
            .map(|seed| self.prompt(seen, model.info().vocab, seed))
            .collect();
        let length = positions(&prompts[0]);
        let mut kv = model.new_kv(batch, length + self.steps)?;
        let prefill = median(self.repeat, || {
            (0..batch).for_each(|slot| kv.truncate(slot, 0));
            let all = || -> anyhow::Result<()> {
                for (slot, prompt) in prompts.iter().enumerate() {
                    for start in (0..length).step_by(CHUNK) {
                        let input = slice(prompt, start..start + CHUNK);
                        let part = Part {
                            logits: start + CHUNK >= length,
                            ..Part::prompt(slot, start, input)
                        };
                        model.forward(&mut kv, &[part])?;
                    }
                }
                Ok(())
            };
            Ok(timed(all)?.1)
        })?;
        let mut step = 0;
        let decode = median(self.steps, || {
            let parts: Vec<_> = (0..batch)
                .map(|slot| Part::token(slot, length + step, (slot * 13 + step) as u32 % 100))
                .collect();
            step += 1;
            Ok(timed(|| Ok(model.forward(&mut kv, &parts)?))?.1)
        })?;
        let (prefill, decode) = (prefill.as_secs_f64(), decode.as_secs_f64());
        Ok(Stage {
            batch,
            vision_seconds: vision.as_secs_f64(),
            prefill_seconds: prefill,
            prefill_tokens_per_second: (batch * length) as f64 / prefill,
            step_seconds: decode,
            decode_tokens_per_second: batch as f64 / decode,
        })
    }

    /// The image and text that is another for every `seed`.
    fn prompt(&self, seen: &Seen, vocab: usize, seed: usize) -> Vec<Piece> {
        let ids = (0..self.prompt_tokens).map(|i| ((i * 7919 + seed * 31) % vocab) as u32);
        vec![seen.features.clone(), Piece::Tokens(ids.collect())]
    }
}

/// The image of every request, as it comes and as the language model gets it.
struct Seen {
    image: PixelValues,
    features: Piece,
}

/// One tile of repeatable noise.
fn grey_noise(config: &ModelConfig) -> PixelValues {
    let side = config.vision.image_size;
    let value = |i: usize| (i.wrapping_mul(2_654_435_761) % 4096) as f32 / 1024.0 - 2.0;
    PixelValues {
        values: (0..3 * side * side).map(value).collect(),
        tiles: 1,
        side,
        original: (side as u32, side as u32),
        grid: None,
    }
}

fn timed<T>(work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<(T, Duration)> {
    let start = shell::clock::now();
    let value = work()?;
    Ok((value, shell::clock::now() - start))
}

fn median(
    times: usize,
    mut run: impl FnMut() -> anyhow::Result<Duration>,
) -> anyhow::Result<Duration> {
    let mut all = (0..times)
        .map(|_| run())
        .collect::<anyhow::Result<Vec<_>>>()?;
    all.sort_unstable();
    Ok(all[all.len() / 2])
}
