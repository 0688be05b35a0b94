//! A model in another layout, or merged from its parts, answers as before; what a layout
//! has no words for is refused.

use std::fs;
use std::path::{Path, PathBuf};

use llava_worker::config::Aspect;
use llava_worker::convert::{ConvertError, Layout, Target, checkpoint};
use llava_worker::model::{LoadOptions, Model};
use llava_worker::prompt::{Message, Part, PromptRenderer, Role};
use llava_worker::weights::Kind;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::fixture;
use crate::models::vocabulary::{CHECKPOINTS, alone, cases, encode, expected, folder, load, worst};

const TRANSFORMERS: [Layout; 3] = [
    Layout::TransformersClassic,
    Layout::Transformers4,
    Layout::Transformers5,
];

fn to(layout: Layout) -> Target {
    Target {
        layout: Some(layout),
        ..Target::default()
    }
}

fn convert(from: &Path, out: &Path, target: &Target) -> Vec<String> {
    checkpoint(from, out, target, &|_| ()).unwrap()
}

fn open(dir: &Path) -> Model {
    Model::load(dir, &LoadOptions::default(), &|_| ()).unwrap()
}

/// The model answers every case of `checkpoint` as transformers does; its vocabulary may
/// have more rows, which no answer uses.
fn assert_answers_as(checkpoint: &str, model: &Model) {
    for case in cases(checkpoint) {
        let features = encode(model, &case.images());
        let (logits, tokens) = alone(model, case.pieces(&features), case.greedy.len());
        let wanted = expected(checkpoint, &format!("{}.logits", case.name));
        let difference = worst(&logits[..wanted.len()], &wanted);
        assert!(
            difference < 1e-3,
            "{checkpoint} {}: {difference}",
            case.name
        );
        assert_eq!(tokens, case.greedy, "{checkpoint} {}", case.name);
    }
}

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn every_checkpoint_answers_the_same_in_every_layout() {
    let place = TempDir::new().unwrap();
    for checkpoint in CHECKPOINTS {
        let native = load(checkpoint, &LoadOptions::default());
        // transformers has but one projector and one way to lay tiles out: LLaVA's others stay in its layout.
        let image = &native.config().image;
        let others = native.config().projector.depth != 2
            || (image.aspect == Aspect::Anyres && !image.unpad);
        for layout in TRANSFORMERS.into_iter().chain([Layout::Original]) {
            if others && layout != Layout::Original {
                continue;
            }
            let out = place.path().join(format!("{checkpoint}-{layout:?}"));
            convert(&folder(checkpoint), &out, &to(layout));
            let model = open(&out);
            assert_eq!(
                model.config().family,
                native.config().family,
                "{checkpoint}"
            );
            assert_answers_as(checkpoint, &model);
        }
    }
}

#[test]
fn there_and_back_gives_the_same_bits() {
    let place = TempDir::new().unwrap();
    for (checkpoint, layouts) in [
        ("original-inside", [Layout::Transformers5, Layout::Original]),
        (
            "original-next",
            [Layout::TransformersClassic, Layout::Original],
        ),
        (
            "original-onevision",
            [Layout::Transformers4, Layout::Original],
        ),
        ("llava-v5", [Layout::Original, Layout::Transformers5]),
        ("next-mistral", [Layout::Original, Layout::Transformers5]),
        (
            "interleave",
            [Layout::Original, Layout::TransformersClassic],
        ),
        ("onevision", [Layout::Original, Layout::Transformers5]),
    ] {
        let mut from = folder(checkpoint);
        for layout in layouts {
            let out = place.path().join(format!("{checkpoint}-{layout:?}"));
            convert(&from, &out, &to(layout));
            from = out;
        }
        let (before, after) = (load(checkpoint, &LoadOptions::default()), open(&from));
        for case in cases(checkpoint) {
            let images = case.images();
            let (wanted, _) = alone(&before, case.pieces(&encode(&before, &images)), 1);
            let (found, _) = alone(&after, case.pieces(&encode(&after, &images)), 1);
            assert_eq!(found[..wanted.len()], wanted, "{checkpoint} {}", case.name);
        }
    }
}

