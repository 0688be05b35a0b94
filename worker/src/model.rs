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

mod batch;
mod device;
mod images;
mod load;
mod runs;

pub use batch::{ForwardError, Logits, Part};
pub use device::{DeviceChoice, DeviceError};
pub use load::{Dtype, LoadError, LoadOptions};

use crate::arch::decoder::Decoder;
use crate::arch::merge::merge;
use crate::arch::projector::Projector;
use crate::arch::tower::Tower;
use crate::config::{Family, ModelConfig};
use crate::input::{ImageFeatures, Piece};
use crate::kernels::beside::Beside;
use crate::kernels::{alone, worth_sharing};
use crate::kv::{KvCache, KvShape, KvView, Rows, Span};
use crate::matmul::Maker;
use crate::pixels::PixelValues;
use candle_core::{DType, Tensor};
use images::TileRows;
use rayon::ThreadPool;
use runs::{Cost, split};

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
    beside: Beside,
}

impl Model {
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

    /// Whether [`Self::new_kv`] takes the memory of a whole cache at once, as devices do. Processors
    /// take it as it fills.
    pub fn takes_kv_whole(&self) -> bool {
        !self.maker.device().is_cpu()
    }

    /// Bytes that the model's device has left in a memory of its own; `None` for the processors, and
    /// where the driver does not tell.
    pub fn free_device_memory(&self) -> Option<u64> {
        device::free_memory(self.maker.device())
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
            let mut encoded = TileRows::new(self, &tiles);
            images
                .iter()
                .map(|image| {
                    let features = encoded.next(image.tiles * self.tower.tokens())?;
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
            return Ok(Logits::none(self.info.vocab));
        }
        let on_cpu = self.maker.device().is_cpu();
        let cost = Cost {
            // A device computes everything in one run.
            bytes: if on_cpu {
                self.decoder.bytes()
            } else {
                usize::MAX
            },
            row: self.decoder.multiplications(),
        };
        let dealt: Vec<Vec<Span>> = split(&spans, cost, self.threads())
            .into_iter()
            .map(|run| from_row_zero(&spans[run]))
            .collect();
        // Handing small work to another thread would take longer than doing it.
        let one = self.threads() == 1 || self.is_for_one_thread(&spans);
        let here = on_cpu && (dealt.len() > 1 || one);
        let mut rest = batch;
        let runs: Vec<Run<'_>> = kv
            .views(&dealt)
            .into_iter()
            .zip(dealt)
            .map(|(kv, spans)| {
                let (parts, others) = rest.split_at(spans.len());
                rest = others;
                Run { kv, parts, spans }
            })
            .collect();
        let parts: Result<Vec<Logits>, ForwardError> = if here {
            let each = self.beside.each(runs, |run| alone(|| self.run(run)));
            each.into_iter().collect()
        } else {
            let each = runs.into_iter().map(|run| self.run(run));
            self.threads.install(|| each.collect())
        };
        let parts = parts?;
        kv.advance(&spans);
        Ok(Logits::joined(self.info.vocab, parts))
    }

    /// Whether nothing in a run of these spans would be shared among threads.
    fn is_for_one_thread(&self, spans: &[Span]) -> bool {
        let rows: usize = spans.iter().map(|span| span.count).sum();
        let seen = spans
            .iter()
            .map(|span| span.count * (span.start + span.count));
        let text = &self.config.text;
        let attention = 2 * text.heads * text.head_dim * seen.sum::<usize>();
        !worth_sharing(rows * self.decoder.largest()) && !worth_sharing(attention)
    }

    fn run(&self, run: Run<'_>) -> Result<Logits, ForwardError> {
        let Run {
            mut kv,
            parts: batch,
            spans,
        } = run;
        let x = self.embed(batch)?;
        let positions = spans
            .iter()
            .flat_map(|span| span.start..span.start + span.count);
        let (cos, sin) = self.decoder.rope.angles(positions);
        let rows = Rows { spans, cos, sin };
        let x = self.decoder.forward(x, &mut kv, &rows)?;
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
        let (mut parts, mut words) = (Vec::new(), Vec::new());
        for piece in batch.iter().flat_map(|part| &part.input) {
            match piece {
                Piece::Tokens(ids) => {
                    for id in ids {
                        words.resize(words.len() + hidden, 0f32);
                        let row = words.len() - hidden;
                        self.decoder.embed(*id, &mut words[row..]);
                    }
                }
                Piece::Image { features, rows } => {
                    self.take_words(&mut words, &mut parts)?;
                    parts.push(features.rows().narrow(0, rows.start, rows.len())?);
                }
            }
        }
        self.take_words(&mut words, &mut parts)?;
        match parts.as_slice() {
            [all] => Ok(all.clone()),
            parts => Ok(Tensor::cat(parts, 0)?),
        }
    }

    /// Makes the rows of neighbouring tokens one part.
    fn take_words(
        &self,
        words: &mut Vec<f32>,
        parts: &mut Vec<Tensor>,
    ) -> Result<(), ForwardError> {
        if !words.is_empty() {
            let hidden = self.config.text.hidden;
            let words = std::mem::take(words);
            let shape = [words.len() / hidden, hidden];
            parts.push(self.maker.tensor(words, &shape)?);
        }
        Ok(())
    }
}

/// Some parts of a batch that are computed together.
struct Run<'a> {
    kv: KvView<'a>,
    parts: &'a [Part],
    /// Their rows, counted from the run's first.
    spans: Vec<Span>,
}

fn from_row_zero(spans: &[Span]) -> Vec<Span> {
    let first = spans.first().map_or(0, |span| span.row);
    let moved = |span: &Span| Span {
        row: span.row - first,
        ..*span
    };
    spans.iter().map(moved).collect()
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
