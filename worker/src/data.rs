//! Data sets that this project makes itself: drawn scenes with questions whose
//! answers are known, so that a small model can be trained and judged without
//! any download.

mod draw;
mod phrase;
mod question;
mod scene;
pub mod shapes;
pub mod tokenizer;

pub use draw::render;
pub use question::QuestionKind;
pub use scene::{Layout, Scene, Split};
