//! The tokens of an image, known from its size alone, are those of the reference.

use llava_worker::image::{ImageProcessor, ProcessorConfig, Size};
use serde_json::{Value, json};

use crate::fixture;
use crate::input::checkpoint;

/// Counts as a server counts: configuration and size, no pixels.
fn counter(config: &Value) -> impl Fn(Size) -> usize {
    let dir = checkpoint::folder(config);
    std::fs::write(dir.path().join("preprocessor_config.json"), "{}").unwrap();
    let model = checkpoint::model(dir.path());
    let processor = ImageProcessor::new(ProcessorConfig::read(dir.path(), &model).unwrap());
    move |size| model.image_tokens((size.width, size.height), processor.grid(size, 1))
}

#[test]
fn several_hundred_sizes_take_the_tokens_of_both_references() {
    let next = json!([[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]);
    let grids: Vec<_> = (1..=6)
        .flat_map(|a| (1..=6).map(move |b| [384 * a, 384 * b]))
        .collect();
    let mut next_hf = checkpoint::transformers("llava_next", "clip_vision_model", 336, 14);
    next_hf["image_grid_pinpoints"] = next.clone();
    let mut next_original = checkpoint::original(336, 14);
    next_original["image_aspect_ratio"] = json!("anyres");
    next_original["mm_patch_merge_type"] = json!("spatial_unpad");
    next_original["image_grid_pinpoints"] = next;
    let mut onevision_hf =
        checkpoint::transformers("llava_onevision", "siglip_vision_model", 384, 14);
    onevision_hf["image_grid_pinpoints"] = json!(grids);
    let mut onevision_original = checkpoint::original(384, 14);
    onevision_original["vision_config"]["model_type"] = json!("siglip_vision_model");
    onevision_original["image_aspect_ratio"] = json!("anyres_max_9");
    onevision_original["mm_patch_merge_type"] = json!("spatial_unpad");
    onevision_original["image_grid_pinpoints"] = json!("(1x1),...,(6x6)");
    let counters = [
        ("next_hf", counter(&next_hf)),
        ("next_original", counter(&next_original)),
        ("onevision_hf", counter(&onevision_hf)),
        ("onevision_original", counter(&onevision_original)),
    ];

    let table = std::fs::read_to_string(fixture("images/token_counts.csv")).unwrap();
    let rows: Vec<Vec<usize>> = table
        .lines()
        .skip(1)
        .map(|line| line.split(',').map(|cell| cell.parse().unwrap()).collect())
        .collect();
    assert!(rows.len() > 400);
    for row in rows {
        let size = Size::new(row[0] as u32, row[1] as u32);
        for ((name, count), wanted) in counters.iter().zip(&row[2..]) {
            assert_eq!(count(size), *wanted, "{name} at {size}");
        }
    }
}
