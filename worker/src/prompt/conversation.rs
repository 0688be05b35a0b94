//! Renders messages by one of LLaVA's conversation templates, as `get_prompt` in
//! its `conversation.py` does, the answer's turn left open at the end.

use super::markup::Markup;
use super::message::{Content, Message, Part, Role};
use super::template::{Style, Template};

/// Messages that a template has no place for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConversationError {
    /// There is no message besides the system's.
    #[error("render the prompt: there is no user message")]
    Empty,
    /// The style puts the system text into the first turn, which must be the user's.
    #[error(
        "render the prompt: the template {template} needs a user message that is not empty first"
    )]
    UserFirst {
        /// The template's name.
        template: &'static str,
    },
}

struct Turn {
    role: Role,
    body: Markup,
}

/// How an image slot is written: bare, or between the tokens that
/// `mm_use_im_start_end` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Slot {
    Bare,
    Enclosed,
}

impl Slot {
    fn write(self, to: &mut Markup) {
        match self {
            Self::Bare => to.image(),
            Self::Enclosed => {
                to.ours("<im_start>");
                to.image();
                to.ours("<im_end>");
            }
        }
    }
}

/// Renders `messages` with an open answer at the end.
pub(crate) fn render(
    template: &Template,
    slot: Slot,
    messages: &[Message],
) -> Result<Markup, ConversationError> {
    let system = system_text(template, messages);
    let turns = turns(template, slot, messages)?;
    let mut out = Markup::default();
    match template.style {
        Style::Single | Style::Two => {
            out.append(&system);
            out.ours(template.sep);
            for turn in &turns {
                out.ours(template.role(turn.role));
                out.ours(": ");
                out.append(&turn.body);
                out.ours(template.after(turn.role));
            }
            out.ours(template.assistant);
            out.ours(":");
        }
        Style::Mpt | Style::Gemma => {
            if template.style == Style::Mpt {
                out.append(&system);
                out.ours(template.sep);
            }
            for turn in &turns {
                out.ours(template.role(turn.role));
                out.append(&turn.body);
                out.ours(template.sep);
            }
            out.ours(template.assistant);
        }
        Style::ChatMl => {
            if !system.is_empty() {
                out.append(&system);
                out.ours(template.sep);
                out.ours("\n");
            }
            for turn in &turns {
                out.ours(template.role(turn.role));
                out.ours("\n");
                out.append(&turn.body);
                out.ours(template.sep);
                out.ours("\n");
            }
            out.ours(template.assistant);
            out.ours("\n");
        }
        Style::Llama2 => llama_2(template, &system, &turns, &mut out)?,
        Style::Llama3 => {
            out.ours("<|begin_of_text|>");
            llama_3_turn(template, "system", system, &mut out);
            for turn in turns {
                llama_3_turn(template, template.role(turn.role), turn.body, &mut out);
            }
            out.ours("<|start_header_id|>assistant<|end_header_id|>\n\n");
        }
        Style::Plain => {
            out.append(&system);
            for turn in &turns {
                out.append(&turn.body);
                out.ours(template.sep);
            }
        }
    }
    Ok(out)
}

impl Template {
    fn role(&self, role: Role) -> &'static str {
        match role {
            Role::Assistant => self.assistant,
            Role::User | Role::System => self.user,
        }
    }

    fn after(&self, role: Role) -> &'static str {
        match (self.style, role) {
            (Style::Two, Role::Assistant) => self.sep2,
            _ => self.sep,
        }
    }
}

fn llama_2(
    template: &Template,
    system: &Markup,
    turns: &[Turn],
    out: &mut Markup,
) -> Result<(), ConversationError> {
    let first = turns.first().ok_or(ConversationError::Empty)?;
    if first.role != Role::User || first.body.is_empty() {
        return Err(ConversationError::UserFirst {
            template: template.names[0],
        });
    }
    for (at, turn) in turns.iter().enumerate() {
        if turn.role == Role::Assistant {
            out.ours(" ");
            out.append(&turn.body);
            out.ours(" ");
            out.ours(template.sep2);
            continue;
        }
        // The first one is left to the tokenizer, whose BOS it is.
        out.ours(if at == 0 { "" } else { template.sep });
        out.ours("[INST] ");
        if at == 0 && !system.is_empty() {
            out.ours("<<SYS>>\n");
            out.append(system);
            out.ours("\n<</SYS>>\n\n");
        }
        out.append(&turn.body);
        out.ours(" [/INST]");
    }
    Ok(())
}

