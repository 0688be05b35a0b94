//! What a training run promises: it learns, it resumes exactly, several processes are one,
//! nothing unsound is trained on, and what it writes loads.

#![allow(clippy::unwrap_used, reason = "a helper that fails is a failed test")]

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use llava_worker::data::shapes::{ShapesPlan, make};
use llava_worker::input::{Piece, positions};
use llava_worker::model::{LoadOptions, Model, Part as ModelPart};
use llava_worker::pixels::PixelValues;
use llava_worker::prompt::{self, Message, Part, PromptRenderer, Role};
use llava_worker::train::export::Layout;
use llava_worker::train::group::{Group, Place};
use llava_worker::train::journal::{self, Event};
use llava_worker::train::settings::BadRecords;
use llava_worker::train::{Outcome, Run, RunError, Settings};

/// A data set, a model's configuration and settings in a folder of their own.
struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let plan = ShapesPlan {
            more: Vec::new(),
            images: 24,
            held_out: 4,
            conversations: 1,
            turns: 2,
            free: 0.3,
            side: 48,
            patch: 16,
            vocabulary: 400,
            seed: 5,
        };
        make(&plan, &dir.path().join("data")).unwrap();
        let model = dir.path().join("model");
        fs::create_dir(&model).unwrap();
        let config = serde_json::json!({
            "model_type": "llava", "image_token_index": 400,
            "vision_feature_layer": -2, "vision_feature_select_strategy": "default",
            "text_config": {
                "model_type": "llama", "vocab_size": 416, "hidden_size": 32, "intermediate_size": 64,
                "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 256,
                "rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 2,
            },
            "vision_config": {
                "model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 64,
                "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 48, "patch_size": 16,
            },
        });
        fs::write(model.join("config.json"), config.to_string()).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn settings(&self, output: &str, stages: &serde_json::Value) -> Settings {
        let at = |name: &str| self.path(name);
        serde_json::from_value(serde_json::json!({
            "model": at("model"), "from_scratch": true, "tokenizer": at("data/tokenizer.json"),
            "output": at(output), "seed": 3, "threads": 2, "checkpoint_every": 5, "stages": stages,
        }))
        .unwrap()
    }

    fn stage(&self, kind: &serde_json::Value, steps: usize) -> serde_json::Value {
        let data = if kind == "tower" {
            "data/tower.jsonl"
        } else {
            "data/train.json"
        };
        serde_json::json!({
            "kind": kind, "data": self.path(data), "steps": steps, "batch": 8, "micro_batch": 2,
            "system": 0.5, "optimizer": {"rate": 3e-3, "warm_up": 0.1, "weight_decay": 0.05, "beta2": 0.98},
        })
    }

    fn run(&self, settings: Settings, resume: bool) -> Run {
        Run::new(
            settings,
            Group::alone(),
            resume,
            Arc::new(AtomicBool::new(false)),
        )
        .unwrap()
    }

    fn losses(&self, output: &str) -> Vec<f64> {
        let events = journal::read(&self.path(output)).into_iter();
        let loss = |event| match event {
            Event::Step(step) => Some(step.loss),
            Event::Accuracy { .. } => None,
        };
        events.filter_map(loss).collect()
    }
}

/// Greedy text of a checkpoint, as serving computes it.
fn served(dir: &Path, question: &str, count: usize) -> String {
    let model = Model::load(dir, &LoadOptions::default(), &|_| ()).unwrap();
    let renderer = PromptRenderer::from_checkpoint(dir, model.config(), Some("vicuna_v1")).unwrap();
    let message = Message::parts(Role::User, [Part::Image, Part::text(question)]);
    let prompt = renderer.render(&[message]).unwrap();
    let side = model.config().vision.image_size;
    let image = PixelValues {
        values: (0..3 * side * side)
            .map(|i| ((i % 37) as f32 - 18.0) / 18.0)
            .collect(),
        tiles: 1,
        side,
        original: (side as u32, side as u32),
        grid: None,
    };
    let features = model.encode_images(&[&image]).unwrap().remove(0);
    let pieces = prompt.pieces.into_iter().map(|piece| match piece {
        prompt::Piece::Text(ids) => Piece::Tokens(ids),
        prompt::Piece::Image(_) => Piece::image(features.clone()),
    });
    let pieces: Vec<Piece> = pieces.collect();
    let start = positions(&pieces);
    let mut kv = model.new_kv(1, start + count).unwrap();
    let mut part = ModelPart::prompt(0, 0, pieces);
    let mut tokens = Vec::new();
    for at in start..start + count {
        let logits = model.forward(&mut kv, &[part]).unwrap();
        let row = logits.row(0).unwrap();
        let best = (0..row.len())
            .max_by(|a, b| row[*a].total_cmp(&row[*b]))
            .unwrap() as u32;
        tokens.push(best);
        part = ModelPart::token(0, at, best);
    }
    format!("{tokens:?}")
}

