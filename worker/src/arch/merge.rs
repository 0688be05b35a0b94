//! From a picture's projected tiles to the rows that stand in the sequence:
//! the whole picture first, then its tiles as one map, the padding cut away,
//! shrunk where it is too large, each line ended by the learned newline
//! (`llava_arch.py`, `prepare_inputs_labels_for_multimodal`; transformers'
//! `pack_image_features`). The image's size alone says how.

use crate::config::{ImageConfig, Picture};
use crate::pixels::{Grid, PixelValues};
use candle_core::{Result, Tensor};

/// Merges `features` `[tiles * tokens, hidden]` of `image`; a tile has `side`
/// times `side` patches.
pub(crate) fn merge(
    features: &Tensor,
    newline: Option<&Tensor>,
    config: &ImageConfig,
    side: usize,
    image: &PixelValues,
) -> Result<Tensor> {
    let hidden = features.dims2()?.1;
    let newline = newline
        .map(|newline| newline.reshape((1, hidden)))
        .transpose()?;
    match (image.grid, newline) {
        (None, None) => Ok(features.clone()),
        (None, Some(newline)) => Tensor::cat(&[features, &newline], 0),
        (Some(_), _) if !config.spatial => Ok(features.clone()),
        (Some(grid), newline) => {
            let picture = config.picture(side, image.original, grid);
            let map = Map {
                side,
                grid,
                picture,
            };
            let kept =
                if (picture.width, picture.height) == (picture.kept_width, picture.kept_height) {
                    map.cut(features)?
                } else {
                    map.shrink(features)?
                };
            let (lines, columns) = (picture.height, picture.width);
            let kept = match newline {
                Some(newline) => {
                    let kept = kept.reshape((lines, columns, hidden))?;
                    let newline = newline
                        .reshape((1, 1, hidden))?
                        .expand((lines, 1, hidden))?;
                    Tensor::cat(&[&kept, &newline], 1)?.reshape((lines * (columns + 1), hidden))?
                }
                None => kept,
            };
            Tensor::cat(&[&features.narrow(0, 0, side * side)?, &kept], 0)
        }
    }
}

/// The tiles of a grid as one map of features.
struct Map {
    side: usize,
    grid: Grid,
    picture: Picture,
}

impl Map {
    /// Where line `y` and column `x` of the map, counted inside the cut, lie
    /// among the features.
    fn place(&self, y: usize, x: usize) -> u32 {
        let (y, x, side) = (y + self.picture.top, x + self.picture.left, self.side);
        let tile = 1 + y / side * self.grid.columns + x / side;
        (tile * side * side + y % side * side + x % side) as u32
    }

    fn cut(&self, features: &Tensor) -> Result<Tensor> {
        let (lines, columns) = (self.picture.kept_height, self.picture.kept_width);
        let places = (0..lines).flat_map(|y| (0..columns).map(move |x| self.place(y, x)));
        select(features, places.collect())
    }

    /// torch's bilinear `interpolate` without aligned corners.
    fn shrink(&self, features: &Tensor) -> Result<Tensor> {
        let Picture {
            kept_width,
            kept_height,
            width,
            height,
            ..
        } = self.picture;
        let ys: Vec<_> = (0..height)
            .map(|y| neighbours(y, height, kept_height))
            .collect();
        let xs: Vec<_> = (0..width)
            .map(|x| neighbours(x, width, kept_width))
            .collect();
        let corner = |low_y: bool, low_x: bool| -> Result<Tensor> {
            let pick = |n: &Neighbours, low: bool| {
                if low {
                    (n.low, 1.0 - n.share)
                } else {
                    (n.high, n.share)
                }
            };
            let mut places = Vec::with_capacity(height * width);
            let mut shares = Vec::with_capacity(height * width);
            for y in &ys {
                let (y, share_y) = pick(y, low_y);
                for x in &xs {
                    let (x, share_x) = pick(x, low_x);
                    places.push(self.place(y, x));
                    shares.push(share_y * share_x);
                }
            }
            let shares = Tensor::from_vec(shares, (height * width, 1), features.device())?;
            select(features, places)?.broadcast_mul(&shares.to_dtype(features.dtype())?)
        };
        ((corner(true, true)? + corner(true, false)?)? + corner(false, true)?)?
            + corner(false, false)?
    }
}

fn select(features: &Tensor, places: Vec<u32>) -> Result<Tensor> {
    let count = places.len();
    features.index_select(&Tensor::from_vec(places, count, features.device())?, 0)
}

/// Two neighbours of a shrunk line and how much of the higher one it takes.
struct Neighbours {
    low: usize,
    high: usize,
    share: f32,
}

fn neighbours(index: usize, count: usize, all: usize) -> Neighbours {
    let scale = all as f32 / count as f32;
    let at = ((index as f32 + 0.5) * scale - 0.5).max(0.0);
    let low = (at as usize).min(all - 1);
    Neighbours {
        low,
        high: (low + 1).min(all - 1),
        share: at - low as f32,
    }
}
