//! The folder that a conversion makes: it appears under its name when everything in
//! it is written, and never replaces another.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use serde_json::{Value, json};

use super::{ConvertError, Progress, file_error};
use crate::weights::Kind;

/// Bytes of weights in one file, as transformers splits them.
const SHARD: usize = 5_000_000_000;
/// Letters that tell folders under construction for one place apart.
const RANDOM: usize = 6;

/// A tensor to write; its bytes are made when their turn comes.
pub(super) struct Tensor<'a> {
    pub(super) name: String,
    pub(super) kind: Kind,
    pub(super) shape: Vec<usize>,
    pub(super) data: Box<dyn Fn() -> Result<Cow<'a, [u8]>, ConvertError> + 'a>,
}

impl Tensor<'_> {
    fn bytes(&self) -> usize {
        self.kind.bytes().unwrap_or(1) * self.shape.iter().product::<usize>()
    }
}

/// A folder under construction beside its place.
pub(super) struct Folder {
    building: tempfile::TempDir,
    out: PathBuf,
    /// Locked as long as it is built: what nobody holds was left by a process that was killed.
    _held: File,
}

impl Folder {
    pub(super) fn begin(out: &Path) -> Result<Self, ConvertError> {
        if out.symlink_metadata().is_ok() {
            return Err(ConvertError::Exists {
                path: out.to_owned(),
            });
        }
        let parent = out
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        let name = out.file_name().unwrap_or_default().to_string_lossy();
        let prefix = format!(".converting-{name}-");
        remove_leftovers(parent, &prefix).map_err(file_error(parent))?;
        loop {
            let building = tempfile::Builder::new()
                .prefix(&prefix)
                .rand_bytes(RANDOM)
                .tempdir_in(parent)
                .map_err(file_error(parent))?;
            let held = File::open(building.path()).map_err(file_error(parent))?;
            // Where a file system knows no locks, nothing is taken for left over either.
            let _ = held.lock();
            // Another process may have taken it for left over before it was locked.
            if building.path().is_dir() {
                return Ok(Self {
                    building,
                    out: out.to_owned(),
                    _held: held,
                });
            }
        }
    }

    /// Where `name` goes, its folder made.
    fn place(&self, name: &str) -> Result<PathBuf, ConvertError> {
        let path = self.building.path().join(name);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(file_error(folder))?;
        }
        Ok(path)
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.building.path().join(name).exists()
    }

    /// Copies a file as it is.
    pub(super) fn copy(&self, from: &Path, name: &str) -> Result<(), ConvertError> {
        fs::copy(from, self.place(name)?).map_err(file_error(from))?;
        Ok(())
    }

    pub(super) fn json(&self, name: &str, value: &Value) -> Result<(), ConvertError> {
        self.text(name, &format!("{value:#}\n"))
    }

    pub(super) fn text(&self, name: &str, text: &str) -> Result<(), ConvertError> {
        let path = self.place(name)?;
        fs::write(&path, text).map_err(file_error(&path))
    }

    /// Writes one file of tensors.
    pub(super) fn tensors(
        &self,
        name: &str,
        tensors: &[Tensor<'_>],
        progress: &Meter<'_>,
    ) -> Result<(), ConvertError> {
        let path = self.place(name)?;
        progress.file(name);
        let failed = RefCell::new(None);
        let views = tensors.iter().map(|tensor| {
            let view = View {
                tensor,
                failed: &failed,
                progress,
            };
            (tensor.name.as_str(), view)
        });
        // transformers reads only files that say which framework wrote them.
        let about = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        let written = safetensors::serialize_to_file(views, Some(about), &path);
        if let Some(error) = failed.into_inner() {
            return Err(error);
        }
        written.map_err(|source| ConvertError::Write { path, source })
    }

    /// Writes a whole model: `model.safetensors`, or shards of it with an index.
    pub(super) fn model(
        &self,
        folder: &str,
        tensors: Vec<Tensor<'_>>,
        progress: &Meter<'_>,
    ) -> Result<(), ConvertError> {
        let mut shards: Vec<Vec<Tensor<'_>>> = vec![Vec::new()];
        let mut filled = 0;
        for tensor in tensors {
            if filled > 0 && filled + tensor.bytes() > SHARD {
                shards.push(Vec::new());
                filled = 0;
            }
            filled += tensor.bytes();
            if let Some(shard) = shards.last_mut() {
                shard.push(tensor);
            }
        }
        let count = shards.len();
        let mut index = Index::default();
        for (at, shard) in shards.iter().enumerate() {
            let name = match count {
                1 => "model.safetensors".to_owned(),
                _ => format!("model-{:05}-of-{count:05}.safetensors", at + 1),
            };
            self.tensors(&format!("{folder}{name}"), shard, progress)?;
            index.add(&name, shard);
        }
        if count > 1 {
            index.write(self, folder)?;
        }
        Ok(())
    }

    /// Gives the folder its name.
    pub(super) fn finish(self) -> Result<(), ConvertError> {
        // The temporary folder is the owner's alone; a checkpoint is for everyone who may read beside it.
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let open = fs::Permissions::from_mode(0o755);
            fs::set_permissions(self.building.path(), open).map_err(file_error(&self.out))?;
        }
        // Linux would rename over an empty folder that appeared meanwhile; no other is lost.
        fs::rename(self.building.path(), &self.out).map_err(file_error(&self.out))?;
        let _ = self.building.keep();
        Ok(())
    }
}

