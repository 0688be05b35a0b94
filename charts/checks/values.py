"""Promises about the chart's values and their schema."""

import json
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

from checks.chart import CHART, matrix, read, render


def wrong_values_are_refused_and_the_message_names_the_field():
    """Each file in ci/refused opens with `# refused: WHAT`, words that the message must hold."""
    files = sorted((CHART / "ci" / "refused").glob("*.yaml"))
    if len(files) < 20:
        yield f"only {len(files)} files of refused values: some are missing"
    for file in files:
        wanted = file.read_text().splitlines()[0].removeprefix("# refused: ")
        try:
            render(file)
            yield f"{file.name}: accepted"
        except RuntimeError as error:
            if wanted not in str(error):
                yield f"{file.name}: the message lacks `{wanted}`: {error}"


def the_schema_knows_exactly_the_values_that_exist():
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = read(CHART / "values.yaml")

    def follow(node):
        while "$ref" in node:
            node = schema["definitions"][node["$ref"].rsplit("/", 1)[1]]
        return node

    def walk(node, value, path):
        node = follow(node)
        known = node.get("properties")
        if known is None or not isinstance(value, dict):
            return
        if node.get("additionalProperties") is not False:
            yield f"{path}: takes values that nobody reads"
        # Of an empty default, such as an affinity, every property is optional.
        expected = set(known) - {"global"} if value else set()
        for missing in expected - set(value):
            yield f"{path}.{missing}: is in values.schema.json, and not in values.yaml"
        for key, inner in value.items():
            if key not in known:
                yield f"{path}.{key}: is in values.yaml, and not in values.schema.json"
            else:
                yield from walk(known[key], inner, f"{path}.{key}")

    yield from walk(schema, values, "")


def leaves(values, path=()):
    """The paths of values that templates read whole: all but the chart's own nesting."""
    for key, inner in values.items():
        if isinstance(inner, dict) and (path + (key,)) in NESTED:
            yield from leaves(inner, path + (key,))
        else:
            yield path + (key,)


def nested(values, path=()):
    for key, inner in values.items():
        if isinstance(inner, dict) and inner:
            yield path + (key,)
            yield from nested(inner, path + (key,))


DEFAULTS = read(CHART / "values.yaml")
# Maps that hold values of the chart, and not labels or quantities.
NESTED = {path for path in nested(DEFAULTS) if path[-1] not in ("resources", "labels")}


def every_value_has_an_effect():
    """Taking any one value out of the files in ci/ changes what some file renders."""

    def matters(values, path):
        content = read(values)
        inner = content
        for key in path[:-1]:
            inner = inner[key]
        del inner[path[-1]]
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            yaml.safe_dump(content, file)
            file.flush()
            return render(Path(file.name)) != render(values)

    tried = {}
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for values in matrix()[1:]:
            for path in leaves(read(values)):
                tried.setdefault(path, []).append(pool.submit(matters, values, path))
    for path in leaves(DEFAULTS):
        dotted = ".".join(path)
        if path not in tried:
            yield f"{dotted}: no file in ci/ sets it"
        elif not any(result.result() for result in tried[path]):
            yield f"{dotted}: changes nothing"
