//! `config.json` and the files of image processing, from one layout to the other:
//! built from the checked configuration, so that what cannot be said in the wanted
//! layout is refused here and not lost.

use serde_json::{Map, Value, json};

use crate::config::{
    Activation, Aspect, Family, ModelConfig, RopeScaling, TextConfig, TextKind, VisionConfig,
    VisionKind,
};
use crate::image::{Filter, Mode, ProcessorConfig};

/// The word that stands for an image in transformers' vocabularies.
pub(super) const IMAGE_WORD: &str = "<image>";

/// transformers' `config.json`, with `<image>` as token `image` of `vocabulary` rows.
/// `raw` is LLaVA's.
pub(super) fn transformers(
    model: &ModelConfig,
    raw: &Map<String, Value>,
    image: u32,
    vocabulary: usize,
) -> Result<Value, String> {
    let shape = &model.image;
    if model.projector.depth != 2 {
        return Err(format!(
            "has a projector of {} products, but transformers' LLaVA has two",
            model.projector.depth
        ));
    }
    if shape.aspect == Aspect::Anyres && !(shape.spatial && shape.unpad) {
        return Err(
            "lays tiles out flat or with their padding, but transformers' LLaVA-NeXT only without"
                .to_owned(),
        );
    }
    let (kind, class) = match model.family {
        Family::Llava => ("llava", "LlavaForConditionalGeneration"),
        Family::LlavaNext => ("llava_next", "LlavaNextForConditionalGeneration"),
        Family::OneVision => ("llava_onevision", "LlavaOnevisionForConditionalGeneration"),
    };
    let mut text = text(&model.text, raw);
    text["model_type"] = json!(text_kind(model.text.kind));
    text["vocab_size"] = json!(vocabulary);
    let siglip = model.vision.kind == VisionKind::Siglip;
    let mut config = json!({
        "architectures": [class], "model_type": kind,
        "image_token_index": image, "ignore_index": -100,
        "image_seq_length": model.vision.side().pow(2) + usize::from(model.keep_class),
        "projector_hidden_act": "gelu", "multimodal_projector_bias": true,
        "tie_word_embeddings": model.text.tied,
        "text_config": text, "vision_config": vision(&model.vision, tower_layers(model)),
        "vision_feature_layer": if siglip { -1 } else { select(model) },
        "vision_feature_select_strategy": if siglip || model.keep_class { "full" } else { "default" },
        "torch_dtype": raw.get("torch_dtype").cloned().unwrap_or(json!("float16")),
    });
    if shape.aspect == Aspect::Anyres {
        config["image_grid_pinpoints"] = height_first(model);
        config["use_image_newline_parameter"] = json!(true);
    }
    if let (Family::OneVision, Some(tiles)) = (model.family, shape.max_tiles) {
        config["vision_aspect_ratio"] = json!(format!("anyres_max_{tiles}"));
    }
    Ok(config)
}

/// LLaVA's `config.json`, the tower in the folder `vision_tower`. `raw` is
/// transformers', `processor` what prepares its images.
pub(super) fn original(
    model: &ModelConfig,
    raw: &Map<String, Value>,
    processor: Option<&ProcessorConfig>,
) -> Result<Value, String> {
    let shape = &model.image;
    if !model.projector.bias || model.projector.activation != Activation::Gelu {
        return Err("has a projector without bias or GELU, but LLaVA's has both".to_owned());
    }
    if shape.aspect == Aspect::Anyres && shape.newline != shape.unpad {
        return Err(
            "cuts padding away without newlines, but LLaVA then always ends rows with one"
                .to_owned(),
        );
    }
    let (kind, class) = match model.text.kind {
        TextKind::Llama => ("llava_llama", "LlavaLlamaForCausalLM"),
        TextKind::Mistral => ("llava_mistral", "LlavaMistralForCausalLM"),
        TextKind::Qwen2 => ("llava_qwen", "LlavaQwenForCausalLM"),
    };
    let inner = raw.get("text_config").and_then(Value::as_object);
    let mut config = text(&model.text, inner.unwrap_or(raw));
    let ratio = match (
        &model.image.aspect,
        processor.map(|processor| &processor.alone),
    ) {
        (Aspect::Anyres, _) => match shape.max_tiles {
            Some(tiles) => format!("anyres_max_{tiles}"),
            None => "anyres".to_owned(),
        },
        (_, Some(Mode::Pad)) => "pad".to_owned(),
        _ => "square".to_owned(),
    };
    let own = json!({
        "architectures": [class], "model_type": kind,
        "mm_vision_tower": "vision_tower", "mm_hidden_size": model.vision.hidden,
        "mm_vision_select_layer": if model.vision.kind == VisionKind::Siglip { -2 } else { select(model) },
        "mm_vision_select_feature": if model.keep_class { "cls_patch" } else { "patch" },
        "mm_projector_type": projector_type(model.projector.depth),
        "mm_patch_merge_type": match (shape.spatial, shape.unpad) {
            (false, _) => "flat",
            (true, false) => "spatial",
            (true, true) => "spatial_unpad",
        },
        "image_aspect_ratio": ratio, "use_mm_proj": true,
        "mm_use_im_start_end": false, "mm_use_im_patch_token": false, "unfreeze_mm_vision_tower": false,
        "tokenizer_padding_side": "right", "tokenizer_model_max_length": model.max_length,
        // LLaVA has no such token; the way back to transformers finds it here.
        "image_token_index": model.image_token,
        "torch_dtype": raw.get("torch_dtype").or(raw.get("dtype")).cloned().unwrap_or(json!("float16")),
    });
    extend(&mut config, own);
    if shape.aspect == Aspect::Anyres {
        let pinpoints: Vec<_> = shape.pinpoints.iter().map(|(w, h)| json!([w, h])).collect();
        config["image_grid_pinpoints"] = json!(pinpoints);
    }
    Ok(config)
}