/// Removes what conversions to the same place left that were killed.
fn remove_leftovers(parent: &Path, prefix: &str) -> io::Result<()> {
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        let name = entry.file_name();
        let random = name.to_str().and_then(|name| name.strip_prefix(prefix));
        let ours = random.is_some_and(|random| random.len() == RANDOM);
        if !ours || !entry.file_type()?.is_dir() {
            continue;
        }
        let path = entry.path();
        // It may go meanwhile, or belong to somebody else: it is no reason not to convert.
        if let Ok(left) = File::open(&path)
            && left.try_lock().is_ok()
        {
            let _ = fs::remove_dir_all(&path);
        }
    }
    Ok(())
}

/// Which file holds each tensor of a model in several files.
#[derive(Default)]
pub(super) struct Index {
    bytes: usize,
    files: BTreeMap<String, String>,
}

impl Index {
    pub(super) fn add(&mut self, file: &str, tensors: &[Tensor<'_>]) {
        self.bytes += tensors.iter().map(Tensor::bytes).sum::<usize>();
        let named = tensors
            .iter()
            .map(|tensor| (tensor.name.clone(), file.to_owned()));
        self.files.extend(named);
    }

    pub(super) fn write(&self, to: &Folder, folder: &str) -> Result<(), ConvertError> {
        let index = json!({ "metadata": { "total_size": self.bytes }, "weight_map": self.files });
        to.json(&format!("{folder}model.safetensors.index.json"), &index)
    }
}

/// Counts the bytes that are written.
pub(super) struct Meter<'a> {
    hear: &'a dyn Fn(&Progress),
    now: RefCell<Progress>,
}

impl<'a> Meter<'a> {
    pub(super) fn new(total: usize, hear: &'a dyn Fn(&Progress)) -> Self {
        let now = Progress {
            file: String::new(),
            done: 0,
            total,
        };
        Self {
            hear,
            now: RefCell::new(now),
        }
    }

    fn file(&self, name: &str) {
        name.clone_into(&mut self.now.borrow_mut().file);
        (self.hear)(&self.now.borrow());
    }

    fn more(&self, bytes: usize) {
        self.now.borrow_mut().done += bytes;
        (self.hear)(&self.now.borrow());
    }
}

/// Bytes of all tensors together.
pub(super) fn bytes(tensors: &[Tensor<'_>]) -> usize {
    tensors.iter().map(Tensor::bytes).sum()
}

/// A tensor as the library asks for it; it cannot hear of errors, so they wait here.
struct View<'a, 'b> {
    tensor: &'b Tensor<'a>,
    failed: &'b RefCell<Option<ConvertError>>,
    progress: &'b Meter<'b>,
}

impl safetensors::View for View<'_, '_> {
    fn dtype(&self) -> Dtype {
        dtype(self.tensor.kind)
    }

    fn shape(&self) -> &[usize] {
        &self.tensor.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        // After the first error the file is thrown away whatever comes.
        if self.failed.borrow().is_some() {
            return Cow::Borrowed(&[]);
        }
        match (self.tensor.data)() {
            Ok(data) => {
                self.progress.more(data.len());
                data
            }
            Err(error) => {
                *self.failed.borrow_mut() = Some(error);
                Cow::Borrowed(&[])
            }
        }
    }

    fn data_len(&self) -> usize {
        self.tensor.bytes()
    }
}

fn dtype(kind: Kind) -> Dtype {
    match kind {
        Kind::F64 => Dtype::F64,
        Kind::F32 => Dtype::F32,
        Kind::F16 => Dtype::F16,
        Kind::BF16 => Dtype::BF16,
        Kind::I64 => Dtype::I64,
        Kind::I32 => Dtype::I32,
        Kind::I16 => Dtype::I16,
        Kind::I8 => Dtype::I8,
        Kind::U64 => Dtype::U64,
        Kind::U32 => Dtype::U32,
        Kind::U16 => Dtype::U16,
        Kind::BOOL => Dtype::BOOL,
        Kind::U8 | Kind::Other => Dtype::U8,
    }
}
