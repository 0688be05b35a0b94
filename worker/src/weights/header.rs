//! The header of a safetensors file, checked before a single weight is read:
//! every tensor lies inside the file, is as long as its shape says, and shares
//! no byte with another.

use serde::de::{Error, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

/// Element type of a tensor in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[allow(missing_docs, reason = "the names of the format")]
pub enum Kind {
    F64,
    F32,
    F16,
    BF16,
    I64,
    I32,
    I16,
    I8,
    U64,
    U32,
    U16,
    U8,
    BOOL,
    #[serde(other)]
    Other,
}

impl Kind {
    /// Bytes of one element, where the type is known.
    pub fn bytes(self) -> Option<usize> {
        match self {
            Self::F64 | Self::I64 | Self::U64 => Some(8),
            Self::F32 | Self::I32 | Self::U32 => Some(4),
            Self::F16 | Self::BF16 | Self::I16 | Self::U16 => Some(2),
            Self::I8 | Self::U8 | Self::BOOL => Some(1),
            Self::Other => None,
        }
    }
}

/// Where a tensor lies in its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Element type.
    pub kind: Kind,
    /// Sizes, slowest first.
    pub shape: Vec<usize>,
    /// Bytes from the start of the file.
    pub bytes: Range<usize>,
}

/// What is wrong with a safetensors header.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum HeaderError {
    /// The file ends inside its header.
    #[error(
        "has {have} bytes, but its header needs {need}: the file is cut short or is not safetensors"
    )]
    Short {
        /// Bytes that are there.
        have: usize,
        /// Bytes that the header says it takes.
        need: u64,
    },
    /// The header is not the JSON that the format asks for.
    #[error("has a header that is not valid: {0}")]
    Json(String),
    /// A tensor reaches past the end of the file.
    #[error("tensor `{name}` ends at byte {end}, but the file has {have}: the file is cut short")]
    Outside {
        /// The tensor.
        name: String,
        /// Where it would end.
        end: u64,
        /// Bytes in the file.
        have: usize,
    },
    /// A tensor's bytes are not what its shape needs.
    #[error("tensor `{name}` takes {have} bytes, but shape {shape:?} of {kind:?} needs {need}")]
    Size {
        /// The tensor.
        name: String,
        /// Its shape.
        shape: Vec<usize>,
        /// Its element type.
        kind: Kind,
        /// Bytes between its offsets.
        have: u64,
        /// Bytes that the shape needs.
        need: u64,
    },
    /// Two tensors share bytes.
    #[error("tensors `{first}` and `{second}` overlap at byte {at}")]
    Overlap {
        /// The tensor that begins first.
        first: String,
        /// The tensor that begins inside it.
        second: String,
        /// Where the second begins, from the start of the file.
        at: usize,
    },
}

#[derive(Deserialize)]
struct RawEntry {
    dtype: Kind,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// The largest header that is read, in bytes: room for fifty thousand tensors.
const MAX_HEADER: u64 = 8 << 20;

/// The header's entries, or the text that the format keeps among them.
#[derive(Deserialize)]
#[serde(transparent)]
struct RawHeader {
    #[serde(deserialize_with = "entries")]
    entries: BTreeMap<String, RawEntry>,
}

/// Reads entry by entry, so that a header takes no more memory than its tensors.
fn entries<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<String, RawEntry>, D::Error> {
    struct Entries;

    impl<'de> Visitor<'de> for Entries {
        type Value = BTreeMap<String, RawEntry>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object of tensors")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut entries = BTreeMap::new();
            while let Some(name) = map.next_key::<String>()? {
                if name == "__metadata__" {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
                let entry = map.next_value();
                let entry =
                    entry.map_err(|error| Error::custom(format!("tensor `{name}`: {error}")))?;
                entries.insert(name, entry);
            }
            Ok(entries)
        }
    }

    from.deserialize_map(Entries)
}

/// Reads and checks the header of a whole `file`.
pub fn parse(file: &[u8]) -> Result<BTreeMap<String, Entry>, HeaderError> {
    let short = |need| HeaderError::Short {
        have: file.len(),
        need,
    };
    let (length, rest) = file.split_first_chunk::<8>().ok_or_else(|| short(8))?;
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER || length > rest.len() as u64 {
        return Err(short(length.saturating_add(8)));
    }
    let (json, data) = rest.split_at(length as usize);
    let raw: RawHeader =
        serde_json::from_slice(json).map_err(|error| HeaderError::Json(error.to_string()))?;
    let start = file.len() - data.len();
    let mut entries = BTreeMap::new();
    for (name, entry) in raw.entries {
        let entry = check(&name, &entry, start, data.len())?;
        entries.insert(name, entry);
    }
    no_overlap(&entries)?;
    Ok(entries)
}

fn check(name: &str, raw: &RawEntry, start: usize, data: usize) -> Result<Entry, HeaderError> {
    let (from, to) = raw.data_offsets;
    let width = raw.dtype.bytes().ok_or_else(|| {
        HeaderError::Json(format!(
            "tensor `{name}` has an element type that is not known"
        ))
    })?;
    if from > to || to > data as u64 {
        return Err(HeaderError::Outside {
            name: name.to_owned(),
            end: (start as u64).saturating_add(from.max(to)),
            have: start + data,
        });
    }
    let need = raw
        .shape
        .iter()
        .try_fold(width as u64, |product, size| product.checked_mul(*size))
        .unwrap_or(u64::MAX);
    if need != to - from {
        return Err(HeaderError::Size {
            name: name.to_owned(),
            shape: raw.shape.iter().map(|size| *size as usize).collect(),
            kind: raw.dtype,
            have: to - from,
            need,
        });
    }
    Ok(Entry {
        kind: raw.dtype,
        shape: raw.shape.iter().map(|size| *size as usize).collect(),
        bytes: start + from as usize..start + to as usize,
    })
}

fn no_overlap(entries: &BTreeMap<String, Entry>) -> Result<(), HeaderError> {
    let mut order: Vec<_> = entries
        .iter()
        .filter(|(_, entry)| !entry.bytes.is_empty())
        .collect();
    order.sort_by_key(|(_, entry)| entry.bytes.start);
    for pair in order.windows(2) {
        let [(first, a), (second, b)] = pair else {
            continue;
        };
        if b.bytes.start < a.bytes.end {
            return Err(HeaderError::Overlap {
                first: (*first).clone(),
                second: (*second).clone(),
                at: b.bytes.start,
            });
        }
    }
    Ok(())
}
