//! NUL-separated frames, as LLaVA's workers send them: JSON text, then one zero byte.

use bytes::{Bytes, BytesMut};
use memchr::memchr;

/// The frame of a payload that holds no zero byte itself (JSON never does).
#[must_use]
pub fn frame(payload: &str) -> Bytes {
    let mut out = BytesMut::with_capacity(payload.len() + 1);
    out.extend_from_slice(payload.as_bytes());
    out.extend_from_slice(&[0]);
    out.freeze()
}

/// Cuts a byte stream, however it is chunked, back into payloads.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: BytesMut,
}

impl Decoder {
    /// Takes the next bytes of the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole payload, without its zero byte; empty ones are skipped.
    pub fn next_payload(&mut self) -> Option<Bytes> {
        loop {
            let end = memchr(0, &self.buffer)?;
            let mut payload = self.buffer.split_to(end + 1);
            payload.truncate(end);
            if !payload.is_empty() {
                return Some(payload.freeze());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_chunking_gives_the_same_payloads(
            payloads in prop::collection::vec("[a-z]{1,9}", 0..9),
            size in 1usize..20,
        ) {
            let wire: Vec<u8> = payloads.iter().flat_map(|p| frame(p)).collect();
            let mut decoder = Decoder::default();
            let mut seen = Vec::new();
            for chunk in wire.chunks(size) {
                decoder.push(chunk);
                while let Some(payload) = decoder.next_payload() {
                    seen.push(String::from_utf8(payload.to_vec()).unwrap());
                }
            }
            prop_assert_eq!(seen, payloads);
        }
    }
}
