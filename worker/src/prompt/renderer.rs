//! One door to all prompts of a checkpoint: its chat template or one of LLaVA's
//! conversation templates, and its tokenizer.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::Prompt;
use super::chat_template::{ChatTemplate, ChatTemplateError, TokenNames};
use super::conversation::{self, ConversationError, Slot};
use super::markup::{IMAGE_MARK, Markup};
use super::message::Message;
use super::template::Template;
use crate::config::{Layout, ModelConfig, TextKind};
use crate::json_file::{JsonFileError, read_bytes, read_json_if_there};
use crate::tokenize::{Slots, TextTokenizer, TokenizerError};

/// Vocabularies that tell who a model with LLaMA's configuration is: Yi's LLaVA (1.6-34B) speaks ChatML, and
/// LLaMA 3's its own format.
const YI_VOCABULARY: usize = 64_000;
const LLAMA_3_VOCABULARY: usize = 128_000;

/// A prompt that cannot be made, or a renderer that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    /// A file is missing or broken.
    #[error(transparent)]
    File(#[from] JsonFileError),
    /// The tokenizer cannot be used.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The messages do not suit the conversation template.
    #[error(transparent)]
    Conversation(#[from] ConversationError),
    /// The chat template is broken or refuses the messages.
    #[error("use the chat template of {}", dir.display())]
    ChatTemplate {
        /// The checkpoint.
        dir: PathBuf,
        /// Why.
        source: ChatTemplateError,
    },
    /// No template has the wanted name.
    #[error("find the conversation template {name:?}: known are {}", Template::names().join(", "))]
    UnknownTemplate {
        /// The wanted name.
        name: String,
    },
    /// Slots and images differ in number.
    #[error("place the images: the prompt has {slots} image slots, the request {images} images")]
    ImageCount {
        /// Image slots in the rendered prompt.
        slots: usize,
        /// Images that came with it.
        images: usize,
    },
}

enum Form {
    Conversation {
        template: &'static Template,
        slot: Slot,
    },
    Chat {
        template: Box<ChatTemplate>,
        stop: Vec<String>,
    },
}

/// Renders and tokenises prompts for one checkpoint.
pub struct PromptRenderer {
    dir: PathBuf,
    form: Form,
    tokenizer: TextTokenizer,
    slots: Slots,
}

impl PromptRenderer {
    /// The renderer for the checkpoint in `dir`. `template` names a conversation
    /// template to use instead of the one that the checkpoint calls for.
    ///
    /// # Errors
    /// The tokenizer or the template cannot be used, or no template has that name.
    pub fn from_checkpoint(
        dir: &Path,
        model: &ModelConfig,
        template: Option<&str>,
    ) -> Result<Self, PromptError> {
        let marks = ImageMarks::read(dir)?;
        let tokenizer = TextTokenizer::with_special_tokens(dir, marks.tokens())?;
        tokenizer.check_fits(model.text.vocab)?;
        let form = Self::form(dir, model, template, &tokenizer, marks.slot())?;
        let slots = match model.layout {
            Layout::Original => Slots::BetweenTexts,
            Layout::Transformers => Slots::InText,
        };
        Ok(Self {
            dir: dir.to_owned(),
            form,
            tokenizer,
            slots,
        })
    }

    fn form(
        dir: &Path,
        model: &ModelConfig,
        wanted: Option<&str>,
        tokenizer: &TextTokenizer,
        slot: Slot,
    ) -> Result<Form, PromptError> {
        if let Some(name) = wanted {
            let template = Template::named(name).ok_or_else(|| PromptError::UnknownTemplate {
                name: name.to_owned(),
            })?;
            return Ok(Form::Conversation { template, slot });
        }
        let source = match model.layout {
            Layout::Original => None,
            Layout::Transformers => chat_template(dir, tokenizer)?,
        };
        let Some(source) = source else {
            return Ok(Form::Conversation {
                template: template_for(model),
                slot,
            });
        };
        let special = tokenizer.special();
        let names = TokenNames {
            bos: special.bos.clone(),
            eos: special.eos.clone(),
            unk: special.unk.clone(),
            pad: special.pad.clone(),
        };
        let template =
            ChatTemplate::new(&source, names).map_err(|source| PromptError::ChatTemplate {
                dir: dir.to_owned(),
                source,
            })?;
        Ok(Form::Chat {
            template: Box::new(template),
            stop: special.eos.iter().cloned().collect(),
        })
    }

    /// Renders a conversation with the answer's turn left open.
    ///
    /// # Errors
    /// The messages do not suit the template, or it drops or repeats an image.
    pub fn render(&self, messages: &[Message]) -> Result<Prompt, PromptError> {
        let (markup, stop) = match &self.form {
            Form::Conversation { template, slot } => {
                let stop = template.stop.iter().map(ToString::to_string).collect();
                (conversation::render(template, *slot, messages)?, stop)
            }
            Form::Chat { template, stop } => {
                let rendered =
                    template
                        .render(messages)
                        .map_err(|source| PromptError::ChatTemplate {
                            dir: self.dir.clone(),
                            source,
                        })?;
                (rendered, stop.clone())
            }
        };
        self.prompt(&markup, messages.iter().map(Message::images).sum(), stop)
    }

    /// Tokenises a prompt that a client of LLaVA's own API has rendered: special
    /// tokens count, and each `<image>` is a slot for one of its `images`.
    ///
    /// # Errors
    /// There are more or fewer slots than images.
    pub fn rendered(&self, prompt: &str, images: usize) -> Result<Prompt, PromptError> {
        let mut markup = Markup::default();
        match &self.form {
            Form::Conversation {
                slot: Slot::Enclosed,
                ..
            } => {
                let text = prompt.replace(IMAGE_MARK, "<im_start><image><im_end>");
                markup.ours_with_images(&text, IMAGE_MARK);
            }
            _ => markup.ours_with_images(prompt, IMAGE_MARK),
        }
        self.prompt(&markup, images, Vec::new())
    }

    /// The conversation template in use; `None` for the checkpoint's own chat template.
    #[must_use]
    pub fn template(&self) -> Option<&'static Template> {
        match &self.form {
            Form::Conversation { template, .. } => Some(template),
            Form::Chat { .. } => None,
        }
    }

    /// Special tokens that end an answer as the template's stop texts do: they have no text in which those could be
    /// found. Some checkpoints name them nowhere else (LLaMA 3's `<|eot_id|>`).
    #[must_use]
    pub fn end_tokens(&self) -> Vec<u32> {
        let special = |text: &str| self.tokenizer.special_id(text);
        match &self.form {
            Form::Conversation { template, .. } => {
                let stop = template.stop.iter();
                stop.filter_map(|text| special(text)).collect()
            }
            Form::Chat { stop, .. } => stop.iter().filter_map(|text| special(text)).collect(),
        }
    }

    /// The tokenizer.
    #[must_use]
    pub fn tokenizer(&self) -> &TextTokenizer {
        &self.tokenizer
    }

    fn prompt(
        &self,
        markup: &Markup,
        images: usize,
        stop: Vec<String>,
    ) -> Result<Prompt, PromptError> {
        let slots = markup.images();
        if slots != images {
            return Err(PromptError::ImageCount { slots, images });
        }
        Ok(Prompt {
            text: markup.text(),
            pieces: self.tokenizer.pieces(markup, self.slots)?,
            stop,
        })
    }
}

