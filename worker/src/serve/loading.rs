//! From a source to a model in memory, ready for the engine.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use protocol::load::Phase;
use shell::clock;

use super::args::ServeArgs;
use super::images::ImageReader;
use super::memory::{self, Plan, Room};
use super::remote::RemoteImages;
use super::status::Status;
use super::texts::{CheckpointTexts, Texts};
use crate::engine::{Budget, EngineMetrics, EngineOptions, LoadedModel, VisionCache};
use crate::fetch::{self, Event, FetchError};
use crate::image::{ImageProcessor, ProcessorConfig, ProcessorError};
use crate::model::{DeviceChoice, Dtype, ForwardError, LoadError, Model};
use crate::prompt::{PromptError, PromptRenderer};

/// Image tiles that are encoded between two steps of the running answers.
const TILES: usize = 8;

/// Why a model cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum LoadFailure {
    /// The checkpoint could not be brought here.
    #[error("cannot bring {given} here")]
    Fetch {
        /// The source as given.
        given: String,
        /// Why.
        source: Box<FetchError>,
    },
    /// The source is a single file.
    #[error(
        "{given} is a file; a checkpoint is a directory with a config.json: unpack it and name the directory"
    )]
    NoDirectory {
        /// The source as given.
        given: String,
    },
    /// The checkpoint is broken.
    #[error("cannot load the model from {dir}")]
    Model {
        /// Where it lies.
        dir: PathBuf,
        /// What is wrong.
        source: Box<LoadError>,
    },
    /// Its tokenizer or template is broken.
    #[error("cannot read the tokenizer and template in {dir}")]
    Prompt {
        /// Where they lie.
        dir: PathBuf,
        /// What is wrong.
        source: Box<PromptError>,
    },
    /// Its image processing is not understood.
    #[error("cannot read how {dir} wants its images")]
    Processor {
        /// Where it lies.
        dir: PathBuf,
        /// What is wrong.
        source: Box<ProcessorError>,
    },
    /// There is no room for keys and values.
    #[error("cannot set up the memory for keys and values")]
    Kv(#[source] ForwardError),
    /// The memory is too small for even one answer.
    #[error(
        "the memory for keys and values holds {tokens} tokens, too few for one answer: raise the memory limit or --kv-memory"
    )]
    NoRoom {
        /// What it holds.
        tokens: usize,
    },
    /// Loading panicked; the log says where.
    #[error("loading the model failed unexpectedly")]
    Panicked,
}

/// A model and what serving needs of its checkpoint.
pub(super) struct Loaded {
    /// For the HTTP side.
    pub parts: AppParts,
    /// For the engine.
    pub options: EngineOptions,
    /// For the engine.
    pub backend: LoadedModel,
}

/// What the HTTP side needs of a checkpoint.
pub(super) struct AppParts {
    /// Longest sequence in tokens.
    pub context: usize,
    /// Tokens of the vocabulary, padding included.
    pub vocab: usize,
    /// Tokenizer and template.
    pub texts: Arc<dyn Texts>,
    /// Reads images.
    pub images: ImageReader,
}

/// Loads what the flags name; `status` sees each step.
///
/// # Errors
/// Names what cannot be used.
pub(super) async fn load(
    args: &ServeArgs,
    status: &Status,
    engine: &EngineMetrics,
) -> Result<Loaded, LoadFailure> {
    status.enter(Phase::Fetching);
    let began = clock::now();
    let dir = directory(&args.model, &args.cache_dir, status).await?;
    let base = match &args.base {
        Some(base) => Some(directory(base, &args.cache_dir, status).await?),
        None => None,
    };
    status.done("fetch", began);

    status.enter(Phase::Loading);
    let (args, reporter, metrics) = (args.clone(), status.clone(), engine.clone());
    let loaded = tokio::task::spawn_blocking(move || read(&args, &dir, base, &reporter, metrics))
        .await
        .map_err(|_| LoadFailure::Panicked)??;
    Ok(loaded)
}

