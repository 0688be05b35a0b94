//! The body of an answer, taken out of what the connection brought: by its length,
//! by chunks, or until the connection ends (RFC 9112, sections 6 and 7). How the
//! bytes are cut on their way makes no difference.

use bytes::Bytes;

/// What is read over in an answer at most: extensions of chunks and trailers, bytes.
const MAX_ASIDE: u32 = 16 * 1024;
/// Digits of a chunk's size; more would not fit 64 bits.
const MAX_DIGITS: u8 = 15;

/// How the end of a body is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    /// By its length, bytes.
    Length(u64),
    /// By a last chunk.
    Chunked,
    /// By the end of the connection.
    UntilClose,
}

/// Chunks that are none.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadChunk {
    /// The size is not hexadecimal, or has too many digits.
    #[error("a chunk's size does not read")]
    Size,
    /// A line does not end where it must.
    #[error("a chunk does not end with its line")]
    End,
    /// Extensions or trailers beyond measure.
    #[error("more than {MAX_ASIDE} bytes of extensions and trailers")]
    Aside,
}

/// Takes a body out of what is read, piece by piece.
#[derive(Debug)]
pub(super) struct Decoder {
    place: Place,
    aside: u32,
}

/// Where in a body the next byte belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// This many bytes are left.
    Length(u64),
    UntilClose,
    Size {
        size: u64,
        digits: u8,
    },
    Extension(u64),
    SizeEnd(u64),
    /// This many bytes of a chunk are left.
    Chunk(u64),
    ChunkReturn,
    ChunkEnd,
    /// At the beginning of a trailer's line, or of the empty one that ends the body.
    TrailerStart,
    Trailer,
    LastEnd,
    Done,
}

const NEXT_CHUNK: Place = Place::Size { size: 0, digits: 0 };

impl Decoder {
    /// For a body whose end is told so.
    pub(super) fn new(extent: Extent) -> Self {
        let place = match extent {
            Extent::Length(0) => Place::Done,
            Extent::Length(length) => Place::Length(length),
            Extent::Chunked => NEXT_CHUNK,
            Extent::UntilClose => Place::UntilClose,
        };
        Self { place, aside: 0 }
    }

    /// Takes what belongs to the body from the front of `input` and gives the data
    /// in it. What is left of `input` comes after the body.
    pub(super) fn take(&mut self, input: &mut &[u8]) -> Result<Bytes, BadChunk> {
        match &mut self.place {
            Place::Done => Ok(Bytes::new()),
            Place::UntilClose => Ok(Bytes::copy_from_slice(split(input, usize::MAX))),
            Place::Length(left) => {
                let data = split(input, bound(*left));
                *left -= data.len() as u64;
                if *left == 0 {
                    self.place = Place::Done;
                }
                Ok(Bytes::copy_from_slice(data))
            }
            _ => self.take_chunks(input),
        }
    }

    fn take_chunks(&mut self, input: &mut &[u8]) -> Result<Bytes, BadChunk> {
        let mut data = Vec::new();
        while self.place != Place::Done {
            if let Place::Chunk(left) = &mut self.place {
                let piece = split(input, bound(*left));
                *left -= piece.len() as u64;
                if *left == 0 {
                    self.place = Place::ChunkReturn;
                }
                if data.is_empty() {
                    data.reserve_exact(piece.len() + input.len());
                }
                data.extend_from_slice(piece);
            }
            let Some((&byte, rest)) = input.split_first() else {
                break;
            };
            *input = rest;
            self.place = self.after(byte)?;
        }
        Ok(data.into())
    }

    /// Where the byte after `byte` belongs; `byte` is not data.
    fn after(&mut self, byte: u8) -> Result<Place, BadChunk> {
        Ok(match (self.place, byte) {
            (Place::Size { digits: 1.., size }, b'\r') => Place::SizeEnd(size),
            (Place::Size { digits: 1.., size }, b';' | b' ' | b'\t') => Place::Extension(size),
            (Place::Size { size, digits }, _) => {
                let digit = char::from(byte).to_digit(16).ok_or(BadChunk::Size)?;
                if digits == MAX_DIGITS {
                    return Err(BadChunk::Size);
                }
                Place::Size {
                    size: size << 4 | u64::from(digit),
                    digits: digits + 1,
                }
            }
            (Place::Extension(size), b'\r') => Place::SizeEnd(size),
            (Place::SizeEnd(0), b'\n') => Place::TrailerStart,
            (Place::SizeEnd(size), b'\n') => Place::Chunk(size),
            (Place::ChunkReturn, b'\r') => Place::ChunkEnd,
            (Place::ChunkEnd, b'\n') => NEXT_CHUNK,
            (Place::TrailerStart, b'\r') => Place::LastEnd,
            (Place::Trailer, b'\n') => Place::TrailerStart,
            (Place::LastEnd, b'\n') => Place::Done,
            // A bare line feed would end a line for some readers and not for others.
            (Place::Extension(_), b'\n') => return Err(BadChunk::End),
            (aside @ Place::Extension(_), _) => self.aside(aside)?,
            (Place::TrailerStart | Place::Trailer, _) => self.aside(Place::Trailer)?,
            _ => return Err(BadChunk::End),
        })
    }

