//! Text that remembers who wrote it. Only what a template wrote may hold special
//! tokens; image slots are no text at all. So nothing that a user writes can end
//! a turn, open another, or ask for an image.

use std::ops::Range;

/// How an image slot is shown in rendered text.
pub(crate) const IMAGE_MARK: &str = "<image>";

/// A rendered prompt before it is tokenised.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Markup {
    spans: Vec<Span>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Span {
    Ours(String),
    Theirs(String),
    Image,
}

impl Markup {
    /// Adds text in which special tokens count.
    pub(crate) fn ours(&mut self, text: &str) {
        match self.spans.last_mut() {
            Some(Span::Ours(last)) => last.push_str(text),
            _ if text.is_empty() => {}
            _ => self.spans.push(Span::Ours(text.to_owned())),
        }
    }

    /// Adds text in which nothing counts.
    pub(crate) fn theirs(&mut self, text: &str) {
        match self.spans.last_mut() {
            Some(Span::Theirs(last)) => last.push_str(text),
            _ if text.is_empty() => {}
            _ => self.spans.push(Span::Theirs(text.to_owned())),
        }
    }

    /// Adds the next image's slot.
    pub(crate) fn image(&mut self) {
        self.spans.push(Span::Image);
    }

    /// Adds text of ours in which each `mark` is an image slot.
    pub(crate) fn ours_with_images(&mut self, text: &str, mark: &str) {
        let mut rest = text;
        while let Some((before, after)) = rest.split_once(mark) {
            self.ours(before);
            self.image();
            rest = after;
        }
        self.ours(rest);
    }

    /// Adds all of `other`.
    pub(crate) fn append(&mut self, other: &Self) {
        for span in &other.spans {
            match span {
                Span::Ours(text) => self.ours(text),
                Span::Theirs(text) => self.theirs(text),
                Span::Image => self.image(),
            }
        }
    }

    /// Without whitespace at either end, as Python's `strip` leaves it.
    pub(crate) fn stripped(mut self) -> Self {
        while let Some(Span::Ours(text) | Span::Theirs(text)) = self.spans.first_mut() {
            *text = text.trim_start().to_owned();
            if !text.is_empty() {
                break;
            }
            self.spans.remove(0);
        }
        while let Some(Span::Ours(text) | Span::Theirs(text)) = self.spans.last_mut() {
            text.truncate(text.trim_end().len());
            if !text.is_empty() {
                break;
            }
            self.spans.pop();
        }
        self
    }

    /// Whether there is neither text nor image.
    pub(crate) fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// Number of image slots.
    pub(crate) fn images(&self) -> usize {
        self.spans
            .iter()
            .filter(|span| **span == Span::Image)
            .count()
    }

    /// The text for people.
    pub(crate) fn text(&self) -> String {
        let parts = self.spans.iter().map(|span| match span {
            Span::Ours(text) | Span::Theirs(text) => text.as_str(),
            Span::Image => IMAGE_MARK,
        });
        parts.collect()
    }

    /// The runs of text between image slots, one more than there are slots.
    pub(crate) fn runs(&self) -> Vec<Run> {
        let mut runs = vec![Run::default()];
        for span in &self.spans {
            let Some(run) = runs.last_mut() else { break };
            match span {
                Span::Ours(text) => {
                    let start = run.text.len();
                    run.text.push_str(text);
                    run.ours.push(start..run.text.len());
                }
                Span::Theirs(text) => run.text.push_str(text),
                Span::Image => runs.push(Run::default()),
            }
        }
        runs
    }
}

/// Text without image slots.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) text: String,
    /// Bytes in which special tokens count.
    pub(crate) ours: Vec<Range<usize>>,
}
