//! Files of `torch.save`: which tensors they hold and where the bytes of each lie.
//! Since 1.6 they are zip archives with one entry for each storage; before, five
//! pickles with the storages behind them.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::Cursor;
use std::ops::Range;
use std::path::Path;

use super::ConvertError;
use super::pickle::{self, Id, Value, Values};
use crate::weights::{Kind, Mapped};

/// How the files of before 1.6 begin: the pickle of PyTorch's magic number.
const LEGACY: &[u8] = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.";
/// Longest pickle that is read, in bytes; that of a model of 70 B has less than one.
const LONGEST: u64 = 64 << 20;

/// A file of `torch.save`.
pub(super) struct TorchFile {
    bytes: Mapped,
    /// In the file's order.
    pub(super) tensors: Vec<Tensor>,
    /// What is in it beside tensors, and is left out.
    pub(super) skipped: Vec<String>,
}

/// A tensor as a view of a storage.
pub(super) struct Tensor {
    pub(super) name: String,
    pub(super) kind: Kind,
    pub(super) shape: Vec<usize>,
    /// Elements from one index to the next, for each dimension.
    strides: Vec<usize>,
    /// From the first element to the end of its storage, in the file.
    bytes: Range<usize>,
}

impl TorchFile {
    /// Opens the file at `path` and checks that each tensor lies inside its storage.
    pub(super) fn open(path: &Path) -> Result<Self, ConvertError> {
        let bytes = Mapped::open(path).map_err(super::file_error(path))?;
        let read = match bytes.starts_with(LEGACY) {
            true => legacy(&bytes),
            false => zipped(&bytes),
        };
        let (tensors, skipped) = read.map_err(|problem| ConvertError::Pickle {
            path: path.to_owned(),
            problem,
        })?;
        Ok(Self {
            bytes,
            tensors,
            skipped,
        })
    }

    /// The elements of a tensor, row by row.
    pub(super) fn data(&self, tensor: &Tensor) -> Cow<'_, [u8]> {
        let (width, count) = (
            tensor.kind.bytes().unwrap_or(1),
            tensor.shape.iter().product(),
        );
        let storage = &self.bytes[tensor.bytes.clone()];
        if tensor.strides == row_major(&tensor.shape) {
            return Cow::Borrowed(&storage[..width * count]);
        }
        let mut data = Vec::with_capacity(width * count);
        let mut index = vec![0; tensor.shape.len()];
        for _ in 0..count {
            let at: usize = index
                .iter()
                .zip(&tensor.strides)
                .map(|(i, stride)| i * stride)
                .sum();
            data.extend_from_slice(&storage[at * width..(at + 1) * width]);
            for (i, size) in index.iter_mut().zip(&tensor.shape).rev() {
                *i += 1;
                if *i < *size {
                    break;
                }
                *i = 0;
            }
        }
        Cow::Owned(data)
    }
}

type Found = (Vec<Tensor>, Vec<String>);

/// Where storages lie in the file, by their keys.
type Storages = HashMap<String, Range<usize>>;

fn zipped(bytes: &[u8]) -> Result<Found, String> {
    let wrong = |error: zip::result::ZipError| format!("is no file of torch.save: {error}");
    let mut archive = zip::ZipArchive::new(Cursor::new(bytes)).map_err(wrong)?;
    let mut storages = Storages::new();
    let mut root = None;
    for index in 0..archive.len() {
        let entry = archive.by_index_raw(index).map_err(wrong)?;
        let name = entry.name().map_err(wrong)?.into_owned();
        let start = entry.data_start().ok_or("has an entry without place")? as usize;
        let range = (start.checked_add(entry.compressed_size() as usize))
            .filter(|end| *end <= bytes.len())
            .map(|end| start..end)
            .ok_or_else(|| format!("entry {name} ends behind the file"))?;
        let wanted =
            name.ends_with("data.pkl") || name.contains("/data/") || name.ends_with("/byteorder");
        if wanted && entry.compression() != zip::CompressionMethod::Stored {
            return Err(format!(
                "entry {name} is compressed, which torch.save never does"
            ));
        }
        if name.ends_with("/byteorder") && !bytes[range.clone()].starts_with(b"little") {
            return Err("its numbers are big-endian".to_owned());
        }
        if name.ends_with("/data.pkl") || name == "data.pkl" {
            root = Some(range);
        } else if let Some((_, key)) = name.rsplit_once("/data/") {
            storages.insert(key.to_owned(), range);
        }
    }
    let root = root.ok_or("has no data.pkl: it is no file of torch.save")?;
    if root.len() as u64 > LONGEST {
        return Err(format!("its pickle is longer than {LONGEST} bytes"));
    }
    let (values, root, _) = pickle::read(&bytes[root])?;
    found(&values, root, &storages)
}

