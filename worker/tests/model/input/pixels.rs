//! Pixel tensors are transformers' and LLaVA's, level for level.

use llava_worker::image::{ImageProcessor, Picture, ProcessorConfig, Size};
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::fixture;
use crate::input::checkpoint;

#[derive(Deserialize)]
struct Case {
    processor: String,
    size: [u32; 2],
    images: usize,
    tiles: usize,
    levels_sha256: String,
    values: Vec<(usize, f32)>,
}

/// The picture that `pattern` in `tests/reference/images.py` draws.
fn pattern(size: Size) -> Picture {
    let rgb = (0..size.height)
        .flat_map(|y| (0..size.width).flat_map(move |x| (0..3).map(move |c| (x, y, c))))
        .map(|(x, y, c)| {
            let checks = (x / 5 + y / 3) % 2 * 200;
            ((x * 7 + y * 13 + c * 29) ^ ((x * y) >> 3) ^ checks) as u8
        });
    Picture::new(size, rgb.collect()).unwrap()
}

fn config_of(processor: &str) -> Value {
    let points = json!([[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]);
    let grids: Vec<_> = (1..=6)
        .flat_map(|a| (1..=6).map(move |b| [54 * a, 54 * b]))
        .collect();
    let mut config = match processor {
        "next" => checkpoint::transformers("llava_next", "clip_vision_model", 56, 14),
        "onevision" => checkpoint::transformers("llava_onevision", "siglip_vision_model", 54, 18),
        "stretch" => checkpoint::transformers("llava", "siglip_vision_model", 54, 18),
        "original_pad" | "original_anyres" => checkpoint::original(56, 14),
        _ => checkpoint::transformers("llava", "clip_vision_model", 56, 14),
    };
    match processor {
        "next" => config["image_grid_pinpoints"] = points,
        "onevision" => config["image_grid_pinpoints"] = json!(grids),
        "original_pad" => config["image_aspect_ratio"] = json!("pad"),
        "original_anyres" => {
            config["image_aspect_ratio"] = json!("anyres");
            config["image_grid_pinpoints"] = points;
        }
        _ => {}
    }
    config
}

/// The processor that `tests/reference/images.py` calls `name`.
pub(crate) fn processor(name: &str) -> ImageProcessor {
    let dir = checkpoint::folder(&config_of(name));
    let file = fixture("images/processors")
        .join(name)
        .join("preprocessor_config.json");
    if file.is_file() {
        std::fs::copy(file, dir.path().join("preprocessor_config.json")).unwrap();
    }
    let model = checkpoint::model(dir.path());
    ImageProcessor::new(ProcessorConfig::read(dir.path(), &model).unwrap())
}

#[test]
fn every_processor_gives_the_levels_of_its_reference() {
    let text = std::fs::read_to_string(fixture("images/pixels.json")).unwrap();
    let cases: Vec<Case> = serde_json::from_str(&text).unwrap();
    assert!(cases.len() > 200);
    for case in cases {
        let place = format!("{} {:?} of {}", case.processor, case.size, case.images);
        let processor = processor(&case.processor);
        let picture = pattern(Size::new(case.size[0], case.size[1]));
        let made = processor.process(&picture, case.images);
        assert_eq!(made.tiles, case.tiles, "{place}");
        let per_channel = made.side * made.side;
        assert_eq!(made.values.len(), case.tiles * 3 * per_channel, "{place}");
        for (at, value) in case.values {
            assert!(
                (made.values[at] - value).abs() < 2e-6,
                "{place}: value {at} is {} not {value}",
                made.values[at]
            );
        }
        let config = processor.config();
        let levels: Vec<u8> = made
            .values
            .iter()
            .enumerate()
            .map(|(at, value)| {
                let channel = at / per_channel % 3;
                ((value * config.std[channel] + config.mean[channel]) * 255.0).round() as u8
            })
            .collect();
        let digest: String = Sha256::digest(&levels)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(digest, case.levels_sha256, "{place}: some level differs");
    }
}

#[test]
fn settings_inside_the_whole_processors_file_read_the_same_and_come_first() {
    for name in ["crop", "crop_inside", "pad", "stretch", "next", "onevision"] {
        let alone = processor(name);
        let dir = checkpoint::folder(&config_of(name));
        let nested = fixture("images/processors").join(name).join("nested");
        std::fs::copy(
            nested.join("processor_config.json"),
            dir.path().join("processor_config.json"),
        )
        .unwrap();
        let model = checkpoint::model(dir.path());
        let read = || ProcessorConfig::read(dir.path(), &model).unwrap();
        assert_eq!(read(), *alone.config(), "{name}");
        // What an earlier version of transformers wrote stays beside.
        let stale = dir.path().join("preprocessor_config.json");
        std::fs::write(stale, r#"{"image_mean": [0.1, 0.1, 0.1]}"#).unwrap();
        assert_eq!(read(), *alone.config(), "{name}");
    }
}

#[test]
fn a_picture_far_longer_than_wide_costs_no_more_than_its_pixels() {
    let line = pattern(Size::new(16_384, 1));
    for name in ["crop", "pad", "stretch", "next", "onevision"] {
        let made = processor(name).process(&line, 1);
        assert!(made.values.iter().all(|value| value.is_finite()), "{name}");
    }
}
