"""The chart: how Helm renders it, and over which values."""

import functools
import os
import subprocess
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
CHART = ROOT / "charts" / "llava-operator"
NAMESPACE = "llava"
RELEASES = ["1.33.0", "1.34.0", "1.35.0", "1.36.0"]


class Loader(yaml.CSafeLoader):
    """YAML that refuses a key given twice, as strict clients do."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = {str(key) for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.constructor.ConstructorError(
                None, None, f"keys given twice: {', '.join(sorted(twice))}", node.start_mark
            )
        return super().construct_mapping(node, deep)


def documents(text):
    return [document for document in yaml.load_all(text, Loader) if document]


def helm(*arguments):
    return subprocess.run(
        [os.environ["HELM"], *arguments], capture_output=True, text=True, check=False
    )


@functools.cache
def render(values=None, version=RELEASES[-1], *settings):
    """The manifests for a file of values, hooks included; or Helm's complaint."""
    arguments = ["template", "llava", str(CHART), "--namespace", NAMESPACE, *settings]
    arguments += ["--kube-version", version]
    if values:
        arguments += ["--values", str(values)]
    done = helm(*arguments)
    if done.returncode:
        raise RuntimeError(done.stderr.strip())
    return documents(done.stdout)


def read(file):
    return yaml.load(file.read_text(), Loader)


def matrix():
    """The default values, and every file of accepted ones."""
    return [None, *sorted((CHART / "ci").glob("*.yaml"))]


def label(values):
    return values.stem if values else "default"


def name(document):
    return f"{document['kind']}/{document['metadata']['name']}"
