//! `bench`: how fast this machine runs a checkpoint, stage by stage and at
//! several batch sizes, as a table and as JSON.

use crate::commands::model_args::ModelArgs;
use crate::config::ModelConfig;
use crate::input::{Piece, positions};
use crate::kv::KvCache;
use crate::model::{Model, Part};
use crate::pixels::PixelValues;
use anyhow::Context;
use serde::Serialize;
use std::time::Duration;

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
    /// Batch sizes to decode at
    #[arg(long, value_delimiter = ',', default_value = "1,4,8,16")]
    batch: Vec<usize>,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

/// What was measured. Times are medians in seconds.
#[derive(Debug, Serialize)]
struct Report {
    format: String,
    threads: usize,
    load_seconds: f64,
    weight_bytes: usize,
    kv_bytes_per_token: usize,
    /// One tile through tower and projector.
    vision_seconds_per_tile: f64,
    prompt_tokens: usize,
    /// A prompt of one image and the text tokens, alone.
    prefill_seconds: f64,
    prefill_tokens_per_second: f64,
    decode: Vec<Decode>,
    /// Most memory that the process held, without mapped files.
    peak_memory_bytes: Option<usize>,
}

#[derive(Debug, Serialize)]
struct Decode {
    batch: usize,
    step_seconds: f64,
    tokens_per_second: f64,
}

impl Args {
    pub(super) fn run(self) -> anyhow::Result<()> {
        anyhow::ensure!(
            self.steps > 0 && self.prompt_tokens > 0,
            "nothing to measure"
        );
        anyhow::ensure!(
            self.batch.iter().all(|batch| (1..=1024).contains(batch)),
            "a batch has 1 to 1024 sequences"
        );
        let (model, load) = timed(|| self.model.load())?;
        let report = self.measure(&model, load)?;
        if self.json {
            println!("{}", serde_json::to_string_pretty(&report)?);
        } else {
            report.print();
        }
        Ok(())
    }

    fn measure(&self, model: &Model, load: Duration) -> anyhow::Result<Report> {
        let image = grey_noise(model.config());
        let (features, _) = timed(|| Ok(model.encode_images(&[&image])?))?;
        let vision = median(3, || {
            timed(|| Ok(model.encode_images(&[&image])?)).map(|(_, time)| time)
        })?;
        let feature = features
            .into_iter()
            .next()
            .context("one image gives one set of features")?;
        let words = |seed: usize| {
            let vocab = model.info().vocab;
            let ids = (0..self.prompt_tokens).map(|i| ((i * 7919 + seed * 31) % vocab) as u32);
            Piece::Tokens(ids.collect())
        };
        let prompt = vec![Piece::image(feature), words(0)];
        let length = positions(&prompt);
        let mut kv = model.new_kv(1, length + self.steps)?;
        let prefill = median(3, || {
            kv.truncate(0, 0);
            let part = Part::prompt(0, 0, prompt.clone());
            timed(|| Ok(model.forward(&mut kv, &[part])?)).map(|(_, time)| time)
        })?;
        drop(kv);
        let decode = self
            .batch
            .iter()
            .map(|batch| self.decode(model, &prompt, *batch))
            .collect::<anyhow::Result<_>>()?;
        let seconds = prefill.as_secs_f64();
        Ok(Report {
            format: self.model.format.to_string(),
            threads: model.threads(),
            load_seconds: load.as_secs_f64(),
            weight_bytes: model.info().weight_bytes,
            kv_bytes_per_token: model.info().kv_bytes_per_token,
            vision_seconds_per_tile: vision.as_secs_f64() / image.tiles as f64,
            prompt_tokens: length,
            prefill_seconds: seconds,
            prefill_tokens_per_second: length as f64 / seconds,
            decode,
            peak_memory_bytes: peak_memory(),
        })
    }

    fn decode(&self, model: &Model, prompt: &[Piece], batch: usize) -> anyhow::Result<Decode> {
        let length = positions(prompt);
        let mut kv: KvCache = model.new_kv(batch, length + self.steps)?;
        model.forward(&mut kv, &[Part::prompt(0, 0, prompt.to_vec())])?;
        for slot in 1..batch {
            kv.copy_prefix(0, slot, length)?;
        }
        let mut step = 0;
        let time = median(self.steps, || {
            let parts: Vec<_> = (0..batch)
                .map(|slot| Part::token(slot, length + step, (slot * 13 + step) as u32 % 100))
                .collect();
            step += 1;
            timed(|| Ok(model.forward(&mut kv, &parts)?)).map(|(_, time)| time)
        })?;
        Ok(Decode {
            batch,
            step_seconds: time.as_secs_f64(),
            tokens_per_second: batch as f64 / time.as_secs_f64(),
        })
    }
}

impl Report {
    fn print(&self) {
        let mib = |bytes: usize| bytes as f64 / 1_048_576.0;
        println!(
            "weights    {:>10.1} MiB ({})",
            mib(self.weight_bytes),
            self.format
        );
        println!(
            "kv         {:>10.1} KiB per token",
            self.kv_bytes_per_token as f64 / 1024.0
        );
        if let Some(peak) = self.peak_memory_bytes {
            println!("peak       {:>10.1} MiB", mib(peak));
        }
        println!("threads    {:>10}", self.threads);
        println!("load       {:>10.3} s", self.load_seconds);
        println!(
            "vision     {:>10.3} s per tile",
            self.vision_seconds_per_tile
        );
        println!(
            "prefill    {:>10.3} s for {} tokens ({:.0} tokens/s)",
            self.prefill_seconds, self.prompt_tokens, self.prefill_tokens_per_second
        );
        for decode in &self.decode {
            println!(
                "decode {:>3} {:>10.4} s per step ({:.1} tokens/s)",
                decode.batch, decode.step_seconds, decode.tokens_per_second
            );
        }
    }
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

/// The process's largest resident memory so far, where Linux tells it.
fn peak_memory() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kib = |key: &str| -> Option<usize> {
        let line = status.lines().find_map(|line| line.strip_prefix(key))?;
        line.trim().strip_suffix("kB")?.trim().parse().ok()
    };
    Some((kib("VmHWM:")?.saturating_sub(kib("RssFile:")?)) * 1024)
}
