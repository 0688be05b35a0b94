//! A decoded picture: eight bits of red, green and blue. It stays as its file holds it and is turned
//! upright row by row as it is read: a second copy of a large photo would take as much memory again.

use image::metadata::Orientation;

use super::size::Size;

/// Pixels row by row, three bytes each, red first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// Sides once upright.
    size: Size,
    /// As the file holds them.
    stored: Vec<u8>,
    orientation: Orientation,
}

impl Picture {
    /// An upright picture from its pixels; `None` unless there are exactly `3 × width × height` bytes.
    #[must_use]
    pub fn new(size: Size, rgb: Vec<u8>) -> Option<Self> {
        let fits = size.width > 0 && size.height > 0 && rgb.len() as u64 == size.pixels() * 3;
        fits.then_some(Self {
            size,
            stored: rgb,
            orientation: Orientation::NoTransforms,
        })
    }

    /// Sides in pixels.
    #[must_use]
    pub fn size(&self) -> Size {
        self.size
    }

    /// All pixels of the upright picture, row by row.
    #[must_use]
    pub fn rgb(&self) -> Vec<u8> {
        let stride = self.size.width as usize * 3;
        let mut rgb = vec![0; self.stored.len()];
        for (y, row) in rgb.chunks_exact_mut(stride).enumerate() {
            self.read_row(y, 0, row);
        }
        rgb
    }

    /// Fills `row` with the pixels of the upright row `y` from the column `x` on.
    pub(super) fn read_row(&self, y: usize, x: usize, row: &mut [u8]) {
        let (width, height) = (self.size.width as usize, self.size.height as usize);
        // Where the first pixel is stored, and how many pixels further each next one is.
        let (first, step) = match self.orientation {
            Orientation::NoTransforms => {
                let at = (y * width + x) * 3;
                row.copy_from_slice(&self.stored[at..at + row.len()]);
                return;
            }
            Orientation::FlipHorizontal => (y * width + width - 1 - x, -1),
            Orientation::FlipVertical => ((height - 1 - y) * width + x, 1),
            Orientation::Rotate180 => ((height - 1 - y) * width + width - 1 - x, -1),
            // Stored rows are upright columns, `height` pixels long.
            Orientation::Rotate90FlipH => (x * height + y, height as isize),
            Orientation::Rotate90 => ((width - 1 - x) * height + y, -(height as isize)),
            Orientation::Rotate270FlipH => (
                (width - 1 - x) * height + height - 1 - y,
                -(height as isize),
            ),
            Orientation::Rotate270 => (x * height + height - 1 - y, height as isize),
        };
        for (pixel, out) in row.chunks_exact_mut(3).enumerate() {
            let at = first.wrapping_add_signed(step * pixel as isize) * 3;
            out.copy_from_slice(&self.stored[at..at + 3]);
        }
    }

    /// The picture turned and mirrored as EXIF asks.
    pub(super) fn oriented(self, orientation: Orientation) -> Self {
        let size = if turns(orientation) {
            self.size.turned()
        } else {
            self.size
        };
        Self {
            size,
            orientation,
            ..self
        }
    }
}

/// Whether upright rows are stored as columns.
pub(super) fn turns(orientation: Orientation) -> bool {
    matches!(
        orientation,
        Orientation::Rotate90
            | Orientation::Rotate270
            | Orientation::Rotate90FlipH
            | Orientation::Rotate270FlipH
    )
}