#[test]
fn an_adapter_or_a_projector_merged_into_its_base_answers_as_on_it() {
    let place = TempDir::new().unwrap();
    for checkpoint in ["lora", "projector-only"] {
        let base = Some(folder("lora-base"));
        let on_base = LoadOptions {
            base: base.clone(),
            ..LoadOptions::default()
        };
        let unmerged = load(checkpoint, &on_base);
        for (kind, layout) in [
            (Some(Kind::F32), None),
            (None, None),
            (Some(Kind::F32), Some(Layout::Transformers5)),
        ] {
            let target = Target {
                layout,
                kind,
                base: base.clone(),
                ..Target::default()
            };
            let out = place
                .path()
                .join(format!("{checkpoint}-{kind:?}-{layout:?}"));
            convert(&folder(checkpoint), &out, &target);
            assert!(!out.join("adapter_config.json").exists());
            let merged = open(&out);
            for case in cases(checkpoint) {
                let images = case.images();
                let (wanted, _) = alone(&unmerged, case.pieces(&encode(&unmerged, &images)), 1);
                let (found, _) = alone(&merged, case.pieces(&encode(&merged, &images)), 1);
                let found = &found[..wanted.len()];
                match kind {
                    Some(_) => assert_eq!(found, wanted, "{checkpoint} {}", case.name),
                    // Merged weights are rounded to the base's f16.
                    None => assert!(worst(found, &wanted) < 0.02, "{checkpoint} {}", case.name),
                }
            }
        }
    }
}

#[test]
fn an_adapter_of_another_model_is_refused() {
    let place = TempDir::new().unwrap();
    let lora = place.path().join("lora");
    copy(&folder("lora"), &lora);
    let base = place.path().join("base");
    copy(&folder("lora-base"), &base);
    let out = place.path().join("out");
    // A base of one layer less, as a smaller model is.
    let path = base.join("model.safetensors");
    let tensors = candle_core::safetensors::load(&path, &candle_core::Device::Cpu).unwrap();
    let kept = tensors
        .into_iter()
        .filter(|(name, _)| !name.contains("layers.1."));
    candle_core::safetensors::save(&kept.collect(), &path).unwrap();
    let target = Target {
        base: Some(base),
        vision_tower: Some(folder("clip-tiny")),
        ..Target::default()
    };
    let error = checkpoint(&lora, &out, &target, &|_| ()).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("layers.1.") && text.contains("base"),
        "{text}"
    );
    assert!(!out.exists());
}

#[test]
fn another_element_type_rounds_every_weight_to_it() {
    let place = TempDir::new().unwrap();
    let out = place.path().join("bf16");
    let target = Target {
        kind: Some(Kind::BF16),
        ..Target::default()
    };
    convert(&folder("llava-classic"), &out, &target);
    let bytes = fs::read(out.join("model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert!(
        file.tensors()
            .iter()
            .all(|(_, tensor)| tensor.dtype() == safetensors::Dtype::BF16)
    );
    assert_eq!(json_of(&out.join("config.json"))["torch_dtype"], "bfloat16");
    // Shards are joined where one file has room for all.
    assert!(!out.join("model.safetensors.index.json").exists());
    open(&out);
}

/// An original checkpoint with a real tokenizer and processor.
fn with_words(place: &Path) -> PathBuf {
    let dir = place.join("with-words");
    copy(&folder("original-inside"), &dir);
    copy(
        &folder("original-inside/vision_tower"),
        &dir.join("vision_tower"),
    );
    fs::copy(
        fixture("prompts/llama/tokenizer.model"),
        dir.join("tokenizer.model"),
    )
    .unwrap();
    let processor = json!({"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 32},
        "crop_size": {"height": 32, "width": 32}, "image_mean": [0.5, 0.25, 0.125], "image_std": [0.5, 0.5, 0.5]});
    fs::write(
        dir.join("vision_tower/preprocessor_config.json"),
        processor.to_string(),
    )
    .unwrap();
    // Rows for the tokenizer's words.
    let path = dir.join("model.safetensors");
    let mut tensors = candle_core::safetensors::load(&path, &candle_core::Device::Cpu).unwrap();
    for name in ["model.embed_tokens.weight", "lm_head.weight"] {
        let wide = candle_core::Tensor::cat(&[&tensors[name]; 8], 0).unwrap();
        tensors.insert(name.to_owned(), wide.narrow(0, 0, 1000).unwrap());
    }
    candle_core::safetensors::save(&tensors, &path).unwrap();
    let mut config = json_of(&dir.join("config.json"));
    config["vocab_size"] = json!(1000);
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    dir
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
        }
    }
}

#[test]
fn transformers_layout_gets_an_image_token_a_processor_and_a_chat_template() {
    let place = TempDir::new().unwrap();
    let from = with_words(place.path());
    let out = place.path().join("out");
    convert(&from, &out, &to(Layout::Transformers5));
    let config = json_of(&out.join("config.json"));
    let id = config["image_token_index"].as_u64().unwrap();
    assert_eq!(json_of(&out.join("added_tokens.json"))["<image>"], id);
    // The vocabulary had rows to spare, so it stays as it is.
    assert!(id < 1000);
    assert_eq!(config["text_config"]["vocab_size"], 1000);
    let processor = json_of(&out.join("preprocessor_config.json"));
    assert_eq!(processor["image_processor_type"], "LlavaImageProcessor");
    assert_eq!(processor["do_pad"], true);
    assert_eq!(processor["image_mean"], json!([0.5, 0.25, 0.125]));

    let conversation = [
        Message::parts(
            Role::User,
            [Part::Image, Part::text("What is <image> this?")],
        ),
        Message::text(Role::Assistant, "A cat."),
        Message::text(Role::User, "And now?"),
    ];
    let render = |dir: &Path| {
        let model = llava_worker::config::ModelConfig::read(dir, None).unwrap();
        let renderer = PromptRenderer::from_checkpoint(dir, &model, None).unwrap();
        renderer.render(&conversation).unwrap()
    };
    let (before, after) = (render(&from), render(&out));
    assert_eq!(after.text, before.text);

    let back = place.path().join("back");
    convert(&out, &back, &to(Layout::Original));
    assert_eq!(
        json_of(&back.join("config.json"))["image_aspect_ratio"],
        "pad"
    );
    let processor = json_of(&back.join("vision_tower/preprocessor_config.json"));
    assert_eq!(processor["image_mean"], json!([0.5, 0.25, 0.125]));
    assert_eq!(render(&back).text, before.text);
}

