//! A checkpoint's own chat template: Jinja as transformers runs it. User text goes
//! in disguised, byte for byte as private-use characters, and is recognised in
//! what comes out, so that a template may move, trim or drop it but never turn it
//! into markup. Whitespace goes in as it is, because templates trim it.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, Error, ErrorKind};
use serde_json::{Value, json};

use super::markup::{IMAGE_MARK, Markup};
use super::message::{Content, Message, Part, Role};
use super::template_guard;

/// Steps that a template may take, guards among them; the longest known one takes some ten thousand for a long
/// conversation.
const FUEL: u64 = 2_000_000;
/// First of 256 private-use characters, one for each byte.
const DISGUISE: u32 = 0x0010_f000;

/// What a template is shown to see whether it prints what users write: a word that none says itself.
const PROBE: &str = "probe-of-llava-worker";

/// A template that cannot be used, or refuses the messages.
#[derive(Debug, thiserror::Error)]
pub enum ChatTemplateError {
    /// The template is no Jinja, or uses what is not supported.
    #[error("compile the checkpoint's chat template")]
    Compile(#[source] Error),
    /// Neither messages of parts nor of plain text come out of the template.
    #[error("render a message by the checkpoint's chat template: its text does not come out")]
    Unusable(#[source] Option<Error>),
    /// Rendering failed, or the template called `raise_exception`.
    #[error("render the messages by the checkpoint's chat template")]
    Render(#[source] Error),
}

/// Special tokens by the names that templates know them by.
#[derive(Debug, Clone, Default)]
pub(crate) struct TokenNames {
    pub(crate) bos: Option<String>,
    pub(crate) eos: Option<String>,
    pub(crate) unk: Option<String>,
    pub(crate) pad: Option<String>,
}

/// What a template expects as a message's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Parts,
    Text,
}

/// A compiled chat template.
#[derive(Debug)]
pub(crate) struct ChatTemplate {
    environment: Environment<'static>,
    form: Form,
    tokens: TokenNames,
}

impl ChatTemplate {
    pub(crate) fn new(source: &str, tokens: TokenNames) -> Result<Self, ChatTemplateError> {
        let mut environment = Environment::new();
        let mut syntax = SyntaxConfig::builder();
        syntax.trim_blocks(true).lstrip_blocks(true);
        let syntax = syntax.build().map_err(ChatTemplateError::Compile)?;
        environment.set_fuel(Some(FUEL));
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |text: String| -> Result<String, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, text))
        });
        environment.add_function("strftime_now", strftime_now);
        let source = without_generation_tags(source);
        template_guard::compile(&mut environment, syntax, source)
            .map_err(ChatTemplateError::Compile)?;
        let mut template = Self {
            environment,
            form: Form::Parts,
            tokens,
        };
        let parts = template.shows_text();
        if !matches!(parts, Ok(true)) {
            template.form = Form::Text;
            match template.shows_text() {
                Ok(true) => {}
                Ok(false) => return Err(ChatTemplateError::Unusable(parts.err())),
                Err(error) => return Err(ChatTemplateError::Unusable(Some(error))),
            }
        }
        Ok(template)
    }

    /// Renders with the answer's turn opened.
    pub(crate) fn render(&self, messages: &[Message]) -> Result<Markup, ChatTemplateError> {
        self.run(messages)
            .map(|text| recognise(&text))
            .map_err(ChatTemplateError::Render)
    }

    /// Whether a user's text comes out once, and not within a content part that is printed as it is.
    fn shows_text(&self) -> Result<bool, Error> {
        let text = self.run(&[Message::text(Role::User, PROBE)])?;
        let shown = recognise(&text).text();
        Ok(shown.matches(PROBE).count() == 1 && !prints_part(&shown))
    }

    fn run(&self, messages: &[Message]) -> Result<String, Error> {
        let messages: Vec<Value> = messages
            .iter()
            .map(|message| json!({ "role": message.role.name(), "content": self.content(&message.content) }))
            .collect();
        let mut context = json!({ "messages": messages, "add_generation_prompt": true });
        let names = &self.tokens;
        for (name, token) in [
            ("bos_token", &names.bos),
            ("eos_token", &names.eos),
            ("unk_token", &names.unk),
            ("pad_token", &names.pad),
        ] {
            if let Some(token) = token {
                context[name] = json!(token);
            }
        }
        let bytes = text_bytes(&context);
        template_guard::render(&self.environment, Serde(context), bytes)
    }

    fn content(&self, content: &Content) -> Value {
        let parts = match content {
            Content::Text(text) => vec![Part::text(text)],
            Content::Parts(parts) => parts.clone(),
        };
        if self.form == Form::Parts {
            return parts
                .iter()
                .map(|part| match part {
                    Part::Text { text } => json!({ "type": "text", "text": disguise(text) }),
                    Part::Image => json!({ "type": "image" }),
                })
                .collect();
        }
        let lines: Vec<String> = parts
            .iter()
            .map(|part| match part {
                Part::Text { text } => disguise(text),
                Part::Image => IMAGE_MARK.to_owned(),
            })
            .collect();
        Value::String(lines.join("\n"))
    }
}