/// The `config.json` of a tower in a folder of its own. LLaVA drops SigLIP's last
/// layer itself, so one more is named there.
pub(super) fn tower(model: &ModelConfig) -> Value {
    let extra = usize::from(model.vision.kind == VisionKind::Siglip);
    vision(&model.vision, tower_layers(model) + extra)
}

/// The processor's file for a tower in a folder of its own.
pub(super) fn tower_processor(model: &ModelConfig, processor: &ProcessorConfig) -> Value {
    match model.vision.kind {
        VisionKind::Clip => clip_processor("CLIPImageProcessor", processor),
        VisionKind::Siglip => square_processor("SiglipImageProcessor", processor),
    }
}

/// transformers' processor of a whole model.
pub(super) fn processor(model: &ModelConfig, processor: &ProcessorConfig) -> Value {
    let siglip = model.vision.kind == VisionKind::Siglip;
    let mut file = match (model.family, &processor.alone) {
        (Family::Llava, Mode::Pad) => clip_processor("LlavaImageProcessor", processor),
        (Family::Llava, _) if siglip => square_processor("SiglipImageProcessor", processor),
        (Family::Llava, _) => clip_processor("CLIPImageProcessor", processor),
        (Family::LlavaNext, _) => clip_processor("LlavaNextImageProcessor", processor),
        (Family::OneVision, _) => square_processor("LlavaOnevisionImageProcessor", processor),
    };
    if model.image.aspect == Aspect::Anyres {
        file["image_grid_pinpoints"] = height_first(model);
    }
    if model.image.aspect == Aspect::Anyres || processor.alone == Mode::Pad {
        file["do_pad"] = json!(true);
    }
    file
}

/// transformers' `processor_config.json`.
pub(super) fn processor_words(model: &ModelConfig) -> Value {
    let (class, siglip) = (model.family, model.vision.kind == VisionKind::Siglip);
    json!({
        "processor_class": match class {
            Family::Llava => "LlavaProcessor",
            Family::LlavaNext => "LlavaNextProcessor",
            Family::OneVision => "LlavaOnevisionProcessor",
        },
        "image_token": IMAGE_WORD, "patch_size": model.vision.patch_size,
        "num_additional_image_tokens": u32::from(!siglip),
        "num_image_tokens": model.vision.side().pow(2),
        "vision_feature_select_strategy": if siglip || model.keep_class { "full" } else { "default" },
    })
}

/// Layers of the tower that a layout without LLaVA's habits names: SigLIP's are
/// those that run, CLIP's all.
pub(super) fn tower_layers(model: &ModelConfig) -> usize {
    match model.vision.kind {
        VisionKind::Clip => model.vision.layers,
        VisionKind::Siglip => model.tower_layers,
    }
}

/// Which hidden state of CLIP's is taken, from the end.
fn select(model: &ModelConfig) -> i64 {
    model.tower_layers as i64 - model.vision.layers as i64 - 1
}

fn projector_type(depth: usize) -> String {
    match depth {
        0 => "identity".to_owned(),
        1 => "linear".to_owned(),
        _ => format!("mlp{depth}x_gelu"),
    }
}

