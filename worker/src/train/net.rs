//! The forward pass of a LLaVA model over a packed batch: tower, projector, and
//! language model, as differentiable operations on named weights.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Result, Tensor, bail};

use super::batch::{Batch, TowerBatch};
use super::lora::Lora;
use super::ops::{
    Attention, Rope, Segments, attention, cross_entropy, layer_norm, linear, quick_gelu, rms_norm,
    swiglu,
};
use super::params::Params;
use super::recompute::Tape;
use crate::config::{Activation, ModelConfig, RopeScaling, VisionKind};

/// A model whose trained weights record gradients and whose frozen ones do not.
#[derive(Debug)]
pub struct Net<'a> {
    config: &'a ModelConfig,
    weights: BTreeMap<String, Tensor>,
    rope: Rope,
    lora: Option<&'a Lora>,
    dtype: DType,
    /// Chooses what dropout drops; none is dropped without it.
    noise: Option<u64>,
    /// Where layers are recorded that the backward pass computes again.
    tape: Option<Tape<Layer>>,
}

/// A layer by its place, and how its tokens attend to one another.
#[derive(Debug)]
struct Layer {
    place: Place,
    shape: Arc<Attention>,
}

#[derive(Debug, Clone, Copy)]
enum Place {
    Tower(usize),
    Text(usize),
}

impl<'a> Net<'a> {
    /// Prepares `params` for a pass: those in `trained` record gradients. `dtype` is the
    /// type of the arithmetic; the weights stay f32.
    ///
    /// # Errors
    /// When the configuration asks for something that is not trained here.
    pub fn new(
        config: &'a ModelConfig,
        params: &Params,
        trained: &BTreeSet<String>,
        rope: &Rope,
        lora: Option<&'a Lora>,
        dtype: DType,
    ) -> Result<Self> {
        let prepared = params.iter().map(|(name, var)| {
            let tensor = match trained.contains(name) {
                true => var.as_tensor().clone(),
                false => var.as_detached_tensor(),
            };
            Ok((name.to_owned(), tensor.to_dtype(dtype)?))
        });
        let weights = prepared.collect::<Result<_>>()?;
        Ok(Self {
            config,
            weights,
            rope: rope.clone(),
            lora,
            dtype,
            noise: None,
            tape: None,
        })
    }

    /// Drops by this seed in the adapters' inputs.
    #[must_use]
    pub fn with_noise(self, seed: u64) -> Self {
        Self {
            noise: Some(seed),
            ..self
        }
    }

    /// Keeps of each layer its input alone, and computes the rest again in [`Self::gradients`].
    #[must_use]
    pub fn with_checkpointing(self, on: bool) -> Self {
        Self {
            tape: on.then(Tape::default),
            ..self
        }
    }

    /// Gradients of `loss`, which this net computed.
    ///
    /// # Errors
    /// When the device fails.
    pub fn gradients(&self, loss: &Tensor) -> Result<GradStore> {
        match &self.tape {
            Some(tape) => tape.backward(loss, |x, layer| self.compute(x, layer)),
            None => loss.backward(),
        }
    }

    /// The rotary angles of `config`.
    ///
    /// # Errors
    /// When the configuration stretches them.
    pub fn rope(config: &ModelConfig) -> Result<Rope> {
        let t = &config.text;
        let factor = match t.rope_scaling {
            RopeScaling::None => 1.0,
            RopeScaling::Linear(factor) => factor,
            RopeScaling::Llama3 { .. } => {
                bail!("training with llama3 rope scaling is not supported")
            }
        };
        Ok(Rope::new(
            t.context.min(config.max_length.max(1)),
            t.head_dim,
            t.rope_theta,
            factor,
        ))
    }

    /// The summed loss over the batch's learned tokens, a scalar.
    ///
    /// # Errors
    /// When a weight is missing or the device fails.
    pub fn loss(&self, batch: &Batch) -> Result<Tensor> {
        cross_entropy(&self.logits(batch)?, &batch.targets)
    }

    /// Logits at the positions before each learned token: `[learned, vocabulary]`.
    ///
    /// # Errors
    /// When a weight is missing or the device fails.
    pub fn logits(&self, batch: &Batch) -> Result<Tensor> {
        let device = self.device()?;
        let embed = self.weight("language_model.model.embed_tokens.weight")?;
        let ids = Tensor::new(batch.ids.as_slice(), &device)?;
        let mut rows = embed.index_select(&ids, 0)?;
        if let Some(patches) = &batch.patches {
            let features = self.features(patches, batch.images)?;
            let images = self.project(&features)?;
            rows = Tensor::cat(&[rows, images], 0)?;
            rows = rows.index_select(&Tensor::new(batch.order.as_slice(), &device)?, 0)?;
        }
        let hidden = self.text(rows, &batch.segments)?;
        let learned = Tensor::new(batch.learned.as_slice(), &device)?;
        let hidden = hidden.index_select(&learned, 0)?;
        let hidden = self.rms(&hidden, "language_model.model.norm")?;
        match self.config.text.tied {
            true => linear(&hidden, embed, None),
            false => self.linear(&hidden, "language_model.lm_head"),
        }
    }

