//! The names and shapes of a LLaVA model's weights in both layouts.

use std::collections::BTreeMap;

use crate::config::{ModelConfig, VisionKind};

/// Names with their shapes, in name order.
pub type Shapes = BTreeMap<String, Vec<usize>>;

const LANGUAGE: &str = "language_model.";
const TOWER: &str = "vision_tower.vision_model.";
const PROJECTOR: &str = "multi_modal_projector.";

/// Whether a weight belongs to the vision tower.
pub fn in_tower(name: &str) -> bool {
    name.starts_with("vision_tower.")
}

/// Whether a weight belongs to the projector.
pub fn in_projector(name: &str) -> bool {
    name.starts_with(PROJECTOR)
}

/// Every weight of a model in transformers' names.
pub fn shapes(config: &ModelConfig) -> Shapes {
    let mut shapes = Shapes::new();
    text(config, &mut shapes);
    tower(config, &mut shapes);
    let (mut inputs, hidden) = (config.vision.hidden, config.text.hidden);
    for i in 1..=config.projector.depth {
        shapes.insert(
            format!("{PROJECTOR}linear_{i}.weight"),
            vec![hidden, inputs],
        );
        if config.projector.bias {
            shapes.insert(format!("{PROJECTOR}linear_{i}.bias"), vec![hidden]);
        }
        inputs = hidden;
    }
    shapes
}

fn text(config: &ModelConfig, shapes: &mut Shapes) {
    let t = &config.text;
    let mut add = |name: String, shape: &[usize]| {
        shapes.insert(format!("{LANGUAGE}{name}"), shape.to_vec());
    };
    add("model.embed_tokens.weight".into(), &[t.vocab, t.hidden]);
    add("model.norm.weight".into(), &[t.hidden]);
    if !t.tied {
        add("lm_head.weight".into(), &[t.vocab, t.hidden]);
    }
    for i in 0..t.layers {
        let layer = format!("model.layers.{i}");
        let (wide, narrow) = (t.heads * t.head_dim, t.kv_heads * t.head_dim);
        for (name, out) in [("q_proj", wide), ("k_proj", narrow), ("v_proj", narrow)] {
            add(format!("{layer}.self_attn.{name}.weight"), &[out, t.hidden]);
            if t.qkv_bias {
                add(format!("{layer}.self_attn.{name}.bias"), &[out]);
            }
        }
        add(
            format!("{layer}.self_attn.o_proj.weight"),
            &[t.hidden, wide],
        );
        if t.output_bias {
            add(format!("{layer}.self_attn.o_proj.bias"), &[t.hidden]);
        }
        add(
            format!("{layer}.mlp.gate_proj.weight"),
            &[t.intermediate, t.hidden],
        );
        add(
            format!("{layer}.mlp.up_proj.weight"),
            &[t.intermediate, t.hidden],
        );
        add(
            format!("{layer}.mlp.down_proj.weight"),
            &[t.hidden, t.intermediate],
        );
        add(format!("{layer}.input_layernorm.weight"), &[t.hidden]);
        add(
            format!("{layer}.post_attention_layernorm.weight"),
            &[t.hidden],
        );
    }
}

fn tower(config: &ModelConfig, shapes: &mut Shapes) {
    let v = &config.vision;
    let clip = v.kind == VisionKind::Clip;
    let mut add = |name: &str, shape: &[usize]| {
        shapes.insert(format!("{TOWER}{name}"), shape.to_vec());
    };
    let positions = v.side() * v.side() + usize::from(clip);
    add(
        "embeddings.patch_embedding.weight",
        &[v.hidden, 3, v.patch_size, v.patch_size],
    );
    add(
        "embeddings.position_embedding.weight",
        &[positions, v.hidden],
    );
    let norms: &[&str] = if clip {
        add("embeddings.class_embedding", &[v.hidden]);
        &["pre_layrnorm", "post_layernorm"]
    } else {
        add("embeddings.patch_embedding.bias", &[v.hidden]);
        &["post_layernorm"]
    };
    for norm in norms {
        add(&format!("{norm}.weight"), &[v.hidden]);
        add(&format!("{norm}.bias"), &[v.hidden]);
    }
    for i in 0..v.layers {
        let layer = format!("encoder.layers.{i}");
        let products = [
            ("self_attn.q_proj", v.hidden, v.hidden),
            ("self_attn.k_proj", v.hidden, v.hidden),
            ("self_attn.v_proj", v.hidden, v.hidden),
            ("self_attn.out_proj", v.hidden, v.hidden),
            ("mlp.fc1", v.intermediate, v.hidden),
            ("mlp.fc2", v.hidden, v.intermediate),
        ];
        for (name, out, inputs) in products {
            add(&format!("{layer}.{name}.weight"), &[out, inputs]);
            add(&format!("{layer}.{name}.bias"), &[out]);
        }
        for norm in ["layer_norm1", "layer_norm2"] {
            add(&format!("{layer}.{norm}.weight"), &[v.hidden]);
            add(&format!("{layer}.{norm}.bias"), &[v.hidden]);
        }
    }
}

