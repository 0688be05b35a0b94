//! How a checkpoint cuts images into tiles and merges their features, and so
//! how many positions an image takes.

use super::fields::{ConfigError, Fields};
use super::vision::VisionConfig;
use crate::pixels::Grid;
use serde_json::Value;

/// How an image of any shape becomes square tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aspect {
    /// Padded to a square with the processor's mean colour (original layout).
    Pad,
    /// Whatever the processor's own file says: crop, pad or stretch.
    Processor,
    /// The whole image and tiles of the best of the `pinpoints`.
    Anyres,
}

/// How images are cut, and how their features are merged.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageConfig {
    /// How an image becomes tiles.
    pub aspect: Aspect,
    /// Resolutions to choose from, width first whatever the file's order;
    /// empty without anyres.
    pub pinpoints: Vec<(u32, u32)>,
    /// Whether a grid's features are laid out as one picture.
    pub spatial: bool,
    /// Whether the padding of that picture is cut away again.
    pub unpad: bool,
    /// Whether each of that picture's rows ends in a learned newline.
    pub newline: bool,
    /// Pictures beyond this many tiles are shrunk to about as many (OneVision).
    pub max_tiles: Option<usize>,
}

impl ImageConfig {
    /// One tile for each image, its features as they come.
    pub(super) fn flat(aspect: Aspect) -> Self {
        Self {
            aspect,
            pinpoints: Vec::new(),
            spatial: false,
            unpad: false,
            newline: false,
            max_tiles: None,
        }
    }

    /// Positions of an image; `side` patches make a tile's side and `class`
    /// is 1 where the class token is kept.
    pub(super) fn tokens(
        &self,
        side: usize,
        class: usize,
        original: (u32, u32),
        grid: Option<Grid>,
    ) -> usize {
        let tile = side * side + class;
        match grid {
            None => tile + usize::from(self.newline),
            Some(grid) if !self.spatial => tile * (1 + grid.columns * grid.rows),
            Some(grid) => {
                let picture = self.picture(side, original, grid);
                tile + picture.height * (picture.width + usize::from(self.newline))
            }
        }
    }

    /// The picture that a grid's features make: what is kept of it and to what
    /// it is shrunk.
    pub(crate) fn picture(&self, side: usize, original: (u32, u32), grid: Grid) -> Picture {
        let (full_width, full_height) = (grid.columns * side, grid.rows * side);
        let mut picture = Picture {
            left: 0,
            top: 0,
            kept_width: full_width,
            kept_height: full_height,
            width: full_width,
            height: full_height,
        };
        if self.unpad {
            picture.unpad(original);
            // LLaVA-NeXT shrinks nothing whose padding it keeps.
            if let Some(max) = self.max_tiles {
                picture.shrink(max, side);
            }
        }
        picture
    }
}

/// A window into a grid's features, in patches, and the size it is scaled to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Picture {
    pub(crate) left: usize,
    pub(crate) top: usize,
    pub(crate) kept_width: usize,
    pub(crate) kept_height: usize,
    pub(crate) width: usize,
    pub(crate) height: usize,
}

impl Picture {
    /// LLaVA's `unpad_image`: both sides lose the same floor. transformers
    /// rounds to 7 digits before cutting to whole patches, so that a product
    /// that should be whole is not one less.
    fn unpad(&mut self, original: (u32, u32)) {
        let (width, height) = (f64::from(original.0.max(1)), f64::from(original.1.max(1)));
        let (full_width, full_height) = (self.kept_width as f64, self.kept_height as f64);
        if width / height > full_width / full_height {
            let new = whole(height * (full_width / width));
            self.top = self.kept_height.saturating_sub(new) / 2;
            self.kept_height -= 2 * self.top;
        } else {
            let new = whole(width * (full_height / height));
            self.left = self.kept_width.saturating_sub(new) / 2;
            self.kept_width -= 2 * self.left;
        }
        (self.width, self.height) = (self.kept_width, self.kept_height);
    }

    fn shrink(&mut self, max_tiles: usize, side: usize) {
        let patches = (self.width * self.height) as f64;
        let ratio = (patches / (max_tiles * side * side) as f64).sqrt();
        if ratio > 1.1 {
            self.width = floor_division(self.width as f64, ratio);
            self.height = floor_division(self.height as f64, ratio);
        }
    }
}

/// Python's `a // b`: exact where `a / b` would round up to a whole number.
fn floor_division(a: f64, b: f64) -> usize {
    ((a - a % b) / b).round() as usize
}

fn whole(x: f64) -> usize {
    ((x * 1e7).round() / 1e7) as usize
}

/// The pinpoints as the file orders them: a list of pairs, that list as a
/// Python literal, or a range `(1x1),...,(6x6)` of grids of the tower's input.
pub(super) fn pinpoints(
    fields: &Fields<'_>,
    key: &str,
    value: &Value,
    vision: &VisionConfig,
) -> Result<Vec<(u32, u32)>, ConfigError> {
    let wrong = || {
        fields.wrong(
            key,
            format!("is {value}, but a list of pairs of pixels is needed"),
        )
    };
    let list = match value {
        Value::String(text) if text.contains('x') => {
            return grid_range(text, vision.image_size).ok_or_else(wrong);
        }
        Value::String(text) => {
            let json = text.replace('(', "[").replace(')', "]");
            serde_json::from_str(&json).map_err(|_| wrong())?
        }
        other => other.clone(),
    };
    let pairs: Vec<(u32, u32)> = serde_json::from_value(list).map_err(|_| wrong())?;
    let sane = |side: u32| {
        side > 0 && (side as usize).is_multiple_of(vision.image_size) && side <= 1 << 16
    };
    match pairs.iter().find(|(a, b)| !sane(*a) || !sane(*b)) {
        _ if pairs.is_empty() || pairs.len() > 4096 => Err(wrong()),
        Some((a, b)) => Err(fields.wrong(
            key,
            format!(
                "has {a}x{b}, which is not made of tiles of {} pixels",
                vision.image_size
            ),
        )),
        None => Ok(pairs),
    }
}

/// Every grid from 1 by 1 to `most` by `most` tiles of `tile` pixels.
pub(super) fn all_grids(tile: u32, most: u32) -> Vec<(u32, u32)> {
    (1..=most)
        .flat_map(|a| (1..=most).map(move |b| (a * tile, b * tile)))
        .collect()
}

fn grid_range(text: &str, tile: usize) -> Option<Vec<(u32, u32)>> {
    let mut numbers = text
        .split(|c: char| !c.is_ascii_digit())
        .filter(|part| !part.is_empty())
        .map(|part| part.parse::<u32>().ok().filter(|n| (1..=64).contains(n)));
    let tile = u32::try_from(tile).ok()?;
    let (first_a, first_b) = (numbers.next()??, numbers.next()??);
    let (last_a, last_b) = (numbers.next()??, numbers.next()??);
    let pairs = (first_a..=last_a)
        .flat_map(|a| (first_b..=last_b).map(move |b| (a * tile, b * tile)))
        .collect();
    Some(pairs)
}