/// Whether the part of the probe is printed as it is, with quotes and spaces of any kind.
fn prints_part(shown: &str) -> bool {
    let bare = shown.chars().filter(|letter| !letter.is_whitespace());
    let bare: String = bare.map(|c| if c == '\'' { '"' } else { c }).collect();
    let (kind, text) = (r#""type":"text""#, format!(r#""text":"{PROBE}""#));
    bare.contains(&format!("{{{kind},{text}}}")) || bare.contains(&format!("{{{text},{kind}}}"))
}

/// Bytes of all texts in `value`.
fn text_bytes(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(all) => all.iter().map(text_bytes).sum(),
        Value::Object(all) => all.values().map(text_bytes).sum(),
        _ => 0,
    }
}

fn strftime_now(format: &str) -> Result<String, Error> {
    let wrong = |error: jiff::Error| Error::new(ErrorKind::InvalidOperation, error.to_string());
    let millis = i64::try_from(shell::clock::unix_millis()).unwrap_or(i64::MAX);
    let now = jiff::Timestamp::from_millisecond(millis).map_err(wrong)?;
    jiff::fmt::strtime::format(format, &now.to_zoned(jiff::tz::TimeZone::system())).map_err(wrong)
}

fn disguise(text: &str) -> String {
    let mut out = String::with_capacity(text.len() * 4);
    for letter in text.chars() {
        if letter.is_whitespace() {
            out.push(letter);
            continue;
        }
        let mut bytes = [0; 4];
        for byte in letter.encode_utf8(&mut bytes).bytes() {
            out.extend(char::from_u32(DISGUISE + u32::from(byte)));
        }
    }
    out
}

/// Tells user text from the template's, and finds the image slots in the latter.
fn recognise(text: &str) -> Markup {
    let byte_of = |letter: char| {
        u32::from(letter)
            .checked_sub(DISGUISE)
            .and_then(|byte| u8::try_from(byte).ok())
    };
    let mut markup = Markup::default();
    let (mut ours, mut theirs) = (String::new(), Vec::new());
    for letter in text.chars() {
        match byte_of(letter) {
            Some(byte) => {
                markup.ours_with_images(&ours, IMAGE_MARK);
                ours.clear();
                theirs.push(byte);
            }
            None => {
                markup.theirs(&String::from_utf8_lossy(&theirs));
                theirs.clear();
                ours.push(letter);
            }
        }
    }
    markup.ours_with_images(&ours, IMAGE_MARK);
    markup.theirs(&String::from_utf8_lossy(&theirs));
    markup
}

