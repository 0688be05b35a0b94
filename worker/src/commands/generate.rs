//! `generate`: one answer about some pictures, streamed to the terminal
//! (LLaVA's `run_llava`).

use crate::commands::model_args::ModelArgs;
use crate::commands::sampling_args::SamplingArgs;
use crate::prompt::{Message, Part, Role};
use crate::speaker::Speaker;
use std::io::Write;
use std::path::PathBuf;

/// Answers one prompt about some pictures.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Picture files, shown before the prompt
    #[arg(long, value_name = "FILE", num_args = 1..)]
    image: Vec<PathBuf>,
    /// What to ask
    #[arg(long, value_name = "TEXT")]
    prompt: String,
    /// Instructions above the conversation
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Conversation template to use instead of the checkpoint's own
    #[arg(long, value_name = "NAME")]
    template: Option<String>,
}

impl Args {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let options = self.sampling.options()?;
        let model = self.model.load()?;
        let mut speaker = Speaker::new(model, &self.model.dir, self.template.as_deref())?;
        for path in &self.image {
            speaker.show(path)?;
        }
        let mut messages = Vec::new();
        messages.extend(self.system.map(|text| Message::text(Role::System, text)));
        let mut parts = vec![Part::Image; self.image.len()];
        parts.push(Part::text(self.prompt));
        messages.push(Message::parts(Role::User, parts));
        let mut stdout = std::io::stdout();
        speaker.answer(&messages, &options, &mut |text| {
            stdout.write_all(text.as_bytes())?;
            stdout.flush()
        })?;
        println!();
        Ok(())
    }
}
