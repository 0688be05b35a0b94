//! What encoding images takes beside their features. Alone in its program: it measures memory.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a helper that fails is a failed test")]

use std::fs;
use std::path::Path;

use llava_worker::input::ImageFeatures;
use llava_worker::model::{LoadOptions, Model};
use llava_worker::pixels::PixelValues;

/// The most memory that the process has held since it was last asked, in bytes.
fn peak() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let mut lines = status.lines();
    let line = lines.find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let kib: usize = line.trim().trim_end_matches(" kB").parse().unwrap();
    fs::write("/proc/self/clear_refs", "5").unwrap();
    kib * 1024
}

#[test]
fn encoding_many_images_takes_little_more_than_their_features() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/llava-shapes");
    let model = Model::load(&dir, &LoadOptions::default(), &|_| ()).unwrap();
    let image = PixelValues {
        values: vec![0.1; 3 * 96 * 96],
        tiles: 1,
        side: 96,
        original: (96, 96),
        grid: None,
    };
    // The threads and the allocator have what they need.
    model.encode_images(&[&image; 8]).unwrap();
    peak();
    let before = peak();
    let features = model.encode_images(&[&image; 1000]).unwrap();
    let grown = peak() - before;
    let held: usize = features.iter().map(ImageFeatures::bytes).sum();
    assert!(held > 16 << 20, "{held} bytes of features");
    assert!(grown < held * 3 / 2, "{grown} bytes for {held} of features");
}
