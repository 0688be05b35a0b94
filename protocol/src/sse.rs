//! Server-sent events, as far as OpenAI's streams use them: `data:` lines,
//! comments as keep-alives, and the closing `[DONE]`.
//! Source: WHATWG HTML, section 9.2.6 (event stream interpretation).

use bytes::{Bytes, BytesMut};

/// The last event of a stream that ended well.
pub const DONE: &str = "[DONE]";
/// A comment that keeps idle connections open; readers skip it.
pub const KEEP_ALIVE: &[u8] = b": keep-alive\n\n";
/// The media type of a stream.
pub const CONTENT_TYPE: &str = "text/event-stream";

/// The event whose data is `data`, which holds no line break (JSON never does).
#[must_use]
pub fn event(data: &str) -> Bytes {
    let mut out = BytesMut::with_capacity(data.len() + 8);
    out.extend_from_slice(b"data: ");
    out.extend_from_slice(data.as_bytes());
    out.extend_from_slice(b"\n\n");
    out.freeze()
}

/// Cuts a byte stream, however it is chunked, back into the data of its events.
/// Comments and fields other than `data` are dropped.
#[derive(Debug, Default)]
pub struct Decoder {
    line: Vec<u8>,
    data: Option<String>,
    after_return: bool,
}

impl Decoder {
    /// Takes the next bytes and returns the data of the events they complete.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut events = Vec::new();
        for &byte in bytes {
            let after_return = std::mem::replace(&mut self.after_return, byte == b'\r');
            match byte {
                b'\n' if after_return => {}
                b'\n' | b'\r' => events.extend(self.end_line()),
                _ => self.line.push(byte),
            }
        }
        events
    }

    /// Whether bytes of an unfinished event are held.
    #[must_use]
    pub fn is_mid_event(&self) -> bool {
        !self.line.is_empty() || self.data.is_some()
    }

    fn end_line(&mut self) -> Option<String> {
        let line = std::mem::take(&mut self.line);
        if line.is_empty() {
            return self.data.take();
        }
        let value = line.strip_prefix(b"data:")?;
        let value = String::from_utf8_lossy(value.strip_prefix(b" ").unwrap_or(value));
        match &mut self.data {
            Some(data) => {
                data.push('\n');
                data.push_str(&value);
            }
            None => self.data = Some(value.into_owned()),
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn comments_and_other_fields_are_no_events() {
        let mut decoder = Decoder::default();
        let events = decoder.push(b": keep-alive\n\nevent: x\ndata: 1\r\ndata:2\r\n\r\ndata: 3\n");
        assert_eq!(events, ["1\n2"]);
        assert!(decoder.is_mid_event());
        assert_eq!(decoder.push(b"\n"), ["3"]);
        assert!(!decoder.is_mid_event());
    }

    proptest! {
        #[test]
        fn any_chunking_gives_the_same_events(
            data in prop::collection::vec("[a-zé{}\" ]{0,9}", 0..9),
            size in 1usize..20,
        ) {
            let mut wire: Vec<u8> = Vec::new();
            for text in &data {
                wire.extend_from_slice(&event(text));
                wire.extend_from_slice(KEEP_ALIVE);
            }
            let mut decoder = Decoder::default();
            let seen: Vec<String> = wire.chunks(size).flat_map(|chunk| decoder.push(chunk)).collect();
            prop_assert_eq!(seen, data);
        }
    }
}
