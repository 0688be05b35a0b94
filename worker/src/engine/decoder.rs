//! From tokens to text. Decoding a few tokens takes a tokenizer several
//! microseconds, which eight answers at a thousand tokens a second feel; what
//! most tokens add to a text does not depend on what stands before them, so
//! that is asked once and remembered.

use std::fmt;
use std::sync::{Arc, OnceLock};

/// Stands for bytes that are no whole character yet.
pub(super) const BROKEN: char = '\u{fffd}';

/// A [`Decoder`] that many answers share.
pub type Decode = Arc<Decoder>;

/// A tokenizer's own way.
type Text = dyn Fn(&[u32]) -> String + Send + Sync;

/// Turns tokens into text, special ones left out.
pub struct Decoder {
    text: Box<Text>,
    /// By token; filled as they come.
    pieces: Vec<OnceLock<Option<Box<str>>>>,
    /// Two tokens that are plain words.
    anchors: OnceLock<Option<[u32; 2]>>,
}

impl Decoder {
    /// A decoder for tokens below `vocab`, by a tokenizer's own.
    pub fn new(vocab: usize, text: impl Fn(&[u32]) -> String + Send + Sync + 'static) -> Self {
        Self {
            text: Box::new(text),
            pieces: (0..vocab).map(|_| OnceLock::new()).collect(),
            anchors: OnceLock::new(),
        }
    }

    /// The text of tokens from the beginning of a text.
    #[must_use]
    pub fn text(&self, tokens: &[u32]) -> String {
        (self.text)(tokens)
    }

    /// What `token` adds to any text that ends with a whole character; `None`
    /// where that depends on its neighbours, as that of a part of a character does.
    #[must_use]
    pub fn piece(&self, token: u32) -> Option<&str> {
        let piece = self.pieces.get(token as usize)?;
        piece.get_or_init(|| self.find(token)).as_deref()
    }

    /// What the token adds, if it adds the same behind two words and behind itself.
    fn find(&self, token: u32) -> Option<Box<str>> {
        let [first, second] = (*self.anchors.get_or_init(|| self.find_anchors()))?;
        let added = |before: &[u32]| {
            let text = self.text(&[before, &[token]].concat());
            let piece = text.strip_prefix(self.text(before).as_str())?;
            (!piece.contains(BROKEN)).then(|| piece.to_owned())
        };
        let piece = added(&[first])?;
        let same = [vec![second], vec![first, token], vec![second, first]]
            .iter()
            .all(|before| added(before).as_ref() == Some(&piece));
        same.then(|| piece.into())
    }

    fn find_anchors(&self) -> Option<[u32; 2]> {
        let word = |token: &u32| {
            let text = self.text(&[*token]);
            !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
        };
        let mut words = (0..self.pieces.len() as u32).filter(word);
        Some([words.next()?, words.next()?])
    }
}

impl fmt::Debug for Decoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decoder")
            .field("vocab", &self.pieces.len())
            .finish_non_exhaustive()
    }
}
