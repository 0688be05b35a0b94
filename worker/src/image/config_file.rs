//! Reads how a checkpoint prepares pictures: transformers' `preprocessor_config.json`,
//! or the same inside `processor_config.json`, beside the model in that layout,
//! beside the tower in the original one. Every value is checked here, once.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::config::{Filter, Mode, ProcessorConfig};
use super::size::Size;
use crate::config::{Aspect, Layout, ModelConfig, Tower, VisionKind};
use crate::json_file::{JsonFileError, read_json, read_json_if_there};

const CLIP_MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const CLIP_STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];
const HALF: [f32; 3] = [0.5; 3];

/// Most tiles that one picture may be cut into.
const MOST_TILES: u64 = 256;
/// Longest side in pixels that a picture is resized to before it is cropped.
const LONGEST_EDGE: u32 = 4096;

/// A checkpoint whose image processing cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum ProcessorError {
    /// A file is missing or is no JSON.
    #[error(transparent)]
    File(#[from] JsonFileError),
    /// A file does not have the shape of an image processor's.
    #[error("read the image processor in {}", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// Which field.
        source: serde_json::Error,
    },
    /// A value makes no sense or is not supported.
    #[error("read the image processor in {}: {field} {problem}", path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// The field's name.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The wanted way of preparing pictures is unknown, or this checkpoint has no settings for it.
    #[error(
        "prepare pictures as {name:?}: choose pad, square or stretch, or anyres for a checkpoint made for it"
    )]
    AspectRatio {
        /// The name asked for.
        name: String,
    },
}

impl ProcessorConfig {
    /// Reads the settings of the checkpoint in `dir`, whose `config.json` is `model`.
    ///
    /// # Errors
    /// A file is missing or broken, or asks for something that is not supported.
    pub fn read(dir: &Path, model: &ModelConfig) -> Result<Self, ProcessorError> {
        let (path, file) = match (model.layout, &model.tower) {
            (Layout::Transformers, _) => Preprocessor::read(dir)?,
            (Layout::Original, Tower::Folder(tower)) => Preprocessor::read(tower)?,
            // Such a checkpoint has no file of its own and means the usual one of its tower.
            (Layout::Original, _) => (dir.join("config.json"), Preprocessor::default()),
        };
        let wrong = |field, problem| ProcessorError::Field {
            path: path.clone(),
            field,
            problem,
        };
        let clip = model.vision.kind == VisionKind::Clip;
        let tile = u32::try_from(model.vision.image_size).unwrap_or(u32::MAX);
        let square = match file.square_mode() {
            Mode::Crop if !clip => Mode::Stretch,
            mode => mode,
        };
        let alone = match model.image.aspect {
            Aspect::Pad => Mode::Pad,
            Aspect::Processor => square,
            Aspect::Anyres => {
                let pinpoints = model.image.pinpoints.iter().map(|&(w, h)| Size::new(w, h));
                Mode::Anyres(pinpoints.collect())
            }
        };
        // OneVision, and LLaVA-NeXT's own code for Qwen2, pad each of several
        // pictures instead of cutting it; LLaVA-1.6 cuts them all.
        let pads_several = model.image.max_tiles.is_some() || model.model_type == "llava_qwen";
        let among_others = match &alone {
            Mode::Anyres(_) if pads_several => Mode::Pad,
            same => same.clone(),
        };
        let read = Self {
            alone,
            among_others,
            shortest_edge: file.shortest_edge().unwrap_or(tile),
            tile,
            mean: file
                .image_mean
                .unwrap_or(if clip { CLIP_MEAN } else { HALF }),
            std: file.image_std.unwrap_or(if clip { CLIP_STD } else { HALF }),
            filter: file.filter().map_err(|other| {
                wrong(
                    "resample",
                    format!("is {other}: expected 2 (bilinear) or 3 (bicubic)"),
                )
            })?,
        };
        if file
            .tile()
            .is_some_and(|(width, height)| (width, height) != (tile, tile))
        {
            return Err(wrong(
                "size",
                format!("does not give the {tile}x{tile} pixels that the tower takes"),
            ));
        }
        read.check()
            .map_err(|(field, problem)| wrong(field, problem))?;
        Ok(read)
    }

