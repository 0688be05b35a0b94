//! Stop texts: the answer ends before the first of them, and no part of one is
//! ever given out, even when it arrives in several pieces.

/// Watches one growing answer.
#[derive(Clone, Debug, Default)]
pub struct StopTexts {
    stops: Vec<String>,
    held: String,
}

/// What may be given out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Text that belongs to the answer.
    pub text: String,
    /// Whether a stop text came after it.
    pub stopped: bool,
}

impl StopTexts {
    /// Stops at any of these; empty texts are left out.
    #[must_use]
    pub fn new(stops: impl IntoIterator<Item = String>) -> Self {
        Self {
            stops: stops.into_iter().filter(|stop| !stop.is_empty()).collect(),
            held: String::new(),
        }
    }

    /// Adds text; holds back what may be the beginning of a stop text.
    pub fn push(&mut self, text: &str) -> Cut {
        self.held.push_str(text);
        if let Some(at) = self
            .stops
            .iter()
            .filter_map(|stop| self.held.find(stop))
            .min()
        {
            self.held.truncate(at);
            return Cut {
                text: std::mem::take(&mut self.held),
                stopped: true,
            };
        }
        let keep = self
            .stops
            .iter()
            .map(|stop| overlap(&self.held, stop))
            .max()
            .unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        Cut {
            text: std::mem::replace(&mut self.held, rest),
            stopped: false,
        }
    }

    /// What was held back, at the end of the answer.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Length of the longest end of `text` that begins `stop`.
fn overlap(text: &str, stop: &str) -> usize {
    stop.char_indices()
        .map(|(at, _)| at)
        .filter(|&length| length > 0 && text.ends_with(&stop[..length]))
        .max()
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_cutting_gives_the_text_before_the_first_stop(
            text in "[ab</s>é]{0,24}",
            stops in prop::collection::vec("[ab</s>é]{1,4}", 0..3),
            size in 1usize..5,
        ) {
            let expected = stops
                .iter()
                .filter_map(|stop| text.find(stop.as_str()))
                .min()
                .map_or(text.as_str(), |at| &text[..at]);
            let mut watch = StopTexts::new(stops.clone());
            let mut seen = String::new();
            let mut stopped = false;
            let characters: Vec<char> = text.chars().collect();
            for piece in characters.chunks(size) {
                let cut = watch.push(&piece.iter().collect::<String>());
                seen += &cut.text;
                if cut.stopped {
                    stopped = true;
                    break;
                }
                prop_assert!(expected.starts_with(&seen), "gave out {:?}", seen);
            }
            if !stopped {
                seen += &watch.finish();
            }
            prop_assert_eq!(seen.as_str(), expected);
            prop_assert_eq!(stopped, expected.len() < text.len() || stops.iter().any(|s| text.ends_with(s.as_str())));
        }
    }
}
