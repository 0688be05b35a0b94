//! From a file's bytes to the tower's input: limits read from the header, then
//! decoding, then the resizing and cutting that each family of LLaVA was trained on.

mod config;
mod config_file;
mod cost;
mod decode;
mod file;
mod jpeg;
mod limits;
mod picture;
mod plan;
mod process;
mod resample;
mod size;

pub use config::{Filter, Mode, ProcessorConfig};
pub use config_file::ProcessorError;
pub use decode::{DecodeError, Header, decode, read_header};
pub use file::read_file;
pub use limits::{Exceeded, Limits};
pub use picture::Picture;
pub use process::ImageProcessor;
pub use size::{BadSize, Size};