    fn aside(&mut self, place: Place) -> Result<Place, BadChunk> {
        self.aside += 1;
        match self.aside > MAX_ASIDE {
            true => Err(BadChunk::Aside),
            false => Ok(place),
        }
    }

    /// Whether the body has ended, by its own word.
    pub(super) fn is_done(&self) -> bool {
        self.place == Place::Done
    }

    /// Whether the end of the connection is the end of the body.
    pub(super) fn ends_with_connection(&self) -> bool {
        self.place == Place::UntilClose
    }

    /// The length of what is left, where it is known, bytes.
    pub(super) fn left(&self) -> Option<u64> {
        match self.place {
            Place::Length(left) => Some(left),
            Place::Done => Some(0),
            _ => None,
        }
    }
}

fn bound(length: u64) -> usize {
    usize::try_from(length).unwrap_or(usize::MAX)
}

/// Takes up to `length` bytes from the front of `input`.
fn split<'a>(input: &mut &'a [u8], length: usize) -> &'a [u8] {
    let (front, rest) = input.split_at(length.min(input.len()));
    *input = rest;
    front
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Feeds `wire` in pieces of `size`; the body, and what came after it.
    fn decode(extent: Extent, wire: &[u8], size: usize) -> Result<(Vec<u8>, Vec<u8>), BadChunk> {
        let mut decoder = Decoder::new(extent);
        let (mut body, mut after) = (Vec::new(), Vec::new());
        for mut piece in wire.chunks(size) {
            body.extend_from_slice(&decoder.take(&mut piece)?);
            after.extend_from_slice(piece);
        }
        assert!(decoder.is_done() || after.is_empty());
        Ok((body, after))
    }

    #[test]
    fn extensions_and_trailers_are_read_over() {
        let wire = b"3;x=\"y\"\r\nabc\r\n0A \r\n0123456789\r\n0\r\nx-sum: 1\r\ny: 2\r\n\r\nNEXT";
        for size in [1, 2, 3, 7, wire.len()] {
            let (body, after) = decode(Extent::Chunked, wire, size).unwrap();
            assert_eq!(
                (&body[..], &after[..]),
                (&b"abc0123456789"[..], &b"NEXT"[..])
            );
        }
    }

    #[test]
    fn chunks_that_are_none_are_refused() {
        for (wire, why) in [
            (&b"\r\n"[..], BadChunk::Size),
            (b"x\r\n", BadChunk::Size),
            (b"-1\r\n", BadChunk::Size),
            (b";x\r\n", BadChunk::Size),
            (b"1111111111111111\r\n", BadChunk::Size),
            (b"1\nab", BadChunk::Size),
            (b"1;x\nab", BadChunk::End),
            (b"1\r\nabc", BadChunk::End),
            (b"0\r\n\rx", BadChunk::End),
        ] {
            assert_eq!(decode(Extent::Chunked, wire, wire.len()), Err(why));
        }
        let endless = [&b"1;"[..], &[b'x'; 20_000]].concat();
        assert_eq!(decode(Extent::Chunked, &endless, 999), Err(BadChunk::Aside));
    }

    #[test]
    fn a_body_without_chunks_ends_by_its_length_or_never() {
        let (body, after) = decode(Extent::Length(3), b"abcdef", 2).unwrap();
        assert_eq!((&body[..], &after[..]), (&b"abc"[..], &b"def"[..]));
        assert!(Decoder::new(Extent::Length(0)).is_done());
        let (body, _) = decode(Extent::UntilClose, b"0\r\n\r\n", 2).unwrap();
        assert_eq!(body, b"0\r\n\r\n");
    }

    proptest! {
        #[test]
        fn any_cut_gives_the_same_body(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..8),
            size in 1usize..50,
        ) {
            let mut wire = Vec::new();
            for chunk in &chunks {
                wire.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                wire.extend_from_slice(chunk);
                wire.extend_from_slice(b"\r\n");
            }
            wire.extend_from_slice(b"0\r\n\r\n");
            let (body, after) = decode(Extent::Chunked, &wire, size).unwrap();
            prop_assert_eq!(body, chunks.concat());
            prop_assert!(after.is_empty());
        }

        #[test]
        fn noise_is_an_error_or_a_body_but_never_a_crash(
            wire in prop::collection::vec(prop::sample::select(&b"0a1;\r\n x"[..]), 0..60),
            size in 1usize..9,
        ) {
            let at_once = decode(Extent::Chunked, &wire, wire.len().max(1));
            prop_assert_eq!(decode(Extent::Chunked, &wire, size), at_once);
        }
    }
}
