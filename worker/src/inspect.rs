//! Answers what a checkpoint makes of messages and pictures: the rendered prompt,
//! its ids, and the tokens and memory that it takes.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::checkpoint;
use crate::config::{ConfigError, Layout, ModelConfig};
use crate::image::{
    DecodeError, ImageProcessor, Limits, ProcessorConfig, ProcessorError, Size, read_file,
    read_header,
};
use crate::kernels::attention::HeadCache;
use crate::matmul::WeightFormat;
use crate::model::LoadOptions;
use crate::prompt::{
    ConversationError, Message, Part, Piece, PromptError, PromptRenderer, Role, Template,
    render_text,
};
use crate::tokenize::TokenizerError;
use crate::weights::Weights;

/// The id that LLaVA writes for an image in its own layout.
const ORIGINAL_IMAGE_ID: i64 = -200;

/// What to look at; a checkpoint or a template must be there.
#[derive(Debug, Default)]
pub struct Question {
    /// Folder of the checkpoint.
    pub model: Option<PathBuf>,
    /// Folder of its vision tower.
    pub vision_tower: Option<PathBuf>,
    /// Folder of the language model under an adapter or a projector.
    pub base: Option<PathBuf>,
    /// Form in which the language model's weights would be kept.
    pub format: WeightFormat,
    /// Conversation template to use instead of the checkpoint's own.
    pub template: Option<String>,
    /// Picture files.
    pub images: Vec<PathBuf>,
    /// Picture sizes, counted behind the files.
    pub sizes: Vec<Size>,
    /// Messages to render; without them one user message holds the pictures.
    pub messages: Option<Vec<Message>>,
}

/// What was found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The checkpoint, if one was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelReport>,
    /// The conversation template's name; absent for the checkpoint's own chat template.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<&'static str>,
    /// The rendered prompt, image slots as `<image>`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// Texts that end the answer.
    pub stop: Vec<String>,
    /// Ids of the prompt, one entry for each image slot: -200 in LLaVA's own
    /// layout, the vocabulary's image token in transformers'.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<i64>>,
    /// Each picture in order.
    pub images: Vec<ImageReport>,
    /// Tokens of the whole sequence, if a checkpoint was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<TokenReport>,
    /// Memory in bytes, if a checkpoint was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryReport>,
}

/// What a checkpoint is.
#[derive(Debug, Serialize)]
pub struct ModelReport {
    /// LLaVA's generation.
    pub family: &'static str,
    /// `original` or `transformers`.
    pub layout: &'static str,
    /// The configuration's `model_type`.
    pub model_type: String,
    /// The language model's architecture.
    pub language_model: String,
    /// The tower's architecture.
    pub vision_tower: String,
    /// Side of the tower's input in pixels.
    pub image_size: usize,
    /// Longest sequence in tokens.
    pub context_length: usize,
    /// Rows of the embedding.
    pub vocabulary: usize,
}

/// What a picture becomes.
#[derive(Debug, Serialize)]
pub struct ImageReport {
    /// The file, where it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// Pixels from left to right, once upright.
    pub width: u32,
    /// Pixels from top to bottom.
    pub height: u32,
    /// Tiles that the tower sees, the whole picture included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tiles: Option<usize>,
    /// Columns and rows of the tiles beside the whole picture.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grid: Option<[usize; 2]>,
    /// Tokens in the prompt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<usize>,
}

/// Tokens of a sequence. Where the messages show pictures that were not given, only
/// those of text are known.
#[derive(Debug, Serialize)]
pub struct TokenReport {
    /// Of text.
    pub text: usize,
    /// Of images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub images: Option<usize>,
    /// Of both.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total: Option<usize>,
    /// Left for the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left: Option<usize>,
}

