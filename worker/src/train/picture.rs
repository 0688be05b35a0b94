//! Images as the tower's patches.

use std::path::Path;

use image::imageops::{self, FilterType};
use image::{Rgb, RgbImage};

use crate::config::VisionConfig;

/// CLIP's normalisation.
const MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

/// Decodes `path`, pads it to a square with the mean colour, resizes it to the tower's
/// side, and cuts it into rows of `3 · patch²` values, patch by patch in reading order.
///
/// # Errors
/// When the file is missing or no image.
pub fn patches(path: &Path, vision: &VisionConfig) -> image::ImageResult<Vec<f32>> {
    let image = image::open(path)?.to_rgb8();
    Ok(cut(
        &square(image, vision.image_size as u32),
        vision.patch_size,
    ))
}

fn square(image: RgbImage, side: u32) -> RgbImage {
    let (width, height) = image.dimensions();
    if (width, height) == (side, side) {
        return image;
    }
    let wide = width.max(height);
    let mut canvas = RgbImage::from_pixel(wide, wide, Rgb(MEAN.map(|m| (m * 255.0) as u8)));
    imageops::replace(
        &mut canvas,
        &image,
        i64::from((wide - width) / 2),
        i64::from((wide - height) / 2),
    );
    imageops::resize(&canvas, side, side, FilterType::CatmullRom)
}

fn cut(image: &RgbImage, patch: usize) -> Vec<f32> {
    let grid = image.width() as usize / patch;
    let mut rows = Vec::with_capacity(grid * grid * 3 * patch * patch);
    for cell in 0..grid * grid {
        let (left, top) = (cell % grid * patch, cell / grid * patch);
        for channel in 0..3 {
            for i in 0..patch * patch {
                let pixel = image.get_pixel((left + i % patch) as u32, (top + i / patch) as u32);
                rows.push((f32::from(pixel[channel]) / 255.0 - MEAN[channel]) / STD[channel]);
            }
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_come_in_reading_order_with_a_whole_channel_after_another() {
        let image = RgbImage::from_fn(4, 4, |x, y| Rgb([x as u8, y as u8, 7]));
        let rows = cut(&image, 2);
        let red = |v: f32| ((v * STD[0] + MEAN[0]) * 255.0).round();
        let second: Vec<f32> = rows[12..16].iter().map(|v| red(*v)).collect();
        assert_eq!(second, [2.0, 3.0, 2.0, 3.0]);
        assert_eq!(rows.len(), 4 * 12);
    }

    #[test]
    fn a_wide_image_is_padded_above_and_below() {
        let image = square(RgbImage::from_pixel(40, 20, Rgb([255, 0, 0])), 40);
        assert_eq!(image.get_pixel(20, 2).0, [122, 116, 104]);
        assert_eq!(image.get_pixel(20, 20).0, [255, 0, 0]);
    }
}
