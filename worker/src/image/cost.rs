//! What decoding holds in memory, known from a file's header: the decoders' own buffers are larger than
//! the pixels that come out, and which ones there are depends on how the file is made.

use image::ImageFormat;

use super::jpeg;
use super::size::Size;

/// Bytes that are held at most while `file` becomes RGB, the file among them. `pixels` is the length of
/// what the decoder gives.
pub(super) fn held(file: &[u8], format: ImageFormat, size: Size, pixels: u64) -> u64 {
    let beside = match format {
        // The decoder keeps a copy of the file.
        ImageFormat::Jpeg => file.len() as u64 + jpeg::coefficients(file),
        ImageFormat::WebP => webp(file, size, pixels),
        _ => 0,
    };
    let rgb = size.pixels() * 3;
    file.len() as u64 + pixels.max(rgb) + beside
}

/// A lossy frame is held in planes, a lossless one with alpha even where the file has none, and alpha
/// beside a lossy frame is a lossless one of its own; animations are drawn on a canvas.
fn webp(file: &[u8], size: Size, pixels: u64) -> u64 {
    const ALPHA: u8 = 0x10;
    const ANIMATION: u8 = 0x02;
    let block = |length: u32| u64::from(length.next_multiple_of(16));
    let planes = block(size.width) * block(size.height) * 3 / 2;
    let rgba = size.pixels() * 4;
    let alpha = rgba + size.pixels();
    match (file.get(12..16), file.get(20)) {
        (Some(b"VP8 "), _) => planes,
        (Some(b"VP8X"), Some(flags)) if flags & ANIMATION != 0 => rgba + rgba + planes + alpha,
        (Some(b"VP8X"), Some(flags)) if flags & ALPHA != 0 => planes + alpha,
        (Some(b"VP8L"), _) if pixels == rgba => 0,
        _ => planes.max(rgba),
    }
}
