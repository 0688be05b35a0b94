//! One conversation ready for the model: token ids with image slots, and which
//! of them are learned.

use tokenizers::Tokenizer;

use super::record::{IMAGE_MARK, Record};
use super::template::render;
use crate::prompt::Template;

/// A position or a run of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slot {
    /// A token; learned when it belongs to the answer with this index.
    Token(u32, Option<usize>),
    /// The positions of the next image.
    Image,
}

/// A tokenised conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// Slots in order.
    pub slots: Vec<Slot>,
}

/// Turns records into samples.
#[derive(Debug, Clone)]
pub struct Encoder {
    /// The model's tokenizer.
    pub tokenizer: Tokenizer,
    /// How conversations are written; each takes one of these.
    pub templates: Vec<&'static Template>,
}

impl Encoder {
    /// Encodes `record` by the template that `choice` falls on, with its system text where `system`.
    /// The text between two images is tokenised on its own, as LLaVA does, and only the first run gets the leading token.
    ///
    /// # Errors
    /// What the template or the tokenizer said.
    pub fn encode(&self, record: &Record, choice: u64, system: bool) -> tokenizers::Result<Sample> {
        let template = self.templates[(choice % self.templates.len().max(1) as u64) as usize];
        let rendered = render(template, record, system)?;
        let mut slots = Vec::new();
        let mut start = 0;
        for (run, text) in rendered.text.split(IMAGE_MARK).enumerate() {
            if run > 0 {
                slots.push(Slot::Image);
            }
            // An image at the very front still follows the leading token.
            if !text.is_empty() || run == 0 {
                let encoding = self.tokenizer.encode(text, run == 0)?;
                for (id, offsets) in encoding.get_ids().iter().zip(encoding.get_offsets()) {
                    let at = start + offsets.0;
                    let learned = |range: &std::ops::Range<usize>| {
                        range.contains(&at) && offsets.1 > offsets.0
                    };
                    slots.push(Slot::Token(*id, rendered.learned.iter().position(learned)));
                }
            }
            start += text.len() + IMAGE_MARK.len();
        }
        Ok(Sample { slots })
    }
}

impl Sample {
    /// Positions in the model when an image takes `image_tokens`.
    pub fn len(&self, image_tokens: usize) -> usize {
        (self.slots.iter())
            .map(|slot| {
                if *slot == Slot::Image {
                    image_tokens
                } else {
                    1
                }
            })
            .sum()
    }

    /// Whether there is nothing to learn in it.
    pub fn is_empty(&self) -> bool {
        !self
            .slots
            .iter()
            .any(|slot| matches!(slot, Slot::Token(_, Some(_))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoder(template: &str) -> (tempfile::TempDir, Encoder) {
        let dir = tempfile::tempdir().unwrap();
        let texts = vec!["USER: What color is the star? ASSISTANT: Red.".to_owned(); 8];
        crate::data::tokenizer::train(&texts, 400, dir.path()).unwrap();
        let tokenizer = Tokenizer::from_file(dir.path().join("tokenizer.json")).unwrap();
        {
            let templates = vec![Template::named(template).unwrap()];
            let encoder = Encoder {
                tokenizer,
                templates,
            };
            (dir, encoder)
        }
    }

    #[test]
    fn the_learned_tokens_spell_the_answers_and_the_end() {
        let (_dir, encoder) = encoder("vicuna_v1");
        let record: Record = serde_json::from_value(serde_json::json!({"image": "x.png", "conversations": [
            {"from": "human", "value": "<image>\nWhat color is the star?"}, {"from": "gpt", "value": "Réd. 星"},
            {"from": "human", "value": "Sure?"}, {"from": "gpt", "value": "Yes."},
        ]}))
        .unwrap();
        let sample = encoder.encode(&record, 0, false).unwrap();
        let learned = |answer: usize| {
            let ids: Vec<u32> = (sample.slots.iter())
                .filter_map(|slot| match slot {
                    Slot::Token(id, Some(a)) if *a == answer => Some(*id),
                    _ => None,
                })
                .collect();
            encoder.tokenizer.decode(&ids, false).unwrap()
        };
        assert_eq!(learned(0), "Réd. 星</s>");
        assert_eq!(learned(1), "Yes.</s>");
        assert_eq!(sample.slots[0], Slot::Token(1, None), "<s> first");
        assert_eq!(
            sample.slots.iter().filter(|s| **s == Slot::Image).count(),
            1
        );
    }
}
