//! The processors of CLIP, SigLIP, LLaVA-NeXT and OneVision: a decoded picture to
//! normalised tiles.

use super::config::{Mode, ProcessorConfig};
use super::picture::Picture;
use super::plan;
use super::resample::Canvas;
use super::size::Size;
use crate::pixels::{Grid, PixelValues};

/// Prepares pictures as one checkpoint wants them.
#[derive(Debug, Clone)]
pub struct ImageProcessor {
    config: ProcessorConfig,
    /// Normalised value of each of a channel's 256 levels.
    levels: [[f32; 256]; 3],
}

impl ImageProcessor {
    /// A processor for a checked configuration.
    #[must_use]
    pub fn new(config: ProcessorConfig) -> Self {
        let levels = std::array::from_fn(|channel| {
            std::array::from_fn(|level| {
                // transformers scales in double precision and normalises in single.
                let scaled = (level as f64 * (1.0 / 255.0)) as f32;
                (scaled - config.mean[channel]) / config.std[channel]
            })
        });
        Self { config, levels }
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &ProcessorConfig {
        &self.config
    }

    /// The tiles that a picture of `size`, in a prompt with `images` pictures,
    /// is cut into beside its whole; `None` where it becomes one tile.
    #[must_use]
    pub fn grid(&self, size: Size, images: usize) -> Option<Grid> {
        plan::canvas(&self.config, size, images).map(|canvas| plan::grid(&self.config, canvas))
    }

    /// Memory of a picture's tiles, in bytes.
    #[must_use]
    pub fn bytes(&self, grid: Option<Grid>) -> u64 {
        let tiles = 1 + grid.map_or(0, |grid| grid.columns * grid.rows) as u64;
        let side = u64::from(self.config.tile);
        tiles * side * side * 3 * size_of::<f32>() as u64
    }

    /// Prepares one of a prompt's `images` pictures.
    #[must_use]
    pub fn process(&self, picture: &Picture, images: usize) -> PixelValues {
        let side = self.config.tile as usize;
        let canvas = plan::canvas(&self.config, picture.size(), images);
        let grid = canvas.map(|canvas| plan::grid(&self.config, canvas));
        let tiles = 1 + grid.map_or(0, |grid| grid.columns * grid.rows);
        let mut values = Vec::with_capacity(tiles * 3 * side * side);
        match self.config.mode(images) {
            Mode::Pad => {
                let colour = self.config.mean.map(|mean| (f64::from(mean) * 255.0) as u8);
                self.centre(&Canvas::square(picture, colour), &mut values);
            }
            Mode::Crop => self.centre(&Canvas::bare(picture), &mut values),
            Mode::Stretch | Mode::Anyres(_) => self.stretch(picture, &mut values),
        }
        if let Some(canvas) = canvas {
            self.cut(picture, canvas, &mut values);
        }
        let original = (picture.size().width, picture.size().height);
        PixelValues {
            values,
            tiles,
            side,
            original,
            grid,
        }
    }

    /// Resizes the shortest side and takes the centre, computing no more than that.
    fn centre(&self, canvas: &Canvas<'_>, values: &mut Vec<f32>) {
        let (edge, tile) = (self.config.shortest_edge, self.config.tile as usize);
        let size = canvas.size();
        let long = u64::from(edge) * u64::from(size.longest()) / u64::from(size.shortest());
        let long = u32::try_from(long).unwrap_or(u32::MAX);
        let to = if size.width <= size.height {
            Size::new(edge, long)
        } else {
            Size::new(long, edge)
        };
        let middle = |length: u32| {
            let start = (length as usize - tile) / 2;
            start..start + tile
        };
        let rgb = canvas.resize(to, middle(to.width), middle(to.height), self.config.filter);
        self.normalise(&rgb, tile, 0, 0, values);
    }

    fn stretch(&self, picture: &Picture, values: &mut Vec<f32>) {
        let tile = self.config.tile;
        let (to, all) = (Size::new(tile, tile), 0..tile as usize);
        let rgb = Canvas::bare(picture).resize(to, all.clone(), all, self.config.filter);
        self.normalise(&rgb, tile as usize, 0, 0, values);
    }

    /// Fits the picture into `canvas`, black around it, and cuts that into tiles
    /// (`resize_and_pad_image`, `divide_to_patches`).
    fn cut(&self, picture: &Picture, canvas: Size, values: &mut Vec<f32>) {
        let size = picture.size();
        let across = f64::from(canvas.width) / f64::from(size.width);
        let down = f64::from(canvas.height) / f64::from(size.height);
        let fitted = if across < down {
            let height = (f64::from(size.height) * across).ceil() as u32;
            Size::new(canvas.width, height.min(canvas.height))
        } else {
            let width = (f64::from(size.width) * down).ceil() as u32;
            Size::new(width.min(canvas.width), canvas.height)
        };
        let (width, height) = (fitted.width as usize, fitted.height as usize);
        let rgb = Canvas::bare(picture).resize(fitted, 0..width, 0..height, self.config.filter);
        let left = (canvas.width - fitted.width) as usize / 2;
        let top = (canvas.height - fitted.height) as usize / 2;
        let stride = canvas.width as usize * 3;
        let mut sheet = vec![0; stride * canvas.height as usize];
        for (y, row) in rgb.chunks_exact(width * 3).enumerate() {
            let at = (top + y) * stride + left * 3;
            sheet[at..at + row.len()].copy_from_slice(row);
        }
        let tile = self.config.tile as usize;
        for y in (0..canvas.height as usize).step_by(tile) {
            for x in (0..canvas.width as usize).step_by(tile) {
                self.normalise(&sheet, canvas.width as usize, x, y, values);
            }
        }
    }

    /// Appends the tile at (`x`, `y`) of an RGB sheet `width` pixels wide, channel by channel.
    fn normalise(&self, rgb: &[u8], width: usize, x: usize, y: usize, values: &mut Vec<f32>) {
        let tile = self.config.tile as usize;
        for (channel, levels) in self.levels.iter().enumerate() {
            for row in y..y + tile {
                let at = (row * width + x) * 3;
                let pixels = rgb[at..at + tile * 3].chunks_exact(3);
                values.extend(pixels.map(|pixel| levels[usize::from(pixel[channel])]));
            }
        }
    }
}
