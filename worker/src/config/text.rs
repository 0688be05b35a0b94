//! The language model's part of a configuration: LLaMA (Vicuna, Yi), Mistral
//! and Qwen2, with the defaults that transformers gives to fields that a
//! sparse `text_config` leaves out.

use super::fields::{ConfigError, Fields};

/// What kind of decoder the language model is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextKind {
    /// LLaMA, Vicuna and Yi.
    Llama,
    /// Mistral: LLaMA with grouped heads and, in its first release, a sliding window.
    Mistral,
    /// Qwen1.5 and Qwen2: biases on the query, key and value products.
    Qwen2,
}

/// How rotary frequencies are stretched beyond the trained context.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// As trained.
    None,
    /// Every position divided by the factor.
    Linear(f64),
    /// LLaMA 3's: low frequencies divided, high ones kept, smooth between.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Wavelengths above `original_context / low` are divided.
        low: f64,
        /// Wavelengths below `original_context / high` are kept.
        high: f64,
        /// Tokens of context before stretching.
        original_context: f64,
    },
}

/// A decoder's sizes and switches, checked against each other.
#[derive(Debug, Clone, PartialEq)]
pub struct TextConfig {
    /// Which architecture.
    pub kind: TextKind,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width inside the gated feed-forward.
    pub intermediate: usize,
    /// Number of layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Channels of one head.
    pub head_dim: usize,
    /// Rows of the embedding, padding rows included.
    pub vocab: usize,
    /// Trained context in tokens.
    pub context: usize,
    /// Epsilon of the RMS norms.
    pub norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Stretching of the rotary frequencies.
    pub rope_scaling: RopeScaling,
    /// Tokens that a query may look back, itself included; `None` is all.
    pub sliding_window: Option<usize>,
    /// Whether the query, key and value products have biases.
    pub qkv_bias: bool,
    /// Whether the output product has a bias.
    pub output_bias: bool,
    /// Whether the output head is the embedding itself.
    pub tied: bool,
    /// Tokens that end an answer, as the configuration lists them.
    pub eos: Vec<u32>,
}

struct Defaults {
    intermediate: usize,
    kv_heads: Option<usize>,
    context: usize,
    vocab: usize,
}

impl TextConfig {
    /// Reads the decoder's fields; `kind` is the family that the caller's
    /// `model_type` named.
    pub fn parse(fields: &Fields<'_>, kind: TextKind) -> Result<Self, ConfigError> {
        let defaults = match kind {
            TextKind::Llama => Defaults {
                intermediate: 11008,
                kv_heads: None,
                context: 2048,
                vocab: 32000,
            },
            TextKind::Mistral => Defaults {
                intermediate: 14336,
                kv_heads: Some(8),
                context: 32 * 4096,
                vocab: 32000,
            },
            TextKind::Qwen2 => Defaults {
                intermediate: 22016,
                kv_heads: None,
                context: 32768,
                vocab: 151_936,
            },
        };
        let hidden = fields.count("hidden_size", 4096)?;
        let heads = fields.count("num_attention_heads", 32)?;
        let kv_heads = fields.count("num_key_value_heads", defaults.kv_heads.unwrap_or(heads))?;
        let head_dim = match fields.optional_count("head_dim")? {
            Some(dim) => dim,
            None if hidden.is_multiple_of(heads) => hidden / heads,
            None => {
                return Err(fields.wrong(
                    "num_attention_heads",
                    format!("is {heads}, which does not divide hidden_size {hidden}"),
                ));
            }
        };
        if !head_dim.is_multiple_of(2) {
            return Err(fields.wrong(
                "head_dim",
                format!("is {head_dim}, but rotary positions need an even number"),
            ));
        }
        if !heads.is_multiple_of(kv_heads) {
            return Err(fields.wrong(
                "num_key_value_heads",
                format!("is {kv_heads}, which does not divide num_attention_heads {heads}"),
            ));
        }
        match fields.text("hidden_act")? {
            None | Some("silu") => {}
            Some(other) => {
                return Err(fields.wrong(
                    "hidden_act",
                    format!("is `{other}`, but only `silu` is known"),
                ));
            }
        }
        let (rope_theta, rope_scaling) = rope(fields)?;
        let attention_bias = fields.flag("attention_bias", false)?;
        Ok(Self {
            kind,
            hidden,
            intermediate: fields.count("intermediate_size", defaults.intermediate)?,
            layers: fields.count("num_hidden_layers", 32)?,
            heads,
            kv_heads,
            head_dim,
            vocab: fields.count("vocab_size", defaults.vocab)?,
            context: fields.count("max_position_embeddings", defaults.context)?,
            norm_eps: fields.positive("rms_norm_eps", 1e-6)?,
            rope_theta,
            rope_scaling,
            sliding_window: sliding_window(fields, kind)?,
            qkv_bias: kind == TextKind::Qwen2 || attention_bias,
            output_bias: kind == TextKind::Llama && attention_bias,
            tied: fields.flag("tie_word_embeddings", false)?,
            eos: fields.tokens("eos_token_id")?,
        })
    }
}

/// Qwen2 names a window but uses it only where `use_sliding_window` says so;
/// Mistral uses it whenever it is not null, with a default of 4096 where the
/// field is missing altogether.
fn sliding_window(fields: &Fields<'_>, kind: TextKind) -> Result<Option<usize>, ConfigError> {
    match kind {
        TextKind::Llama => Ok(None),
        TextKind::Mistral if !fields.has("sliding_window") => Ok(Some(4096)),
        TextKind::Mistral => fields.optional_count("sliding_window"),
        TextKind::Qwen2 if fields.flag("use_sliding_window", false)? => Err(fields.wrong(
            "use_sliding_window",
            "is true, but Qwen2 with windows in some of its layers is not supported",
        )),
        TextKind::Qwen2 => Ok(None),
    }
}

fn rope(fields: &Fields<'_>) -> Result<(f64, RopeScaling), ConfigError> {
    let parameters = fields.object("rope_parameters")?;
    let theta = match parameters {
        Some(inner) => inner.positive("rope_theta", 10_000.0)?,
        None => fields.positive("rope_theta", 10_000.0)?,
    };
    let Some(scaling) = (match parameters {
        Some(inner) => Some(inner),
        None => fields.object("rope_scaling")?,
    }) else {
        return Ok((theta, RopeScaling::None));
    };
    let kind = match scaling.text("rope_type")? {
        Some(kind) => kind,
        None => scaling.text("type")?.unwrap_or("default"),
    };
    let scaling = match kind {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear(scaling.positive("factor", 1.0)?),
        "llama3" => RopeScaling::Llama3 {
            factor: scaling.positive("factor", 8.0)?,
            low: scaling.positive("low_freq_factor", 1.0)?,
            high: scaling.positive("high_freq_factor", 4.0)?,
            original_context: scaling.positive("original_max_position_embeddings", 8192.0)?,
        },
        other => {
            return Err(scaling.wrong(
                "rope_type",
                format!("is `{other}`, but only default, linear and llama3 are known"),
            ));
        }
    };
    Ok((theta, scaling))
}
