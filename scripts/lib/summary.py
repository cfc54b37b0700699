#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Count the cases of a `meson test` run, from its log in JSON.

A case is a line of TAP, not a program that printed many of them. What failed
and what was skipped is listed with the reason; the last line says
"N passed, N failed, N skipped". The exit status is 0 if nothing failed and
something passed.
"""

import argparse
import dataclasses
import itertools
import json
import re
import sys
from pathlib import Path
from typing import Any

RESULT = re.compile(
    r"^(?P<bad>not )?ok\b\s*\d*\s*(?:- )?(?P<name>.*?)"
    r"(?:\s*# (?P<directive>SKIP|TODO)\S*:?\s*(?P<reason>.*))?$",
    re.I,
)
SKIP_ALL = re.compile(r"^1\.\.0\s*#\s*skip\w*:?\s*(?P<reason>.*)$", re.I)


# How much of what a failed case said is shown; the end tells most.
SHOWN_LINES = 12


@dataclasses.dataclass
class Counts:
    passed: int = 0
    failed: list[str] = dataclasses.field(default_factory=list)
    skipped: list[str] = dataclasses.field(default_factory=list)


def count_line(counts: Counts, program: str, line: str) -> bool:
    """Count a line of TAP; whether it tells of a failure."""
    if match := SKIP_ALL.match(line):
        counts.skipped.append(f"{program}: {match['reason']}")
    elif match := RESULT.match(line):
        case = f"{program}: {match['name']}"
        if (match["directive"] or "").upper() == "SKIP":
            counts.skipped.append(f"{case}: {match['reason'] or 'no reason given'}")
        elif match["bad"] and not match["directive"]:
            counts.failed.append(case)
            return True
        else:
            counts.passed += 1
    return False


def is_diagnostic(line: str) -> bool:
    return line.startswith("#")


def count_program(counts: Counts, record: dict[str, Any]) -> None:
    program = record["name"].split("/")[-1].strip()
    before = len(counts.failed)
    lines = (record.get("stdout") or "").splitlines()
    for index, line in enumerate(lines):
        if count_line(counts, program, line):
            said = list(itertools.takewhile(is_diagnostic, lines[index + 1 :]))
            counts.failed[-1] += "".join(f"\n  {x}" for x in said[-SHOWN_LINES:])
    # It may have crashed or been too slow without a word about any case.
    verdict = record["result"]
    if verdict not in ("OK", "SKIP", "EXPECTEDFAIL") and len(counts.failed) == before:
        counts.failed.append(f"{program}: {verdict.lower()}, see the log")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("log", type=Path, help="meson-logs/testlog.json")
    log = parser.parse_args().log
    counts = Counts()
    for line in log.read_text().splitlines():
        count_program(counts, json.loads(line))
    for title, entries in (("skipped", counts.skipped), ("FAILED", counts.failed)):
        for entry in entries:
            print(f"{title}: {entry}")
    if counts.failed:
        print(f"everything that they printed is in {log.with_suffix('.txt')}")
    print(
        f"{counts.passed} passed, {len(counts.failed)} failed, "
        f"{len(counts.skipped)} skipped"
    )
    sys.exit(0 if counts.passed and not counts.failed else 1)


if __name__ == "__main__":
    main()