    /// The summed loss of the per-patch labels over the batch, a scalar.
    ///
    /// # Errors
    /// When a weight is missing or the device fails.
    pub fn tower_loss(&self, batch: &TowerBatch) -> Result<Tensor> {
        let features = self.features(&batch.patches, batch.images)?;
        let mut total = None;
        for (i, targets) in batch.targets.iter().enumerate() {
            let logits = self.linear(&features, &head_name(i))?;
            let loss = cross_entropy(&logits, targets)?;
            total = Some(match total {
                None => loss,
                Some(sum) => (sum + loss)?,
            });
        }
        match total {
            Some(total) => Ok(total),
            None => bail!("a tower batch without labels"),
        }
    }

    /// Floating-point operations of a forward pass over sequences at `segments`, `images` images
    /// and `learned` rows of logits; products alone, which is nearly all.
    pub fn flops(&self, segments: &[usize], images: usize, learned: usize) -> f64 {
        let (t, v) = (&self.config.text, &self.config.vision);
        let products = |prefix: &str| -> f64 {
            (self.weights.iter())
                .filter(|(name, w)| {
                    name.starts_with(prefix) && w.dims().len() > 1 && !name.contains("embed")
                })
                .map(|(_, w)| w.elem_count() as f64)
                .sum()
        };
        let side = v.side().pow(2) as f64;
        let tower_tokens = images as f64 * side;
        let depth = self.config.tower_layers as f64;
        let tower = products("vision_tower.") * depth / v.layers.max(1) as f64
            + (3 * v.patch_size * v.patch_size * v.hidden) as f64
            + 2.0 * depth * side * v.hidden as f64;
        let seen: f64 = segments
            .windows(2)
            .map(|w| ((w[1] - w[0]) as f64).powi(2))
            .sum();
        let tokens = segments.last().copied().unwrap_or(0) as f64;
        let text = products("language_model.model.layers.") * tokens
            + (t.layers * t.heads * t.head_dim) as f64 * seen
            + (t.vocab * t.hidden * learned) as f64;
        let projector = if tokens > 0.0 {
            products("multi_modal_projector.")
        } else {
            0.0
        };
        2.0 * (text + (tower + projector) * tower_tokens)
    }

    /// The tower's features `[images · tokens, hidden]` of `patches` `[images · side², 3 · patch²]`.
    fn features(&self, patches: &Tensor, images: usize) -> Result<Tensor> {
        let v = &self.config.vision;
        let (tokens, clip) = (v.side() * v.side(), v.kind == VisionKind::Clip);
        let name = |rest: &str| format!("vision_tower.vision_model.{rest}");
        let kernel = self
            .weight(&name("embeddings.patch_embedding.weight"))?
            .flatten_from(1)?;
        let bias = self.weights.get(&name("embeddings.patch_embedding.bias"));
        let x = linear(&patches.to_dtype(self.dtype)?, &kernel, bias)?;
        let mut x = x.reshape((images, tokens, v.hidden))?;
        if clip {
            let class = self.weight(&name("embeddings.class_embedding"))?;
            let class = class
                .reshape((1, 1, v.hidden))?
                .broadcast_as((images, 1, v.hidden))?;
            x = Tensor::cat(&[&class.contiguous()?, &x], 1)?;
        }
        x = x.broadcast_add(self.weight(&name("embeddings.position_embedding.weight"))?)?;
        let tokens = tokens + usize::from(clip);
        let mut x = x.reshape((images * tokens, v.hidden))?;
        if clip {
            x = self.layer_norm(&x, &name("pre_layrnorm"))?;
        }
        let shape = Arc::new(Attention {
            segments: (0..=images).map(|i| i * tokens).collect(),
            heads: v.heads,
            kv_heads: v.heads,
            head_dim: v.hidden / v.heads,
            causal: false,
            rope: None,
        });
        for i in 0..self.config.tower_layers {
            x = self.layer(x, Place::Tower(i), &shape)?;
        }
        if clip && !self.config.keep_class {
            let kept = x
                .reshape((images, tokens, v.hidden))?
                .narrow(1, 1, tokens - 1)?;
            x = kept
                .contiguous()?
                .reshape((images * (tokens - 1), v.hidden))?;
        }
        Ok(x)
    }

    fn project(&self, features: &Tensor) -> Result<Tensor> {
        let mut x = features.clone();
        for i in 1..=self.config.projector.depth {
            if i > 1 {
                x = self.activate(&x, self.config.projector.activation)?;
            }
            x = self.linear(&x, &format!("multi_modal_projector.linear_{i}"))?;
        }
        Ok(x)
    }

