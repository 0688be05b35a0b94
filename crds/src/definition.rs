//! The CustomResourceDefinitions as they are installed. Types of Kubernetes
//! itself bring long descriptions and no bounds: the descriptions go, because
//! they make the CRD 20 times larger, and every string, list and map gets a
//! bound, because the API server budgets CEL rules by the worst case.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use kube::CustomResourceExt;

use crate::{LlavaDeployment, LlavaWorker};

/// Bounds of what names none of its own.
const MAX_STRING: i64 = 4096;
const MAX_ITEMS: i64 = 64;
const MAX_PROPERTIES: i64 = 64;

/// Fields that hold types of Kubernetes.
const EMBEDDED: &[&str] = &[
    "affinity",
    "conditions",
    "env",
    "imagePullSecrets",
    "tolerations",
    "topologySpreadConstraints",
];

/// Both definitions, ready to be installed.
#[must_use]
pub fn definitions() -> [CustomResourceDefinition; 2] {
    [LlavaDeployment::crd(), LlavaWorker::crd()].map(|mut definition| {
        for version in &mut definition.spec.versions {
            if let Some(schema) = version
                .schema
                .as_mut()
                .and_then(|schema| schema.open_api_v3_schema.as_mut())
            {
                tidy(schema, false);
            }
        }
        definition
    })
}

fn tidy(schema: &mut JSONSchemaProps, embedded: bool) {
    if embedded {
        schema.description = None;
    }
    bound(schema);
    for (name, property) in schema.properties.iter_mut().flatten() {
        if embedded {
            property.description = None;
        }
        let inside = embedded || EMBEDDED.contains(&name.as_str());
        let description = property.description.take();
        tidy(property, inside);
        property.description = description;
    }
    match &mut schema.items {
        Some(JSONSchemaPropsOrArray::Schema(items)) => tidy(items, embedded),
        Some(JSONSchemaPropsOrArray::Schemas(many)) => {
            many.iter_mut().for_each(|items| tidy(items, embedded));
        }
        None => {}
    }
    if let Some(JSONSchemaPropsOrBool::Schema(values)) = &mut schema.additional_properties {
        tidy(values, embedded);
    }
}

fn bound(schema: &mut JSONSchemaProps) {
    match schema.type_.as_deref() {
        Some("string") if schema.enum_.is_none() && schema.format.is_none() => {
            schema.max_length.get_or_insert(MAX_STRING);
        }
        Some("array") => {
            schema.max_items.get_or_insert(MAX_ITEMS);
        }
        Some("object") if schema.additional_properties.is_some() => {
            schema.max_properties.get_or_insert(MAX_PROPERTIES);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definitions_stay_far_below_what_kubectl_can_apply() {
        for definition in definitions() {
            let bytes = serde_json::to_vec(&definition).unwrap().len();
            assert!(
                bytes < 64 * 1024,
                "{:?}: {bytes} bytes",
                definition.metadata.name
            );
        }
    }

    #[test]
    fn every_field_of_ours_is_described() {
        fn walk(schema: &JSONSchemaProps, path: &str) {
            for (name, property) in schema.properties.iter().flatten() {
                let path = format!("{path}.{name}");
                assert!(property.description.is_some(), "{path} has no description");
                if !EMBEDDED.contains(&name.as_str()) {
                    walk(property, &path);
                }
            }
        }
        for definition in definitions() {
            let schema = definition.spec.versions[0].schema.as_ref().unwrap();
            let root = schema.open_api_v3_schema.as_ref().unwrap();
            for part in ["spec", "status"] {
                walk(&root.properties.as_ref().unwrap()[part], part);
            }
        }
    }
}
