//! From a chat's body to checked values. Nothing here reads an image or renders
//! a prompt: what can be refused cheaply is refused first.

use protocol::openai::{ChatContent, ChatPart, ChatRequest, Options};
use serde_json::Value;

use crate::prompt::{Content, Message, Part, Role};
use crate::serve::app::App;
use crate::serve::body;
use crate::serve::refusal::Refusal;
use crate::serve::sampling::{self, Generation, MAX_TOP_LOGPROBS};

/// Characters that a message or a part counts beside its text: it costs templates and tokenizers that much, however
/// little it says.
const CHARACTERS_EACH: usize = 16;

/// A chat, checked.
pub(super) struct Asked {
    /// The name to answer with.
    pub model: String,
    /// The turns; images are slots in them.
    pub messages: Vec<Message>,
    /// Field and URL of each image in order.
    pub images: Vec<(String, String)>,
    /// How to answer.
    pub generation: Generation,
    /// Alternatives to list for each token; `None` asks for no probabilities.
    pub logprobs: Option<usize>,
    /// Whether the answer comes as events.
    pub stream: bool,
    /// Whether the stream ends with token counts.
    pub usage: bool,
}

/// Reads and checks a body.
///
/// # Errors
/// 400 that names the field; 404 for another model.
pub(super) fn read(app: &App, bytes: &[u8]) -> Result<Asked, Refusal> {
    let options: Options = body::parse(bytes)?;
    let request: ChatRequest = body::parse(bytes)?;
    check(app, &options, request)
}

fn check(app: &App, options: &Options, request: ChatRequest) -> Result<Asked, Refusal> {
    let model = app.model(options.model.as_deref())?;
    let generation = sampling::check(options, &app.limits)?;
    refuse_what_is_not_done(&request)?;
    let logprobs = match (request.logprobs.unwrap_or(false), request.top_logprobs) {
        (_, Some(top)) if top > MAX_TOP_LOGPROBS => {
            let message = format!("`top_logprobs` must be at most {MAX_TOP_LOGPROBS}");
            return Err(Refusal::value("top_logprobs", message));
        }
        (false, Some(top)) if top > 0 => {
            return Err(Refusal::value(
                "top_logprobs",
                "`top_logprobs` needs `logprobs`: true",
            ));
        }
        (false, _) => None,
        (true, top) => Some(top.unwrap_or(0) as usize),
    };
    if request.messages.is_empty() {
        return Err(Refusal::value("messages", "`messages` is empty"));
    }
    let images = request.images();
    if images > app.limits.max_images {
        let message = format!(
            "{images} images exceed the limit of {} for one request",
            app.limits.max_images
        );
        return Err(Refusal::invalid(
            "too_many_images",
            Some("messages"),
            message,
        ));
    }
    let mut conversation = Conversation::default();
    for (index, message) in request.messages.into_iter().enumerate() {
        conversation.add(index, &message.role, message.content)?;
    }
    app.within_characters(conversation.characters, "messages")?;
    Ok(Asked {
        model,
        messages: conversation.messages,
        images: conversation.images,
        generation,
        logprobs,
        stream: options.streams(),
        usage: options.includes_usage(),
    })
}

fn refuse_what_is_not_done(request: &ChatRequest) -> Result<(), Refusal> {
    if request
        .tools
        .as_ref()
        .is_some_and(|tools| !tools.is_empty())
    {
        return Err(Refusal::unsupported(
            "tools",
            "this server calls no tools: leave `tools` out",
        ));
    }
    match &request.tool_choice {
        None | Some(Value::Null) => {}
        Some(Value::String(choice)) if choice == "none" || choice == "auto" => {}
        Some(_) => {
            return Err(Refusal::unsupported(
                "tool_choice",
                "this server calls no tools: leave `tool_choice` out",
            ));
        }
    }
    match &request.response_format {
        None | Some(Value::Null) => Ok(()),
        Some(Value::Object(format)) if format.is_empty() => Ok(()),
        Some(format) if format.get("type").and_then(Value::as_str) == Some("text") => Ok(()),
        Some(_) => Err(Refusal::unsupported(
            "response_format",
            "this server answers in free text only: leave `response_format` out",
        )),
    }
}

#[derive(Default)]
struct Conversation {
    messages: Vec<Message>,
    /// Field and URL of each image in order.
    images: Vec<(String, String)>,
    characters: usize,
}

impl Conversation {
    fn add(
        &mut self,
        index: usize,
        role: &str,
        content: Option<ChatContent>,
    ) -> Result<(), Refusal> {
        let role = match role {
            "system" | "developer" => Role::System,
            "user" => Role::User,
            "assistant" => Role::Assistant,
            _ => {
                let message = "`role` must be system, developer, user or assistant";
                return Err(Refusal::value(&format!("messages[{index}].role"), message));
            }
        };
        self.characters += CHARACTERS_EACH;
        let content = match content {
            None => Content::Text(String::new()),
            Some(ChatContent::Text(text)) => {
                self.characters += text.chars().count();
                Content::Text(text)
            }
            Some(ChatContent::Parts(parts)) => Content::Parts(
                parts
                    .into_iter()
                    .enumerate()
                    .map(|(part, content)| {
                        self.part(&format!("messages[{index}].content[{part}]"), content)
                    })
                    .collect::<Result<_, _>>()?,
            ),
        };
        self.messages.push(Message { role, content });
        Ok(())
    }

    fn part(&mut self, at: &str, part: ChatPart) -> Result<Part, Refusal> {
        self.characters += CHARACTERS_EACH;
        match (part.kind.as_str(), part.text, part.image_url) {
            ("text", Some(text), _) => {
                self.characters += text.chars().count();
                Ok(Part::Text { text })
            }
            ("text", None, _) => Err(Refusal::value(
                &format!("{at}.text"),
                "a text part needs `text`",
            )),
            ("image_url", _, Some(image)) => {
                self.images
                    .push((format!("{at}.image_url"), image.into_url()));
                Ok(Part::Image)
            }
            ("image_url", _, None) => Err(Refusal::value(
                &format!("{at}.image_url"),
                "an image part needs `image_url`",
            )),
            _ => {
                let message = "a part must be of type `text` or `image_url`";
                Err(Refusal::value(&format!("{at}.type"), message))
            }
        }
    }
}
