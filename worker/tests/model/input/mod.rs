//! What goes into a model, compared with what Pillow, transformers and LLaVA
//! make of the same pictures and messages. The fixtures come from `tests/reference`.

pub(crate) mod checkpoint;
mod image_marks;
mod inspect;
mod picture_files;
pub(crate) mod pixels;
mod prompts;
mod token_counts;