fn values(run: &Run) -> Vec<(String, Vec<f32>)> {
    (run.params().iter())
        .map(|(name, var)| {
            (
                name.to_owned(),
                var.flatten_all().unwrap().to_vec1().unwrap(),
            )
        })
        .collect()
}

fn furthest(a: &Run, b: &Run) -> f32 {
    let pairs = values(a).into_iter().zip(values(b));
    pairs.fold(0f32, |worst, (a, b)| {
        assert_eq!(a.0, b.0);
        a.1.iter()
            .zip(&b.1)
            .fold(worst, |worst, (x, y)| worst.max((x - y).abs()))
    })
}

#[test]
fn a_short_run_lowers_the_loss_of_every_stage() {
    let bench = Bench::new();
    let stages = ["tower", "full"].map(|kind| bench.stage(&kind.into(), 30));
    let mut run = bench.run(bench.settings("out", &stages.to_vec().into()), false);
    assert_eq!(run.run().unwrap(), Outcome::Done(None));
    let losses = bench.losses("out");
    assert_eq!(losses.len(), 6, "one entry each ten steps");
    for event in journal::read(&bench.path("out")) {
        if let Event::Step(step) = event {
            let spent = step.spent;
            assert!(spent.load > 0.0 && spent.forward > 0.0 && spent.backward > 0.0);
        }
    }
    let weights = bench.path("out/model/model.safetensors");
    let beside = bench.path("beside");
    fs::write(&beside, "").unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
    assert_eq!(mode(&weights), mode(&beside), "other users may serve it");
    assert!(losses[2] < 0.9 * losses[0], "tower: {losses:?}");
    assert!(losses[5] < 0.7 * losses[3], "conversations: {losses:?}");
    assert!(
        fs::read_to_string(bench.path("out/loss.svg"))
            .unwrap()
            .contains("<polyline")
    );
}

#[test]
fn an_interrupted_run_resumes_to_the_same_bits() {
    let bench = Bench::new();
    let lora = serde_json::json!({"lora": {"r": 2, "alpha": 4.0, "dropout": 0.2}});
    let stages = serde_json::json!([bench.stage(&"tower".into(), 7), bench.stage(&lora, 11)]);
    let mut whole = bench.run(bench.settings("whole", &stages), false);
    whole.run().unwrap();

    // Stopped after each step in turn: in the first stage, between the two, in the second.
    let settings = bench.settings("parts", &stages);
    loop {
        let stop = Arc::new(AtomicBool::new(true));
        let mut part = Run::new(settings.clone(), Group::alone(), true, stop).unwrap();
        if let Outcome::Done(_) = part.run().unwrap() {
            assert_eq!(furthest(&whole, &part), 0.0);
            break;
        }
    }
    assert_eq!(bench.losses("whole").len(), bench.losses("parts").len());
}

#[test]
fn both_layouts_of_a_finished_model_load_for_serving_and_answer_alike() {
    let bench = Bench::new();
    let lora = serde_json::json!({"lora": {"r": 2, "alpha": 4.0}});
    let stages = serde_json::json!([bench.stage(&"full".into(), 20), bench.stage(&lora, 4)]);
    let mut settings = bench.settings("out", &stages);
    settings.layouts = vec![Layout::Transformers, Layout::Original];
    bench.run(settings, false).run().unwrap();
    let answers = ["model", "model-original"]
        .map(|name| served(&bench.path("out").join(name), "What do you see?", 12));
    assert_eq!(answers[0], answers[1]);
    for file in [
        "adapter_config.json",
        "adapter_model.safetensors",
        "non_lora_trainables.safetensors",
    ] {
        assert!(bench.path("out/adapter").join(file).exists(), "{file}");
    }
}