    /// Replaces the way a picture is brought to the tower's square, alone or among others.
    ///
    /// # Errors
    /// The name is none of `pad`, `square` and `stretch`, or is `anyres` for a checkpoint without pinpoints.
    pub fn with_aspect_ratio(mut self, name: &str) -> Result<Self, ProcessorError> {
        let mode = match name {
            "pad" => Mode::Pad,
            "square" => Mode::Crop,
            "stretch" => Mode::Stretch,
            "anyres" if matches!(self.alone, Mode::Anyres(_)) => return Ok(self),
            _ => {
                return Err(ProcessorError::AspectRatio {
                    name: name.to_owned(),
                });
            }
        };
        (self.alone, self.among_others) = (mode.clone(), mode);
        Ok(self)
    }

    fn check(&self) -> Result<(), (&'static str, String)> {
        let Self {
            tile,
            shortest_edge,
            ..
        } = *self;
        if shortest_edge < tile || shortest_edge > LONGEST_EDGE {
            let problem = format!(
                "gives a shortest edge of {shortest_edge} pixels: expected {tile} to {LONGEST_EDGE}"
            );
            return Err(("size", problem));
        }
        if self.std.iter().any(|std| !std.is_finite() || *std <= 0.0)
            || self.mean.iter().any(|mean| !(0.0..=1.0).contains(mean))
        {
            return Err(("image_mean", "and image_std are out of range".to_owned()));
        }
        let tiles = |size: &Size| size.pixels() / (u64::from(tile) * u64::from(tile));
        match &self.alone {
            Mode::Anyres(pinpoints) if pinpoints.iter().any(|size| tiles(size) > MOST_TILES) => {
                Err((
                    "image_grid_pinpoints",
                    format!("list a size of more than {MOST_TILES} tiles"),
                ))
            }
            _ => Ok(()),
        }
    }
}

/// An image processor's file, fields that differ between classes all optional.
#[derive(Default, Deserialize)]
struct Preprocessor {
    #[serde(default)]
    image_processor_type: String,
    size: Option<Edges>,
    crop_size: Option<Edges>,
    do_center_crop: Option<bool>,
    do_pad: Option<bool>,
    image_mean: Option<[f32; 3]>,
    image_std: Option<[f32; 3]>,
    resample: Option<u32>,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(untagged)]
enum Edges {
    Side(u32),
    Shortest { shortest_edge: u32 },
    Both { height: u32, width: u32 },
}

impl Edges {
    fn width_and_height(self) -> (u32, u32) {
        match self {
            Self::Side(side)
            | Self::Shortest {
                shortest_edge: side,
            } => (side, side),
            Self::Both { height, width } => (width, height),
        }
    }
}

impl Preprocessor {
    fn read(dir: &Path) -> Result<(PathBuf, Self), ProcessorError> {
        // As in transformers 5: a folder that it saved again may keep the older file beside.
        let nested = dir.join("processor_config.json");
        let whole = read_json_if_there::<Value>(&nested)?;
        let inside = whole.and_then(|mut whole| whole.get_mut("image_processor").map(Value::take));
        let (path, value) = match inside {
            Some(value) => (nested, value),
            None => {
                let path = dir.join("preprocessor_config.json");
                let value = read_json(&path)?;
                (path, value)
            }
        };
        match Self::deserialize(value) {
            Ok(file) => Ok((path, file)),
            Err(source) => Err(ProcessorError::Shape { path, source }),
        }
    }

    /// How the class brings a whole picture to a square.
    fn square_mode(&self) -> Mode {
        let class = self.image_processor_type.as_str();
        if self.do_center_crop == Some(false) || class.starts_with("Siglip") {
            Mode::Stretch
        } else if self.do_pad == Some(true) && class.starts_with("Llava") {
            Mode::Pad
        } else {
            Mode::Crop
        }
    }

    fn shortest_edge(&self) -> Option<u32> {
        self.size.map(|size| {
            let (width, height) = size.width_and_height();
            width.min(height)
        })
    }

    /// Width and height of what comes out.
    fn tile(&self) -> Option<(u32, u32)> {
        let cropped = self
            .crop_size
            .filter(|_| self.do_center_crop != Some(false));
        cropped.or(self.size).map(Edges::width_and_height)
    }

    fn filter(&self) -> Result<Filter, u32> {
        match self.resample {
            None | Some(3) => Ok(Filter::Bicubic),
            Some(2) => Ok(Filter::Bilinear),
            Some(other) => Err(other),
        }
    }
}
