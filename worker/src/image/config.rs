//! How a checkpoint wants its pictures prepared, as checked values. The files
//! it is read from are in `config_file`; after that nothing can be missing.

use super::size::Size;

/// How a picture is brought to the tower's square.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    /// Padded to a square with the mean colour, then resized.
    Pad,
    /// Shortest side resized, then the centre cut out.
    Crop,
    /// Resized to the square, whatever its shape.
    Stretch,
    /// The whole picture stretched, then tiles of it at the best of several
    /// sizes, each a multiple of the tile; in the checkpoint's order.
    Anyres(Vec<Size>),
}

/// Filter of Pillow's `resize`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// Triangle, two pixels wide.
    Bilinear,
    /// Cubic with a = −0.5, four pixels wide.
    Bicubic,
}

/// A checkpoint's image processing.
#[derive(Debug, Clone, PartialEq)]
pub struct ProcessorConfig {
    /// What happens to the only picture of a prompt.
    pub alone: Mode,
    /// What happens to each picture of a prompt with several.
    pub among_others: Mode,
    /// Side in pixels that the shortest edge is resized to before the centre is cut; at least `tile`.
    pub shortest_edge: u32,
    /// Side of the tower's input in pixels.
    pub tile: u32,
    /// Mean of each channel, red first, of values from 0 to 1.
    pub mean: [f32; 3],
    /// Standard deviation of each channel.
    pub std: [f32; 3],
    /// Filter for every resize.
    pub filter: Filter,
}

impl ProcessorConfig {
    /// What happens to each of `images` pictures in one prompt.
    #[must_use]
    pub fn mode(&self, images: usize) -> &Mode {
        if images > 1 {
            &self.among_others
        } else {
            &self.alone
        }
    }
}
