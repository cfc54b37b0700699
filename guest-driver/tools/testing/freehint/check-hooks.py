#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Check that every place where pages join or leave free lists was thought of.

usage: check-hooks.py [--write] TREE

Free memory hints follow the free lists by hooks in the functions where pages
are really taken or put there, see Documentation/mm/freehint.rst. A kernel
version that gets a new such function needs a decision. This finds all functions
in mm/ that call one of the primitives, or carry a hook, and compares them with
the list in hooks-VERSION.txt beside this script; --write writes that list.

Exit status: 0 if they are the same, 1 if not, 2 if the tree has no list.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

LICENCE = "# SPDX-License-Identifier: GPL-2.0"
PRIMITIVES = (
    "__add_to_free_list",
    "add_to_free_list",
    "__del_page_from_free_list",
    "del_page_from_free_list",
    "move_to_free_list",
    "expand",
    "__isolate_free_page",
    "__putback_isolated_page",
    "__ClearPageBuddy",
    "set_buddy_order",
)
HOOKS = (
    "freehint_note_free",
    "freehint_note_taken",
    "freehint_note_taking",
    "freehint_note_kept",
    "freehint_wait_range",
)
CALL = re.compile(r"(?<![\w.>])(" + "|".join(PRIMITIVES + HOOKS) + r")\(")
# A definition starts in the first column and its body with a brace there.
NAME = re.compile(r"^(?:[A-Za-z_][\w\s*]*[\s*])?([A-Za-z_]\w*)\(")


def functions(source: Path) -> Iterator[tuple[str, str]]:
    """Name and body of each function of a file."""
    name = ""
    body: list[str] | None = None
    for line in source.read_text(encoding="utf-8").splitlines():
        if body is not None:
            if line.startswith("}"):
                yield name, "\n".join(body)
                body = None
            else:
                body.append(line)
        elif line.startswith("{"):
            body = []
        elif found := NAME.match(line):
            name = found[1]


def call_sites(tree: Path) -> list[str]:
    """A line for each function: where, its name, what it calls."""
    lines = []
    for source in sorted((tree / "mm").glob("*.c")):
        for name, body in functions(source):
            calls = set(CALL.findall(strip_comments(body)))
            if calls:
                where = source.relative_to(tree)
                lines.append(f"{where} {name}: {' '.join(sorted(calls))}")
    return lines


def strip_comments(body: str) -> str:
    return re.sub(r"/\*.*?\*/", "", body, flags=re.DOTALL)


def version(tree: Path) -> str:
    text = (tree / "Makefile").read_text(encoding="utf-8")
    numbers = dict(re.findall(r"^(VERSION|PATCHLEVEL) = (\d+)$", text, re.M))
    return f"{numbers['VERSION']}.{numbers['PATCHLEVEL']}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="write the list")
    parser.add_argument("tree", type=Path, help="a Linux tree with the hooks in it")
    args = parser.parse_args()

    known = Path(__file__).with_name(f"hooks-{version(args.tree)}.txt")
    found = call_sites(args.tree)
    if args.write:
        known.write_text("\n".join([LICENCE, *found]) + "\n", encoding="utf-8")
        return 0
    if not known.exists():
        print(f"error: there is no {known.name}: look at each place, then --write it")
        return 2

    lines = known.read_text(encoding="utf-8").splitlines()
    expected = [line for line in lines if not line.startswith("#")]
    for line in found:
        if line not in expected:
            print(f"not in {known.name}: {line}")
    for line in expected:
        if line not in found:
            print(f"only in {known.name}: {line}")
    return int(found != expected)


if __name__ == "__main__":
    sys.exit(main())
