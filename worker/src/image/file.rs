//! A picture's file, read no further than pictures may be long.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::limits::Limits;

/// The bytes of the file at `path`: where there are more than the limit, one more than it, so that
/// [`super::decode`] refuses them.
///
/// # Errors
/// The file cannot be read.
pub fn read_file(path: &Path, limits: &Limits) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let most = limits.bytes as u64 + 1;
    File::open(path)?.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}
