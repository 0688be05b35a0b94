//! The request fields that chat and plain completions share. A body is read
//! twice, once for these and once for its own fields, so that an error can
//! name the exact field.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// How to answer; every field may be absent or null.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Options {
    /// The model asked for.
    pub model: Option<String>,
    /// Longest answer in tokens, the older name.
    pub max_tokens: Option<u64>,
    /// Longest answer in tokens.
    pub max_completion_tokens: Option<u64>,
    /// 0 is greedy; 1 the model's own distribution.
    pub temperature: Option<f64>,
    /// Share of the probability that is sampled from.
    pub top_p: Option<f64>,
    /// Number of tokens that are sampled from; 0 or −1 is all (an extension that vLLM and others have).
    pub top_k: Option<i64>,
    /// Divides the logits of tokens seen before (an extension that vLLM and others have).
    pub repetition_penalty: Option<f64>,
    /// Taken from the logit of each token that the answer holds already.
    pub presence_penalty: Option<f64>,
    /// Taken from a logit once for each time the answer holds the token.
    pub frequency_penalty: Option<f64>,
    /// Added to logits, by token id.
    pub logit_bias: Option<BTreeMap<String, f64>>,
    /// Answers to give.
    pub n: Option<u64>,
    /// Makes sampling repeatable.
    pub seed: Option<i64>,
    /// Texts that end the answer.
    pub stop: Option<Stop>,
    /// Answer as a stream of events.
    pub stream: Option<bool>,
    /// How to stream.
    pub stream_options: Option<StreamOptions>,
}

/// One text or several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Stop {
    /// One text.
    One(String),
    /// Several texts.
    Many(Vec<String>),
}

/// How to stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StreamOptions {
    /// One more chunk with token counts before the end.
    pub include_usage: Option<bool>,
}

impl Options {
    /// The longest answer asked for; the newer name wins.
    #[must_use]
    pub fn longest(&self) -> Option<u64> {
        self.max_completion_tokens.or(self.max_tokens)
    }

    /// Whether the answer is to be a stream.
    #[must_use]
    pub fn streams(&self) -> bool {
        self.stream.unwrap_or(false)
    }

    /// Whether a stream is to end with token counts.
    #[must_use]
    pub fn includes_usage(&self) -> bool {
        self.stream_options
            .and_then(|options| options.include_usage)
            .unwrap_or(false)
    }

    /// All texts that end the answer, empty ones left out.
    #[must_use]
    pub fn stops(&self) -> Vec<String> {
        let stops = match &self.stop {
            None => Vec::new(),
            Some(Stop::One(stop)) => vec![stop.clone()],
            Some(Stop::Many(stops)) => stops.clone(),
        };
        stops.into_iter().filter(|stop| !stop.is_empty()).collect()
    }
}
