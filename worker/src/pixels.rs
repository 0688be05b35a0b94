//! What image processing hands to the vision tower: normalised tiles and what
//! the merge must know about the image they came from.

/// One image, cut and normalised as its checkpoint's processor says.
#[derive(Debug, Clone, PartialEq)]
pub struct PixelValues {
    /// `[tiles, 3, side, side]`, row-major. With a grid, the whole image comes
    /// first and the grid's tiles follow row by row.
    pub values: Vec<f32>,
    /// How many tiles `values` holds.
    pub tiles: usize,
    /// Sides of a tile in pixels.
    pub side: usize,
    /// Width and height of the image before any resizing, in pixels.
    pub original: (u32, u32),
    /// Columns and rows of the tiles after the first; `None` for an image that
    /// is one tile.
    pub grid: Option<Grid>,
}

/// How the tiles of a high-resolution image lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grid {
    /// Tiles from left to right.
    pub columns: usize,
    /// Tiles from top to bottom.
    pub rows: usize,
}
