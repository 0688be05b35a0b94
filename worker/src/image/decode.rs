//! A file's bytes to upright RGB: PNG, JPEG, WebP and the first frame of a GIF,
//! nothing else. The header is read and judged first. Error texts are fixed: what
//! a decoder says about its own state stays inside.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

use image::error::ImageError as Fault;
use image::metadata::Orientation;
use image::{ColorType, ImageDecoder, ImageFormat, ImageReader};

use super::cost;
use super::jpeg;
use super::limits::{Exceeded, Limits};
use super::picture::{Picture, turns};
use super::size::Size;

/// Why a file is no picture for us. `image` names it: a path, or its place in the request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A limit is exceeded.
    #[error("{image}: {limit}")]
    TooLarge {
        /// Which image.
        image: String,
        /// Which limit, and by how much.
        limit: Exceeded,
    },
    /// The bytes start like no format that is read here.
    #[error("{image}: the format is not PNG, JPEG, WebP or GIF")]
    UnknownFormat {
        /// Which image.
        image: String,
    },
    /// The file breaks its format's rules or ends too early.
    #[error("{image}: the {format} data is damaged or cut short")]
    Damaged {
        /// Which image.
        image: String,
        /// The format's name.
        format: &'static str,
    },
    /// The file is whole, but holds pixels in a form that is not read here.
    #[error("{image}: this kind of {format} is not supported")]
    Unsupported {
        /// Which image.
        image: String,
        /// The format's name.
        format: &'static str,
    },
}

/// What a picture's header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Sides once upright.
    pub size: Size,
    /// Bytes that are held at most while the file is decoded, the file among them.
    pub held: u64,
}

/// Reads and judges the header alone.
///
/// # Errors
/// As [`decode`], but damage behind the header goes unseen.
pub fn read_header(image: &str, bytes: &[u8], limits: &Limits) -> Result<Header, DecodeError> {
    at_worst_damaged(image, bytes, || {
        let mut opened = Opened::new(image, bytes, limits)?;
        let orientation = opened.orientation();
        let size = if turns(orientation) {
            opened.size.turned()
        } else {
            opened.size
        };
        Ok(Header {
            size,
            held: opened.held,
        })
    })
}

/// Decodes a file to upright RGB. Alpha is dropped and of 16 bits the upper eight
/// are kept, as Pillow's `convert("RGB")` does for colour.
///
/// # Errors
/// The file exceeds a limit, is damaged, or is in no format that is read here.
pub fn decode(image: &str, bytes: &[u8], limits: &Limits) -> Result<Picture, DecodeError> {
    at_worst_damaged(image, bytes, || read_whole(image, bytes, limits))
}

/// What `work` makes of a file. A decoder that panics has met what its authors did not foresee: the log says where,
/// and the file is as good as damaged.
fn at_worst_damaged<T>(
    image: &str,
    bytes: &[u8],
    work: impl FnOnce() -> Result<T, DecodeError>,
) -> Result<T, DecodeError> {
    // What it was at work on is gone with it.
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        Err(DecodeError::Damaged {
            image: image.to_owned(),
            format: sniff(bytes).map_or("image", name_of),
        })
    })
}

fn read_whole(image: &str, bytes: &[u8], limits: &Limits) -> Result<Picture, DecodeError> {
    let mut opened = Opened::new(image, bytes, limits)?;
    let (size, format, color) = (opened.size, opened.format, opened.decoder.color_type());
    let damaged = || DecodeError::Damaged {
        image: image.to_owned(),
        format: name_of(format),
    };
    if format == ImageFormat::Jpeg && !jpeg::is_whole(bytes) {
        return Err(damaged());
    }
    let orientation = opened.orientation();
    let total = usize::try_from(opened.decoder.total_bytes()).map_err(|_| damaged())?;
    let mut raw = vec![0; total];
    opened
        .decoder
        .read_image(&mut raw)
        .map_err(|fault| explain(image, format, size, limits, &fault))?;
    let rgb = to_rgb(raw, color).ok_or_else(|| DecodeError::Unsupported {
        image: image.to_owned(),
        format: name_of(format),
    })?;
    Picture::new(size, rgb)
        .map(|picture| picture.oriented(orientation))
        .ok_or_else(damaged)
}

struct Opened<'a> {
    format: ImageFormat,
    size: Size,
    held: u64,
    decoder: Box<dyn ImageDecoder + 'a>,
}