fn llama_3_turn(template: &Template, role: &str, body: Markup, out: &mut Markup) {
    out.ours("<|start_header_id|>");
    out.ours(role);
    out.ours("<|end_header_id|>\n\n");
    out.append(&body.stripped());
    out.ours(template.sep);
}

/// The request's system messages, or the template's own text.
fn system_text(template: &Template, messages: &[Message]) -> Markup {
    let mut text = Markup::default();
    for message in messages
        .iter()
        .filter(|message| message.role == Role::System)
    {
        if !text.is_empty() {
            text.ours("\n");
        }
        text.append(&body(&message.content, Slot::Bare));
    }
    if text.is_empty() {
        text.ours(template.system);
    }
    let mut whole = Markup::default();
    whole.ours(template.system_prefix);
    whole.append(&text);
    whole
}

fn turns(
    template: &Template,
    slot: Slot,
    messages: &[Message],
) -> Result<Vec<Turn>, ConversationError> {
    let roles = [Role::User, Role::Assistant].into_iter().cycle();
    let mut turns: Vec<Turn> = template
        .preset
        .iter()
        .zip(roles)
        .map(|(text, role)| Turn {
            role,
            body: ours(text),
        })
        .collect();
    let said = messages
        .iter()
        .filter(|message| message.role != Role::System);
    for (at, message) in said.enumerate() {
        if at > 0 || message.images() == 0 {
            turns.push(Turn {
                role: message.role,
                body: body(&message.content, slot),
            });
        } else {
            first_with_images(template, slot, message, &mut turns);
        }
    }
    if turns.len() == template.preset.len() {
        return Err(ConversationError::Empty);
    }
    Ok(turns)
}

/// The first message is where LLaVA was trained to see its image: in front of the
/// text, or announced by an exchange; after the text where preset turns come first.
fn first_with_images(template: &Template, slot: Slot, message: &Message, turns: &mut Vec<Turn>) {
    let texts = match &message.content {
        Content::Text(text) => Content::Text(text.clone()),
        Content::Parts(parts) => Content::Parts(
            parts
                .iter()
                .filter(|part| **part != Part::Image)
                .cloned()
                .collect(),
        ),
    };
    let text = body(&texts, slot);
    if message.images() == 1 && !template.preset.is_empty() {
        let mut whole = text;
        whole.ours("\n");
        slot.write(&mut whole);
        turns.push(Turn {
            role: message.role,
            body: whole,
        });
        return;
    }
    let text = text.stripped();
    let mut images = Markup::default();
    if template.image_exchange {
        for _ in 0..message.images() {
            images.ours("<Image>");
            slot.write(&mut images);
            images.ours("</Image>");
        }
        turns.push(Turn {
            role: Role::User,
            body: images,
        });
        turns.push(Turn {
            role: Role::Assistant,
            body: ours("Received."),
        });
        turns.push(Turn {
            role: message.role,
            body: text,
        });
        return;
    }
    let body = if message.images() > 1 {
        body(&message.content, slot)
    } else {
        slot.write(&mut images);
        images.ours("\n");
        images.append(&text);
        images
    };
    turns.push(Turn {
        role: message.role,
        body,
    });
}

/// The parts in order, a line each.
fn body(content: &Content, slot: Slot) -> Markup {
    let mut body = Markup::default();
    match content {
        Content::Text(text) => body.theirs(text),
        Content::Parts(parts) => {
            for (at, part) in parts.iter().enumerate() {
                if at > 0 {
                    body.ours("\n");
                }
                match part {
                    Part::Text { text } => body.theirs(text),
                    Part::Image => slot.write(&mut body),
                }
            }
        }
    }
    body
}

fn ours(text: &str) -> Markup {
    let mut markup = Markup::default();
    markup.ours(text);
    markup
}
