//! A JSON reader that never builds a document: it walks the bytes of a request
//! body as they arrive, checks the structure, and reports each scalar with the
//! place where it stands. Bodies hold megabytes of base64, so the inside of a
//! string is skipped with `memchr` and only its first bytes are kept.

use memchr::{memchr, memchr_iter};

use crate::request::image_size;

/// Containers may nest this deep; deeper input is refused.
const MAX_DEPTH: usize = 64;
/// A number or literal is no longer than this.
const MAX_SCALAR: usize = 64;
/// How much of an ordinary string is kept.
const SHORT: usize = 512;
/// How much of a string is kept that starts like a JPEG, enough to reach the
/// size in a JPEG behind its thumbnails and colour profile.
const LONG: usize = 48 * 1024;

/// A scalar value, and where it stands.
#[derive(Debug)]
pub(crate) struct Scalar<'a> {
    /// The key in the outermost object under which the value lies.
    pub(crate) top_key: &'a [u8],
    /// The key next to the value; that of the array for its elements.
    pub(crate) key: &'a [u8],
    /// How many containers surround the value.
    pub(crate) depth: usize,
    /// What it is.
    pub(crate) value: Value<'a>,
}

/// A scalar value.
#[derive(Debug)]
pub(crate) enum Value<'a> {
    /// The first bytes of a string as written, and its whole length in bytes.
    String {
        /// Escapes are not resolved.
        start: &'a [u8],
        /// Bytes between the quotes.
        len: u64,
    },
    /// `true`, `false`, `null` or a number, as written.
    Bare(&'a [u8]),
}

/// The text is no JSON object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the body is not valid JSON: {problem} at byte {at}")]
pub(crate) struct Malformed {
    problem: &'static str,
    at: u64,
}

