//! The flags that say how an answer is made.

use crate::sampling::SamplingParams;
use crate::speaker::AnswerOptions;

/// How tokens are chosen.
#[derive(Debug, clap::Args)]
pub(super) struct SamplingArgs {
    /// 0 always takes the likeliest token
    #[arg(long, default_value_t = 0.2)]
    temperature: f32,
    /// Only the likeliest tokens that together have this probability
    #[arg(long, default_value_t = 1.0)]
    top_p: f32,
    /// Only this many of the likeliest tokens; 0 is all
    #[arg(long, default_value_t = 0)]
    top_k: usize,
    /// Above 1, tokens that were seen are less likely
    #[arg(long, default_value_t = 1.0)]
    repetition_penalty: f32,
    /// Makes the answer repeatable [default: the time]
    #[arg(long)]
    seed: Option<u64>,
    /// Longest answer in tokens
    #[arg(long, default_value_t = 512)]
    max_tokens: usize,
}

impl SamplingArgs {
    /// The options that the flags mean.
    pub(super) fn options(&self) -> anyhow::Result<AnswerOptions> {
        anyhow::ensure!(self.temperature >= 0.0, "--temperature must be at least 0");
        anyhow::ensure!(
            self.top_p > 0.0 && self.top_p <= 1.0,
            "--top-p must be above 0 and at most 1"
        );
        anyhow::ensure!(
            self.repetition_penalty > 0.0,
            "--repetition-penalty must be above 0"
        );
        anyhow::ensure!(self.max_tokens > 0, "--max-tokens must be at least 1");
        Ok(AnswerOptions {
            sampling: SamplingParams {
                temperature: self.temperature,
                top_p: self.top_p,
                top_k: self.top_k,
                repetition_penalty: self.repetition_penalty,
                seed: self.seed.unwrap_or_else(shell::clock::unix_millis),
                ..SamplingParams::default()
            },
            max_tokens: self.max_tokens,
        })
    }
}
