//! `inspect`: what a checkpoint is and what it makes of messages and pictures,
//! without loading its weights. A template alone needs no checkpoint.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use serde::Deserialize;
use serde_json::Value;

use crate::image::Size;
use crate::inspect::{Question, report};
use crate::matmul::WeightFormat;
use crate::prompt::Message;

/// Shows a checkpoint, a rendered prompt with its token ids, and what images cost.
#[derive(Debug, Args)]
pub(super) struct InspectArgs {
    /// Folder of the checkpoint.
    #[arg(long, value_name = "DIR", required_unless_present = "template")]
    model: Option<PathBuf>,
    /// Folder of the vision tower, for a checkpoint that only names it.
    #[arg(long, value_name = "DIR")]
    vision_tower: Option<PathBuf>,
    /// Folder of the language model under a LoRA or projector-only checkpoint.
    #[arg(long, value_name = "DIR")]
    base: Option<PathBuf>,
    /// Form of the language model's weights to count the memory for: none, int8 or int4.
    #[arg(long, value_name = "FORM", default_value_t)]
    quantization: WeightFormat,
    /// Conversation template to use instead of the checkpoint's own.
    #[arg(long, value_name = "NAME")]
    template: Option<String>,
    /// Picture files to size up; the messages' images in order.
    #[arg(long, value_name = "FILE", num_args = 1..)]
    image: Vec<PathBuf>,
    /// Picture sizes to size up, behind the files.
    #[arg(long, value_name = "WxH", num_args = 1..)]
    image_size: Vec<Size>,
    /// Messages in the shape of OpenAI's API: a list, or an object with `messages`.
    #[arg(long, value_name = "FILE.json")]
    messages: Option<PathBuf>,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

/// A request's body, or its messages alone.
#[derive(Deserialize)]
#[serde(untagged)]
enum MessagesFile {
    List(Vec<Message>),
    Request { messages: Vec<Message> },
}

impl InspectArgs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let messages = self.messages.as_ref().map(|path| {
            let bytes = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
            let file: MessagesFile = serde_json::from_slice(&bytes).with_context(|| {
                format!("read messages in OpenAI's shape from {}", path.display())
            })?;
            let (MessagesFile::List(messages) | MessagesFile::Request { messages }) = file;
            anyhow::Ok(messages)
        });
        let answer = report(&Question {
            model: self.model,
            vision_tower: self.vision_tower,
            base: self.base,
            format: self.quantization,
            template: self.template,
            images: self.image,
            sizes: self.image_size,
            messages: messages.transpose()?,
        })?;
        let value = serde_json::to_value(&answer)?;
        let mut out = std::io::stdout().lock();
        if self.json {
            writeln!(out, "{value:#}")?;
        } else {
            print(&value, 0, &mut out)?;
        }
        Ok(())
    }
}

/// Prints an object's fields as indented lines.
fn print(value: &Value, depth: usize, out: &mut impl Write) -> std::io::Result<()> {
    let indent = "  ".repeat(depth);
    for (name, field) in value.as_object().into_iter().flatten() {
        match field {
            Value::Null => {}
            Value::Object(_) => {
                writeln!(out, "{indent}{name}:")?;
                print(field, depth + 1, out)?;
            }
            Value::Array(items) if items.iter().any(Value::is_object) => {
                for (at, item) in items.iter().enumerate() {
                    writeln!(out, "{indent}{name} {at}:")?;
                    print(item, depth + 1, out)?;
                }
            }
            other => writeln!(out, "{indent}{name}: {other}")?,
        }
    }
    Ok(())
}