/// The reader's state between two pieces of input.
#[derive(Debug)]
pub(crate) struct Scanner {
    state: State,
    open: Vec<Open>,
    token: Vec<u8>,
    token_len: u64,
    keep: usize,
    top_key: Vec<u8>,
    key: Vec<u8>,
    at: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Value,
    FirstElement,
    FirstKey,
    Key,
    Colon,
    AfterValue,
    Text { is_key: bool, escaped: bool },
    Bare,
    Done,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Open {
    Object,
    Array,
}

impl Default for Scanner {
    fn default() -> Self {
        Self {
            state: State::Value,
            open: Vec::with_capacity(8),
            token: Vec::with_capacity(64),
            token_len: 0,
            keep: SHORT,
            top_key: Vec::new(),
            key: Vec::new(),
            at: 0,
        }
    }
}

impl Scanner {
    /// Reads the next piece, and tells `found` each scalar that it completes.
    pub(crate) fn push(
        &mut self,
        input: &[u8],
        mut found: impl FnMut(Scalar<'_>),
    ) -> Result<(), Malformed> {
        let mut i = 0;
        while i < input.len() {
            i += match self.state {
                State::Text { is_key, escaped } => {
                    self.text(&input[i..], is_key, escaped, &mut found)
                }
                State::Bare => self.bare(&input[i..], &mut found, i)?,
                _ => self.structure(input[i], i)?,
            };
        }
        self.at += input.len() as u64;
        Ok(())
    }

    /// Says whether the object was whole.
    pub(crate) fn finish(&self) -> Result<(), Malformed> {
        match self.state {
            State::Done => Ok(()),
            _ => Err(self.malformed("it ends too early", 0)),
        }
    }

    fn structure(&mut self, byte: u8, offset: usize) -> Result<usize, Malformed> {
        if matches!(byte, b' ' | b'\t' | b'\r' | b'\n') {
            return Ok(1);
        }
        match (self.state, byte) {
            (State::Value, b'{') => self.enter(Open::Object, offset)?,
            (State::Value | State::FirstElement, _) if self.open.is_empty() => {
                return Err(self.malformed("an object is expected", offset));
            }
            (State::FirstElement, b'{') => self.enter(Open::Object, offset)?,
            (State::Value | State::FirstElement, b'[') => self.enter(Open::Array, offset)?,
            (State::Value | State::FirstElement, b'"') => self.begin_text(false),
            (State::FirstElement, b']') | (State::FirstKey, b'}') => self.leave(),
            (State::FirstKey | State::Key, b'"') => self.begin_text(true),
            (State::Colon, b':') => self.state = State::Value,
            (State::AfterValue, b',') => {
                self.state = match self.open.last() {
                    Some(Open::Object) => State::Key,
                    _ => State::Value,
                };
            }
            (State::AfterValue, b'}') if self.open.last() == Some(&Open::Object) => self.leave(),
            (State::AfterValue, b']') if self.open.last() == Some(&Open::Array) => self.leave(),
            (State::Value | State::FirstElement, b't' | b'f' | b'n' | b'-' | b'0'..=b'9') => {
                self.token.clear();
                self.state = State::Bare;
                return Ok(0);
            }
            (State::Done, _) => return Err(self.malformed("text follows the object", offset)),
            (State::Colon, _) => return Err(self.malformed("a colon is expected", offset)),
            (State::Key | State::FirstKey, _) => {
                return Err(self.malformed("a key is expected", offset));
            }
            (State::AfterValue, _) => {
                return Err(self.malformed("a comma or an end is expected", offset));
            }
            _ => return Err(self.malformed("a value is expected", offset)),
        }
        Ok(1)
    }

    fn enter(&mut self, kind: Open, offset: usize) -> Result<(), Malformed> {
        if self.open.len() == MAX_DEPTH {
            return Err(self.malformed("it nests too deep", offset));
        }
        self.open.push(kind);
        self.state = match kind {
            Open::Object => State::FirstKey,
            Open::Array => State::FirstElement,
        };
        Ok(())
    }

    fn leave(&mut self) {
        self.open.pop();
        self.after_value();
    }

    fn after_value(&mut self) {
        self.state = if self.open.is_empty() {
            State::Done
        } else {
            State::AfterValue
        };
    }

    fn begin_text(&mut self, is_key: bool) {
        self.token.clear();
        self.token_len = 0;
        self.keep = SHORT;
        self.state = State::Text {
            is_key,
            escaped: false,
        };
    }

    fn text(
        &mut self,
        input: &[u8],
        is_key: bool,
        escaped: bool,
        found: &mut impl FnMut(Scalar<'_>),
    ) -> usize {
        if escaped {
            self.keep_text(&input[..1]);
            self.state = State::Text {
                is_key,
                escaped: false,
            };
            return 1;
        }
        let end = memchr_iter(b'"', input).find(|end| !ends_in_escape(&input[..*end]));
        let Some(end) = end else {
            self.keep_text(input);
            self.state = State::Text {
                is_key,
                escaped: ends_in_escape(input),
            };
            return input.len();
        };
        self.keep_text(&input[..end]);
        if is_key {
            self.key.clear();
            self.key.extend_from_slice(&self.token);
            if self.open.len() == 1 {
                self.top_key.clone_from(&self.key);
            }
            self.state = State::Colon;
        } else {
            found(Scalar {
                top_key: &self.top_key,
                key: &self.key,
                depth: self.open.len(),
                value: Value::String {
                    start: &self.token,
                    len: self.token_len,
                },
            });
            self.after_value();
        }
        end + 1
    }

    fn keep_text(&mut self, piece: &[u8]) {
        self.token_len += piece.len() as u64;
        let taken = self.keep.saturating_sub(self.token.len()).min(piece.len());
        let (fits, rest) = piece.split_at(taken);
        self.token.extend_from_slice(fits);
        if !rest.is_empty() && self.keep == SHORT && looks_like_a_jpeg(&self.token, &self.top_key) {
            self.keep = LONG;
            self.token
                .extend_from_slice(&rest[..rest.len().min(LONG - SHORT)]);
        }
    }

    fn bare(
        &mut self,
        input: &[u8],
        found: &mut impl FnMut(Scalar<'_>),
        offset: usize,
    ) -> Result<usize, Malformed> {
        let end = input
            .iter()
            .position(|b| matches!(b, b',' | b']' | b'}' | b' ' | b'\t' | b'\r' | b'\n'));
        let piece = &input[..end.unwrap_or(input.len())];
        if self.token.len() + piece.len() > MAX_SCALAR {
            return Err(self.malformed("a number is too long", offset));
        }
        self.token.extend_from_slice(piece);
        if end.is_some() {
            if !is_bare_value(&self.token) {
                return Err(self.malformed("a value is misspelt", offset));
            }
            found(Scalar {
                top_key: &self.top_key,
                key: &self.key,
                depth: self.open.len(),
                value: Value::Bare(&self.token),
            });
            self.after_value();
        }
        Ok(piece.len())
    }

    fn malformed(&self, problem: &'static str, offset: usize) -> Malformed {
        Malformed {
            problem,
            at: self.at + offset as u64,
        }
    }
}

/// Whether the byte behind `text` is escaped.
fn ends_in_escape(text: &[u8]) -> bool {
    let backslashes = text.iter().rev().take_while(|byte| **byte == b'\\');
    backslashes.count() % 2 == 1
}

/// Data URIs anywhere, and bare base64 in LLaVA's `images`.
fn looks_like_a_jpeg(start: &[u8], top_key: &[u8]) -> bool {
    if top_key == b"images" {
        return image_size::may_be_jpeg(start);
    }
    start.starts_with(b"data:image/")
        && memchr(b',', start).is_some_and(|comma| image_size::may_be_jpeg(&start[comma + 1..]))
}

fn is_bare_value(token: &[u8]) -> bool {
    matches!(token, b"true" | b"false" | b"null")
        || token
            .iter()
            .all(|b| b.is_ascii_digit() || b"+-.eE".contains(b))
            && serde_json::from_slice::<serde_json::Number>(token).is_ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Seen = Vec<(String, usize, String)>;

    fn scan(pieces: &[&[u8]]) -> Result<Seen, Malformed> {
        let mut scanner = Scanner::default();
        let mut seen = Vec::new();
        for piece in pieces {
            scanner.push(piece, |scalar| {
                let text = match scalar.value {
                    Value::String { start, .. } => start,
                    Value::Bare(text) => text,
                };
                seen.push((
                    String::from_utf8_lossy(scalar.top_key).into_owned(),
                    scalar.depth,
                    String::from_utf8_lossy(text).into_owned(),
                ));
            })?;
        }
        scanner.finish().map(|()| seen)
    }

    #[test]
    fn scalars_come_with_their_place() {
        let text = br#" {"model":"m\"1","n":[1,-2.5e3,{"x":true}],"o":{},"e":[]} "#;
        let seen = scan(&[text]).unwrap();
        let want = [
            ("model", 1, "m\\\"1"),
            ("n", 2, "1"),
            ("n", 2, "-2.5e3"),
            ("n", 3, "true"),
        ];
        let want: Seen = want
            .map(|(k, d, v)| (k.to_owned(), d, v.to_owned()))
            .to_vec();
        assert_eq!(seen, want);
    }

    #[test]
    fn broken_text_is_refused() {
        for text in [
            "",
            "[]",
            "1",
            "{",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1,}",
            "{\"a\":tru}",
            "{\"a\":1]",
            "{\"a\":[1}",
            "{}x",
            "{\"a\":01}",
            "{\"a\":\"",
            "{a:1}",
            "{\"a\" 1}",
            "{\"a\":1 2}",
        ] {
            assert!(scan(&[text.as_bytes()]).is_err(), "{text}");
        }
        let deep = format!("{{\"a\":{}1{}}}", "[".repeat(70), "]".repeat(70));
        assert!(scan(&[deep.as_bytes()]).is_err());
    }

    #[test]
    fn only_the_start_of_a_long_string_is_kept() {
        let text = format!(
            "{{\"a\":\"{}\",\"b\":\"data:image/jpeg;base64,/9j/{}\"}}",
            "x".repeat(9000),
            "A".repeat(99_000)
        );
        let seen = scan(&[text.as_bytes()]).unwrap();
        assert_eq!(seen[0].2.len(), SHORT);
        assert_eq!(seen[1].2.len(), LONG);
    }

    fn any_json() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            any::<f64>().prop_map(Into::into),
            "[a-z\"\\\\\n\u{e9} ]{0,700}".prop_map(Into::into),
            Just(serde_json::Value::Null),
        ];
        leaf.prop_recursive(4, 32, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Into::into),
                prop::collection::hash_map("[a-z]{1,5}", inner, 0..5)
                    .prop_map(|m| m.into_iter().collect::<serde_json::Map<_, _>>().into()),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_chunking_sees_the_same(value in any_json(), size in 1usize..40, cut in any::<prop::sample::Index>()) {
            let text = serde_json::json!({ "v": value }).to_string();
            let whole = scan(&[text.as_bytes()]).unwrap();
            let pieces: Vec<&[u8]> = text.as_bytes().chunks(size).collect();
            prop_assert_eq!(scan(&pieces).unwrap(), whole);
            let cut = cut.index(text.len());
            prop_assert!(scan(&[&text.as_bytes()[..cut]]).is_err());
        }

        #[test]
        fn strings_end_where_serde_ends_them(text in "[a\"\\\\]{0,40}", size in 1usize..9) {
            let written = serde_json::to_string(&text).unwrap();
            let body = format!("{{\"a\":{written},\"b\":{written}}}");
            let pieces: Vec<&[u8]> = body.as_bytes().chunks(size).collect();
            let inside = &written[1..written.len() - 1];
            let want = ["a", "b"].map(|key| (key.to_owned(), 1, inside.to_owned()));
            prop_assert_eq!(scan(&pieces).unwrap(), want);
        }

        #[test]
        fn what_serde_refuses_is_refused(text in "[\\[\\]{}:,\"a1 tn-]{0,24}") {
            let text = format!("{{\"a\":{text}}}");
            if serde_json::from_str::<serde_json::Value>(&text).is_err() {
                prop_assert!(scan(&[text.as_bytes()]).is_err(), "{}", text);
            } else {
                prop_assert!(scan(&[text.as_bytes()]).is_ok(), "{}", text);
            }
        }
    }
}