#[test]
fn an_output_that_holds_a_run_is_not_overwritten() {
    let bench = Bench::new();
    let stages = serde_json::json!([bench.stage(&"full".into(), 2)]);
    bench
        .run(bench.settings("out", &stages), false)
        .run()
        .unwrap();
    let again = Run::new(
        bench.settings("out", &stages),
        Group::alone(),
        false,
        Arc::default(),
    );
    assert!(matches!(again, Err(RunError::Occupied { .. })));
}

#[test]
fn two_processes_train_the_model_that_one_does() {
    let bench = Bench::new();
    let stages = serde_json::json!([bench.stage(&"full".into(), 6)]);
    let mut alone = bench.run(bench.settings("alone", &stages), false);
    alone.run().unwrap();

    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let ranks: Vec<_> = (0..2)
        .map(|rank| {
            let settings = bench.settings(&format!("rank-{rank}"), &stages);
            let place = Place {
                rank,
                world: 2,
                rendezvous: format!("127.0.0.1:{port}"),
            };
            std::thread::spawn(move || {
                let group = Group::join(place).unwrap();
                let mut run = Run::new(settings, group, false, Arc::default()).unwrap();
                run.run().unwrap();
                run
            })
        })
        .collect();
    let ranks: Vec<Run> = ranks.into_iter().map(|rank| rank.join().unwrap()).collect();
    assert_eq!(
        furthest(&ranks[0], &ranks[1]),
        0.0,
        "both ranks hold the same bits"
    );
    let apart = furthest(&alone, &ranks[0]);
    // The sums of a step are added in another order, and Adam's first steps magnify that.
    assert!(apart < 2e-3, "weights differ by {apart}");
    let (one, two) = (bench.losses("alone"), bench.losses("rank-0"));
    assert!(
        (one[0] - two[0]).abs() < 1e-3 * one[0],
        "{one:?} against {two:?}"
    );
}

/// Breaks four records of the training file, each in its own way.
fn spoil(data: &Path) {
    let path = data.join("train.json");
    let mut records: Vec<serde_json::Value> =
        serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    records[2]["image"] = "images/absent.png".into();
    records[5]["conversations"][0]["value"] = "no mark".into();
    records[9]["conversations"][1]["value"] = "word ".repeat(400).into();
    fs::write(data.join("images/train/000011.png"), b"not an image").unwrap();
    fs::write(path, serde_json::to_vec(&records).unwrap()).unwrap();
}

#[test]
fn records_that_cannot_be_trained_on_are_left_out_and_counted_or_fatal() {
    let bench = Bench::new();
    spoil(&bench.path("data"));
    let stages = serde_json::json!([bench.stage(&"full".into(), 3)]);
    let mut run = bench.run(bench.settings("skip", &stages), false);
    run.run().unwrap();
    // Three steps of eight records deal all 24; two are known before, two show when they are read.
    assert_eq!(run.skipped(), 4);

    let settings = Settings {
        bad_records: BadRecords::Fail,
        ..bench.settings("fail", &stages)
    };
    let error = bench.run(settings, false).run().unwrap_err();
    let RunError::Fault(fault) = error else {
        panic!("{error}")
    };
    assert!(fault.file.ends_with("train.json"));
    assert_eq!((fault.index, fault.id.as_str()), (2, "000002-0"));
    assert!(fault.reason.contains("absent.png"), "{fault}");
}

#[test]
fn a_stop_saves_a_checkpoint_and_says_where_it_stopped() {
    let bench = Bench::new();
    let stages = serde_json::json!([bench.stage(&"full".into(), 50)]);
    let stop = Arc::new(AtomicBool::new(false));
    stop.store(true, Ordering::Relaxed);
    let mut run = Run::new(bench.settings("out", &stages), Group::alone(), false, stop).unwrap();
    assert_eq!(run.run().unwrap(), Outcome::Stopped(1));
    assert!(bench.path("out/checkpoint-000001/progress.json").exists());
}
