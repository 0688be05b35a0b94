//! The language model of every LLaVA: LLaMA's decoder. Vicuna and Yi are
//! LLaMA; Mistral adds a sliding window, Qwen2 biases on query, key and value;
//! both differ in configuration only (`modeling_llama.py`, `modeling_mistral.py`,
//! `modeling_qwen2.py`).

use super::linear::{Linear, Reader};
use crate::config::TextConfig;
use crate::kv::{KvView, Rows};
use crate::model::LoadError;
use crate::ops::{self, RmsNorm};
use crate::rope::Rope;
use crate::weights::Table;
use candle_core::{Result, Tensor};

/// A decoder with its output head.
#[derive(Debug)]
pub(crate) struct Decoder {
    embedding: Table,
    layers: Vec<Layer>,
    norm: RmsNorm,
    head: Linear,
    pub(crate) rope: Rope,
}

#[derive(Debug)]
struct Layer {
    input_norm: RmsNorm,
    qkv: Linear,
    output: Linear,
    post_norm: RmsNorm,
    gate_up: Linear,
    down: Linear,
}

impl Decoder {
    pub(crate) fn load(
        reader: Reader<'_>,
        head_reader: Reader<'_>,
        config: &TextConfig,
    ) -> std::result::Result<Self, LoadError> {
        let table = [config.vocab, config.hidden];
        let tied = config.tied && !reader.weights.has("head.weight");
        let head = if tied { "text.embed_tokens" } else { "head" };
        // The head is the largest weight: while it is widened to be packed, the
        // layers must not be in memory yet.
        let head = head_reader.linear(&[(head, config.vocab)], config.hidden, false)?;
        let layers = (0..config.layers)
            .map(|index| Layer::load(reader, config, &format!("text.layers.{index}")))
            .collect::<std::result::Result<_, _>>()?;
        Ok(Self {
            embedding: reader.weights.table("text.embed_tokens.weight", &table)?,
            layers,
            norm: reader.rms_norm("text.norm", config.hidden, config.norm_eps)?,
            head,
            rope: Rope::new(config),
        })
    }

    /// The embedding's row of a token, written to `row` `[hidden]`.
    pub(crate) fn embed(&self, token: u32, row: &mut [f32]) {
        self.embedding.row(token as usize, row);
    }

    /// Runs all rows `[rows, hidden]` through the layers, storing keys and
    /// values; gives the last hidden states, before the norm.
    pub(crate) fn forward(
        &self,
        mut x: Tensor,
        kv: &mut KvView<'_>,
        rows: &Rows,
    ) -> Result<Tensor> {
        for (index, layer) in self.layers.iter().enumerate() {
            x = layer.forward(&x, |qkv| kv.attend(index, qkv, rows))?;
        }
        Ok(x)
    }

    /// Logits `[rows, vocab]` of hidden states.
    pub(crate) fn logits(&self, x: &Tensor) -> Result<Tensor> {
        self.head.forward(&self.norm.forward(x)?)
    }

    pub(crate) fn bytes(&self) -> usize {
        self.products().map(Linear::bytes).sum()
    }

    /// Multiplications with all weights for one row.
    pub(crate) fn multiplications(&self) -> usize {
        self.products().map(Linear::multiplications).sum()
    }

    /// Those of the largest product.
    pub(crate) fn largest(&self) -> usize {
        let each = self.products().map(Linear::multiplications);
        each.max().unwrap_or(0)
    }

    fn products(&self) -> impl Iterator<Item = &Linear> {
        let layers = self.layers.iter().flat_map(Layer::products);
        layers.chain([&self.head])
    }
}

impl Layer {
    fn load(
        reader: Reader<'_>,
        config: &TextConfig,
        name: &str,
    ) -> std::result::Result<Self, LoadError> {
        let (hidden, inner) = (config.hidden, config.intermediate);
        let query = config.heads * config.head_dim;
        let key = config.kv_heads * config.head_dim;
        let part = |part: &str| format!("{name}.{part}");
        Ok(Self {
            input_norm: reader.rms_norm(&part("input_layernorm"), hidden, config.norm_eps)?,
            qkv: reader.linear(
                &[
                    (&part("self_attn.q_proj"), query),
                    (&part("self_attn.k_proj"), key),
                    (&part("self_attn.v_proj"), key),
                ],
                hidden,
                config.qkv_bias,
            )?,
            output: reader.linear(
                &[(&part("self_attn.o_proj"), hidden)],
                query,
                config.output_bias,
            )?,
            post_norm: reader.rms_norm(
                &part("post_attention_layernorm"),
                hidden,
                config.norm_eps,
            )?,
            gate_up: reader.linear(
                &[
                    (&part("mlp.gate_proj"), inner),
                    (&part("mlp.up_proj"), inner),
                ],
                hidden,
                false,
            )?,
            down: reader.linear(&[(&part("mlp.down_proj"), hidden)], inner, false)?,
        })
    }

    fn forward(
        &self,
        x: &Tensor,
        attend: impl FnOnce(&Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let qkv = self.qkv.forward(&self.input_norm.forward(x)?)?;
        let attended = attend(&qkv)?;
        let x = ops::add(x, &self.output.forward(&attended)?)?;
        let gated = ops::silu_times(&self.gate_up.forward(&self.post_norm.forward(&x)?)?)?;
        ops::add(&x, &self.down.forward(&gated)?)
    }

    fn products(&self) -> [&Linear; 4] {
        [&self.qkv, &self.output, &self.gate_up, &self.down]
    }
}
