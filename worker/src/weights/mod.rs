//! The tensors of a checkpoint, in one file or many: found by our own names,
//! checked against the shape that the configuration promises, and read as f32.

mod adapter;
mod error;
mod header;
mod map;
mod names;
mod table;

pub use adapter::Adapter;
pub use error::WeightsError;
pub use header::{Entry, HeaderError, Kind, parse as parse_header};
pub use names::Naming;
pub use table::Table;

pub(crate) use map::Mapped;
use rayon::prelude::*;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The tensors of a checkpoint and of whatever is laid over it.
#[derive(Debug, Default)]
pub struct Weights {
    files: Vec<File>,
    index: HashMap<String, Place>,
    naming: Option<Naming>,
    adapter: Option<Adapter>,
    /// Names in the files that no model here uses.
    unused: Vec<String>,
}

/// A tensor as its file has it.
#[derive(Debug, Clone, Copy)]
pub struct Raw<'a> {
    /// Element type.
    pub kind: Kind,
    /// Sizes, slowest first.
    pub shape: &'a [usize],
    /// Its elements, little-endian.
    pub bytes: &'a [u8],
}

#[derive(Debug)]
struct File {
    path: PathBuf,
    bytes: Arc<Mapped>,
}

#[derive(Debug, Clone)]
struct Place {
    file: usize,
    name: String,
    entry: Entry,
}

impl Weights {
    /// Opens the checkpoint in `dir`: `model.safetensors.index.json` with its
    /// shards, or `model.safetensors`.
    ///
    /// # Errors
    /// Names the file, and the tensor where it is one; `*.bin` files are
    /// refused with the command that converts them.
    pub fn open(dir: &Path) -> Result<Self, WeightsError> {
        let mut weights = Self::default();
        let found = shards(dir, "model")?;
        weights.add(found, |name| Some(name.to_owned()))?;
        Ok(weights)
    }

    /// Adds a vision tower that lies in a folder of its own.
    pub fn add_tower(&mut self, dir: &Path) -> Result<(), WeightsError> {
        let found = shards(dir, "model")?;
        let before = self.naming.take();
        let added = self.add(found, |name| {
            name.starts_with("vision_model.").then(|| name.to_owned())
        });
        self.naming = before;
        added
    }

    /// Lays the tensors of one file over those that are there, as LLaVA's
    /// `non_lora_trainables` and `mm_projector` do. `base_model.` and a doubled
    /// `model.` before the names go away.
    pub fn lay_over(&mut self, path: &Path) -> Result<(), WeightsError> {
        let naming = self.naming.take();
        let added = self.add(vec![(path.to_owned(), None)], |name| {
            let name = name.strip_prefix("base_model.").unwrap_or(name);
            let name = match name.strip_prefix("model.") {
                Some(rest) if rest.starts_with("model.") || rest.starts_with("lm_head.") => rest,
                _ => name,
            };
            Some(name.to_owned())
        });
        self.naming = naming;
        added
    }

    /// Adds the products of `adapter` to the weights that they belong to.
    ///
    /// # Errors
    /// One of them belongs to no weight of this model.
    pub fn set_adapter(&mut self, adapter: Adapter) -> Result<(), WeightsError> {
        adapter.check_fits(|ours| self.has(ours))?;
        self.adapter = Some(adapter);
        Ok(())
    }

    /// Our names of all tensors, in order.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<_> = self.index.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    /// The name that the files have for the tensor that we call `ours`.
    pub fn written(&self, ours: &str) -> Option<&str> {
        Some(&self.index.get(ours)?.name)
    }

    /// Names in the files that no model here uses.
    pub fn unused(&self) -> &[String] {
        &self.unused
    }