    fn text(&self, mut x: Tensor, segments: &Segments) -> Result<Tensor> {
        let t = &self.config.text;
        let longest = segments.windows(2).map(|w| w[1] - w[0]).max().unwrap_or(0);
        if longest > self.rope.positions() {
            bail!(
                "a sequence of {longest} tokens is longer than the model's {}",
                self.rope.positions()
            );
        }
        let shape = Arc::new(Attention {
            segments: segments.clone(),
            heads: t.heads,
            kv_heads: t.kv_heads,
            head_dim: t.head_dim,
            causal: true,
            rope: Some(self.rope.clone()),
        });
        for i in 0..t.layers {
            x = self.layer(x, Place::Text(i), &shape)?;
        }
        Ok(x)
    }

    fn layer(&self, x: Tensor, place: Place, shape: &Arc<Attention>) -> Result<Tensor> {
        let shape = shape.clone();
        let layer = Layer { place, shape };
        match &self.tape {
            Some(tape) => tape.forward(x, layer, |x, layer| self.compute(x, layer)),
            None => self.compute(&x, &layer),
        }
    }

    fn compute(&self, x: &Tensor, layer: &Layer) -> Result<Tensor> {
        match layer.place {
            Place::Tower(i) => self.tower_layer(x, i, &layer.shape),
            Place::Text(i) => self.text_layer(x, i, &layer.shape),
        }
    }

    fn tower_layer(&self, x: &Tensor, i: usize, shape: &Attention) -> Result<Tensor> {
        let layer = format!("vision_tower.vision_model.encoder.layers.{i}");
        let h = self.layer_norm(x, &format!("{layer}.layer_norm1"))?;
        let h = self.attend(&h, &format!("{layer}.self_attn"), "out_proj", shape)?;
        let x = (x + h)?;
        let h = self.layer_norm(&x, &format!("{layer}.layer_norm2"))?;
        let h = self.linear(&h, &format!("{layer}.mlp.fc1"))?;
        let h = self.activate(&h, self.config.vision.activation)?;
        x + self.linear(&h, &format!("{layer}.mlp.fc2"))?
    }

    fn text_layer(&self, x: &Tensor, i: usize, shape: &Attention) -> Result<Tensor> {
        let layer = format!("language_model.model.layers.{i}");
        let h = self.rms(x, &format!("{layer}.input_layernorm"))?;
        let h = self.attend(&h, &format!("{layer}.self_attn"), "o_proj", shape)?;
        let x = (x + h)?;
        let h = self.rms(&x, &format!("{layer}.post_attention_layernorm"))?;
        let gate = self.linear(&h, &format!("{layer}.mlp.gate_proj"))?;
        let up = self.linear(&h, &format!("{layer}.mlp.up_proj"))?;
        x + self.linear(&swiglu(&gate, &up)?, &format!("{layer}.mlp.down_proj"))?
    }

    fn attend(&self, x: &Tensor, name: &str, out: &str, shape: &Attention) -> Result<Tensor> {
        let [q, k, v] =
            ["q_proj", "k_proj", "v_proj"].map(|part| self.linear(x, &format!("{name}.{part}")));
        self.linear(&attention(&q?, &k?, &v?, shape)?, &format!("{name}.{out}"))
    }

    /// A product by name, with its bias and its adapter where it has them.
    fn linear(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let bias = self.weights.get(&format!("{name}.bias"));
        let y = linear(x, self.weight(&format!("{name}.weight"))?, bias)?;
        let down = self.weights.get(&format!("{name}.lora_A.weight"));
        let (Some(lora), Some(down)) = (self.lora, down) else {
            return Ok(y);
        };
        let up = self.weight(&format!("{name}.lora_B.weight"))?;
        let dropped = match self.noise {
            Some(seed) if lora.dropout > 0.0 => lora.drop(x, name, seed)?,
            _ => x.clone(),
        };
        let low = linear(&linear(&dropped, down, None)?, up, None)?;
        y + (low * lora.scale())?
    }

    fn activate(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        match activation {
            Activation::QuickGelu => quick_gelu(x),
            Activation::Gelu => x.gelu_erf(),
            Activation::GeluTanh => x.gelu(),
        }
    }

    fn rms(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let eps = self.config.text.norm_eps as f32;
        rms_norm(x, self.weight(&format!("{name}.weight"))?, eps)
    }

    fn layer_norm(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let (weight, bias) = (format!("{name}.weight"), format!("{name}.bias"));
        let eps = self.config.vision.norm_eps as f32;
        layer_norm(x, self.weight(&weight)?, self.weight(&bias)?, eps)
    }

    fn weight(&self, name: &str) -> Result<&Tensor> {
        match self.weights.get(name) {
            Some(weight) => Ok(weight),
            None => bail!("the model has no weight {name}"),
        }
    }

    fn device(&self) -> Result<Device> {
        Ok(self
            .weight("language_model.model.embed_tokens.weight")?
            .device()
            .clone())
    }
}

/// The output layer of one set of per-patch labels.
pub fn head_name(index: usize) -> String {
    format!("patch_head.{index}")
}