fn read(
    args: &ServeArgs,
    dir: &Path,
    base: Option<PathBuf>,
    status: &Status,
    metrics: EngineMetrics,
) -> Result<Loaded, LoadFailure> {
    let options = args.load_options(base);
    if let Some(dtype @ (Dtype::F16 | Dtype::Bf16)) = args.dtype
        && args.device == DeviceChoice::Cpu
    {
        tracing::info!(
            ?dtype,
            "processors compute in f32; the number format is left aside"
        );
    }
    tracing::info!(dir = %dir.display(), "loading");
    let began = clock::now();
    let mapped = Cell::new(None);
    let progress = |share| {
        if mapped.get().is_none() {
            status.done("map", began);
            mapped.set(Some(clock::now()));
        }
        status.progress(share);
    };
    let model = Model::load(dir, &options, &progress).map_err(|source| LoadFailure::Model {
        dir: dir.to_owned(),
        source: Box::new(source),
    })?;
    let renderer =
        PromptRenderer::from_checkpoint(dir, model.config(), args.conversation_template.as_deref())
            .map_err(|source| LoadFailure::Prompt {
                dir: dir.to_owned(),
                source: Box::new(source),
            })?;
    let processor =
        processor(dir, &model, args.image_aspect_ratio.as_deref()).map_err(|source| {
            LoadFailure::Processor {
                dir: dir.to_owned(),
                source: Box::new(source),
            }
        })?;
    let loaded = finish(args, model, renderer, processor, metrics)?;
    status.done("load", mapped.get().unwrap_or(began));
    Ok(loaded)
}

fn finish(
    args: &ServeArgs,
    model: Model,
    renderer: PromptRenderer,
    processor: ImageProcessor,
    metrics: EngineMetrics,
) -> Result<Loaded, LoadFailure> {
    let info = model.info().clone();
    let wished = args.max_running_requests.max(1);
    let whole = model.takes_kv_whole();
    let room = Room {
        asked: args.kv_memory,
        free: if whole {
            model.free_device_memory()
        } else {
            memory::free()
        },
        bytes_per_token: info.kv_bytes_per_token,
        whole,
    };
    let Plan {
        slots,
        context,
        kv_tokens,
    } = room.plan(wished, info.context);
    if context < 2 {
        return Err(LoadFailure::NoRoom { tokens: kv_tokens });
    }
    if context < info.context {
        tracing::warn!(
            context,
            wished = info.context,
            "there is memory for shorter sequences only than the context: raise the memory limit, or give more --kv-memory"
        );
    }
    if slots < wished {
        tracing::warn!(
            slots,
            wished,
            "the device has room for fewer sequences at once than --max-running-requests: give more --kv-memory, \
             or shorten --context-length"
        );
    }
    tracing::info!(
        slots,
        context,
        kv_tokens,
        kv_bytes = kv_tokens * info.kv_bytes_per_token,
        weight_bytes = info.weight_bytes,
        "memory is planned"
    );
    let cache = VisionCache::new(args.image_cache);
    let remote = RemoteImages::new(&args.image_hosts, args.limits.image().bytes);
    let images = ImageReader::new(
        processor,
        model.config().clone(),
        cache.clone(),
        remote,
        context,
        &args.limits,
    );
    let mut eos = info.eos;
    eos.extend(renderer.end_tokens());
    let options = EngineOptions {
        budget: Budget {
            kv_tokens,
            chunk_tokens: args.prefill_chunk.max(1),
            tiles: TILES,
        },
        eos,
        images: cache,
        metrics,
    };
    let backend = LoadedModel::new(model, slots, context).map_err(LoadFailure::Kv)?;
    Ok(Loaded {
        parts: AppParts {
            context,
            vocab: info.vocab,
            texts: Arc::new(CheckpointTexts::new(renderer, info.vocab)),
            images,
        },
        options,
        backend,
    })
}

fn processor(
    dir: &Path,
    model: &Model,
    aspect: Option<&str>,
) -> Result<ImageProcessor, ProcessorError> {
    let mut config = ProcessorConfig::read(dir, model.config())?;
    if let Some(name) = aspect {
        config = config.with_aspect_ratio(name)?;
    }
    Ok(ImageProcessor::new(config))
}

/// The directory of a source, brought into the cache first where it is elsewhere.
async fn directory(given: &str, cache: &Path, status: &Status) -> Result<PathBuf, LoadFailure> {
    let show = |event| match event {
        Event::Progress(progress) => {
            if let Some(total) = progress.total.filter(|total| *total > 0) {
                status.progress(progress.done as f64 / total as f64);
            }
        }
        Event::Cached { why, path } => {
            tracing::warn!(
                why,
                path = %path.display(),
                "the source cannot be asked what is new; what was fetched before is used"
            );
        }
    };
    let path = fetch::resolve(given, cache, &show)
        .await
        .map_err(|source| LoadFailure::Fetch {
            given: given.to_owned(),
            source: Box::new(source),
        })?;
    if path.is_dir() {
        Ok(path)
    } else {
        Err(LoadFailure::NoDirectory {
            given: given.to_owned(),
        })
    }
}
