//! What a checkpoint is, parsed once from its `config.json` into checked
//! values. The original layout (flat fields, `mm_*`) and transformers' layouts
//! (nested `text_config` and `vision_config`) give the same `ModelConfig`; the
//! kind of model is read here and never from a path.

mod fields;
mod image;
mod original;
mod text;
mod transformers;
mod vision;

pub use fields::{ConfigError, Fields, read_object};
pub(crate) use image::Picture;
pub use image::{Aspect, ImageConfig};
pub use text::{RopeScaling, TextConfig, TextKind};
pub use vision::{Activation, VisionConfig, VisionKind};

use std::path::{Path, PathBuf};

/// Who wrote the checkpoint's configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// LLaVA's own: flat fields.
    Original,
    /// transformers': nested fields.
    Transformers,
}

/// The generation of LLaVA, which decides how images become positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// LLaVA-1.5, and LLaVA-Interleave: one tile for each image.
    Llava,
    /// LLaVA-1.6 (NeXT): the image whole and in tiles, unpadded, with newlines.
    LlavaNext,
    /// OneVision: as NeXT, shrunk beyond a number of tiles.
    OneVision,
}

impl Family {
    /// The family's name for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Llava => "llava",
            Self::LlavaNext => "llava_next",
            Self::OneVision => "llava_onevision",
        }
    }
}

/// Where the vision tower's weights are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tower {
    /// In the checkpoint's own files.
    Inside,
    /// In a folder of its own.
    Folder(PathBuf),
    /// In the checkpoint's own files or nowhere: the checkpoint names a tower
    /// that was not found as a folder. The name is kept for the message.
    Named(String),
}

/// How many products the projector has.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ProjectorConfig {
    /// Number of products; 0 is the identity.
    pub depth: usize,
    /// Activation between them.
    pub activation: Activation,
    /// Whether they have biases.
    pub bias: bool,
}

/// A checkpoint's whole configuration.
#[derive(Debug, Clone)]
pub struct ModelConfig {
    /// Who wrote it.
    pub layout: Layout,
    /// Which generation of LLaVA.
    pub family: Family,
    /// The `model_type` as written.
    pub model_type: String,
    /// The language model.
    pub text: TextConfig,
    /// The vision tower.
    pub vision: VisionConfig,
    /// Where the tower's weights are.
    pub tower: Tower,
    /// Layers of the tower that are run: the features are its output there.
    pub tower_layers: usize,
    /// Whether the class token's feature is kept.
    pub keep_class: bool,
    /// Between tower and language model.
    pub projector: ProjectorConfig,
    /// How images are cut and merged.
    pub image: ImageConfig,
    /// The id that stands for an image in the vocabulary; the original layout has none.
    pub image_token: Option<u32>,
    /// Longest sequence in tokens, as the checkpoint was tuned.
    pub max_length: usize,
}

impl ModelConfig {
    /// Reads the `config.json` in `dir`; `tower` overrides where an original
    /// checkpoint's vision tower is looked for.
    ///
    /// # Errors
    /// Names the file and the field that cannot be read or makes no sense.
    pub fn read(dir: &Path, tower: Option<&Path>) -> Result<Self, ConfigError> {
        let path = dir.join("config.json");
        let object = read_object(&path)?;
        let fields = Fields::new(&path, &object);
        let nested = fields.has("text_config")
            || fields.has("vision_config") && !fields.has("mm_vision_tower");
        let mut config = if nested {
            transformers::parse(&fields)
        } else {
            original::parse(&fields, dir, tower)
        }?;
        for token in generation_eos(dir)? {
            if !config.text.eos.contains(&token) {
                config.text.eos.push(token);
            }
        }
        Ok(config)
    }

    /// Positions that an image takes in a sequence.
    ///
    /// `original` is its width and height in pixels, `grid` the columns and
    /// rows of its tiles beside the whole image, if it is cut.
    pub fn image_tokens(&self, original: (u32, u32), grid: Option<crate::pixels::Grid>) -> usize {
        let side = self.vision.side();
        self.image
            .tokens(side, usize::from(self.keep_class), original, grid)
    }
}

/// The tokens that `generation_config.json` ends answers with: chat models of
/// Qwen name their end of turn there alone.
fn generation_eos(dir: &Path) -> Result<Vec<u32>, ConfigError> {
    let path = dir.join("generation_config.json");
    if !path.is_file() {
        return Ok(Vec::new());
    }
    let object = read_object(&path)?;
    Fields::new(&path, &object).tokens("eos_token_id")
}

/// Which of a tower's layers to run so that the wanted hidden state comes out:
/// `-1` is the last layer's output, `-2` the one before it.
fn tower_layers(
    fields: &Fields<'_>,
    key: &str,
    select: i64,
    layers: usize,
) -> Result<usize, ConfigError> {
    let states = layers as i64 + 1;
    let index = if select < 0 { states + select } else { select };
    if (0..states).contains(&index) {
        Ok(index as usize)
    } else {
        Err(fields.wrong(
            key,
            format!("is {select}, but the vision tower has {layers} layers"),
        ))
    }
}
