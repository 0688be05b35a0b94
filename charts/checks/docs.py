"""Promises about the documentation: what it names exists."""

import re
import shlex

from checks.chart import CHART, RELEASES, ROOT, read, render


def pages():
    yield ROOT / "README.md"
    yield ROOT / "ARCHITECTURE.md"
    yield ROOT / "examples" / "README.md"
    yield from sorted((ROOT / "docs").rglob("*.md"))


def where(page):
    return str(page.relative_to(ROOT))


def prose(page):
    """The page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.S | re.M)


def commands(page):
    """The shell commands that a page tells its reader to run, one a line."""
    for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.S | re.M):
        yield from filter(None, block.replace("\\\n", " ").splitlines())


def anchors(page):
    """The fragments that lead to the headings of a page."""
    for heading in re.findall(r"^#+ (.+)$", prose(page), re.M):
        yield re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def links_lead_somewhere():
    for page in pages():
        for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
            if re.match(r"[a-z]+:", target):
                continue
            path, _, fragment = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            if not file.exists():
                yield f"{where(page)}: {target} does not exist"
            elif fragment and fragment not in set(anchors(file)):
                yield f"{where(page)}: {target} has no such heading"


def every_reason_has_a_section_in_troubleshooting():
    source = (ROOT / "crds" / "src" / "condition.rs").read_text()
    reasons = re.findall(r'const \w+: &str = "(\w+)"', source.partition("pub mod reason")[2])
    if len(reasons) < 20:
        yield f"only {len(reasons)} reasons are found in crds/src/condition.rs"
    known = set(anchors(ROOT / "docs" / "troubleshooting.md"))
    for reason in reasons:
        if reason.lower() not in known:
            yield f"{reason} is not explained"


def commands_name_files_that_exist():
    for page in pages():
        for command in commands(page):
            for word in shlex.split(command, comments=True):
                if re.match(r"(examples|charts|docs|models)/", word) and not (ROOT / word).exists():
                    yield f"{where(page)}: {word} does not exist: {command}"


def helm_commands_set_values_that_exist():
    for page in pages():
        for command in commands(page):
            words = shlex.split(command, comments=True)
            if words[:2] not in (["helm", "install"], ["helm", "upgrade"]):
                continue
            settings = []
            for flag, value in zip(words, words[1:]):
                if flag.startswith("--set"):
                    settings += [flag, value]
            try:
                render(None, RELEASES[-1], *settings)
            except RuntimeError as error:
                yield f"{where(page)}: {command}: {error}"


def values_in_prose_exist():
    values = read(CHART / "values.yaml")
    for page in pages():
        for dotted in re.findall(r"`([a-z]\w*(?:\.\w+)+)(?:=[^`]*)?`", prose(page)):
            path = dotted.split(".")
            node = values
            if path[0] not in values:
                continue
            for key in path:
                if not isinstance(node, dict) or key not in node:
                    yield f"{where(page)}: {dotted} is no value of the chart"
                    break
                node = node[key]
