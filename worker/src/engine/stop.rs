//! Stop texts: the answer ends with the first of them that is complete, and
//! before it. Until then no beginning of one is given out, even when it arrives
//! in several pieces: the answer does not depend on how its text was cut.

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
        // The one that ends first, and of those the longest: as if every
        // character had come alone.
        if let Some((_, start)) = self
            .stops
            .iter()
            .filter_map(|stop| {
                let start = self.held.find(stop)?;
                Some((start + stop.len(), start))
            })
            .min()
        {
            self.held.truncate(start);
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

    #[test]
    fn the_stop_that_is_complete_first_ends_the_answer_though_a_longer_one_began_before_it() {
        let stops = ["ésé".to_owned(), "s".to_owned()];
        let whole = StopTexts::new(stops.clone()).push("ésé");
        let mut watch = StopTexts::new(stops);
        assert_eq!(watch.push("é").text, "", "may begin a stop text");
        let pieces = watch.push("s");
        assert_eq!(whole, pieces);
        assert_eq!((pieces.text.as_str(), pieces.stopped), ("é", true));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]
        #[test]
        fn any_cutting_gives_the_text_before_the_first_stop(
            text in "[ab</s>é]{0,24}",
            stops in prop::collection::vec("[ab</s>é]{1,4}", 0..3),
            size in 1usize..5,
        ) {
            let first = text
                .char_indices()
                .map(|(at, character)| &text[..at + character.len_utf8()])
                .find_map(|so_far| {
                    stops
                        .iter()
                        .filter_map(|stop| so_far.strip_suffix(stop.as_str()))
                        .min_by_key(|before| before.len())
                });
            let expected = first.unwrap_or(&text);
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
            prop_assert_eq!(stopped, first.is_some());
        }
    }
}
