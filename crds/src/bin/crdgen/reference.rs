//! The reference page of the API: one table for each object of the schema.

use std::fmt::Write;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};

/// The page in Markdown.
pub(crate) fn page(definitions: &[CustomResourceDefinition]) -> String {
    let mut page = String::from(
        "# API reference\n\n<!-- Generated from the crate `crds`; change the types and run `make generate`. -->\n\n\
         Objects of Kubernetes itself (affinity, tolerations, …) are not spelled out here.\n",
    );
    for definition in definitions {
        let names = &definition.spec.names;
        let version = &definition.spec.versions[0];
        let _ = write!(
            page,
            "\n## {}\n\n`{}/{}`, short name `{}`. ",
            names.kind,
            definition.spec.group,
            version.name,
            names
                .short_names
                .iter()
                .flatten()
                .next()
                .map_or("", String::as_str),
        );
        let Some(root) = version
            .schema
            .as_ref()
            .and_then(|schema| schema.open_api_v3_schema.as_ref())
        else {
            continue;
        };
        page.push_str(root.description.as_deref().unwrap_or_default());
        page.push('\n');
        rules(root, &mut page);
        for part in ["spec", "status"] {
            if let Some(schema) = root.properties.as_ref().and_then(|all| all.get(part)) {
                object(schema, part, &mut page);
            }
        }
    }
    page
}

/// A table of the object's fields, then those of the objects within it.
fn object(schema: &JSONSchemaProps, path: &str, page: &mut String) {
    let _ = write!(page, "\n### {path}\n\n");
    if let Some(description) = &schema.description {
        let _ = write!(page, "{}\n\n", one_line(description));
    }
    page.push_str("| field | type | default | description |\n|---|---|---|---|\n");
    let required = schema.required.clone().unwrap_or_default();
    for (name, field) in schema.properties.iter().flatten() {
        let default = match &field.default {
            Some(value) => format!("`{}`", value.0),
            None if required.contains(name) => "required".to_owned(),
            None => String::new(),
        };
        let _ = writeln!(
            page,
            "| `{name}` | {} | {default} | {} |",
            kind(field),
            one_line(field.description.as_deref().unwrap_or_default()),
        );
    }
    rules(schema, page);
    for (name, field) in schema.properties.iter().flatten() {
        // What carries no descriptions is Kubernetes' own.
        let ours = |inner: &JSONSchemaProps| {
            inner
                .properties
                .iter()
                .flatten()
                .any(|(_, field)| field.description.is_some())
        };
        if ours(field) {
            object(field, &format!("{path}.{name}"), page);
        }
    }
}

fn rules(schema: &JSONSchemaProps, page: &mut String) {
    let own = schema.x_kubernetes_validations.iter().flatten();
    let of_fields = schema
        .properties
        .iter()
        .flatten()
        .filter(|(_, field)| field.properties.is_none())
        .flat_map(|(_, field)| field.x_kubernetes_validations.iter().flatten());
    let messages: Vec<_> = own
        .chain(of_fields)
        .filter_map(|rule| rule.message.as_deref())
        .collect();
    if !messages.is_empty() {
        page.push_str("\nRules:\n\n");
        for message in messages {
            let _ = writeln!(page, "- {message}");
        }
    }
}

fn kind(schema: &JSONSchemaProps) -> String {
    if let Some(values) = &schema.enum_ {
        let values: Vec<_> = values
            .iter()
            .filter(|value| !value.0.is_null())
            .map(|value| format!("`{}`", value.0.as_str().unwrap_or_default()))
            .collect();
        return values.join(" or ");
    }
    if schema.x_kubernetes_int_or_string == Some(true) {
        return "number or text".to_owned();
    }
    match (
        schema.type_.as_deref(),
        &schema.items,
        &schema.additional_properties,
    ) {
        (Some("array"), Some(JSONSchemaPropsOrArray::Schema(items)), _) => {
            format!("list of {}", kind(items))
        }
        (Some("object"), _, Some(JSONSchemaPropsOrBool::Schema(values))) => {
            format!("map to {}", kind(values))
        }
        (Some("string"), ..) => match schema.format.as_deref() {
            Some("date-time") => "time".to_owned(),
            _ => "text".to_owned(),
        },
        (Some(name), ..) => {
            let bounds = match (schema.minimum, schema.maximum) {
                (Some(low), Some(high)) => format!(", {low} to {high}"),
                (Some(low), None) => format!(", at least {low}"),
                _ => String::new(),
            };
            format!("{name}{bounds}")
        }
        (None, ..) => String::new(),
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .replace('|', "\\|")
}
