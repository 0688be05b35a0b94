//! A whole checkpoint in another form. Weights that do not change are copied byte by
//! byte; those that an adapter changes are rounded to the type that they had.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::configuration;
use super::folder::{Folder, Meter, Tensor, bytes};
use super::tokenizer::{self, ImageToken};
use super::{ConvertError, Progress, files, holds_weights, narrowed};
use crate::config::{self, Aspect, ModelConfig, TextKind, Tower, VisionKind, read_object};
use crate::image::{ProcessorConfig, ProcessorError};
use crate::model::{LoadError, LoadOptions};
use crate::prompt::template_for;
use crate::weights::{Kind, Naming, Raw, Weights, WeightsError, floats};

/// Whose names and configuration a checkpoint is written with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Layout {
    /// LLaVA's own, the tower in the folder `vision_tower`
    Original,
    /// transformers until 4.51; all later ones read it too
    TransformersClassic,
    /// transformers 4.52 to 4.57
    Transformers4,
    /// transformers 5
    Transformers5,
}

impl Layout {
    fn naming(self) -> Naming {
        match self {
            Self::Original => Naming::Original,
            Self::TransformersClassic => Naming::Classic,
            Self::Transformers4 => Naming::Nested,
            Self::Transformers5 => Naming::Flat,
        }
    }
}

/// What to make of a checkpoint.
#[derive(Debug, Clone, Default)]
pub struct Target {
    /// The layout, if another one.
    pub layout: Option<Layout>,
    /// The element type of its weights, if another one: F32, F16 or BF16.
    pub kind: Option<Kind>,
    /// The language model under an adapter or a projector.
    pub base: Option<PathBuf>,
    /// Folder of the vision tower, for checkpoints of LLaVA's own layout that only name it.
    pub vision_tower: Option<PathBuf>,
}

/// Rows of a vocabulary are kept a multiple of this, as transformers' converter pads them.
const ROWS: usize = 64;

/// The file that transformers looks for a chat template in.
const CHAT_TEMPLATE: &str = "chat_template.jinja";

pub(super) fn convert(
    dir: &Path,
    out: &Path,
    target: &Target,
    hear: &dyn Fn(&Progress),
) -> Result<Vec<String>, ConvertError> {
    let options = LoadOptions {
        base: target.base.clone(),
        vision_tower: target.vision_tower.clone(),
        ..LoadOptions::default()
    };
    let (model, weights) = crate::checkpoint::open(dir, &options)?;
    let raw = read_object(&dir.join("config.json")).map_err(LoadError::from)?;
    let native = match (model.layout, weights.naming()) {
        (config::Layout::Original, _) => Layout::Original,
        (_, Naming::Classic) => Layout::TransformersClassic,
        (_, Naming::Nested) => Layout::Transformers4,
        _ => Layout::Transformers5,
    };
    let work = Work {
        dir,
        target,
        model,
        weights,
        raw,
        to: Folder::begin(out)?,
        layout: target.layout.unwrap_or(native),
    };
    work.run(hear)
}

struct Work<'a> {
    dir: &'a Path,
    target: &'a Target,
    model: ModelConfig,
    weights: Weights,
    raw: Map<String, Value>,
    to: Folder,
    layout: Layout,
}

