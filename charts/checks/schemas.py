"""Strict schemas: of every Kubernetes release that the chart promises, and of our own kinds."""

import copy
import functools
import json

import importlib_resources
import jsonschema
import referencing

from checks.chart import CHART, documents


@functools.cache
def validator(version, kind, api_version):
    """The strict validator of one kind in one Kubernetes release, or None."""
    package = importlib_resources.files("kubernetes_validate")
    folder = package / "kubernetes-json-schema" / f"v{version}-local-strict"
    group = api_version.split("/")[0].split(".")[0]
    stem = f"{group}-{api_version.split('/')[1]}" if "/" in api_version else api_version
    file = folder / f"{kind.lower()}-{stem}.json"
    if not file.is_file():
        return None
    return jsonschema.Draft202012Validator(
        json.loads(file.read_text()), registry=definitions(version)
    )


@functools.cache
def definitions(version):
    package = importlib_resources.files("kubernetes_validate")
    file = package / "kubernetes-json-schema" / f"v{version}-local-strict" / "_definitions.json"
    resource = referencing.Resource.from_contents(json.loads(file.read_text()))
    return resource @ referencing.Registry()


def faults(schema, document):
    for error in schema.iter_errors(document):
        best = jsonschema.exceptions.best_match([error])
        where = ".".join(str(part) for part in best.absolute_path) or "."
        yield f"{where}: {best.message[:300]}"


def closed(schema):
    """An openAPIV3Schema of a CRD as a strict JSON schema: what a strict client refuses."""
    schema = copy.deepcopy(schema)

    def walk(node):
        if isinstance(node, list):
            for item in node:
                walk(item)
        if not isinstance(node, dict):
            return
        for key, value in node.items():
            if key in ("properties", "patternProperties"):
                for inner in value.values():
                    walk(inner)
            elif key not in ("default", "enum", "example"):
                walk(value)
        open_ended = node.get("x-kubernetes-preserve-unknown-fields")
        if "properties" in node and "type" in node and not open_ended:
            node.setdefault("additionalProperties", False)
        if node.get("x-kubernetes-int-or-string"):
            node.pop("anyOf", None)
            node["type"] = ["integer", "string"]
        if node.get("nullable"):
            if isinstance(node.get("type"), str):
                node["type"] = [node["type"], "null"]
            if "enum" in node and None not in node["enum"]:
                node["enum"] = [*node["enum"], None]

    walk(schema)
    return schema


def resources(schema):
    """The fields of a kind that the API server itself adds to the CRD's schema."""
    properties = schema.setdefault("properties", {})
    for field in ("apiVersion", "kind"):
        properties.setdefault(field, {"type": "string"})
    properties["metadata"] = {"type": "object"}
    return schema


@functools.cache
def custom_kinds():
    """Validators of our kinds by (apiVersion, kind), from the generated CRDs."""
    found = {}
    for file in sorted((CHART / "files" / "crds").glob("*.yaml")):
        for crd in documents(file.read_text()):
            for version in crd["spec"]["versions"]:
                key = (f"{crd['spec']['group']}/{version['name']}", crd["spec"]["names"]["kind"])
                schema = resources(closed(version["schema"]["openAPIV3Schema"]))
                found[key] = jsonschema.Draft202012Validator(schema)
    return found
