//! The width and height of an image from the first bytes of its base64 text,
//! without decoding the image. Formats: PNG, JPEG, GIF, WebP.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use memchr::{memchr, memchr3};

/// How much of the text holds the size in all formats but JPEG.
const AT_ONCE: usize = 128;
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// Width and height in pixels of the image whose base64 text starts like this;
/// `None` when the format is unknown or the size lies further behind.
pub(crate) fn sniff(base64_start: &[u8]) -> Option<(u32, u32)> {
    let decoded = |window: usize| decoded(&base64_start[..window.min(base64_start.len())]);
    // Most say their size at once. Only a JPEG may hide it behind a thumbnail, and
    // to decode all of its start costs more than to relay the image.
    let size = if may_be_jpeg(base64_start) {
        let windows = [AT_ONCE, 16 * AT_ONCE, usize::MAX];
        windows
            .into_iter()
            .find_map(|window| jpeg(&decoded(window)?))
    } else {
        let bytes = decoded(AT_ONCE)?;
        png(&bytes).or_else(|| gif(&bytes)).or_else(|| webp(&bytes))
    };
    size.filter(|(width, height)| *width > 0 && *height > 0)
}

/// Whether text that starts like this may hold a size further behind than the
/// first few bytes; slashes may be escaped in JSON.
pub(crate) fn may_be_jpeg(base64_start: &[u8]) -> bool {
    base64_start.starts_with(b"/9j") || base64_start.starts_with(b"\\/9j")
}

fn decoded(text: &[u8]) -> Option<Vec<u8>> {
    let text: Cow<'_, [u8]> = if memchr3(b'\\', b'\n', b'\r', text).is_some() {
        let meant = |byte: &u8| !matches!(byte, b'\\' | b'\n' | b'\r');
        text.iter().copied().filter(meant).collect()
    } else {
        text.into()
    };
    let end = memchr(b'=', &text).unwrap_or(text.len());
    LENIENT.decode(&text[..end / 4 * 4]).ok()
}

fn png(bytes: &[u8]) -> Option<(u32, u32)> {
    bytes.strip_prefix(b"\x89PNG\r\n\x1a\n")?;
    Some((big(bytes.get(16..20)?), big(bytes.get(20..24)?)))
}

fn gif(bytes: &[u8]) -> Option<(u32, u32)> {
    bytes.strip_prefix(b"GIF8")?;
    Some((little(bytes.get(6..8)?), little(bytes.get(8..10)?)))
}

fn webp(bytes: &[u8]) -> Option<(u32, u32)> {
    bytes.strip_prefix(b"RIFF")?;
    if bytes.get(8..12)? != b"WEBP" {
        return None;
    }
    match bytes.get(12..16)? {
        b"VP8X" => Some((
            little(bytes.get(24..27)?) + 1,
            little(bytes.get(27..30)?) + 1,
        )),
        b"VP8L" => {
            let bits = little(bytes.get(21..25)?);
            Some(((bits & 0x3fff) + 1, (bits >> 14 & 0x3fff) + 1))
        }
        b"VP8 " => Some((
            little(bytes.get(26..28)?) & 0x3fff,
            little(bytes.get(28..30)?) & 0x3fff,
        )),
        _ => None,
    }
}

/// Walks the segments to the frame header (SOF0 to SOF15 without the tables).
fn jpeg(bytes: &[u8]) -> Option<(u32, u32)> {
    bytes.strip_prefix(b"\xff\xd8")?;
    let mut at = 2;
    loop {
        let marker = *bytes.get(at + 1)?;
        if bytes[at] != 0xff {
            return None;
        }
        match marker {
            0xff => at += 1,
            0x01 | 0xd0..=0xd8 => at += 2,
            0xc0..=0xcf if !matches!(marker, 0xc4 | 0xc8 | 0xcc) => {
                return Some((
                    big(bytes.get(at + 7..at + 9)?),
                    big(bytes.get(at + 5..at + 7)?),
                ));
            }
            _ => at += 2 + big(bytes.get(at + 2..at + 4)?) as usize,
        }
    }
}

fn big(bytes: &[u8]) -> u32 {
    bytes
        .iter()
        .fold(0, |sum, &byte| sum << 8 | u32::from(byte))
}

fn little(bytes: &[u8]) -> u32 {
    bytes
        .iter()
        .rev()
        .fold(0, |sum, &byte| sum << 8 | u32::from(byte))
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::STANDARD;
    use proptest::prelude::*;

    use super::*;

    fn size_of(bytes: &[u8]) -> Option<(u32, u32)> {
        sniff(STANDARD.encode(bytes).as_bytes())
    }

    #[test]
    fn each_format_tells_its_size() {
        let png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\x01\x50\0\0\x02\xa0\x08\x02\0\0\0";
        assert_eq!(size_of(png), Some((336, 672)));
        assert_eq!(size_of(b"GIF89a\x40\x01\xf0\0\0\0\0"), Some((320, 240)));
        let jpeg = b"\xff\xd8\xff\xe0\0\x04ab\xff\xc2\0\x11\x08\0\xf0\x01\x40\x03";
        assert_eq!(size_of(jpeg), Some((320, 240)));
        let vp8x = b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\x3f\x01\0\xef\0\0";
        assert_eq!(size_of(vp8x), Some((320, 240)));
        assert_eq!(size_of(b"%PDF-1.7 no image at all"), None);
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = sniff(&bytes);
            let mut jpeg = b"\xff\xd8\xff".to_vec();
            jpeg.extend(&bytes);
            let _ = size_of(&jpeg);
        }
    }
}
