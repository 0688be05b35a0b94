//! `make-data`: writes the data sets that the project draws itself.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use crate::data::QuestionKind;
use crate::data::shapes::{self, ShapesPlan};

/// Makes a data set in LLaVA's conversation format.
#[derive(Debug, Args)]
pub(super) struct MakeDataArgs {
    #[command(subcommand)]
    kind: DataKind,
}

#[derive(Debug, Subcommand)]
enum DataKind {
    /// Drawn scenes of coloured shapes, with questions and answers.
    Shapes(ShapesArgs),
}

#[derive(Debug, Args)]
struct ShapesArgs {
    /// Folder to write to.
    #[arg(long)]
    out: PathBuf,
    /// Training images.
    #[arg(long, default_value_t = 16_000)]
    images: usize,
    /// Held-out images; none shows a scene that any training set can hold.
    #[arg(long, default_value_t = 1_000)]
    held_out: usize,
    /// Conversations about each training image.
    #[arg(long, default_value_t = 4)]
    conversations: usize,
    /// Questions in a training conversation.
    #[arg(long, default_value_t = 5)]
    turns: usize,
    /// Asks a kind of question so many times as often in training, such as `count=5`; repeatable.
    #[arg(long, value_name = "KIND=TIMES", value_parser = more)]
    more: Vec<(QuestionKind, u32)>,
    /// Share of scenes whose shapes stand anywhere instead of near a 3 × 3 grid.
    #[arg(long, default_value_t = 0.35)]
    free: f64,
    /// Side of the images, in pixels.
    #[arg(long, default_value_t = 96)]
    side: u32,
    /// Side of a vision patch, in pixels, for the per-patch labels.
    #[arg(long, default_value_t = 16)]
    patch: u32,
    /// Entries of the tokenizer; 0 writes none.
    #[arg(long, default_value_t = 620)]
    vocabulary: usize,
    /// Every random choice follows from it.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

impl MakeDataArgs {
    /// Writes the data set.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub(super) fn run(self) -> anyhow::Result<()> {
        let DataKind::Shapes(args) = self.kind;
        let plan = ShapesPlan {
            images: args.images,
            held_out: args.held_out,
            conversations: args.conversations,
            turns: args.turns,
            more: args.more,
            free: args.free,
            side: args.side,
            patch: args.patch,
            vocabulary: args.vocabulary,
            seed: args.seed,
        };
        Ok(shapes::make(&plan, &args.out)?)
    }
}

/// Reads `count=5`.
fn more(text: &str) -> Result<(QuestionKind, u32), String> {
    let kinds = || {
        let names = QuestionKind::value_variants().iter();
        let names = names.filter_map(ValueEnum::to_possible_value);
        let names: Vec<_> = names.map(|value| value.get_name().to_owned()).collect();
        names.join(", ")
    };
    let (kind, times) = (text.split_once('=')).ok_or("write it as KIND=TIMES")?;
    let kind = QuestionKind::from_str(kind, false)
        .map_err(|_| format!("no kind `{kind}`; there are {}", kinds()))?;
    let times = (times.parse()).map_err(|_| format!("`{times}` is no whole number"))?;
    Ok((kind, times))
}
