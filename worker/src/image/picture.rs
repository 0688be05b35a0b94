//! A decoded picture: eight bits of red, green and blue, upright.

use image::metadata::Orientation;

use super::size::Size;

/// Pixels row by row, three bytes each, red first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    size: Size,
    rgb: Vec<u8>,
}

impl Picture {
    /// A picture from its pixels; `None` unless there are exactly `3 × width × height` bytes.
    #[must_use]
    pub fn new(size: Size, rgb: Vec<u8>) -> Option<Self> {
        let fits = size.width > 0 && size.height > 0 && rgb.len() as u64 == size.pixels() * 3;
        fits.then_some(Self { size, rgb })
    }

    /// Sides in pixels.
    #[must_use]
    pub fn size(&self) -> Size {
        self.size
    }

    /// All pixels, row by row.
    #[must_use]
    pub fn rgb(&self) -> &[u8] {
        &self.rgb
    }

    /// The row at `y`, three bytes a pixel.
    pub(super) fn row(&self, y: usize) -> &[u8] {
        let stride = self.size.width as usize * 3;
        &self.rgb[y * stride..(y + 1) * stride]
    }

    /// The picture turned and mirrored as EXIF asks.
    pub(super) fn oriented(self, orientation: Orientation) -> Self {
        let (width, height) = (self.size.width as usize, self.size.height as usize);
        let turned = matches!(
            orientation,
            Orientation::Rotate90
                | Orientation::Rotate270
                | Orientation::Rotate90FlipH
                | Orientation::Rotate270FlipH
        );
        let size = if turned {
            self.size.turned()
        } else {
            self.size
        };
        // Where the pixel at (x, y) of the upright picture comes from.
        let source = |x: usize, y: usize| match orientation {
            Orientation::NoTransforms => (x, y),
            Orientation::FlipHorizontal => (width - 1 - x, y),
            Orientation::Rotate180 => (width - 1 - x, height - 1 - y),
            Orientation::FlipVertical => (x, height - 1 - y),
            Orientation::Rotate90FlipH => (y, x),
            Orientation::Rotate90 => (y, height - 1 - x),
            Orientation::Rotate270FlipH => (width - 1 - y, height - 1 - x),
            Orientation::Rotate270 => (width - 1 - y, x),
        };
        if orientation == Orientation::NoTransforms {
            return self;
        }
        let mut rgb = Vec::with_capacity(self.rgb.len());
        for y in 0..size.height as usize {
            for x in 0..size.width as usize {
                let (from_x, from_y) = source(x, y);
                let at = (from_y * width + from_x) * 3;
                rgb.extend_from_slice(&self.rgb[at..at + 3]);
            }
        }
        Self { size, rgb }
    }
}