#[test]
fn every_chat_template_renders_as_llavas_own() {
    let system = [
        Message::text(Role::System, "Be brief."),
        Message::text(Role::User, "Hi"),
    ];
    let talk = [
        Message::parts(Role::User, [Part::Image, Part::text("What?")]),
        Message::text(Role::Assistant, "A cat."),
        Message::text(Role::User, "Sure?"),
    ];
    for (name, chat) in [
        (
            "llava_v1",
            include_str!("../../../src/convert/chat_templates/llava_v1.jinja"),
        ),
        (
            "mistral_instruct",
            include_str!("../../../src/convert/chat_templates/mistral_instruct.jinja"),
        ),
        (
            "chatml_direct",
            include_str!("../../../src/convert/chat_templates/chatml_direct.jinja"),
        ),
        (
            "qwen_1_5",
            include_str!("../../../src/convert/chat_templates/qwen_1_5.jinja"),
        ),
    ] {
        let dir = crate::input::checkpoint::folder(&crate::input::checkpoint::transformers(
            "llava",
            "clip_vision_model",
            336,
            14,
        ));
        fs::copy(
            fixture("prompts/llama/tokenizer.model"),
            dir.path().join("tokenizer.model"),
        )
        .unwrap();
        fs::write(dir.path().join("chat_template.jinja"), chat).unwrap();
        let model = crate::input::checkpoint::model(dir.path());
        for messages in [&talk[..], &talk[..1], &system[..]] {
            let text = |template| {
                let renderer =
                    PromptRenderer::from_checkpoint(dir.path(), &model, template).unwrap();
                renderer.render(messages).unwrap().text
            };
            assert_eq!(text(None), text(Some(name)), "{name}");
        }
    }
}

#[test]
fn what_a_layout_has_no_words_for_is_refused() {
    let place = TempDir::new().unwrap();
    let change = |from: &str, field: &str, value: Value| {
        let dir = place.path().join(field);
        copy(&folder(from), &dir);
        let mut config = json_of(&dir.join("config.json"));
        config[field] = value;
        fs::write(dir.join("config.json"), config.to_string()).unwrap();
        dir
    };
    let linear = change("original-next", "mm_projector_type", json!("linear"));
    let relu = change(
        "llava-v5",
        "projector_hidden_act",
        json!("gelu_pytorch_tanh"),
    );
    for (dir, layout, word) in [
        (folder("original-flat"), Layout::Transformers5, "flat"),
        (folder("original-spatial"), Layout::Transformers5, "padding"),
        (linear, Layout::Transformers5, "projector"),
        (relu, Layout::Original, "GELU"),
    ] {
        let target = Target {
            vision_tower: (layout != Layout::Original).then(|| folder("clip-tiny")),
            ..to(layout)
        };
        let out = place.path().join("out");
        let error = checkpoint(&dir, &out, &target, &|_| ()).unwrap_err();
        assert!(
            matches!(error, ConvertError::Inexpressible { .. }),
            "{error}"
        );
        assert!(error.to_string().contains(word), "{error}");
        assert!(!out.exists());
    }
}

#[test]
fn progress_ends_at_the_whole_and_nothing_is_written_over() {
    let place = TempDir::new().unwrap();
    let out = place.path().join("out");
    let last = std::cell::RefCell::new(None);
    let hear = |progress: &llava_worker::convert::Progress| {
        *last.borrow_mut() = Some(progress.clone());
    };
    checkpoint(&folder("llava-v5"), &out, &to(Layout::Original), &hear).unwrap();
    let last = last.into_inner().unwrap();
    assert_eq!(last.done, last.total);
    assert_eq!(
        fs::read_dir(place.path()).unwrap().count(),
        1,
        "nothing half done stays"
    );
    let error = checkpoint(&folder("llava-v5"), &out, &to(Layout::Original), &|_| ()).unwrap_err();
    assert!(matches!(error, ConvertError::Exists { .. }), "{error}");
}
