//! The seam between a model and whoever runs it: load a checkpoint, encode
//! images, and run any mix of prefill chunks and single tokens of sequences at
//! different positions in one call. The owner calls it from one thread; there
//! is no state outside the values here.
//!
//! ```no_run
//! use llava_worker::input::Piece;
//! use llava_worker::model::{LoadOptions, Model, Part};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let model = Model::load("llava-1.5-7b".as_ref(), &LoadOptions::default(), &|_| ())?;
//! let mut kv = model.new_kv(8, 4096)?;
//! let part = Part::prompt(0, 0, vec![Piece::Tokens(vec![1, 3148, 1001])]);
//! let logits = model.forward(&mut kv, &[part])?;
//! assert_eq!(logits.row(0).map(<[f32]>::len), Some(model.info().vocab));
//! # Ok(())
//! # }
//! ```

use crate::arch::decoder::Decoder;
use crate::arch::linear::Reader;
use crate::arch::merge::merge;
use crate::arch::projector::Projector;
use crate::arch::tower::Tower;
use crate::checkpoint;
use crate::config::{ConfigError, Family, ModelConfig};
use crate::input::{ImageFeatures, Piece, positions};
use crate::kv::{KvCache, KvShape, Rows, Span};
use crate::matmul::{Maker, WeightFormat};
use crate::pixels::PixelValues;
use crate::weights::WeightsError;
use candle_core::{DType, Device, Tensor};
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::cell::Cell;
use std::path::{Path, PathBuf};

/// Tiles that go through the tower together: more would not be faster, and
/// each takes some 20 MB inside the tower.
const TILES_AT_ONCE: usize = 4;

/// How to load a checkpoint.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// In what form the weights are kept.
    pub format: WeightFormat,
    /// Where the model runs.
    pub device: DeviceChoice,
    /// Longest sequence in tokens; the checkpoint's own where absent or shorter.
    pub context: Option<usize>,
    /// The language model under a checkpoint that holds only a projector or LoRA.
    pub base: Option<PathBuf>,
    /// Folder of the vision tower, for checkpoints of the original layout that only name it.
    pub vision_tower: Option<PathBuf>,
    /// Threads for the CPU; one for each processor where absent.
    pub threads: Option<usize>,
}

/// Where a model runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// The processors, in f32.
    #[default]
    Cpu,
    /// A CUDA device by its number, in bf16; needs the feature `cuda`.
    Cuda(usize),
}

