//! `eval`: how many answers of a held-out file a checkpoint gives exactly.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::Context;
use candle_core::{DType, Device};
use clap::Args;
use tokenizers::Tokenizer;

use crate::config::ModelConfig;
use crate::prompt::Template;
use crate::train::corpus::Corpus;
use crate::train::evaluate::accuracy;
use crate::train::net::Net;
use crate::train::params::Params;
use crate::train::pass::Scene;
use crate::train::record::RecordFile;
use crate::train::sample::Encoder;

/// Measures a checkpoint on conversations with known answers: greedy, whole answers, exact.
#[derive(Debug, Args)]
pub(super) struct EvalArgs {
    /// The checkpoint's folder.
    #[arg(long)]
    model: PathBuf,
    /// Conversations in LLaVA's format.
    #[arg(long)]
    data: PathBuf,
    /// Folder that the images are relative to; the data file's by default.
    #[arg(long)]
    images: Option<PathBuf>,
    /// The conversation template.
    #[arg(long, default_value = "vicuna_v1")]
    conversation_template: String,
    /// Begin each conversation with the template's system text.
    #[arg(long)]
    system: bool,
    /// Write the figures to this file, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

impl EvalArgs {
    /// Prints a table by kind of question.
    ///
    /// # Errors
    /// Names the file or record that cannot be used.
    pub(super) fn run(self) -> anyhow::Result<()> {
        super::train::alone_on_each_thread()?;
        let config = ModelConfig::read(&self.model, None)?;
        let params = Params::read(&self.model, &config, &Device::Cpu)?;
        let tokenizer = Tokenizer::from_file(self.model.join("tokenizer.json"))
            .map_err(|e| anyhow::anyhow!("load the tokenizer of {}: {e}", self.model.display()))?;
        let name = &self.conversation_template;
        let template = Template::named(name).with_context(|| {
            format!(
                "no conversation template {name}; known are {}",
                Template::names().join(", ")
            )
        })?;
        let rope = Net::rope(&config)?;
        let images = match self.images {
            Some(images) => images,
            None => self.data.parent().map_or_else(PathBuf::new, PathBuf::from),
        };
        let encoder = Encoder {
            tokenizer,
            templates: vec![template],
        };
        let share = if self.system { 1.0 } else { 0.0 };
        let file = RecordFile::open(&self.data)?;
        let corpus = Corpus::new(file, images, encoder, share, rope.positions(), &config, 0);
        let (entries, faults) = corpus.check();
        if let Some(fault) = faults.into_iter().next() {
            return Err(fault.into());
        }
        let indices: Vec<usize> = entries.into_iter().map(|entry| entry.index).collect();
        let scene = Scene {
            config: &config,
            params: &params,
            trained: &BTreeSet::new(),
            rope: &rope,
            lora: None,
            dtype: DType::F32,
            checkpointing: false,
            device: &Device::Cpu,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
        };
        let accuracy = accuracy(&scene, &corpus, &indices)?;
        print!("{}", accuracy.table());
        if let Some(path) = self.json {
            let text = serde_json::to_string_pretty(&accuracy)? + "\n";
            std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        }
        Ok(())
    }
}
