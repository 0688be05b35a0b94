//! What pictures take while they are decoded and prepared, and what encoding takes beside the features. Alone in
//! its program: it measures memory.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a helper that fails is a failed test")]

use std::fs;
use std::path::Path;
use std::sync::Mutex;

use image::codecs::{png, webp};
use image::{ExtendedColorType, ImageEncoder};
use llava_worker::config::ModelConfig;
use llava_worker::image::{DecodeError, Exceeded, ImageProcessor, Limits, ProcessorConfig, decode};
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

/// The peak is the process's: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

#[test]
fn encoding_many_images_takes_little_more_than_their_features() {
    let _alone = ALONE.lock().unwrap();
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

/// A black PNG with alpha that EXIF wants turned by a quarter.
fn turned_png(width: u32, height: u32, color: ExtendedColorType) -> Vec<u8> {
    let exif = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
    let pixels = vec![0; (width * height * u32::from(color.bits_per_pixel() / 8)) as usize];
    let mut bytes = Vec::new();
    let (fast, plain) = (png::CompressionType::Fast, png::FilterType::NoFilter);
    let mut encoder = png::PngEncoder::new_with_quality(&mut bytes, fast, plain);
    encoder.set_exif_metadata(exif.to_vec()).unwrap();
    encoder.write_image(&pixels, width, height, color).unwrap();
    bytes
}

/// A grey progressive JPEG whose components have these sampling factors: its only scan says that every block
/// is as the one before it, by one bit each.
fn progressive_jpeg(width: u16, height: u16, factors: [u8; 3]) -> Vec<u8> {
    let marker = |kind: u8, data: &[u8]| {
        let length = (data.len() as u16 + 2).to_be_bytes();
        [&[0xff, kind][..], &length, data].concat()
    };
    let [w, h] = [width.to_be_bytes(), height.to_be_bytes()];
    let [y, cb, cr] = factors;
    let across = usize::from(width).div_ceil(usize::from(y >> 4) * 8);
    let down = usize::from(height).div_ceil(usize::from(y & 15) * 8);
    let blocks: usize = factors
        .iter()
        .map(|both| usize::from(both >> 4) * usize::from(both & 15))
        .sum();
    [
        vec![0xff, 0xd8],
        marker(0xdb, &[&[0][..], &[1; 64]].concat()),
        marker(
            0xc2,
            &[8, h[0], h[1], w[0], w[1], 3, 1, y, 0, 2, cb, 0, 3, cr, 0],
        ),
        marker(0xc4, &[&[0, 1][..], &[0; 15], &[0]].concat()),
        marker(0xda, &[3, 1, 0, 2, 0, 3, 0, 0, 0, 0]),
        vec![0; (across * down * blocks).div_ceil(8)],
        vec![0xff, 0xd9],
    ]
    .concat()
}

/// A GIF whose only frame leaves the first column out.
fn narrow_gif(width: u16, height: u16) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder =
        gif::Encoder::new(&mut bytes, width, height, &[0, 0, 0, 255, 255, 255]).unwrap();
    let pixels = vec![0; (usize::from(width) - 1) * usize::from(height)];
    let mut frame = gif::Frame::from_indexed_pixels(width - 1, height, pixels, None);
    frame.left = 1;
    encoder.write_frame(&frame).unwrap();
    drop(encoder);
    bytes
}

fn lossless_webp(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    let pixels = vec![7; (width * height * 3) as usize];
    webp::WebPEncoder::new_lossless(&mut bytes)
        .encode(&pixels, width, height, ExtendedColorType::Rgb8)
        .unwrap();
    bytes
}

/// Cuts pictures into as many tiles as any family does.
fn onevision() -> ImageProcessor {
    let dir = tempfile::tempdir().unwrap();
    let points: Vec<_> = (1..=6)
        .flat_map(|a| (1..=6).map(move |b| [384 * a, 384 * b]))
        .collect();
    let config = serde_json::json!({
        "model_type": "llava_onevision",
        "text_config": { "model_type": "qwen2" },
        "vision_config": { "model_type": "siglip_vision_model", "image_size": 384, "patch_size": 14 },
        "vision_feature_select_strategy": "full",
        "image_grid_pinpoints": points,
    });
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    fs::write(dir.path().join("preprocessor_config.json"), "{}").unwrap();
    let model = ModelConfig::read(dir.path(), None).unwrap();
    ImageProcessor::new(ProcessorConfig::read(dir.path(), &model).unwrap())
}

#[test]
fn no_picture_takes_256_mib_whatever_its_form() {
    let _alone = ALONE.lock().unwrap();
    let processor = onevision();
    let limits = Limits::default();
    let mut accepted = 0;
    for (name, file) in [
        (
            "a turned PNG with alpha",
            turned_png(6320, 6320, ExtendedColorType::Rgba8),
        ),
        (
            "a turned PNG of 16 bits",
            turned_png(5600, 5600, ExtendedColorType::Rgba16),
        ),
        (
            "a PNG of 16 bits above the limit",
            turned_png(6320, 6320, ExtendedColorType::Rgba16),
        ),
        (
            "a progressive JPEG in 4:2:0",
            progressive_jpeg(6320, 6320, [0x22, 0x11, 0x11]),
        ),
        (
            "a progressive JPEG in 4:4:4",
            progressive_jpeg(5300, 5300, [0x11; 3]),
        ),
        (
            "a progressive JPEG above the limit",
            progressive_jpeg(6320, 6320, [0x11; 3]),
        ),
        ("a GIF with a frame of its own", narrow_gif(5600, 5600)),
        ("a GIF above the limit", narrow_gif(6320, 6320)),
        ("a lossless WebP", lossless_webp(6000, 6000)),
    ] {
        peak();
        let before = peak();
        match decode(name, &file, &limits) {
            Ok(picture) => {
                accepted += 1;
                if accepted == 1 {
                    // The largest one, turned: from here on all are the same.
                    drop(std::hint::black_box(processor.process(&picture, 1)));
                }
                drop(picture);
                let taken = peak() - before + file.len();
                assert!(taken > 64 << 20, "{name}: {taken} bytes were not measured");
                assert!(taken < 256 << 20, "{name}: {taken} bytes");
            }
            Err(error) => {
                let limit = matches!(
                    error,
                    DecodeError::TooLarge {
                        limit: Exceeded::Memory { .. },
                        ..
                    }
                );
                assert!(
                    limit && name.ends_with("above the limit"),
                    "{name}: {error}"
                );
            }
        }
    }
    assert_eq!(accepted, 6);
}