/// Why a checkpoint could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// `config.json` cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The weights cannot be used.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// A checkpoint that holds only a part needs the rest.
    #[error("{dir} holds only {what}: name the language model that it belongs to with --base")]
    NeedsBase {
        /// The checkpoint.
        dir: PathBuf,
        /// What it holds.
        what: &'static str,
    },
    /// A tower that is only named was not found.
    #[error(
        "{dir} names the vision tower `{name}` and does not hold it: put the tower's folder beside the checkpoint \
         or name it with --vision-tower"
    )]
    NeedsTower {
        /// The checkpoint.
        dir: PathBuf,
        /// The tower's name in `config.json`.
        name: String,
    },
    /// The device refused.
    #[error("failed to place the model on its device")]
    Device(#[from] candle_core::Error),
    /// The threads could not be started.
    #[error("failed to start the model's threads")]
    Threads(#[from] rayon::ThreadPoolBuildError),
}

/// Why a model could not run. Faults of one part are found before anything is
/// computed, and leave the cache as it was.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// A part asks for something that cannot be.
    #[error("part {part} of the batch {problem}")]
    Part {
        /// Its index.
        part: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// An image does not fit the tower.
    #[error("image {image} {problem}")]
    Image {
        /// Its index.
        image: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// The device failed.
    #[error("failed to run the model")]
    Device(#[from] candle_core::Error),
}

/// What a loaded model is.
#[derive(Debug, Clone)]
pub struct ModelInfo {
    /// Which generation of LLaVA.
    pub family: Family,
    /// Rows of a logits row: tokens of the vocabulary, padding included.
    pub vocab: usize,
    /// Longest sequence, images included, in tokens.
    pub context: usize,
    /// Tokens that end an answer.
    pub eos: Vec<u32>,
    /// The id that stands for an image in text; the original layout has none.
    pub image_token: Option<u32>,
    /// Memory of one token in a KV slot, in bytes.
    pub kv_bytes_per_token: usize,
    /// Memory of one row of an encoded image, in bytes.
    pub image_bytes_per_token: usize,
    /// Memory of the weights, in bytes.
    pub weight_bytes: usize,
}

/// A model ready to run.
#[derive(Debug)]
pub struct Model {
    config: ModelConfig,
    info: ModelInfo,
    maker: Maker,
    tower: Tower,
    projector: Projector,
    newline: Option<Tensor>,
    decoder: Decoder,
    threads: ThreadPool,
}

/// What one sequence adds to a batch: a chunk of its prompt, or its last token.
#[derive(Debug, Clone)]
pub struct Part {
    /// Slot of the KV cache that holds the sequence; each at most once in a batch.
    pub slot: usize,
    /// Position of the first token; what the slot already holds.
    pub start: usize,
    /// What comes next in the sequence.
    pub input: Vec<Piece>,
    /// Whether the logits after the last position are wanted.
    pub logits: bool,
}

impl Part {
    /// A prompt, or the last chunk of one, whose logits are wanted.
    pub fn prompt(slot: usize, start: usize, input: Vec<Piece>) -> Self {
        Self {
            slot,
            start,
            input,
            logits: true,
        }
    }

    /// The one token that was sampled last.
    pub fn token(slot: usize, start: usize, token: u32) -> Self {
        Self::prompt(slot, start, vec![Piece::Tokens(vec![token])])
    }
}

/// What came out of a batch.
#[derive(Debug, Clone)]
pub struct Logits {
    values: Vec<f32>,
    vocab: usize,
    rows: Vec<Option<usize>>,
}

impl Logits {
    /// The logits `[vocab]` of part `part`, if it wanted them.
    pub fn row(&self, part: usize) -> Option<&[f32]> {
        let row = (*self.rows.get(part)?)?;
        self.values.get(row * self.vocab..(row + 1) * self.vocab)
    }
}

impl Model {
    /// Loads the checkpoint in `dir`. `progress` is called with the share of
    /// the weights that has been read, from 0 to 1.
    ///
    /// # Errors
    /// Names the file, and the field or tensor, that cannot be used.
    pub fn load(
        dir: &Path,
        options: &LoadOptions,
        progress: &dyn Fn(f64),
    ) -> Result<Self, LoadError> {
        let (config, weights) = checkpoint::open(dir, options)?;
        let (device, dtype) = match options.device {
            DeviceChoice::Cpu => (Device::Cpu, DType::F32),
            DeviceChoice::Cuda(index) => (Device::new_cuda(index)?, DType::BF16),
        };
        let threads = ThreadPoolBuilder::new()
            .num_threads(options.threads.unwrap_or(0))
            .thread_name(|index| format!("model-{index}"))
            .build()?;
        let maker = Maker::new(device, dtype);
        let (total, read) = (weights.elements().max(1), Cell::new(0usize));
        let count = |elements: usize| {
            read.set(read.get() + elements);
            progress((read.get() as f64 / total as f64).min(1.0));
        };
        let reader = Reader {
            weights: &weights,
            maker: &maker,
            progress: &count,
        };
        let text_maker = maker.with_format(options.format);
        let head_maker = maker.with_format(options.format.of_head());
        let text_reader = Reader {
            maker: &text_maker,
            ..reader
        };
        let head_reader = Reader {
            maker: &head_maker,
            ..reader
        };
        let newline = if config.image.newline {
            Some(reader.tensor("newline", &[config.text.hidden])?)
        } else {
            None
        };
        let tower = Tower::load(reader, &config)?;
        let projector = Projector::load(text_reader, &config)?;
        let decoder = Decoder::load(text_reader, head_reader, &config.text)?;
        progress(1.0);
        let shape = kv_shape(&config);
        let info = ModelInfo {
            family: config.family,
            vocab: config.text.vocab,
            context: options.context.unwrap_or(usize::MAX).min(config.max_length),
            eos: config.text.eos.clone(),
            image_token: config.image_token,
            kv_bytes_per_token: shape.bytes_per_token(maker.device(), maker.dtype()),
            image_bytes_per_token: config.text.hidden * maker.dtype().size_in_bytes(),
            weight_bytes: decoder.bytes() + tower.bytes() + projector.bytes(),
        };
        Ok(Self {
            config,
            info,
            maker,
            tower,
            projector,
            newline,
            decoder,
            threads,
        })
    }

    /// What the model is.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// Threads that the model runs on.
    pub fn threads(&self) -> usize {
        self.threads.current_num_threads()
    }

    /// The checkpoint's configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// A cache of `slots` sequences of at most `tokens` tokens each.
    ///
    /// # Errors
    /// The device has no room.
    pub fn new_kv(&self, slots: usize, tokens: usize) -> Result<KvCache, ForwardError> {
        let shape = kv_shape(&self.config);
        Ok(KvCache::new(
            &shape,
            slots,
            tokens,
            self.maker.device(),
            self.maker.dtype(),
        )?)
    }

    /// Encodes images of one request or many together.
    ///
    /// # Errors
    /// Names the image whose pixels do not fit the tower.
    pub fn encode_images(
        &self,
        images: &[&PixelValues],
    ) -> Result<Vec<ImageFeatures>, ForwardError> {
        let tile = self.tower.tile_len();
        for (index, image) in images.iter().enumerate() {
            let wanted = image
                .grid
                .map_or(image.tiles, |grid| 1 + grid.columns * grid.rows);
            if image.tiles == 0 || image.tiles != wanted || image.values.len() != wanted * tile {
                return Err(ForwardError::Image {
                    image: index,
                    problem: format!(
                        "has {} pixel values in {} tiles, but {wanted} tiles of {tile} are needed",
                        image.values.len(),
                        image.tiles
                    ),
                });
            }
        }
        let tiles: Vec<&[f32]> = images
            .iter()
            .flat_map(|image| image.values.chunks(tile))
            .collect();
        self.threads.install(|| {
            let encoded = tiles
                .chunks(TILES_AT_ONCE)
                .map(|tiles| {
                    let features =
                        self.tower
                            .forward(tiles, self.maker.device(), self.maker.dtype())?;
                    self.projector.forward(&features)
                })
                .collect::<candle_core::Result<Vec<_>>>()?;
            let mut at = 0;
            let encoded = match encoded.is_empty() {
                true => return Ok(Vec::new()),
                false => Tensor::cat(&encoded, 0)?,
            };
            images
                .iter()
                .map(|image| {
                    let rows = image.tiles * self.tower.tokens();
                    let features = encoded.narrow(0, at, rows)?.copy()?;
                    at += rows;
                    let (newline, config) = (self.newline.as_ref(), &self.config.image);
                    let side = self.config.vision.side();
                    let merged = merge(&features, newline, config, side, image)?;
                    Ok(ImageFeatures::new(merged))
                })
                .collect()
        })
    }

    /// Runs every part of `batch` one step further: stores its keys and values
    /// and gives the logits that were asked for. A part's result does not
    /// depend on the other parts, to the last bit on the CPU.
    ///
    /// # Errors
    /// A part does not fit its slot, names a token outside the vocabulary or
    /// is empty; nothing has been computed then.
    pub fn forward(&self, kv: &mut KvCache, batch: &[Part]) -> Result<Logits, ForwardError> {
        let spans = self.spans(kv, batch)?;
        if spans.is_empty() {
            return Ok(Logits {
                values: Vec::new(),
                vocab: self.info.vocab,
                rows: Vec::new(),
            });
        }
        self.threads.install(|| self.run(kv, batch, spans))
    }

    fn run(
        &self,
        kv: &mut KvCache,
        batch: &[Part],
        spans: Vec<Span>,
    ) -> Result<Logits, ForwardError> {
        let x = self.embed(batch)?;
        let positions = spans
            .iter()
            .flat_map(|span| span.start..span.start + span.count);
        let (cos, sin) = self.decoder.rope.angles(positions);
        let rows = Rows { spans, cos, sin };
        let x = self.decoder.forward(x, kv, &rows)?;
        kv.advance(&rows.spans);
        let mut last = Vec::new();
        let mut wanted = Vec::with_capacity(batch.len());
        for (part, span) in batch.iter().zip(&rows.spans) {
            wanted.push(part.logits.then_some(last.len()));
            if part.logits {
                last.push((span.row + span.count - 1) as u32);
            }
        }
        let count = last.len();
        let values = if count == 0 {
            Vec::new()
        } else {
            let last = Tensor::from_vec(last, count, x.device())?;
            let logits = self.decoder.logits(&x.index_select(&last, 0)?)?;
            logits.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?
        };
        Ok(Logits {
            values,
            vocab: self.info.vocab,
            rows: wanted,
        })
    }

    /// The rows of every piece, one after another: `[rows, hidden]`.
    fn embed(&self, batch: &[Part]) -> Result<Tensor, ForwardError> {
        let hidden = self.config.text.hidden;
        let mut parts = Vec::new();
        for piece in batch.iter().flat_map(|part| &part.input) {
            match piece {
                Piece::Tokens(ids) => {
                    let mut rows = vec![0f32; ids.len() * hidden];
                    for (row, id) in rows.chunks_mut(hidden).zip(ids) {
                        self.decoder.embed(*id, row);
                    }
                    parts.push(self.maker.tensor(rows, &[ids.len(), hidden])?);
                }
                Piece::Image { features, rows } => {
                    parts.push(features.rows().narrow(0, rows.start, rows.len())?);
                }
            }
        }
        Ok(Tensor::cat(&parts, 0)?)
    }

    fn spans(&self, kv: &KvCache, batch: &[Part]) -> Result<Vec<Span>, ForwardError> {
        let mut row = 0;
        let mut taken = vec![false; kv.slots()];
        let mut spans = Vec::with_capacity(batch.len());
        for (index, part) in batch.iter().enumerate() {
            let wrong = |problem: String| ForwardError::Part {
                part: index,
                problem,
            };
            let count = positions(&part.input);
            match taken.get_mut(part.slot) {
                None => {
                    return Err(wrong(format!(
                        "names slot {}, but there are {}",
                        part.slot,
                        kv.slots()
                    )));
                }
                Some(true) => return Err(wrong(format!("names slot {} again", part.slot))),
                Some(free) => *free = true,
            }
            if part.start != kv.len(part.slot) {
                return Err(wrong(format!(
                    "begins at position {}, but its slot holds {} tokens",
                    part.start,
                    kv.len(part.slot)
                )));
            }
            if count == 0 {
                return Err(wrong("is empty".to_owned()));
            }
            if part.start + count > kv.capacity() {
                return Err(wrong(format!(
                    "needs {} tokens, but a slot holds {}",
                    part.start + count,
                    kv.capacity()
                )));
            }
            for piece in &part.input {
                match piece {
                    Piece::Tokens(ids) => {
                        if let Some(id) = ids.iter().find(|id| **id as usize >= self.info.vocab) {
                            return Err(wrong(format!(
                                "has token {id}, but the vocabulary has {}",
                                self.info.vocab
                            )));
                        }
                    }
                    Piece::Image { features, rows } if rows.end > features.tokens() => {
                        return Err(wrong(format!(
                            "takes rows {rows:?} of an image of {}",
                            features.tokens()
                        )));
                    }
                    Piece::Image { .. } => {}
                }
            }
            spans.push(Span {
                slot: part.slot,
                start: part.start,
                row,
                count,
            });
            row += count;
        }
        Ok(spans)
    }
}

fn kv_shape(config: &ModelConfig) -> KvShape {
    KvShape {
        layers: config.text.layers,
        heads: config.text.heads,
        kv_heads: config.text.kv_heads,
        head_dim: config.text.head_dim,
        window: config.text.sliding_window,
    }
}