    /// The tensor that we call `ours` as its file has it, without an adapter's part.
    pub fn raw(&self, ours: &str) -> Option<Raw<'_>> {
        let place = self.index.get(ours)?;
        Some(Raw {
            kind: place.entry.kind,
            shape: &place.entry.shape,
            bytes: self.bytes_of(place),
        })
    }

    /// Whether an adapter changes the tensor that we call `ours`.
    pub fn is_adapted(&self, ours: &str) -> bool {
        self.adapter
            .as_ref()
            .is_some_and(|adapter| adapter.changes(ours))
    }

    /// Whether the checkpoint has the tensor that we call `ours`.
    pub fn has(&self, ours: &str) -> bool {
        self.index.contains_key(ours)
    }

    /// The sizes of the tensor that we call `ours`, if it is there.
    pub fn shape(&self, ours: &str) -> Option<&[usize]> {
        Some(&self.index.get(ours)?.entry.shape)
    }

    /// Numbers in all tensors that have a name here.
    pub fn elements(&self) -> usize {
        let elements = |place: &Place| place.entry.shape.iter().product::<usize>();
        self.index.values().map(elements).sum()
    }

    /// Which names the checkpoint uses.
    pub fn naming(&self) -> Naming {
        self.naming.unwrap_or(Naming::Original)
    }

    /// The tensor that we call `ours`, as f32, with the adapter's part added.
    ///
    /// # Errors
    /// The tensor is missing, has another shape or an element type that is no
    /// float, or holds a number that is not finite.
    pub fn f32(&self, ours: &str, shape: &[usize]) -> Result<Vec<f32>, WeightsError> {
        self.f32_rows(ours, shape, 0..shape.first().copied().unwrap_or(1))
    }

    /// The rows `rows`, counted by the slowest size, of the tensor that we call
    /// `ours`, as f32, with the adapter's part added.
    ///
    /// # Errors
    /// As [`Weights::f32`].
    pub fn f32_rows(
        &self,
        ours: &str,
        shape: &[usize],
        rows: Range<usize>,
    ) -> Result<Vec<f32>, WeightsError> {
        let place = self.place(ours, shape)?;
        let bytes = self.bytes_of(place);
        let row = shape.iter().skip(1).product::<usize>();
        let row_bytes = bytes.len() / shape.first().copied().unwrap_or(1).max(1);
        let bytes = &bytes[rows.start * row_bytes..rows.end * row_bytes];
        let mut values = floats(bytes, place.entry.kind).ok_or_else(|| self.wrong_kind(place))?;
        if let Some(adapter) = &self.adapter {
            adapter.add_to(ours, shape, rows.clone(), &mut values)?;
        }
        match first_not_finite(&values) {
            None => Ok(values),
            Some(index) => Err(self.not_finite(place, rows.start * row + index, values[index])),
        }
    }

    /// The tensor that we call `ours`, `[rows, width]`, to be read row by row
    /// where it lies.
    ///
    /// # Errors
    /// As [`Weights::f32`].
    pub fn table(&self, ours: &str, shape: &[usize; 2]) -> Result<Table, WeightsError> {
        let place = self.place(ours, shape)?;
        let file = self.files[place.file].bytes.clone();
        let table =
            Table::new(file, &place.entry, shape[1]).ok_or_else(|| self.wrong_kind(place))?;
        match table.first_not_finite() {
            None => Ok(table),
            Some((index, value)) => Err(self.not_finite(place, index, value)),
        }
    }

    fn place(&self, ours: &str, shape: &[usize]) -> Result<&Place, WeightsError> {
        let place = self.index.get(ours).ok_or_else(|| self.missing(ours))?;
        if place.entry.shape == shape {
            return Ok(place);
        }
        Err(WeightsError::Shape {
            path: self.files[place.file].path.clone(),
            name: place.name.clone(),
            have: place.entry.shape.clone(),
            want: shape.to_vec(),
        })
    }

    fn bytes_of(&self, place: &Place) -> &[u8] {
        &self.files[place.file].bytes[place.entry.bytes.clone()]
    }

    fn wrong_kind(&self, place: &Place) -> WeightsError {
        WeightsError::Kind {
            path: self.files[place.file].path.clone(),
            name: place.name.clone(),
            kind: place.entry.kind,
        }
    }

    fn not_finite(&self, place: &Place, index: usize, value: f32) -> WeightsError {
        WeightsError::NotFinite {
            path: self.files[place.file].path.clone(),
            name: place.name.clone(),
            index,
            value,
        }
    }

    fn missing(&self, ours: &str) -> WeightsError {
        WeightsError::Missing {
            name: self
                .naming()
                .theirs(ours)
                .unwrap_or_else(|| ours.to_owned()),
            path: self
                .files
                .first()
                .and_then(|file| file.path.parent())
                .unwrap_or(Path::new(""))
                .to_owned(),
        }
    }

    fn add(
        &mut self,
        found: Vec<Shard>,
        rename: impl Fn(&str) -> Option<String>,
    ) -> Result<(), WeightsError> {
        let mut tensors: BTreeMap<String, (usize, Entry)> = BTreeMap::new();
        for (path, expected) in found {
            let bytes = Mapped::open(&path).map_err(|source| WeightsError::Read {
                path: path.clone(),
                source,
            })?;
            let entries = parse_header(&bytes).map_err(|source| WeightsError::Header {
                path: path.clone(),
                source,
            })?;
            if let Some(name) = expected
                .iter()
                .flatten()
                .find(|name| !entries.contains_key(*name))
            {
                return Err(WeightsError::Missing {
                    name: name.clone(),
                    path,
                });
            }
            let file = self.files.len();
            for (name, entry) in entries {
                if let Some((other, _)) = tensors.insert(name.clone(), (file, entry)) {
                    return Err(WeightsError::Twice {
                        name,
                        first: self.files[other].path.clone(),
                        second: path,
                    });
                }
            }
            self.files.push(File {
                path,
                bytes: Arc::new(bytes),
            });
        }
        let renamed: Vec<_> = tensors
            .into_iter()
            .filter_map(|(name, place)| Some((rename(&name)?, name, place)))
            .collect();
        let naming = Naming::detect(&renamed.iter().map(|(name, ..)| name.as_str()));
        self.naming = Some(naming);
        for (renamed, name, (file, entry)) in renamed {
            match naming.ours(&renamed) {
                Some(ours) => drop(self.index.insert(ours, Place { file, name, entry })),
                None => self.unused.push(name),
            }
        }
        Ok(())
    }
}

