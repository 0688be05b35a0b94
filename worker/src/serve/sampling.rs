//! From the fields of a request to checked values.

use protocol::openai::Options;

use super::limits::LimitArgs;
use super::refusal::Refusal;
use crate::sampling::SamplingParams;

/// Alternatives that may be listed for each token.
pub(super) const MAX_TOP_LOGPROBS: u64 = 20;
const MAX_STOPS: usize = 16;
const MAX_STOP_CHARACTERS: usize = 256;
const MAX_BIASES: usize = 1024;

/// How the answers to one request are made.
#[derive(Clone, Debug)]
pub(super) struct Generation {
    /// How tokens are chosen; answer `i` adds `i` to the seed.
    pub sampling: SamplingParams,
    /// Longest answer in tokens; `None` leaves it to the context.
    pub max_tokens: Option<usize>,
    /// Texts that end an answer, beside the template's.
    pub stop: Vec<String>,
    /// Answers wanted.
    pub answers: usize,
}

/// Checks the options of a request.
///
/// # Errors
/// 400 that names the field.
pub(super) fn check(options: &Options, limits: &LimitArgs) -> Result<Generation, Refusal> {
    let within = |name: &str, value: Option<f64>, default: f64, low: f64, high: f64| {
        let value = value.unwrap_or(default);
        if (low..=high).contains(&value) {
            Ok(value as f32)
        } else {
            Err(Refusal::value(
                name,
                format!("`{name}` must be from {low} to {high}"),
            ))
        }
    };
    let top_p = within("top_p", options.top_p, 1.0, 0.0, 1.0)?;
    let answers = options.n.unwrap_or(1);
    if answers == 0 || answers > limits.max_answers as u64 {
        return Err(Refusal::value(
            "n",
            format!("`n` must be from 1 to {}", limits.max_answers),
        ));
    }
    let top_k = options.top_k.unwrap_or(0);
    if top_k < -1 {
        return Err(Refusal::value("top_k", "`top_k` must be -1, 0 or more"));
    }
    if options.stream_options.is_some() && !options.streams() {
        return Err(Refusal::value(
            "stream_options",
            "`stream_options` needs `stream`: true",
        ));
    }
    let max_tokens = match options.longest() {
        Some(0) => {
            let name = if options.max_completion_tokens.is_some() {
                "max_completion_tokens"
            } else {
                "max_tokens"
            };
            return Err(Refusal::value(name, format!("`{name}` must be at least 1")));
        }
        longest => longest.map(|longest| usize::try_from(longest).unwrap_or(usize::MAX)),
    };
    Ok(Generation {
        sampling: SamplingParams {
            temperature: within("temperature", options.temperature, 1.0, 0.0, 2.0)?,
            // 0 would leave nothing to choose from: the most probable token stays.
            top_p: top_p.max(f32::MIN_POSITIVE),
            top_k: usize::try_from(top_k).unwrap_or(0),
            repetition_penalty: within(
                "repetition_penalty",
                options.repetition_penalty,
                1.0,
                0.01,
                10.0,
            )?,
            presence_penalty: within("presence_penalty", options.presence_penalty, 0.0, -2.0, 2.0)?,
            frequency_penalty: within(
                "frequency_penalty",
                options.frequency_penalty,
                0.0,
                -2.0,
                2.0,
            )?,
            logit_bias: biases(options)?,
            seed: options
                .seed
                .map_or_else(rand::random, |seed| seed.cast_unsigned()),
        },
        max_tokens,
        stop: stops(options)?,
        answers: answers as usize,
    })
}

fn stops(options: &Options) -> Result<Vec<String>, Refusal> {
    let stops = options.stops();
    if stops.len() > MAX_STOPS {
        return Err(Refusal::value(
            "stop",
            format!("`stop` must hold at most {MAX_STOPS} texts"),
        ));
    }
    if stops
        .iter()
        .any(|stop| stop.chars().count() > MAX_STOP_CHARACTERS)
    {
        return Err(Refusal::value(
            "stop",
            format!("a `stop` text must have at most {MAX_STOP_CHARACTERS} characters"),
        ));
    }
    Ok(stops)
}

fn biases(options: &Options) -> Result<Vec<(u32, f32)>, Refusal> {
    let Some(biases) = &options.logit_bias else {
        return Ok(Vec::new());
    };
    if biases.len() > MAX_BIASES {
        return Err(Refusal::value(
            "logit_bias",
            format!("`logit_bias` must hold at most {MAX_BIASES} tokens"),
        ));
    }
    biases
        .iter()
        .map(|(token, &bias)| {
            let token = token.parse().map_err(|_| {
                Refusal::value("logit_bias", "the keys of `logit_bias` must be token ids")
            })?;
            if (-100.0..=100.0).contains(&bias) {
                Ok((token, bias as f32))
            } else {
                Err(Refusal::value(
                    "logit_bias",
                    "a bias must be from -100 to 100",
                ))
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(json: &str) -> Result<Generation, Refusal> {
        let limits = LimitArgs::usual();
        check(&serde_json::from_str(json).unwrap(), &limits)
    }

    #[test]
    fn values_out_of_bounds_name_their_field() {
        for (json, param) in [
            (r#"{"temperature": 2.5}"#, "temperature"),
            (r#"{"temperature": -1}"#, "temperature"),
            (r#"{"top_p": 1.1}"#, "top_p"),
            (r#"{"top_k": -2}"#, "top_k"),
            (r#"{"n": 0}"#, "n"),
            (r#"{"n": 9999}"#, "n"),
            (r#"{"max_tokens": 0}"#, "max_tokens"),
            (r#"{"max_completion_tokens": 0}"#, "max_completion_tokens"),
            (r#"{"presence_penalty": 3}"#, "presence_penalty"),
            (r#"{"frequency_penalty": -3}"#, "frequency_penalty"),
            (r#"{"repetition_penalty": 0}"#, "repetition_penalty"),
            (r#"{"logit_bias": {"a": 1}}"#, "logit_bias"),
            (r#"{"logit_bias": {"1": 101}}"#, "logit_bias"),
            (
                r#"{"stream_options": {"include_usage": true}}"#,
                "stream_options",
            ),
        ] {
            let refusal = checked(json).unwrap_err();
            assert_eq!(refusal.error.param.as_deref(), Some(param), "{json}");
            assert_eq!(refusal.status, 400);
        }
    }

    #[test]
    fn nulls_are_defaults_and_the_newer_name_wins() {
        let none = checked(r#"{"temperature": null, "stop": null, "n": null, "logit_bias": null}"#)
            .unwrap();
        assert_eq!(
            (none.answers, none.max_tokens, none.stop.len()),
            (1, None, 0)
        );
        let both = checked(
            r#"{"max_tokens": 5, "max_completion_tokens": 7, "stop": ["", "x"], "seed": -1}"#,
        )
        .unwrap();
        assert_eq!(
            (both.max_tokens, both.stop),
            (Some(7), vec!["x".to_owned()])
        );
        assert_eq!(both.sampling.seed, u64::MAX);
    }
}
