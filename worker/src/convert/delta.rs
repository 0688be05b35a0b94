//! LLaVA's deltas: the difference between a model and the language model that it was
//! made from, published where the latter may not be.

use std::borrow::Cow;
use std::path::Path;

use super::folder::{Folder, Meter, Tensor, bytes};
use super::{ConvertError, Progress, files, holds_weights, narrowed};
use crate::weights::{Raw, Weights, floats};

/// Writes the checkpoint in `dir`, each weight that `base` has too combined with it.
pub(super) fn combine(
    dir: &Path,
    base: &Path,
    out: &Path,
    both: impl Fn(f32, f32) -> f32,
    hear: &dyn Fn(&Progress),
) -> Result<(), ConvertError> {
    let to = Folder::begin(out)?;
    let (ours, theirs) = (Weights::open(dir)?, Weights::open(base)?);
    let apart = |problem| ConvertError::Apart {
        first: dir.to_owned(),
        second: base.to_owned(),
        problem,
    };
    let both = &both;
    let mut tensors = Vec::new();
    for name in ours.names() {
        let Some(raw) = ours.raw(name) else { continue };
        let written = ours.written(name).unwrap_or(name).to_owned();
        let other = theirs.raw(name);
        match &other {
            // LLaVA's own parts have no base.
            None if !name.starts_with("text.") && !name.starts_with("head.") => {}
            None => return Err(apart(format!("tensor `{written}` is not in the base"))),
            Some(other) if !fits(name, &raw, other) => {
                return Err(apart(format!(
                    "tensor `{written}` has shape {:?}, but {:?} in the base",
                    raw.shape, other.shape
                )));
            }
            Some(_) => {}
        }
        let failed = apart(format!("tensor `{written}` holds no floats"));
        let (Some(_), true) = (
            floats(&[], raw.kind),
            other.is_none_or(|raw| floats(&[], raw.kind).is_some()),
        ) else {
            return Err(failed);
        };
        tensors.push(Tensor {
            name: written,
            kind: raw.kind,
            shape: raw.shape.to_vec(),
            data: Box::new(move || {
                let Some(other) = other else {
                    return Ok(Cow::Borrowed(raw.bytes));
                };
                let mut values = floats(raw.bytes, raw.kind).unwrap_or_default();
                let others = floats(other.bytes, other.kind).unwrap_or_default();
                // Rows that the base lacks are new tokens and stay.
                for (value, other) in values.iter_mut().zip(others) {
                    *value = both(*value, other);
                }
                Ok(Cow::Owned(narrowed(&values, raw.kind)))
            }),
        });
    }
    for (name, path) in files(dir)? {
        if !holds_weights(&name) {
            to.copy(&path, &name)?;
        }
    }
    let meter = Meter::new(bytes(&tensors), hear);
    to.model("", tensors, &meter)?;
    to.finish()
}

/// Whether two tensors can be combined: equal, or a vocabulary with tokens added at its end.
fn fits(name: &str, ours: &Raw<'_>, base: &Raw<'_>) -> bool {
    let words = ["text.embed_tokens.weight", "head.weight"].contains(&name);
    ours.shape == base.shape
        || words && matches!((ours.shape, base.shape), ([a, x], [b, y]) if a >= b && x == y)
}
