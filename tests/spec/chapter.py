# SPDX-License-Identifier: GPL-2.0-or-later
"""The specification's text, parsed for the checks beside this file."""

import dataclasses
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEXT = ROOT / "spec" / "description.tex"
HEADER = ROOT / "spec" / "virtio_freehint.h"

LABEL = r"(?:DEV|DRV)-[A-Z]+-\d+"

# Sizes of the specification's integer types, in bytes.
TYPE_SIZE = {"u8": 1, "le16": 2, "le32": 4, "le64": 8}


@dataclasses.dataclass(frozen=True)
class Field:
    """A field of a structure: offset and size in bytes."""

    struct: str
    name: str
    offset: int
    size: int


def text() -> str:
    return TEXT.read_text()


def requirements() -> dict[str, str]:
    """Statements by label, in the order of the text.

    A label is a comment before its statement, which ends at an empty line: the virtio
    specification itself has no labels.
    """
    found = re.findall(rf"^% ({LABEL})\n(.*?)(?=\n\n|\Z)", text(), re.M | re.S)
    return {label: " ".join(statement.split()) for label, statement in found}


def normative_sections() -> dict[str, list[str]]:
    """The labels of the normative sections, of "device" and of "driver"."""
    found = re.findall(r"^\\(device|driver)normative\{[^}]*\}\{[^}]*\}\{([^}]*)\}", text(), re.M)
    return {
        kind: [f"{kind}normative:{name}" for side, name in found if side == kind]
        for kind in ("device", "driver")
    }


def constants() -> dict[str, int]:
    """All constants whose values the text gives."""
    items = re.findall(r"\b(VIRTIO_FREEHINT_\w+) \((\d+)\)", text())
    rows = re.findall(r"^(VIRTIO_FREEHINT_\w+)\s*&\s*(0x[0-9a-f]+)", text(), re.M)
    flags = re.findall(r"\b(VIRTIO_FREEHINT_\w+_F_\w+) \(bit (\d+)", text())
    features = re.findall(r"\b(VIRTIO_FREEHINT_F_\w+) \(bit (\d+)", text())
    values = {name: int(value, 0) for name, value in items + rows + features}
    return values | {name: 1 << int(bit) for name, bit in flags}


def device_id() -> int:
    match = re.search(r"\\subsection\{Device ID\}.*?\n\n(\d+)\n", text(), re.S)
    if match is None:
        raise ValueError(f"{TEXT.name}: no number in section Device ID")
    return int(match.group(1))


def _fields_of(struct: str, body: str, sizes: dict[str, int]) -> list[Field]:
    fields, offset = [], 0
    for kind, name in re.findall(r"\b(u8|le16|le32|le64|struct \w+)\s+(\w+);", body):
        fields.append(Field(struct, name, offset, sizes[kind]))
        offset += sizes[kind]
    return fields


def fields() -> list[Field]:
    """Fields of the structures that the text defines and the header declares."""
    listings = re.findall(r"\\begin\{lstlisting\}(.*?)\\end\{lstlisting\}", text(), re.S)
    # Innermost structures only: the message as a whole has no C type.
    bodies = dict(re.findall(r"struct (\w+) \{([^{}]*)\}", "\n".join(listings)))
    sizes = dict(TYPE_SIZE)
    found: dict[str, list[Field]] = {}
    # A structure may contain another one that the text defines elsewhere.
    while len(found) < len(bodies):
        for struct, body in bodies.items():
            inner = {f"struct {name}" for name in re.findall(r"struct (\w+)", body)}
            if struct not in found and inner <= sizes.keys():
                found[struct] = _fields_of(struct, body, sizes)
                sizes[f"struct {struct}"] = sum(f.size for f in found[struct])
    return [field for fields in found.values() for field in fields]
