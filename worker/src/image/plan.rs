//! How a picture is cut, known from its size alone: counting tiles and tokens
//! needs no decoding, so limits are checked before any pixel is read.

use super::config::{Mode, ProcessorConfig};
use super::size::Size;
use crate::pixels::Grid;

/// The size that a picture of `original` size is fitted into before it is cut,
/// in a prompt with `images` pictures; `None` where it becomes one tile.
pub(super) fn canvas(config: &ProcessorConfig, original: Size, images: usize) -> Option<Size> {
    match config.mode(images) {
        Mode::Anyres(pinpoints) => select_best_resolution(original, pinpoints),
        Mode::Pad | Mode::Crop | Mode::Stretch => None,
    }
}

/// The tiles that `canvas` is cut into.
pub(super) fn grid(config: &ProcessorConfig, canvas: Size) -> Grid {
    Grid {
        columns: (canvas.width / config.tile) as usize,
        rows: (canvas.height / config.tile) as usize,
    }
}

/// The pinpoint that keeps most of the picture and, among equals, wastes least;
/// the first one wins a tie (`select_best_resolution` in LLaVA's `mm_utils.py`).
fn select_best_resolution(original: Size, pinpoints: &[Size]) -> Option<Size> {
    let (width, height) = (f64::from(original.width), f64::from(original.height));
    let mut best = None;
    let mut most_kept = 0;
    let mut least_wasted = u64::MAX;
    for &point in pinpoints {
        let scale = (f64::from(point.width) / width).min(f64::from(point.height) / height);
        let fitted = Size::new((width * scale) as u32, (height * scale) as u32);
        let kept = fitted.pixels().min(original.pixels());
        let wasted = point.pixels().saturating_sub(kept);
        if best.is_none() || kept > most_kept || (kept == most_kept && wasted < least_wasted) {
            (most_kept, least_wasted, best) = (kept, wasted, Some(point));
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_sizes_that_fit_alike_the_first_listed_wins() {
        let (upright, lying) = (Size::new(336, 672), Size::new(672, 336));
        let small = Size::new(100, 100);
        assert_eq!(
            select_best_resolution(small, &[upright, lying]),
            Some(upright)
        );
        assert_eq!(
            select_best_resolution(small, &[lying, upright]),
            Some(lying)
        );
    }

    #[test]
    fn a_picture_a_pixel_wide_still_finds_a_size() {
        let points = [Size::new(336, 672), Size::new(672, 336)];
        assert!(select_best_resolution(Size::new(1, 16_384), &points).is_some());
        assert!(select_best_resolution(Size::new(16_384, 1), &points).is_some());
    }
}