/// A file and, where an index lists them, the tensors that it must hold.
type Shard = (PathBuf, Option<Vec<String>>);

/// The safetensors files of a checkpoint, with the tensors that its index
/// promises in each.
fn shards(dir: &Path, stem: &str) -> Result<Vec<Shard>, WeightsError> {
    let index = dir.join(format!("{stem}.safetensors.index.json"));
    if index.is_file() {
        return read_index(dir, &index);
    }
    let single = dir.join(format!("{stem}.safetensors"));
    if single.is_file() {
        return Ok(vec![(single, None)]);
    }
    let pickle = std::fs::read_dir(dir)
        .map_err(|source| WeightsError::Read {
            path: dir.to_owned(),
            source,
        })?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| {
            path.extension()
                .is_some_and(|end| end == "bin" || end == "pt" || end == "pth")
        });
    Err(match pickle {
        Some(file) => WeightsError::Pickle {
            file,
            dir: dir.to_owned(),
        },
        None => WeightsError::None {
            dir: dir.to_owned(),
        },
    })
}

fn read_index(dir: &Path, path: &Path) -> Result<Vec<Shard>, WeightsError> {
    let wrong = |problem: String| WeightsError::Index {
        path: path.to_owned(),
        problem,
    };
    let object = crate::config::read_object(path).map_err(|error| wrong(error.to_string()))?;
    let map = object
        .get("weight_map")
        .and_then(serde_json::Value::as_object)
        .ok_or_else(|| wrong("has no `weight_map` object".to_owned()))?;
    let mut files: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (tensor, file) in map {
        let file = file
            .as_str()
            .filter(|file| file.ends_with(".safetensors") && !file.contains(['/', '\\']))
            .ok_or_else(|| {
                wrong(format!(
                    "puts tensor `{tensor}` into {file}, which is no safetensors file here"
                ))
            })?;
        files.entry(file).or_default().push(tensor.clone());
    }
    if files.is_empty() {
        return Err(wrong("lists no tensor".to_owned()));
    }
    files
        .into_iter()
        .map(|(file, tensors)| {
            let path = dir.join(file);
            if path.is_file() {
                Ok((path, Some(tensors)))
            } else {
                Err(WeightsError::Shard {
                    path,
                    tensor: tensors.into_iter().next().unwrap_or_default(),
                })
            }
        })
        .collect()
}

/// Where the first number stands that is not finite.
fn first_not_finite(values: &[f32]) -> Option<usize> {
    let parts = values.par_chunks(FLOATS_AT_ONCE).enumerate();
    parts.find_map_first(|(at, part)| {
        // Most have none: this compiles to a few instructions for several numbers.
        if part.iter().fold(true, |all, x| all & x.is_finite()) {
            return None;
        }
        let inside = part.iter().position(|x| !x.is_finite())?;
        Some(at * FLOATS_AT_ONCE + inside)
    })
}

/// Floats that are read by one thread.
const FLOATS_AT_ONCE: usize = 1 << 14;

/// The floats of little-endian `bytes`; `None` where `kind` is no float.
pub(crate) fn floats(bytes: &[u8], kind: Kind) -> Option<Vec<f32>> {
    let width = kind.bytes()?;
    let mut all = vec![0f32; bytes.len() / width];
    // Where there are none, the kind is looked at all the same.
    read_floats(&[], kind, &mut [])?;
    all.par_chunks_mut(FLOATS_AT_ONCE)
        .zip(bytes.par_chunks(FLOATS_AT_ONCE * width))
        .try_for_each(|(floats, bytes)| read_floats(bytes, kind, floats))?;
    Some(all)
}

/// The same, written to `floats`.
pub(crate) fn read_floats(bytes: &[u8], kind: Kind, floats: &mut [f32]) -> Option<()> {
    fn read<const N: usize>(bytes: &[u8], floats: &mut [f32], one: impl Fn([u8; N]) -> f32) {
        let (numbers, _) = bytes.as_chunks::<N>();
        for (float, number) in floats.iter_mut().zip(numbers) {
            *float = one(*number);
        }
    }
    match kind {
        Kind::F32 => read(bytes, floats, f32::from_le_bytes),
        Kind::F16 => read(bytes, floats, |two| half::f16::from_le_bytes(two).to_f32()),
        Kind::BF16 => read(bytes, floats, |two| half::bf16::from_le_bytes(two).to_f32()),
        Kind::F64 => read(bytes, floats, |eight| f64::from_le_bytes(eight) as f32),
        _ => return None,
    }
    Some(())
}
