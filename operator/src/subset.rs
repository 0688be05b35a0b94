//! Whether an object already has what would be applied to it. Comparing first
//! keeps a restart of the operator free of writes.

use serde::Serialize;
use serde_json::Value;

/// Whether every field of `wanted` is in `found` with the same value. Lists are
/// compared item by item; `found` may have further fields, which are others'.
#[must_use]
pub fn holds(wanted: &Value, found: &impl Serialize) -> bool {
    serde_json::to_value(found).is_ok_and(|found| within(wanted, &found))
}

fn within(wanted: &Value, found: &Value) -> bool {
    match (wanted, found) {
        (Value::Object(wanted), Value::Object(found)) => wanted.iter().all(|(name, field)| {
            match found.get(name) {
                Some(there) => within(field, there),
                // What the API server drops when it is empty.
                None => is_empty(field),
            }
        }),
        (Value::Array(wanted), Value::Array(found)) => {
            wanted.len() == found.len()
                && wanted
                    .iter()
                    .zip(found)
                    .all(|(wanted, found)| within(wanted, found))
        }
        (wanted, found) => wanted == found,
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.values().all(is_empty),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_of_others_do_not_matter_and_ours_do() {
        let wanted = json!({"labels": {"a": "1"}, "ports": [{"port": 1}]});
        assert!(holds(
            &wanted,
            &json!({"labels": {"a": "1", "b": "2"}, "ports": [{"port": 1, "protocol": "TCP"}], "x": 1})
        ));
        assert!(!holds(
            &wanted,
            &json!({"labels": {"a": "2"}, "ports": [{"port": 1}]})
        ));
        assert!(!holds(
            &wanted,
            &json!({"labels": {"a": "1"}, "ports": [{"port": 1}, {"port": 2}]})
        ));
        assert!(holds(&json!({"rules": []}), &json!({})));
    }
}
