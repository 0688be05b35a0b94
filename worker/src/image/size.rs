//! Width and height of a picture, in that order everywhere: the references
//! disagree on the order, so the disagreement ends where their files are read.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

/// Sides in pixels, both at least 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct Size {
    /// Pixels from left to right.
    pub width: u32,
    /// Pixels from top to bottom.
    pub height: u32,
}

impl Size {
    /// A size from its sides in pixels.
    #[must_use]
    pub const fn new(width: u32, height: u32) -> Self {
        Self { width, height }
    }

    /// Number of pixels.
    #[must_use]
    pub fn pixels(self) -> u64 {
        u64::from(self.width) * u64::from(self.height)
    }

    /// The longer side.
    #[must_use]
    pub fn longest(self) -> u32 {
        self.width.max(self.height)
    }

    /// The shorter side.
    #[must_use]
    pub fn shortest(self) -> u32 {
        self.width.min(self.height)
    }

    /// The size after a quarter turn.
    #[must_use]
    pub const fn turned(self) -> Self {
        Self::new(self.height, self.width)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.width, self.height)
    }
}

/// The text is not `WIDTHxHEIGHT` with both sides at least 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("read {text:?} as an image size: expected WIDTHxHEIGHT in pixels, such as 640x480")]
pub struct BadSize {
    text: String,
}

impl FromStr for Size {
    type Err = BadSize;

    fn from_str(text: &str) -> Result<Self, BadSize> {
        text.split_once(['x', 'X'])
            .and_then(|(w, h)| Some(Self::new(w.parse().ok()?, h.parse().ok()?)))
            .filter(|size| size.width > 0 && size.height > 0)
            .ok_or_else(|| BadSize {
                text: text.to_owned(),
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_read_as_width_then_height() {
        assert_eq!("640x480".parse(), Ok(Size::new(640, 480)));
        for wrong in ["", "640", "x480", "0x5", "-1x5", "5x5x5", "99999999999x1"] {
            assert!(wrong.parse::<Size>().is_err(), "{wrong}");
        }
    }
}