/// Magic number, version, system, tensors, keys of the storages; then each storage,
/// its number of elements in front.
fn legacy(bytes: &[u8]) -> Result<Found, String> {
    let mut at = LEGACY.len();
    let mut next = || {
        let rest = &bytes[at..];
        let limited = &rest[..rest.len().min(LONGEST as usize)];
        let (values, root, took) = pickle::read(limited)?;
        at += took;
        Ok::<_, String>((values, root, at))
    };
    next()?;
    next()?;
    let (values, root, _) = next()?;
    let (keys, list, mut at) = next()?;
    let Value::List(list) = keys.get(list) else {
        return Err("has no list of storages".to_owned());
    };
    let widths = widths(&values);
    let mut storages = Storages::new();
    for key in list {
        let Value::Text(key) = keys.get(*key) else {
            return Err("has a storage without name".to_owned());
        };
        let width = widths.get(key).copied().unwrap_or(1);
        let short = || format!("is cut short in storage {key}");
        let count = bytes
            .get(at..)
            .and_then(|rest| rest.first_chunk::<8>())
            .ok_or_else(short)?;
        let length = usize::try_from(i64::from_le_bytes(*count))
            .ok()
            .and_then(|count| count.checked_mul(width))
            .filter(|length| *length <= bytes.len() - at - 8)
            .ok_or_else(short)?;
        storages.insert(key.clone(), at + 8..at + 8 + length);
        at += 8 + length;
    }
    found(&values, root, &storages)
}

/// Bytes of an element of each storage that the values name.
fn widths(values: &Values) -> HashMap<String, usize> {
    let storage = |id: Id| match values.get(id) {
        Value::Stored(inner) => storage(values, *inner).ok(),
        _ => None,
    };
    (0..values.len())
        .filter_map(storage)
        .filter_map(|(key, kind)| Some((key, kind.bytes()?)))
        .collect()
}

/// The tensors of a dictionary by name, and what else it holds.
fn found(values: &Values, root: Id, storages: &Storages) -> Result<Found, String> {
    let Value::Dict(entries) = values.get(root) else {
        return Err("holds no dictionary of tensors".to_owned());
    };
    let (mut tensors, mut skipped) = (Vec::new(), Vec::new());
    for (key, value) in entries {
        let name = match values.get(*key) {
            Value::Text(name) => name.clone(),
            _ => "an entry without name".to_owned(),
        };
        match view(values, *value) {
            Some(arguments) => {
                let tensor = tensor(values, arguments, name.clone(), storages)
                    .map_err(|problem| format!("tensor `{name}`: {problem}"))?;
                match tensor {
                    Some(tensor) => tensors.push(tensor),
                    None => {
                        skipped.push(format!("{name} (an element type that safetensors lacks)"));
                    }
                }
            }
            None => skipped.push(format!("{name} ({})", described(values, *value))),
        }
    }
    // A trainer's checkpoint keeps the model under a name of its own.
    if tensors.is_empty()
        && let Some((_, inner)) = entries.iter().find(|(key, value)| {
            matches!(values.get(*key), Value::Text(name) if ["state_dict", "model", "module"].contains(&name.as_str()))
                && matches!(values.get(*value), Value::Dict(_))
        })
        && *inner > root
    {
        return found(values, *inner, storages);
    }
    // A name written twice means what was written last.
    let mut last = HashMap::new();
    for (at, tensor) in tensors.iter().enumerate() {
        last.insert(tensor.name.clone(), at);
    }
    let mut at = 0..;
    tensors.retain(|tensor| last.get(&tensor.name).copied() == at.next());
    Ok((tensors, skipped))
}

/// The arguments of `_rebuild_tensor_v2`, through what parameters wrap around it.
fn view(values: &Values, mut id: Id) -> Option<&[Id]> {
    for _ in 0..3 {
        let Value::Call(function, arguments) = values.get(id) else {
            return None;
        };
        let (Value::Global(function), Value::Tuple(arguments)) =
            (values.get(*function), values.get(*arguments))
        else {
            return None;
        };
        match (function.as_str(), arguments.as_slice()) {
            ("torch._utils._rebuild_tensor_v2", arguments) => return Some(arguments),
            ("torch._utils._rebuild_parameter", [inner, ..]) => id = *inner,
            ("torch._tensor._rebuild_from_type_v2", [function, _, arguments, ..]) => {
                let known = matches!(values.get(*function), Value::Global(name) if name == "torch._utils._rebuild_tensor_v2");
                return match values.get(*arguments) {
                    Value::Tuple(arguments) if known => Some(arguments),
                    _ => None,
                };
            }
            _ => return None,
        }
    }
    None
}

