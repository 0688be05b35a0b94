//! What a file's contents are checked by: SHA-256, or what Git calls them by, which is all that the hub tells of
//! files that are small enough to lie in its repository themselves.

use std::fmt::{self, Display, Formatter};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// A digest in lower-case hex.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Checksum {
    Sha256(String),
    /// SHA-1 of the word `blob`, the length, and the contents.
    GitBlob(String),
}

impl Checksum {
    /// The hex digits alone.
    pub(super) fn hex(&self) -> &str {
        match self {
            Self::Sha256(hex) | Self::GitBlob(hex) => hex,
        }
    }

    /// Whether it has as many hex digits as such digests have.
    pub(super) fn is_well_formed(&self) -> bool {
        let digits = match self {
            Self::Sha256(_) => 64,
            Self::GitBlob(_) => 40,
        };
        self.hex().len() == digits && self.hex().chars().all(|c| c.is_ascii_hexdigit())
    }

    /// The same digest of the file at `path`.
    pub(super) fn of_file(&self, path: &Path) -> io::Result<Self> {
        let mut file = File::open(path)?;
        match self {
            Self::Sha256(_) => {
                use sha2::Digest;
                let mut digest = sha2::Sha256::new();
                each_block(&mut file, |block| digest.update(block))?;
                Ok(Self::Sha256(hex(&digest.finalize())))
            }
            Self::GitBlob(_) => {
                use sha1::Digest;
                let mut digest = sha1::Sha1::new();
                digest.update(format!("blob {}\0", file.metadata()?.len()));
                each_block(&mut file, |block| digest.update(block))?;
                Ok(Self::GitBlob(hex(&digest.finalize())))
            }
        }
    }
}

impl Display for Checksum {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sha256(hex) => write!(f, "SHA-256 {hex}"),
            Self::GitBlob(hex) => write!(f, "Git blob {hex}"),
        }
    }
}

fn each_block(file: &mut File, mut take: impl FnMut(&[u8])) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(()),
            read => take(&buffer[..read]),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_named_as_git_and_sha256sum_name_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        for (contents, sha256, blob) in [
            (
                "",
                "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
                "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391",
            ),
            (
                "hello\n",
                "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
                "ce013625030ba8dba906f756967f9e9ca394464a",
            ),
        ] {
            std::fs::write(&path, contents).unwrap();
            for wanted in [
                Checksum::Sha256(sha256.to_owned()),
                Checksum::GitBlob(blob.to_owned()),
            ] {
                assert_eq!(wanted.of_file(&path).unwrap(), wanted);
            }
        }
    }
}