impl Work<'_> {
    fn run(self, hear: &dyn Fn(&Progress)) -> Result<Vec<String>, ConvertError> {
        let original = self.layout == Layout::Original;
        // Rows that the vocabulary gains.
        let rows = match (self.model.layout, original) {
            (config::Layout::Original, false) => self.to_transformers()?,
            (config::Layout::Transformers, true) => self.to_original()?,
            _ => self.as_it_is()?,
        };
        let mut skipped = self.weights.unused().to_vec();
        self.write_weights(original, rows, &mut skipped, hear)?;
        self.to.finish()?;
        skipped.sort();
        Ok(skipped)
    }

    fn write_weights(
        &self,
        original: bool,
        rows: usize,
        skipped: &mut Vec<String>,
        hear: &dyn Fn(&Progress),
    ) -> Result<(), ConvertError> {
        let naming = self.weights.naming();
        let (mut whole, mut tower) = (Vec::new(), Vec::new());
        for ours in self.weights.names() {
            if self.is_unused(ours) {
                skipped.push(naming.theirs(ours).unwrap_or_else(|| ours.to_owned()));
            } else if original && ours.starts_with("vision.") {
                tower.push(self.tensor(ours, Naming::Tower, rows)?);
            } else {
                whole.push(self.tensor(ours, self.layout.naming(), rows)?);
            }
        }
        let meter = Meter::new(bytes(&whole) + bytes(&tower), hear);
        self.to.model("", whole, &meter)?;
        if tower.is_empty() {
            return Ok(());
        }
        self.to.model("vision_tower/", tower, &meter)
    }

    /// The same layout: its files as they are, those of the base where an overlay has none.
    fn as_it_is(&self) -> Result<usize, ConvertError> {
        let mut raw = self.raw.clone();
        if let Some(kind) = self.target.kind {
            let name = match kind {
                Kind::F16 => "float16",
                Kind::BF16 => "bfloat16",
                _ => "float32",
            };
            let key = if raw.contains_key("dtype") {
                "dtype"
            } else {
                "torch_dtype"
            };
            raw.insert(key.to_owned(), name.into());
        }
        if self.layout == Layout::Original {
            raw.insert("mm_vision_tower".to_owned(), "vision_tower".into());
            raw.insert("unfreeze_mm_vision_tower".to_owned(), false.into());
            self.write_tower()?;
        }
        self.to.json("config.json", &Value::Object(raw))?;
        for (name, path) in files(self.dir)? {
            let about_adapter = name.starts_with("adapter_");
            if !holds_weights(&name) && name != "config.json" && !about_adapter {
                self.to.copy(&path, &name)?;
            }
        }
        if let Some(base) = &self.target.base {
            tokenizer::copy(base, &self.to, &[])?;
            let generation = base.join("generation_config.json");
            if generation.is_file() && !self.to.has("generation_config.json") {
                self.to.copy(&generation, "generation_config.json")?;
            }
        }
        Ok(0)
    }

    fn to_transformers(&self) -> Result<usize, ConvertError> {
        let rows = self.model.text.vocab;
        let known = self.raw.get("image_token_index").and_then(Value::as_u64);
        let known = known.and_then(|id| u32::try_from(id).ok());
        let tokens = self.tokenizer_folder();
        let image = ImageToken::find(tokens, known, rows)?;
        let vocabulary = match (image.id as usize) < rows {
            true => rows,
            // With a row for a padding token, as in transformers' own converter.
            false => (image.id as usize + 2).next_multiple_of(ROWS),
        };
        let config = configuration::transformers(&self.model, &self.raw, image.id, vocabulary)
            .map_err(|problem| self.inexpressible(problem))?;
        self.to.json("config.json", &config)?;
        image.write(tokens, &self.to)?;
        self.copy_if_there("generation_config.json", "generation_config.json")?;
        if let Some(processor) = self.processor()? {
            let file = configuration::processor(&self.model, &processor);
            self.to.json("preprocessor_config.json", &file)?;
        }
        let words = configuration::processor_words(&self.model);
        self.to.json("processor_config.json", &words)?;
        let template = match (template_for(&self.model).names[0], self.model.text.kind) {
            (_, TextKind::Mistral) => include_str!("chat_templates/mistral_instruct.jinja"),
            (_, TextKind::Qwen2) => include_str!("chat_templates/qwen_1_5.jinja"),
            ("chatml_direct", _) => include_str!("chat_templates/chatml_direct.jinja"),
            _ => include_str!("chat_templates/llava_v1.jinja"),
        };
        self.to.text(CHAT_TEMPLATE, template)?;
        Ok(vocabulary - rows)
    }

    fn to_original(&self) -> Result<usize, ConvertError> {
        let processor = self.processor()?;
        let config = configuration::original(&self.model, &self.raw, processor.as_ref())
            .map_err(|problem| self.inexpressible(problem))?;
        self.to.json("config.json", &config)?;
        self.write_tower()?;
        tokenizer::copy(self.tokenizer_folder(), &self.to, &[])?;
        self.copy_if_there("generation_config.json", "generation_config.json")?;
        Ok(0)
    }

    /// The tower's own configuration in LLaVA's layout.
    fn write_tower(&self) -> Result<(), ConvertError> {
        // A tower that stays in its layout stays as it is.
        let described = match (&self.model.tower, self.model.layout) {
            (Tower::Folder(folder), _) => {
                Value::Object(read_object(&folder.join("config.json")).map_err(LoadError::from)?)
            }
            _ => configuration::tower(&self.model),
        };
        self.to.json("vision_tower/config.json", &described)?;
        if let Some(processor) = self.processor()? {
            let file = configuration::tower_processor(&self.model, &processor);
            self.to
                .json("vision_tower/preprocessor_config.json", &file)?;
        }
        Ok(())
    }

    /// What prepares the images, where a file says so.
    fn processor(&self) -> Result<Option<ProcessorConfig>, ConvertError> {
        match ProcessorConfig::read(self.dir, &self.model) {
            Ok(processor) => Ok(Some(processor)),
            Err(ProcessorError::File(error)) if error.is_missing() => Ok(None),
            Err(error) => Err(self.inexpressible(format!(
                "has image processing that is not understood: {error}"
            ))),
        }
    }

    /// The checkpoint's own tokenizer, or that of its base.
    fn tokenizer_folder(&self) -> &Path {
        let there = |dir: &Path| {
            ["tokenizer.json", "tokenizer.model"]
                .iter()
                .any(|name| dir.join(name).is_file())
        };
        match &self.target.base {
            Some(base) if !there(self.dir) && there(base) => base,
            _ => self.dir,
        }
    }

    fn copy_if_there(&self, name: &str, to: &str) -> Result<(), ConvertError> {
        let path = self.dir.join(name);
        match path.is_file() {
            true => self.to.copy(&path, to),
            false => Ok(()),
        }
    }

    /// Tensors that no layout's model has: buffers of old files, SigLIP's pooling
    /// head, and the layer that LLaVA drops from it.
    fn is_unused(&self, ours: &str) -> bool {
        let siglip = self.model.vision.kind == VisionKind::Siglip;
        let dropped = format!(
            "vision.encoder.layers.{}.",
            configuration::tower_layers(&self.model)
        );
        ours.ends_with(".inv_freq")
            || ours == "vision.embeddings.position_ids"
            || siglip && (ours.starts_with("vision.head.") || ours.starts_with(&dropped))
            || ours == "newline"
                && self.model.image.aspect != Aspect::Anyres
                && self.changes_layout()
    }

    fn changes_layout(&self) -> bool {
        (self.model.layout == config::Layout::Original) != (self.layout == Layout::Original)
    }

    fn tensor<'a>(
        &'a self,
        ours: &'a str,
        naming: Naming,
        rows: usize,
    ) -> Result<Tensor<'a>, ConvertError> {
        let single = self.model.projector.depth == 1 && naming == Naming::Original;
        let name = match ours.strip_prefix("projector.0.").filter(|_| single) {
            Some(rest) => Some(format!("model.mm_projector.{rest}")),
            None => naming.theirs(ours),
        };
        let name = name.ok_or_else(|| {
            self.inexpressible(format!("has a tensor `{ours}` without a name there"))
        })?;
        let raw = self
            .weights
            .raw(ours)
            .ok_or_else(|| WeightsError::Missing {
                name: ours.to_owned(),
                path: self.dir.to_owned(),
            })?;
        let float = floats(&[], raw.kind).is_some();
        let kind = self.target.kind.filter(|_| float).unwrap_or(raw.kind);
        let grows = rows > 0 && ["text.embed_tokens.weight", "head.weight"].contains(&ours);
        let mut shape = raw.shape.to_vec();
        if grows && let Some(first) = shape.first_mut() {
            *first += rows;
        }
        let width = raw.shape.last().copied().unwrap_or(1);
        Ok(Tensor {
            name,
            kind,
            shape,
            data: Box::new(move || {
                self.data(ours, &raw, kind, if grows { rows * width } else { 0 })
            }),
        })
    }

    /// The elements of a tensor as `kind`, with `more` behind them.
    fn data<'a>(
        &'a self,
        ours: &str,
        raw: &Raw<'a>,
        kind: Kind,
        more: usize,
    ) -> Result<Cow<'a, [u8]>, ConvertError> {
        if kind == raw.kind && more == 0 && !self.weights.is_adapted(ours) {
            return Ok(Cow::Borrowed(raw.bytes));
        }
        let mut values = self.weights.f32(ours, raw.shape)?;
        if more > 0 {
            let width = raw.shape.last().copied().unwrap_or(1);
            let mean = mean(&values, width);
            values.extend(mean.iter().cycle().take(more));
        }
        Ok(Cow::Owned(narrowed(&values, kind)))
    }

    fn inexpressible(&self, problem: String) -> ConvertError {
        ConvertError::Inexpressible {
            dir: self.dir.to_owned(),
            problem,
        }
    }
}

/// The mean row: what a token that was never trained starts from. As a row of the output
/// head it gives the mean of all logits, which is never the largest.
fn mean(values: &[f32], width: usize) -> Vec<f32> {
    let rows = (values.len() / width.max(1)).max(1) as f64;
    let mut sums = vec![0f64; width];
    for row in values.chunks(width.max(1)) {
        for (sum, value) in sums.iter_mut().zip(row) {
            *sum += f64::from(*value);
        }
    }
    sums.into_iter().map(|sum| (sum / rows) as f32).collect()
}