/// A checked view: `storage, offset, size, stride, …`. `None` for element types
/// that safetensors has no name for.
fn tensor(
    values: &Values,
    arguments: &[Id],
    name: String,
    storages: &Storages,
) -> Result<Option<Tensor>, String> {
    let [place, offset, size, stride, ..] = arguments else {
        return Err("has too few arguments".to_owned());
    };
    let Value::Stored(place) = values.get(*place) else {
        return Err("has no storage".to_owned());
    };
    let (key, kind) = storage(values, *place)?;
    let Some(width) = kind.bytes() else {
        return Ok(None);
    };
    let sizes = |id: Id| match values.get(id) {
        Value::Tuple(items) => items.iter().map(|id| size_of(values, *id)).collect(),
        _ => Err("has a shape that is no tuple".to_owned()),
    };
    let (shape, strides): (Vec<usize>, Vec<usize>) = (sizes(*size)?, sizes(*stride)?);
    let storage = storages
        .get(&key)
        .ok_or_else(|| format!("storage {key} is not in the file"))?;
    let start = size_of(values, *offset)?;
    let outside = || {
        format!(
            "with shape {shape:?} does not fit its storage of {} bytes",
            storage.len()
        )
    };
    if shape.len() != strides.len() {
        return Err("has a shape and strides of different lengths".to_owned());
    }
    // The element with the highest place, one behind it.
    let end = match shape.contains(&0) {
        true => Some(start),
        false => shape
            .iter()
            .zip(&strides)
            .try_fold(start, |end, (size, stride)| {
                end.checked_add((size - 1).checked_mul(*stride)?)
            })
            .and_then(|end| end.checked_add(1)),
    };
    let inside = |end: usize| {
        end.checked_mul(width)
            .is_some_and(|bytes| bytes <= storage.len())
    };
    let count = shape
        .iter()
        .try_fold(width, |count, size| count.checked_mul(*size));
    // Strides of 0 could make a small storage an endless tensor.
    if !end.is_some_and(inside) || count.is_none_or(|bytes| bytes > storage.len()) {
        return Err(outside());
    }
    Ok(Some(Tensor {
        name,
        kind,
        bytes: storage.start + start * width..storage.end,
        shape,
        strides,
    }))
}

/// Key and element type of `("storage", class, key, device, count)`.
fn storage(values: &Values, id: Id) -> Result<(String, Kind), String> {
    let Value::Tuple(items) = values.get(id) else {
        return Err("has no storage".to_owned());
    };
    let [_, class, key, ..] = items.as_slice() else {
        return Err("has no storage".to_owned());
    };
    let (Value::Global(class), Value::Text(key)) = (values.get(*class), values.get(*key)) else {
        return Err("has a storage without name".to_owned());
    };
    let kind = match class.rsplit('.').next().unwrap_or_default() {
        "DoubleStorage" => Kind::F64,
        "FloatStorage" => Kind::F32,
        "HalfStorage" => Kind::F16,
        "BFloat16Storage" => Kind::BF16,
        "LongStorage" => Kind::I64,
        "IntStorage" => Kind::I32,
        "ShortStorage" => Kind::I16,
        "CharStorage" => Kind::I8,
        "ByteStorage" => Kind::U8,
        "BoolStorage" => Kind::BOOL,
        _ => Kind::Other,
    };
    Ok((key.clone(), kind))
}

fn size_of(values: &Values, id: Id) -> Result<usize, String> {
    match values.get(id) {
        Value::Int(size) => usize::try_from(*size).map_err(|_| format!("has a size of {size}")),
        _ => Err("has a size that is no number".to_owned()),
    }
}

fn row_major(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for index in (1..shape.len()).rev() {
        strides[index - 1] = strides[index] * shape[index];
    }
    strides
}

/// What a value is, for the list of those that are left out.
fn described(values: &Values, id: Id) -> String {
    match values.get(id) {
        Value::None => "nothing".to_owned(),
        Value::Int(_) => "a number".to_owned(),
        Value::Text(_) => "a text".to_owned(),
        Value::Global(name) => format!("the class or function {name}"),
        Value::Tuple(_) | Value::List(_) => "a list".to_owned(),
        Value::Dict(_) => "a dictionary".to_owned(),
        Value::Call(function, _) => match values.get(*function) {
            Value::Global(name) => format!("a call of {name}"),
            _ => "a call".to_owned(),
        },
        Value::Stored(_) | Value::Other => "no tensor".to_owned(),
    }
}