impl<'a> Opened<'a> {
    fn new(image: &str, bytes: &'a [u8], limits: &Limits) -> Result<Self, DecodeError> {
        let too_large = |limit| DecodeError::TooLarge {
            image: image.to_owned(),
            limit,
        };
        limits.check_bytes(bytes.len()).map_err(too_large)?;
        let format = sniff(bytes).ok_or_else(|| DecodeError::UnknownFormat {
            image: image.to_owned(),
        })?;
        if let Some(size) = declared_size(bytes, format) {
            limits.check_header(size, 0).map_err(too_large)?;
        }
        let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
        let mut bounds = image::Limits::default();
        bounds.max_alloc = Some(limits.memory);
        reader.limits(bounds.clone());
        let mut decoder = reader
            .into_decoder()
            .map_err(|fault| explain(image, format, Size::new(0, 0), limits, &fault))?;
        let (width, height) = decoder.dimensions();
        let size = Size::new(width, height);
        if width == 0 || height == 0 {
            return Err(DecodeError::Damaged {
                image: image.to_owned(),
                format: name_of(format),
            });
        }
        let held = cost::held(bytes, format, size, decoder.total_bytes());
        limits.check_header(size, held).map_err(too_large)?;
        if format == ImageFormat::Gif {
            // A first frame that is no strip across the picture gets a buffer of its own, which the
            // decoder asks for when it comes to it.
            bounds.max_alloc = Some(limits.memory - held);
            decoder
                .set_limits(bounds)
                .map_err(|fault| explain(image, format, size, limits, &fault))?;
        }
        Ok(Self {
            format,
            size,
            held,
            decoder: Box::new(decoder),
        })
    }

    /// Broken EXIF data is no reason to refuse a sound picture.
    fn orientation(&mut self) -> Orientation {
        self.decoder
            .orientation()
            .unwrap_or(Orientation::NoTransforms)
    }
}

fn sniff(bytes: &[u8]) -> Option<ImageFormat> {
    if bytes.starts_with(b"\x89PNG\r\n\x1a\n") {
        Some(ImageFormat::Png)
    } else if bytes.starts_with(&[0xff, 0xd8, 0xff]) {
        Some(ImageFormat::Jpeg)
    } else if bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(b"WEBP") {
        Some(ImageFormat::WebP)
    } else if bytes.starts_with(b"GIF87a") || bytes.starts_with(b"GIF89a") {
        Some(ImageFormat::Gif)
    } else {
        None
    }
}

fn name_of(format: ImageFormat) -> &'static str {
    match format {
        ImageFormat::Png => "PNG",
        ImageFormat::Jpeg => "JPEG",
        ImageFormat::WebP => "WebP",
        ImageFormat::Gif => "GIF",
        _ => "image",
    }
}

/// Sides that stand at a fixed place, read before any decoder allocates for them.
fn declared_size(bytes: &[u8], format: ImageFormat) -> Option<Size> {
    match format {
        ImageFormat::Png => {
            let at = |from: usize| {
                Some(u32::from_be_bytes(
                    bytes.get(from..from + 4)?.try_into().ok()?,
                ))
            };
            Some(Size::new(at(16)?, at(20)?))
        }
        ImageFormat::Gif => {
            let at = |from: usize| {
                Some(u16::from_le_bytes(
                    bytes.get(from..from + 2)?.try_into().ok()?,
                ))
            };
            Some(Size::new(at(6)?.into(), at(8)?.into()))
        }
        _ => None,
    }
}

fn explain(
    image: &str,
    format: ImageFormat,
    size: Size,
    limits: &Limits,
    fault: &Fault,
) -> DecodeError {
    let (image, format) = (image.to_owned(), name_of(format));
    match fault {
        Fault::Limits(_) => DecodeError::TooLarge {
            image,
            limit: Exceeded::Memory {
                size,
                bytes: limits.memory + 1,
                limit: limits.memory,
            },
        },
        Fault::Unsupported(_) => DecodeError::Unsupported { image, format },
        _ => DecodeError::Damaged { image, format },
    }
}

/// Brings decoded samples to eight-bit RGB in place; `None` for float samples, which none of our formats has.
fn to_rgb(mut raw: Vec<u8>, color: ColorType) -> Option<Vec<u8>> {
    let channels = usize::from(color.channel_count());
    if matches!(
        color,
        ColorType::L16 | ColorType::La16 | ColorType::Rgb16 | ColorType::Rgba16
    ) {
        let samples = raw.len() / 2;
        for at in 0..samples {
            raw[at] = (u16::from_ne_bytes([raw[2 * at], raw[2 * at + 1]]) >> 8) as u8;
        }
        raw.truncate(samples);
    } else if !matches!(
        color,
        ColorType::L8 | ColorType::La8 | ColorType::Rgb8 | ColorType::Rgba8
    ) {
        return None;
    }
    let pixels = raw.len() / channels;
    match channels {
        1 | 2 => {
            raw.resize(pixels * 3, 0);
            for at in (0..pixels).rev() {
                let level = raw[at * channels];
                raw[at * 3..at * 3 + 3].fill(level);
            }
        }
        3 => {}
        _ => {
            for at in 0..pixels {
                raw.copy_within(at * 4..at * 4 + 3, at * 3);
            }
            raw.truncate(pixels * 3);
        }
    }
    raw.shrink_to_fit();
    Some(raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_at_which_a_decoder_panics_is_damaged() {
        let outcome: Result<(), _> =
            at_worst_damaged("photo", b"GIF89a", || panic!("a decoder's own mistake"));
        let error = outcome.unwrap_err().to_string();
        assert_eq!(error, "photo: the GIF data is damaged or cut short");
    }
}