/// transformers' `{% generation %}` marks answers for training and prints
/// nothing; a condition that always holds does the same, whitespace included.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, after)) = rest.split_once("{%") {
        out.push_str(before);
        out.push_str("{%");
        let Some((tag, following)) = after.split_once("%}") else {
            rest = after;
            break;
        };
        let dash = |edge: Option<char>| {
            edge.filter(|c| matches!(c, '-' | '+'))
                .map(String::from)
                .unwrap_or_default()
        };
        let (open, close) = (dash(tag.chars().next()), dash(tag.chars().last()));
        match tag.trim_matches(['-', '+']).trim() {
            "generation" => out.push_str(&format!("{open} if true {close}")),
            "endgeneration" => out.push_str(&format!("{open} endif {close}")),
            _ => out.push_str(tag),
        }
        out.push_str("%}");
        rest = following;
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn template(source: &str) -> ChatTemplate {
        ChatTemplate::new(source, TokenNames::default()).unwrap()
    }

    #[test]
    fn generation_tags_go_and_their_whitespace_rules_stay() {
        assert_eq!(
            without_generation_tags("a {%- generation -%} b{% endgeneration %}c {% if x %}"),
            "a {%- if true -%} b{% endif %}c {% if x %}",
        );
    }

    #[test]
    fn a_template_of_plain_texts_gets_plain_texts() {
        let template =
            template("{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}");
        let parts = vec![Part::Image, Part::text("what?")];
        let rendered = template
            .render(&[Message::parts(Role::User, parts)])
            .unwrap();
        assert_eq!(
            (rendered.text().as_str(), rendered.images()),
            ("[user]<image>\nwhat?", 1)
        );
    }

    #[test]
    fn a_template_that_prints_parts_gets_plain_texts_and_may_say_type_itself() {
        for (source, form) in [
            (
                "Probe the 'type': 'text' of a file with a probe.{{ messages[0]['content'][0]['text'] }}",
                Form::Parts,
            ),
            ("{{ messages[0]['content'] }}", Form::Text),
            ("{{ messages[0]['content'] | tojson }}", Form::Text),
            (
                "{{ messages[0]['content'] | tojson(indent=2) }}",
                Form::Text,
            ),
            ("{{ messages | tojson }} of any type", Form::Text),
        ] {
            assert_eq!(template(source).form, form, "{source}");
        }
    }

    #[test]
    fn a_template_may_trim_what_the_user_wrote() {
        let template =
            template("{% for m in messages %}<{{ m['content'][0]['text'] | trim }}>{% endfor %}");
        assert_eq!(
            template
                .render(&[Message::text(Role::User, "  hi  ")])
                .unwrap()
                .text(),
            "<hi>"
        );
    }

    #[test]
    fn a_template_that_runs_for_ever_is_stopped() {
        let source = "{{ messages[0]['content'] }}{% if messages | length > 1 %}{% for a in range(10000) %}{% for b in range(10000) %}{% endfor %}{% endfor %}{% endif %}";
        let message = Message::text(Role::User, "hi");
        assert!(
            template(source)
                .render(&[message.clone(), message])
                .is_err()
        );
    }

    #[test]
    fn raise_exception_reaches_the_caller() {
        let source = "{{ messages[0]['content'] }}{% if messages | length > 1 %}{{ raise_exception('one message only') }}{% endif %}";
        let message = Message::text(Role::User, "hi");
        let error = template(source)
            .render(&[message.clone(), message])
            .unwrap_err();
        assert!(format!("{error:?}").contains("one message only"));
    }

    proptest! {
        #[test]
        fn a_disguise_comes_off_whole(text in any::<String>()) {
            prop_assert_eq!(recognise(&disguise(&text)).text(), text);
        }

        #[test]
        fn no_template_makes_rendering_panic(source in "(\\{%|\\{\\{|%\\}|\\}\\}|[a-z '\\[\\]|().=-]|messages|generation|for m in|endfor|if|endif|set x = |endset|'x'|x|9999999| \\* | ~ |range\\(|join|indent|replace|list|format|batch){0,40}") {
            let _ = ChatTemplate::new(&source, TokenNames::default());
        }
    }
}