fn text_kind(kind: TextKind) -> &'static str {
    match kind {
        TextKind::Llama => "llama",
        TextKind::Mistral => "mistral",
        TextKind::Qwen2 => "qwen2",
    }
}

/// The language model's fields; those that the worker does not read come from `raw`.
fn text(text: &TextConfig, raw: &Map<String, Value>) -> Value {
    let mut fields = json!({
        "hidden_size": text.hidden, "intermediate_size": text.intermediate,
        "num_hidden_layers": text.layers, "num_attention_heads": text.heads,
        "num_key_value_heads": text.kv_heads, "head_dim": text.head_dim,
        "vocab_size": text.vocab, "max_position_embeddings": text.context,
        "rms_norm_eps": text.norm_eps, "rope_theta": text.rope_theta,
        "hidden_act": "silu", "tie_word_embeddings": text.tied,
    });
    match text.kind {
        TextKind::Llama => fields["attention_bias"] = json!(text.output_bias),
        TextKind::Mistral => fields["sliding_window"] = json!(text.sliding_window),
        TextKind::Qwen2 => fields["use_sliding_window"] = json!(false),
    }
    let scaling = match text.rope_scaling {
        RopeScaling::None => None,
        RopeScaling::Linear(factor) => {
            Some(json!({ "type": "linear", "rope_type": "linear", "factor": factor }))
        }
        RopeScaling::Llama3 {
            factor,
            low,
            high,
            original_context,
        } => Some(json!({
            "rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
            "original_max_position_embeddings": original_context as u64,
        })),
    };
    if let Some(scaling) = scaling {
        fields["rope_scaling"] = scaling;
    }
    for key in ["bos_token_id", "eos_token_id", "pad_token_id"] {
        if let Some(id) = raw.get(key) {
            fields[key] = id.clone();
        }
    }
    fields
}

fn vision(vision: &VisionConfig, layers: usize) -> Value {
    let mut fields = json!({
        "model_type": match vision.kind {
            VisionKind::Clip => "clip_vision_model",
            VisionKind::Siglip => "siglip_vision_model",
        },
        "hidden_size": vision.hidden, "intermediate_size": vision.intermediate,
        "num_hidden_layers": layers, "num_attention_heads": vision.heads,
        "image_size": vision.image_size, "patch_size": vision.patch_size,
        "layer_norm_eps": vision.norm_eps,
        "hidden_act": match vision.activation {
            Activation::QuickGelu => "quick_gelu",
            Activation::Gelu => "gelu",
            Activation::GeluTanh => "gelu_pytorch_tanh",
        },
    });
    if vision.kind == VisionKind::Siglip {
        fields["vision_use_head"] = json!(false);
    }
    fields
}

/// CLIP's way: the shortest edge resized, the centre cut out.
fn clip_processor(class: &str, processor: &ProcessorConfig) -> Value {
    let mut file = common(class, processor);
    let tile = processor.tile;
    let own = match processor.alone {
        Mode::Stretch => {
            json!({ "size": { "height": tile, "width": tile }, "do_center_crop": false })
        }
        _ => json!({
            "size": { "shortest_edge": processor.shortest_edge },
            "crop_size": { "height": tile, "width": tile }, "do_center_crop": true,
        }),
    };
    extend(&mut file, own);
    file
}

/// SigLIP's way: stretched to the square.
fn square_processor(class: &str, processor: &ProcessorConfig) -> Value {
    let mut file = common(class, processor);
    file["size"] = json!({ "height": processor.tile, "width": processor.tile });
    file
}

fn common(class: &str, processor: &ProcessorConfig) -> Value {
    // As the decimal that was written, not as the nearest double of an f32.
    let decimals = |values: [f32; 3]| {
        let decimal = |value: f32| value.to_string().parse::<f64>().unwrap_or(f64::from(value));
        values.map(decimal)
    };
    json!({
        "image_processor_type": class, "do_resize": true, "do_rescale": true, "do_normalize": true,
        "do_convert_rgb": true, "rescale_factor": 1.0 / 255.0,
        "resample": match processor.filter { Filter::Bilinear => 2, Filter::Bicubic => 3 },
        "image_mean": decimals(processor.mean), "image_std": decimals(processor.std),
    })
}

fn height_first(model: &ModelConfig) -> Value {
    let pairs: Vec<_> = model
        .image
        .pinpoints
        .iter()
        .map(|(w, h)| json!([h, w]))
        .collect();
    json!(pairs)
}

fn extend(to: &mut Value, more: Value) {
    if let (Value::Object(to), Value::Object(more)) = (to, more) {
        to.extend(more);
    }
}
