//! The few things that routing wants to know of a request: its model, whether it
//! streams, and about how many tokens it costs.

use std::borrow::Cow;

use crate::request::image_size;
use crate::request::scan::{Malformed, Scalar, Scanner, Value};

/// Patches of one 336 pixel tile of CLIP-L/14: what LLaVA spends on an image.
const TOKENS_PER_TILE: u64 = 576;
/// Tiles of LLaVA-NeXT's largest grid, besides the overview.
const MAX_TILES: u64 = 4;
/// Pixels along the side of a tile.
const TILE: u32 = 336;
/// Bytes of English text in a token, about.
const BYTES_PER_TOKEN: u64 = 4;
/// Answer tokens of a request that does not limit them.
const USUAL_ANSWER: u64 = 256;

/// What routing wants to know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// The model asked for.
    pub(crate) model: Option<String>,
    /// Whether the answer is to come as it is made.
    pub(crate) stream: bool,
    /// Images in the request.
    pub(crate) images: u32,
    image_tokens: u64,
    text_bytes: u64,
    answer_tokens: Option<u64>,
}

/// Gathers [`Facts`] while the body arrives.
#[derive(Debug, Default)]
pub(crate) struct FactReader {
    scanner: Scanner,
    facts: Facts,
}

impl Facts {
    /// Estimated cost in tokens: prompt, images, answer.
    pub(crate) fn tokens(&self) -> u64 {
        self.text_bytes / BYTES_PER_TOKEN
            + self.image_tokens
            + self.answer_tokens.unwrap_or(USUAL_ANSWER)
    }

    fn note(&mut self, scalar: &Scalar<'_>) {
        match (&scalar.value, scalar.depth, scalar.key) {
            (Value::String { start, len }, 1, b"model") if *len <= start.len() as u64 => {
                self.model = unescaped(start);
            }
            (Value::Bare(text), 1, b"stream") => self.stream = *text == b"true",
            (
                Value::Bare(text),
                1,
                b"max_tokens" | b"max_completion_tokens" | b"max_new_tokens",
            ) => {
                self.answer_tokens = std::str::from_utf8(text).ok().and_then(|t| t.parse().ok());
            }
            (Value::String { start, len }, ..) => self.note_text(scalar, start, *len),
            _ => {}
        }
    }

    fn note_text(&mut self, scalar: &Scalar<'_>, start: &[u8], len: u64) {
        let base64 = if scalar.top_key == b"images" {
            Some(start)
        } else if start.starts_with(b"data:image/") {
            memchr::memchr(b',', start).map(|comma| &start[comma + 1..])
        } else if matches!(scalar.key, b"url" | b"image_url") {
            Some(&[][..])
        } else {
            None
        };
        let Some(base64) = base64 else {
            self.text_bytes += len;
            return;
        };
        self.images += 1;
        self.image_tokens += TOKENS_PER_TILE * (1 + image_size::sniff(base64).map_or(0, tiles));
    }
}

impl FactReader {
    /// Reads the next piece of the body.
    pub(crate) fn push(&mut self, piece: &[u8]) -> Result<(), Malformed> {
        let facts = &mut self.facts;
        self.scanner.push(piece, |scalar| facts.note(&scalar))
    }

    /// The facts, once the body is whole.
    pub(crate) fn finish(self) -> Result<Facts, Malformed> {
        self.scanner.finish()?;
        Ok(self.facts)
    }
}

/// How many tiles an image larger than one is cut into.
fn tiles((width, height): (u32, u32)) -> u64 {
    let count = u64::from(width.div_ceil(TILE)) * u64::from(height.div_ceil(TILE));
    if count > 1 { count.min(MAX_TILES) } else { 0 }
}

fn unescaped(text: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(text).ok()?;
    let text: Cow<'_, str> = if text.contains('\\') {
        serde_json::from_str::<String>(&format!("\"{text}\""))
            .ok()?
            .into()
    } else {
        text.into()
    };
    Some(text.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(text: &str) -> Facts {
        let mut reader = FactReader::default();
        reader.push(text.as_bytes()).unwrap();
        reader.finish().unwrap()
    }

    #[test]
    fn the_model_and_the_stream_flag_are_read_wherever_they_stand() {
        let read = facts(
            r#"{"messages":[{"model":"x","stream":false}],"stream":true,"model":"ll\u0061va"}"#,
        );
        assert_eq!(read.model.as_deref(), Some("llava"));
        assert!(read.stream);
        assert_eq!(facts(r#"{"model":7,"stream":null}"#).model, None);
    }

    #[test]
    fn images_cost_more_than_their_text_is_long() {
        let text = facts(r#"{"messages":[{"content":"four byte words here"}],"max_tokens":10}"#);
        assert_eq!((text.images, text.tokens()), (0, 5 + 10));
        let png = "iVBORw0KGgoAAAANSUhEUgAAAVAAAAFQCAIAAAA=";
        let chat = facts(&format!(
            r#"{{"messages":[{{"content":[{{"type":"image_url","image_url":{{"url":"data:image/png;base64,{png}"}}}}]}}],"max_tokens":0}}"#
        ));
        assert_eq!((chat.images, chat.tokens()), (1, 576 + 2));
        let llava = facts(&format!(
            r#"{{"images":["{png}","{png}"],"max_new_tokens":1}}"#
        ));
        assert_eq!((llava.images, llava.tokens()), (2, 2 * 576 + 1));
    }
}