/// Memory in bytes, on a CPU.
#[derive(Debug, Serialize)]
pub struct MemoryReport {
    /// The form of the language model's weights that this is for.
    pub quantization: String,
    /// Language model and projector, the base's and an adapter's part included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub language_model: Option<u64>,
    /// The vision tower, wherever it lies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vision_tower: Option<u64>,
    /// Keys and values of one token.
    pub per_token: u64,
    /// Keys and values of a sequence of full length.
    pub per_sequence: u64,
    /// Weights and one such sequence; absent where the weights are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
    /// Why the weights could not be counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing: Option<String>,
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// The checkpoint's configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The checkpoint's image processing cannot be followed.
    #[error(transparent)]
    Processor(#[from] ProcessorError),
    /// The prompt cannot be made.
    #[error(transparent)]
    Prompt(#[from] PromptError),
    /// The messages do not suit the template.
    #[error(transparent)]
    Conversation(#[from] ConversationError),
    /// A picture cannot be used.
    #[error(transparent)]
    Image(#[from] DecodeError),
    /// A file cannot be read.
    #[error("read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// There are more or fewer pictures than image slots.
    #[error(
        "place the images: the messages have {slots} image parts, but {images} images were given"
    )]
    ImageCount {
        /// Image parts of the messages.
        slots: usize,
        /// Pictures given.
        images: usize,
    },
}

/// Looks at what `question` names.
///
/// # Errors
/// A file cannot be read or makes no sense, or pictures and messages do not fit each other.
pub fn report(question: &Question) -> Result<Report, InspectError> {
    let pictures = pictures(question)?;
    let messages = messages(question, pictures.len())?;
    let Some(dir) = &question.model else {
        return without_model(question, pictures, messages.as_deref());
    };
    let model = ModelConfig::read(dir, question.vision_tower.as_deref())?;
    let renderer = match PromptRenderer::from_checkpoint(dir, &model, question.template.as_deref())
    {
        // Sizes and memory can be told without words.
        Err(PromptError::Tokenizer(TokenizerError::Missing { .. })) if messages.is_none() => None,
        renderer => Some(renderer?),
    };
    let images = match pictures.is_empty() {
        true => pictures,
        false => with_tokens(dir, &model, pictures)?,
    };
    let prompt = match (&renderer, messages) {
        (Some(renderer), Some(messages)) => Some(renderer.render(&messages)?),
        _ => None,
    };
    let slots = prompt
        .as_ref()
        .map_or(images.len(), |prompt| prompt.images());
    let image_tokens: usize = images.iter().filter_map(|image| image.tokens).sum();
    let image_tokens = (slots == images.len()).then_some(image_tokens);
    let text = prompt.as_ref().map_or(0, |prompt| prompt.text_tokens());
    let slot = model.image_token.map_or(ORIGINAL_IMAGE_ID, i64::from);
    let ids = |piece: &Piece| match piece {
        Piece::Text(ids) => ids.iter().map(|id| i64::from(*id)).collect(),
        Piece::Image(_) => vec![slot],
    };
    let total = image_tokens.map(|images| text + images);
    Ok(Report {
        template: renderer.and_then(|renderer| Some(renderer.template()?.names[0])),
        token_ids: prompt
            .as_ref()
            .map(|prompt| prompt.pieces.iter().flat_map(ids).collect()),
        stop: prompt
            .as_ref()
            .map(|prompt| prompt.stop.clone())
            .unwrap_or_default(),
        prompt: prompt.map(|prompt| prompt.text),
        images,
        tokens: Some(TokenReport {
            text,
            images: image_tokens,
            total,
            left: total.map(|total| model.max_length.saturating_sub(total)),
        }),
        memory: Some(memory(dir, question, &model)),
        model: Some(ModelReport {
            family: model.family.name(),
            layout: match model.layout {
                Layout::Original => "original",
                Layout::Transformers => "transformers",
            },
            model_type: model.model_type.clone(),
            language_model: format!("{:?}", model.text.kind).to_lowercase(),
            vision_tower: format!("{:?}", model.vision.kind).to_lowercase(),
            image_size: model.vision.image_size,
            context_length: model.max_length,
            vocabulary: model.text.vocab,
        }),
    })
}

fn without_model(
    question: &Question,
    images: Vec<ImageReport>,
    messages: Option<&[Message]>,
) -> Result<Report, InspectError> {
    let name = question.template.clone().unwrap_or_default();
    let template = Template::named(&name).ok_or(PromptError::UnknownTemplate { name })?;
    let rendered = messages
        .map(|messages| render_text(template, messages))
        .transpose()?;
    let stop = template.stop.iter().map(ToString::to_string).collect();
    Ok(Report {
        model: None,
        template: Some(template.names[0]),
        prompt: rendered.map(|(text, _)| text),
        stop,
        token_ids: None,
        images,
        tokens: None,
        memory: None,
    })
}

fn pictures(question: &Question) -> Result<Vec<ImageReport>, InspectError> {
    let mut pictures = Vec::new();
    let bare = |file, size: Size| ImageReport {
        file,
        width: size.width,
        height: size.height,
        tiles: None,
        grid: None,
        tokens: None,
    };
    for path in &question.images {
        let limits = Limits::default();
        let bytes = read_file(path, &limits).map_err(|source| InspectError::Read {
            path: path.clone(),
            source,
        })?;
        let header = read_header(&path.display().to_string(), &bytes, &limits)?;
        pictures.push(bare(Some(path.clone()), header.size));
    }
    pictures.extend(question.sizes.iter().map(|size| bare(None, *size)));
    Ok(pictures)
}

fn with_tokens(
    dir: &Path,
    model: &ModelConfig,
    mut pictures: Vec<ImageReport>,
) -> Result<Vec<ImageReport>, InspectError> {
    let processor = ImageProcessor::new(ProcessorConfig::read(dir, model)?);
    let count = pictures.len();
    for picture in &mut pictures {
        let grid = processor.grid(Size::new(picture.width, picture.height), count);
        picture.tiles = Some(1 + grid.map_or(0, |grid| grid.columns * grid.rows));
        picture.grid = grid.map(|grid| [grid.columns, grid.rows]);
        picture.tokens = Some(model.image_tokens((picture.width, picture.height), grid));
    }
    Ok(pictures)
}

/// The messages given, or one that shows the pictures; sizes alone need no prompt.
fn messages(question: &Question, images: usize) -> Result<Option<Vec<Message>>, InspectError> {
    let Some(messages) = &question.messages else {
        let parts = vec![Part::Image; images];
        let shows = !question.images.is_empty();
        return Ok(shows.then(|| vec![Message::parts(Role::User, parts)]));
    };
    let slots = messages.iter().map(Message::images).sum();
    if images > 0 && slots != images {
        return Err(InspectError::ImageCount { slots, images });
    }
    Ok(Some(messages.clone()))
}

/// What loading and one sequence take. A checkpoint without its weights, or without the base
/// that they lie on, is reported all the same.
fn memory(dir: &Path, question: &Question, model: &ModelConfig) -> MemoryReport {
    let options = LoadOptions {
        base: question.base.clone(),
        vision_tower: question.vision_tower.clone(),
        ..LoadOptions::default()
    };
    let counted = checkpoint::open(dir, &options).map(|(config, weights)| {
        let tower = bytes(&weights, &config, WeightFormat::Dense, true);
        (bytes(&weights, &config, question.format, false), tower)
    });
    let text = &model.text;
    let per_token =
        (text.layers * text.kv_heads * HeadCache::bytes_per_position(text.head_dim)) as u64;
    let per_sequence = per_token * model.max_length as u64;
    let (language_model, vision_tower) = counted.as_ref().ok().copied().unzip();
    MemoryReport {
        quantization: question.format.to_string(),
        language_model,
        vision_tower,
        per_token,
        per_sequence,
        total: language_model
            .zip(vision_tower)
            .map(|(language, tower)| language + tower + per_sequence),
        missing: counted.err().map(|error| error.to_string()),
    }
}

/// Bytes of the tensors that loading keeps, of the tower or of all else.
fn bytes(weights: &Weights, config: &ModelConfig, format: WeightFormat, tower: bool) -> u64 {
    let kept = |ours: &str| {
        // Layers behind the one whose output is taken are never read.
        let layer = ours.strip_prefix("vision.encoder.layers.");
        let layer = layer.and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
        layer.is_none_or(|layer| layer < config.tower_layers)
    };
    let one = |ours: &str| {
        let raw = weights.raw(ours)?;
        let elements = raw.shape.iter().product::<usize>();
        let product = raw.shape.len() == 2 && !ours.contains("embed");
        let format = if ours.starts_with("head.") {
            format.of_head()
        } else {
            format
        };
        // A merged weight may need f32, one with 16 bits keeps them.
        let wide = if weights.is_adapted(ours) {
            4
        } else {
            raw.kind.bytes()?.min(4)
        };
        Some(match format {
            WeightFormat::Int8 if product => elements + elements / 32,
            WeightFormat::Int4 if product => elements / 2 + elements / 16,
            _ => elements * wide,
        } as u64)
    };
    let mine = |ours: &&str| ours.starts_with("vision.") == tower && kept(ours);
    weights
        .names()
        .into_iter()
        .filter(mine)
        .filter_map(one)
        .sum()
}
