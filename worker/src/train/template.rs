//! Conversations as training text: exactly what serving would render, with the
//! answers filled in and marked, for only those are learned.

use std::ops::Range;

use super::record::{IMAGE_MARK, Record, Speaker, Turn};
use crate::prompt::{ConversationError, Message, Part, Role, Style, Template, render_text};

/// A rendered conversation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rendered {
    /// The text, images as `<image>`.
    pub text: String,
    /// Bytes of the text that are learned, one range an answer.
    pub learned: Vec<Range<usize>>,
}

/// The record as `template` writes it. Without `system`, a template whose own system text stands
/// in front of everything leaves it out; a record's own text always stays.
///
/// # Errors
/// When the template has no place for the record's turns.
pub fn render(
    template: &Template,
    record: &Record,
    system: bool,
) -> Result<Rendered, ConversationError> {
    if template.style == Style::Plain {
        return Ok(plain(template, record));
    }
    let messages: Vec<Message> = record.conversations.iter().map(message).collect();
    let mut out = Rendered::default();
    for (at, message) in messages.iter().enumerate() {
        if message.role == Role::Assistant {
            let open = render_text(template, &messages[..at])?.0;
            let mut closed = render_text(template, &messages[..=at])?.0;
            closed.truncate(closed.len() - open_turn(template).len());
            // A line break behind the end token separates turns and is never generated.
            let end = if template.style == Style::ChatMl {
                closed.trim_end().len()
            } else {
                closed.len()
            };
            out.learned.push(open.len()..end);
            out.text = closed;
        }
    }
    let own = record
        .conversations
        .first()
        .is_some_and(|turn| turn.from == Speaker::System);
    let front = format!(
        "{}{}{}",
        template.system_prefix, template.system, template.sep
    );
    if !system && !own && out.text.starts_with(&front) {
        let cut = front.len() + usize::from(template.style == Style::ChatMl);
        out.text.drain(..cut);
        for range in &mut out.learned {
            *range = range.start - cut..range.end - cut;
        }
    }
    Ok(out)
}

/// An image and its caption, nothing else: for the projector's first stage.
fn plain(template: &Template, record: &Record) -> Rendered {
    let mut out = Rendered::default();
    for pair in record.conversations.chunks_exact(2) {
        let marks = pair[0].value.matches(IMAGE_MARK).count();
        out.text.push_str(&IMAGE_MARK.repeat(marks));
        let start = out.text.len();
        out.text.push_str(pair[1].value.trim());
        out.text.push_str(template.sep);
        out.learned.push(start..out.text.len());
    }
    out
}

/// What a rendering ends with where the next answer would begin.
fn open_turn(template: &Template) -> String {
    match template.style {
        Style::Single | Style::Two => format!("{}:", template.assistant),
        Style::Mpt | Style::Gemma => template.assistant.to_owned(),
        Style::ChatMl => format!("{}\n", template.assistant),
        Style::Llama3 => "<|start_header_id|>assistant<|end_header_id|>\n\n".to_owned(),
        Style::Llama2 | Style::Plain => String::new(),
    }
}

fn message(turn: &Turn) -> Message {
    let role = match turn.from {
        Speaker::Human => Role::User,
        Speaker::Gpt => return Message::text(Role::Assistant, turn.value.trim()),
        Speaker::System => Role::System,
    };
    let mut parts = Vec::new();
    for (at, text) in turn.value.split(IMAGE_MARK).enumerate() {
        if at > 0 {
            parts.push(Part::Image);
        }
        if !text.is_empty() {
            parts.push(Part::text(text));
        }
    }
    Message::parts(role, parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        serde_json::from_value(serde_json::json!({"image": "x.png", "conversations": [
            {"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A cat."},
            {"from": "human", "value": "Sure?"}, {"from": "gpt", "value": "Yes."},
        ]}))
        .unwrap()
    }

    fn marked(name: &str, system: bool) -> String {
        let rendered = render(Template::named(name).unwrap(), &record(), system).unwrap();
        let mut text = rendered.text;
        for range in rendered.learned.iter().rev() {
            text.insert(range.end, '|');
            text.insert(range.start, '|');
        }
        text
    }

    #[test]
    fn the_common_templates_learn_the_answers_and_their_ends_alone() {
        let table = [
            (
                "vicuna_v1",
                "USER: <image>\nWhat is it? ASSISTANT:| A cat.</s>|USER: Sure? ASSISTANT:| Yes.</s>|",
            ),
            (
                "llava_v0",
                "Human: <image>\nWhat is it?###Assistant:| A cat.###|Human: Sure?###Assistant:| Yes.###|",
            ),
            (
                "mistral_instruct",
                "[INST] <image>\nWhat is it? [/INST]| A cat. </s>|[INST] Sure? [/INST]| Yes. </s>|",
            ),
            (
                "mpt",
                "<|im_start|>user\n<image>\nWhat is it?<|im_end|><|im_start|>assistant\n|A cat.<|im_end|>|\
                 <|im_start|>user\nSure?<|im_end|><|im_start|>assistant\n|Yes.<|im_end|>|",
            ),
            ("plain", "<image>|A cat.\n||Yes.\n|"),
        ];
        for (name, wanted) in table {
            assert_eq!(marked(name, false), wanted, "{name}");
        }
    }

    #[test]
    fn every_template_marks_each_answer_with_its_end_and_nothing_of_the_user() {
        for template in Template::all() {
            let rendered = render(template, &record(), true).unwrap();
            let learned: Vec<&str> = rendered
                .learned
                .iter()
                .map(|r| &rendered.text[r.clone()])
                .collect();
            assert_eq!(learned.len(), 2, "{:?}", template.names);
            for (learned, answer) in learned.iter().zip(["A cat.", "Yes."]) {
                let rest = learned.trim_start().strip_prefix(answer);
                let end = rest.unwrap_or_else(|| panic!("{:?} learns {learned:?}", template.names));
                assert!(
                    !end.contains("Sure") && end.len() < 20,
                    "{:?} learns {learned:?}",
                    template.names
                );
                assert!(
                    !end.trim().is_empty() || template.sep == "\n",
                    "{:?} learns no end",
                    template.names
                );
            }
        }
    }

    #[test]
    fn the_system_text_comes_first_and_is_never_learned() {
        for name in ["vicuna_v1", "llava_v1", "mpt", "qwen_1_5"] {
            let template = Template::named(name).unwrap();
            let (with, without) = (marked(name, true), marked(name, false));
            assert!(
                with.contains(template.system) && !without.contains(template.system),
                "{name}"
            );
            assert!(with.ends_with(&without), "{name}");
        }
    }
}
