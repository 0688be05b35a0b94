//! `/v1/models`: what clients may ask for.

use bytes::Bytes;
use serde::Serialize;

use crate::dispatch::fleet::Directory;

const OWNER: &str = "llava";

#[derive(Serialize)]
struct List {
    object: &'static str,
    data: Vec<Model>,
}

#[derive(Serialize)]
struct Model {
    id: String,
    object: &'static str,
    created: i64,
    owned_by: &'static str,
}

/// The list of all models.
pub(crate) fn list(directory: &Directory) -> Bytes {
    let data = directory
        .listed
        .iter()
        .map(|(name, created)| model(name, *created))
        .collect();
    json(&List {
        object: "list",
        data,
    })
}

/// One model, by any of its names.
pub(crate) fn one(directory: &Directory, id: &str) -> Option<Bytes> {
    let pool = directory.pool(id)?;
    let created = directory.created.get(&pool.key).copied().unwrap_or(0);
    Some(json(&model(id, created)))
}

fn model(id: &str, created: i64) -> Model {
    Model {
        id: id.to_owned(),
        object: "model",
        created,
        owned_by: OWNER,
    }
}

/// Serialises what cannot fail to serialise: plain structs of strings and numbers.
pub(crate) fn json(value: &impl Serialize) -> Bytes {
    serde_json::to_vec(value).unwrap_or_default().into()
}
