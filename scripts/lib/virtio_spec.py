# SPDX-License-Identifier: GPL-2.0-or-later
"""Make the chapter part of a checkout of the virtio specification.

usage: virtio_spec.py id|chapter TREE

Two steps, which become two patches: "id" reserves the device ID, "chapter" adds the device
type and its conformance clauses. Each addition goes after the last one of its kind,
wherever that is by now.
"""

import re
import sys
from pathlib import Path

SPEC = Path(__file__).resolve().parents[2] / "spec"
FOLDER = "device-types/freehint"
FILES = ("description.tex", "driver-conformance.tex", "device-conformance.tex")


class TreeError(Exception):
    """The tree is not the virtio specification, or its form is not known."""


def _replace_last(text: str, pattern: str, new: str) -> str:
    """Replace the last match of a pattern by a template."""
    matches = list(re.finditer(pattern, text, re.M))
    if not matches:
        raise TreeError(f"the virtio specification has nothing like {pattern!r}")
    last = matches[-1]
    return text[: last.start()] + last.expand(new) + text[last.end() :]


def device_id() -> str:
    match = re.search(r"^\\subsection\{Device ID\}.*\n\n(\d+)$", _ours("description.tex"), re.M)
    if match is None:
        raise TreeError("spec/description.tex has no device ID")
    return match[1]


def _ours(name: str) -> str:
    return (SPEC / name).read_text()


def _upstream(name: str) -> str:
    """A file of ours without its comments: licence, and labels of statements."""
    return re.sub(r"^%.*\n", "", _ours(name), flags=re.M)


def add_id(content: str) -> str:
    """content.tex with a row in the table of device IDs."""
    head, chapter, rest = content.partition("\\chapter{Device Types}")
    table, end, tail = rest.partition("\\end{longtable}")
    if not chapter or not end:
        raise TreeError("content.tex has no table of device IDs")
    row = f"{device_id():<10} &   free memory hint device \\\\\n\\hline\n"
    return head + chapter + table + row + end + tail


def add_chapter(content: str) -> str:
    """content.tex with the chapter after those of other device types."""
    line = r"^(\\input\{device-types/\w+/description\.tex\}\n)"
    return _replace_last(content, line, rf"\1\\input{{{FOLDER}/description.tex}}\n")


def add_clauses(conformance: str) -> str:
    """conformance.tex with our clauses among those to choose from."""
    for side in ("Driver", "Device"):
        clause = f"sec:Conformance / {side} Conformance"
        conformance = _replace_last(
            conformance,
            rf"(\\ref\{{{clause} / [^}}]*\}}) or *\n(\\ref\{{{clause} / [^}}]*\}})\.",
            rf"\1,\n\2 or\n\\ref{{{clause} / Free Memory Hint {side} Conformance}}.",
        )
        name = f"{side.lower()}-conformance.tex"
        conformance = _replace_last(
            conformance,
            rf"^(\\input\{{device-types/\w+/{re.escape(name)}\}}\n)",
            rf"\1\\input{{{FOLDER}/{name}}}\n",
        )
    return conformance


def step_id(tree: Path) -> None:
    content = tree / "content.tex"
    content.write_text(add_id(content.read_text()))


def step_chapter(tree: Path) -> None:
    content, conformance = tree / "content.tex", tree / "conformance.tex"
    content.write_text(add_chapter(content.read_text()))
    conformance.write_text(add_clauses(conformance.read_text()))
    (tree / FOLDER).mkdir(parents=True)
    for name in FILES:
        (tree / FOLDER / name).write_text(_upstream(name))


def main() -> None:
    steps = {"id": step_id, "chapter": step_chapter}
    if len(sys.argv) != 3 or sys.argv[1] not in steps:
        sys.exit("usage: virtio_spec.py id|chapter TREE")
    try:
        steps[sys.argv[1]](Path(sys.argv[2]))
    except (OSError, TreeError) as error:
        sys.exit(f"virtio_spec.py: error: {error}")


if __name__ == "__main__":
    main()
