//! The revision of a worker template and the names that follow from it. Equal
//! templates have equal revisions in every release and on every machine: the
//! hash sees keys in sorted order, and a field that has its default and stays
//! out of the JSON changes nothing.

use crds::worker::WorkerTemplate;
use serde_json::Value;
use sha2::{Digest, Sha256};

/// Kubernetes' own alphabet for generated names: no vowels, so no words.
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
const LENGTH: usize = 8;

/// The hash of a template, 8 characters that fit into names and labels.
///
/// # Errors
/// When the template cannot be written as JSON.
pub fn revision(template: &WorkerTemplate) -> Result<String, serde_json::Error> {
    let value = serde_json::to_value(template)?;
    let mut hasher = Sha256::new();
    feed(&value, &mut hasher);
    let digest = hasher.finalize();
    let mut number = digest[..8]
        .iter()
        .fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    let mut text = String::with_capacity(LENGTH);
    for _ in 0..LENGTH {
        let index = usize::try_from(number % 27).unwrap_or_default();
        text.push(char::from(ALPHABET[index]));
        number /= 27;
    }
    Ok(text)
}

/// `<deployment>-<revision>-<ordinal>`: LlavaWorker, Pod and Lease.
#[must_use]
pub fn worker_name(deployment: &str, revision: &str, ordinal: u32) -> String {
    format!("{deployment}-{revision}-{ordinal}")
}

/// The ordinal in a worker's name, when the rest is as expected.
#[must_use]
pub fn ordinal(name: &str, deployment: &str, revision: &str) -> Option<u32> {
    name.strip_prefix(deployment)?
        .strip_prefix('-')?
        .strip_prefix(revision)?
        .strip_prefix('-')?
        .parse()
        .ok()
}

/// Every value with its kind and length before it, so that no two trees read alike.
fn feed(value: &Value, hasher: &mut Sha256) {
    match value {
        Value::Null => hasher.update(b"n"),
        Value::Bool(flag) => hasher.update(if *flag { b"t" } else { b"f" }),
        Value::Number(number) => text(b'd', &number.to_string(), hasher),
        Value::String(string) => text(b's', string, hasher),
        Value::Array(items) => {
            text(b'a', &items.len().to_string(), hasher);
            items.iter().for_each(|item| feed(item, hasher));
        }
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_unstable_by_key(|(name, _)| *name);
            text(b'o', &fields.len().to_string(), hasher);
            for (name, field) in fields {
                text(b'k', name, hasher);
                feed(field, hasher);
            }
        }
    }
}

fn text(kind: u8, text: &str, hasher: &mut Sha256) {
    hasher.update([kind]);
    hasher.update(u64::try_from(text.len()).unwrap_or_default().to_be_bytes());
    hasher.update(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn minimal() -> WorkerTemplate {
        serde_json::from_value(serde_json::json!({
            "model": {"name": "llava", "source": {"huggingFace": {"repo": "llava-hf/llava-1.5-7b-hf"}}},
            "engine": {"native": {}},
            "drain": {"timeout": "1m"},
            "image": "llava-worker:1",
            "serviceAccountName": "llava-workers",
        }))
        .unwrap()
    }

    /// A change of this value restarts every worker of every user at the next upgrade.
    #[test]
    fn the_revision_of_a_template_never_changes() {
        assert_eq!(revision(&minimal()).unwrap(), "6wsfjlwm");
    }

    #[test]
    fn the_order_in_which_a_user_wrote_a_map_does_not_matter() {
        let mut one = minimal();
        let mut two = minimal();
        let labels =
            [("a", "1"), ("b", "2"), ("c", "3")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        one.pod.labels.extend(labels.clone());
        two.pod.labels.extend(labels.into_iter().rev());
        assert_eq!(revision(&one).unwrap(), revision(&two).unwrap());
        assert_ne!(revision(&one).unwrap(), revision(&minimal()).unwrap());
    }

    #[test]
    fn names_read_back() {
        let name = worker_name("llava-7b", "abc", 12);
        assert_eq!(ordinal(&name, "llava-7b", "abc"), Some(12));
        assert_eq!(ordinal(&name, "llava", "7b"), None);
    }
}
