"""Promises about the examples."""

from checks.chart import RELEASES, ROOT, documents, name
from checks.schemas import custom_kinds, faults, validator


def examples_are_valid():
    for file in sorted((ROOT / "examples").rglob("*.yaml")):
        for document in documents(file.read_text()):
            where = f"{file.relative_to(ROOT)}: {name(document)}"
            key = (document["apiVersion"], document["kind"])
            if key in custom_kinds():
                for fault in faults(custom_kinds()[key], document):
                    yield f"{where}: {fault}"
                continue
            for version in RELEASES:
                schema = validator(version, document["kind"], document["apiVersion"])
                if schema is None:
                    yield f"{where}: Kubernetes {version} has no such kind"
                    continue
                for fault in faults(schema, document):
                    yield f"{where}: Kubernetes {version}: {fault}"