/// Renders by a template alone: the text and the stop strings, without a tokenizer.
///
/// # Errors
/// The messages do not suit the template.
pub fn render_text(
    template: &Template,
    messages: &[Message],
) -> Result<(String, Vec<String>), ConversationError> {
    let markup = conversation::render(template, Slot::Bare, messages)?;
    Ok((
        markup.text(),
        template.stop.iter().map(ToString::to_string).collect(),
    ))
}

/// What a checkpoint without a template of its own was trained with.
pub(crate) fn template_for(model: &ModelConfig) -> &'static Template {
    let name = match model.text.kind {
        TextKind::Mistral => "mistral_instruct",
        TextKind::Qwen2 => "qwen_1_5",
        TextKind::Llama if model.text.vocab >= LLAMA_3_VOCABULARY => "llava_llama_3",
        TextKind::Llama if model.text.vocab >= YI_VOCABULARY => "chatml_direct",
        TextKind::Llama => "llava_v1",
    };
    Template::named(name).unwrap_or(&Template::all()[0])
}

/// The marks around images that LLaVA's `config.json` asks for.
enum ImageMarks {
    None,
    /// `mm_use_im_start_end`.
    StartEnd {
        /// `mm_use_im_patch_token`: a token that no prompt has, which moves the other two.
        patch: bool,
    },
}

impl ImageMarks {
    fn read(dir: &Path) -> Result<Self, JsonFileError> {
        let config: Option<Value> = read_json_if_there(&dir.join("config.json"))?;
        let Some(config) = config.filter(|config| config["mm_use_im_start_end"] == true) else {
            return Ok(Self::None);
        };
        let patch = config["mm_use_im_patch_token"] != false;
        Ok(Self::StartEnd { patch })
    }

    /// Tokens that LLaVA adds to a tokenizer without them when it loads it (`load_pretrained_model`).
    fn tokens(&self) -> &'static [&'static str] {
        match self {
            Self::None => &[],
            Self::StartEnd { patch: true } => &["<im_patch>", "<im_start>", "<im_end>"],
            Self::StartEnd { patch: false } => &["<im_start>", "<im_end>"],
        }
    }

    fn slot(&self) -> Slot {
        match self {
            Self::None => Slot::Bare,
            Self::StartEnd { .. } => Slot::Enclosed,
        }
    }
}

/// The chat template, from wherever transformers looks for it, in its order: a folder that was saved again by a later
/// version keeps what the earlier one wrote.
fn chat_template(dir: &Path, tokenizer: &TextTokenizer) -> Result<Option<String>, JsonFileError> {
    for file in ["processor_config.json", "chat_template.json"] {
        let value: Option<Value> = read_json_if_there(&dir.join(file))?;
        if let Some(text) = value
            .as_ref()
            .and_then(|value| template_text(&value["chat_template"]))
        {
            return Ok(Some(text));
        }
    }
    if let Some(bytes) = read_bytes(&dir.join("chat_template.jinja"))? {
        return Ok(Some(String::from_utf8_lossy(&bytes).into_owned()));
    }
    Ok(tokenizer
        .special()
        .chat_template
        .as_ref()
        .and_then(template_text))
}

/// A template is a text, or one of several under the name `default`.
fn template_text(value: &Value) -> Option<String> {
    let named = |entry: &&Value| entry["name"] == "default";
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Array(several) => Some(several.iter().find(named)?["template"].as_str()?.to_owned()),
        Value::Object(several) => Some(several.get("default")?.as_str()?.to_owned()),
        _ => None,
    }
}