/// A stored tensor's name in transformers' classic layout, whoever wrote it.
pub fn canonical(name: &str) -> String {
    let swap = |from: &str, to: &str| name.strip_prefix(from).map(|rest| format!("{to}{rest}"));
    let projector = |prefix: &str| {
        let rest = name.strip_prefix(prefix)?;
        let (index, kind) = rest.split_once('.')?;
        let index: usize = index.parse().ok()?;
        Some(format!("{PROJECTOR}linear_{}.{kind}", index / 2 + 1))
    };
    if name.starts_with(TOWER) {
        return name.to_owned();
    }
    // transformers ≥ 4.52 puts everything under `model.`; 5.x drops `vision_model` too.
    swap("model.language_model.", "language_model.model.")
        .or_else(|| swap("model.vision_tower.vision_tower.vision_model.", TOWER))
        .or_else(|| swap("model.vision_tower.vision_model.", TOWER))
        .or_else(|| swap("model.vision_tower.", TOWER))
        .or_else(|| swap("vision_tower.", TOWER))
        .or_else(|| swap("model.multi_modal_projector.", PROJECTOR))
        .or_else(|| projector("model.mm_projector."))
        .or_else(|| {
            let kind = name.strip_prefix("model.mm_projector.")?;
            Some(format!("{PROJECTOR}linear_1.{kind}"))
        })
        .or_else(|| swap("model.", "language_model.model."))
        .or_else(|| swap("lm_head.", "language_model.lm_head."))
        .unwrap_or_else(|| name.to_owned())
}

/// A weight's name in LLaVA's own layout; `single` for a projector of one product.
pub fn original(name: &str, single: bool) -> String {
    if let Some(rest) = name.strip_prefix("multi_modal_projector.linear_") {
        let (index, kind) = rest.split_once('.').unwrap_or((rest, "weight"));
        let index = index.parse::<usize>().unwrap_or(1).saturating_sub(1) * 2;
        return match single {
            true => format!("model.mm_projector.{kind}"),
            false => format!("model.mm_projector.{index}.{kind}"),
        };
    }
    match name.strip_prefix("vision_tower.") {
        Some(rest) => format!("model.vision_tower.vision_tower.{rest}"),
        None => name.strip_prefix(LANGUAGE).unwrap_or(name).to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_layouts_name_means_the_same_weight() {
        let table = [
            (
                "model.layers.3.mlp.up_proj.weight",
                "language_model.model.layers.3.mlp.up_proj.weight",
            ),
            (
                "model.language_model.norm.weight",
                "language_model.model.norm.weight",
            ),
            ("lm_head.weight", "language_model.lm_head.weight"),
            (
                "model.mm_projector.2.bias",
                "multi_modal_projector.linear_2.bias",
            ),
            (
                "model.mm_projector.weight",
                "multi_modal_projector.linear_1.weight",
            ),
            (
                "model.multi_modal_projector.linear_1.bias",
                "multi_modal_projector.linear_1.bias",
            ),
            (
                "model.vision_tower.vision_tower.vision_model.pre_layrnorm.bias",
                "vision_tower.vision_model.pre_layrnorm.bias",
            ),
            (
                "model.vision_tower.embeddings.class_embedding",
                "vision_tower.vision_model.embeddings.class_embedding",
            ),
        ];
        for (stored, wanted) in table {
            assert_eq!(canonical(stored), wanted);
            assert_eq!(canonical(wanted), wanted, "already canonical");
        }
    }

    #[test]
    fn the_original_layouts_names_come_back() {
        for name in [
            "language_model.model.layers.0.self_attn.q_proj.weight",
            "language_model.lm_head.weight",
            "multi_modal_projector.linear_2.weight",
            "vision_tower.vision_model.encoder.layers.1.mlp.fc1.bias",
        ] {
            assert_eq!(canonical(&original(name, false)), name);
        }
    }
}
