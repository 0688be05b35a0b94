//! Writes what is generated from the API's types: the CustomResourceDefinitions
//! into the chart and the reference page into the docs. With `--check` it only
//! compares.

mod reference;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crds::definition::definitions;

const HEADER: &str =
    "# Generated from the crate `crds`; change the types and run `make generate`.\n";

fn main() -> ExitCode {
    let check = std::env::args()
        .skip(1)
        .any(|argument| argument == "--check");
    match run(check) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("crdgen: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run(check: bool) -> Result<(), String> {
    for (path, text) in generated()? {
        if check {
            let found = std::fs::read_to_string(&path).unwrap_or_default();
            if found != text {
                return Err(format!(
                    "{} is out of date; run `make generate`",
                    path.display()
                ));
            }
        } else {
            let write = || {
                std::fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
                std::fs::write(&path, &text)
            };
            write().map_err(|error| format!("cannot write {}: {error}", path.display()))?;
        }
    }
    Ok(())
}

/// Every generated file with its content.
fn generated() -> Result<Vec<(PathBuf, String)>, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut files = Vec::new();
    for definition in definitions() {
        let yaml = serde_saphyr::to_string(&definition)
            .map_err(|error| format!("cannot print {}: {error}", definition.spec.names.kind))?;
        let name = format!("{}.yaml", definition.spec.names.plural);
        files.push((
            root.join("charts/llava-operator/files/crds").join(name),
            format!("{HEADER}{yaml}"),
        ));
    }
    files.push((
        root.join("docs/reference/api.md"),
        reference::page(&definitions()),
    ));
    Ok(files)
}

#[cfg(test)]
mod tests {
    #[test]
    fn generated_files_are_up_to_date() {
        assert_eq!(super::run(true), Ok(()));
    }
}
