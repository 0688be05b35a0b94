//! What `bench` found, as a table and as JSON.

use serde::Serialize;

/// What a process may take beside its weights and its keys and values.
const BESIDE: usize = 300 << 20;

/// What was measured. Times are medians in seconds.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// Form of the language model's weights.
    pub(super) format: String,
    pub(super) threads: usize,
    pub(super) load_seconds: f64,
    /// Positions of each prompt: one image and the text.
    pub(super) prompt_tokens: usize,
    pub(super) kv_bytes_per_token: usize,
    pub(super) stages: Vec<Stage>,
    pub(super) memory: Memory,
}

/// The stages of as many requests together.
#[derive(Debug, Serialize)]
pub(super) struct Stage {
    pub(super) batch: usize,
    /// One tile of each through tower and projector.
    pub(super) vision_seconds: f64,
    /// All prompts, one after another.
    pub(super) prefill_seconds: f64,
    pub(super) prefill_tokens_per_second: f64,
    /// One token of each.
    pub(super) step_seconds: f64,
    pub(super) decode_tokens_per_second: f64,
}

/// What the process held, in bytes.
#[derive(Debug, Serialize)]
pub(super) struct Memory {
    pub(super) weight_bytes: usize,
    /// Keys and values of the largest batch.
    pub(super) kv_bytes: usize,
    /// The most at any time since the start, without mapped files; absent where the system does not tell.
    pub(super) peak_bytes: Option<usize>,
    /// Weights, keys and values, and 300 MiB.
    pub(super) allowed_bytes: usize,
    pub(super) within: Option<bool>,
}

impl Memory {
    pub(super) fn new(weight_bytes: usize, kv_bytes: usize, peak_bytes: Option<usize>) -> Self {
        let allowed_bytes = weight_bytes + kv_bytes + BESIDE;
        Self {
            weight_bytes,
            kv_bytes,
            peak_bytes,
            allowed_bytes,
            within: peak_bytes.map(|peak| peak <= allowed_bytes),
        }
    }
}

impl Report {
    pub(super) fn print(&self) {
        let mib = |bytes: usize| bytes as f64 / 1_048_576.0;
        let memory = &self.memory;
        println!("threads  {:>9}", self.threads);
        println!("load     {:>9.3} s", self.load_seconds);
        println!(
            "weights  {:>9.1} MiB, rounded: {}",
            mib(memory.weight_bytes),
            self.format
        );
        println!(
            "kv       {:>9.1} MiB, {:.1} KiB a token",
            mib(memory.kv_bytes),
            self.kv_bytes_per_token as f64 / 1024.0
        );
        if let (Some(peak), Some(within)) = (memory.peak_bytes, memory.within) {
            println!(
                "memory   {:>9.1} MiB at most, {} weights + kv + 300 MiB = {:.1} MiB",
                mib(peak),
                if within { "within" } else { "MORE THAN" },
                mib(memory.allowed_bytes)
            );
        }
        println!(
            "prompt   {:>9} tokens, one image among them",
            self.prompt_tokens
        );
        println!();
        println!("batch   vision s  prefill s   tokens/s     step s   tokens/s");
        for stage in &self.stages {
            println!(
                "{:>5} {:>10.3} {:>10.3} {:>10.1} {:>10.4} {:>10.1}",
                stage.batch,
                stage.vision_seconds,
                stage.prefill_seconds,
                stage.prefill_tokens_per_second,
                stage.step_seconds,
                stage.decode_tokens_per_second
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_within_up_to_300_mib_beside_weights_keys_and_values() {
        let memory = |peak| Memory::new(1000, 200, peak);
        assert_eq!(memory(Some(1200 + BESIDE)).within, Some(true));
        assert_eq!(memory(Some(1201 + BESIDE)).within, Some(false));
        assert_eq!(memory(None).within, None);
    }
}
