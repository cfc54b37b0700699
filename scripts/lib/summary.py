#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Count the cases of a `meson test` run, and name those that should have run and did not.

A case is a line of TAP, not a program that prints many of them. These count as failed, too:

- a program in one of the suites that meson knows, but that is not in the log;
- a program whose plan names another number of cases than it has printed, or no number;
- a case of a qtest, of KUnit or of the functional tests that the sources register, but that
  no program has printed, unless tests/skips.toml says which suite runs it instead;
- a case that was skipped, unless tests/skips.toml allows that, here and for that reason;
- a case that is still to be done ("TODO").

Failures and skips are listed with their reasons; the last line says "N passed, N failed,
N skipped". The exit status is 0 if nothing failed and something passed.
"""

import argparse
import dataclasses
import fnmatch
import itertools
import json
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import registered

SKIPS = registered.PROJECT / "tests" / "skips.toml"

RESULT = re.compile(
    r"^(?P<bad>not )?ok\b\s*\d*\s*(?:- )?(?P<name>.*?)"
    r"(?:\s*# (?P<directive>SKIP|TODO)\S*:?\s*(?P<reason>.*))?$",
    re.I,
)
PLAN = re.compile(r"^1\.\.(?P<count>\d+)(?:\s*#\s*skip\w*:?\s*(?P<reason>.*))?$", re.I)

# How many lines of a failed case's output are shown, from the end, which tells most.
SHOWN_LINES = 12


@dataclasses.dataclass(frozen=True)
class Case:
    """What a program printed about a case."""

    program: str
    name: str
    outcome: str
    text: str = ""

    def __str__(self) -> str:
        return f"{self.program}: {self.name}{self.text}"


def failure(program: str, name: str, text: str = "") -> Case:
    return Case(program, name, "failed", text)


class Skips:
    """What tests/skips.toml allows."""

    def __init__(self, path: Path) -> None:
        table = tomllib.loads(path.read_text())
        self._rules = table.get("skip", [])
        self._elsewhere = table.get("elsewhere", {})
        self._conditions: dict[str, bool] = {}

    def _holds(self, condition: str) -> bool:
        """Whether a condition holds here, by a shell command's status."""
        if condition not in self._conditions:
            done = subprocess.run(["sh", "-c", condition], check=False)
            self._conditions[condition] = done.returncode == 0
        return self._conditions[condition]

    def complaint(self, case: Case, reason: str) -> str:
        """Why a case must not be skipped; empty if it may."""
        full = f"{case.program}: {case.name}"
        rules = [
            rule
            for rule in self._rules
            if fnmatch.fnmatchcase(full, rule["case"])
            and fnmatch.fnmatchcase(reason, rule["reason"])
        ]
        if not rules:
            return "tests/skips.toml does not allow that"
        if not any(self._holds(rule["condition"]) for rule in rules):
            return "tests/skips.toml allows that elsewhere, not here"
        return ""

    def runs_elsewhere(self, test: str) -> bool:
        """Whether the list says that another suite runs a functional test."""
        parts = test.split(".")
        names = (".".join(parts[:end]) for end in range(1, len(parts) + 1))
        return any(name in self._elsewhere for name in names)


def read_case(program: str, line: str, details: Iterable[str], skips: Skips) -> Case:
    match = RESULT.match(line)
    assert match
    name, reason = match["name"], match["reason"] or "no reason given"
    directive = (match["directive"] or "").upper()
    if directive == "TODO":
        return failure(program, name, f": still to be done: {reason}")
    if directive == "SKIP":
        case = Case(program, name, "skipped", f": {reason}")
        complaint = skips.complaint(case, reason)
        return failure(program, name, f": skipped: {reason}: {complaint}") if (
            complaint
        ) else case
    if match["bad"]:
        said = list(details)[-SHOWN_LINES:]
        return failure(program, name, "".join(f"\n  {x}" for x in said))
    return Case(program, name, "passed")


def is_diagnostic(line: str) -> bool:
    return line.startswith("#")


def cases_of(record: dict[str, Any], skips: Skips) -> Iterator[Case]:
    """All cases of a program, and what is wrong with the program itself."""
    program = record["name"].split("/")[-1].strip()
    lines = (record.get("stdout") or "").splitlines()
    plans, cases, skipped = [], [], False
    for index, line in enumerate(lines):
        if plan := PLAN.match(line):
            plans.append(int(plan["count"]))
            if plan["reason"] is not None:
                # Nothing of the program has run; it counts as a case without a name.
                skipped = True
                skip = f"ok 1 - (all) # SKIP {plan['reason']}"
                yield read_case(program, skip, (), skips)
        elif RESULT.match(line):
            details = itertools.takewhile(is_diagnostic, lines[index + 1 :])
            cases.append(read_case(program, line, details, skips))
    yield from cases
    # It may have crashed or timed out without a line about any case.
    verdict = record["result"]
    any_failed = any(case.outcome == "failed" for case in cases)
    if plans != [len(cases)] or not (cases or skipped):
        planned = " and ".join(map(str, plans)) or "no number"
        text = f": {verdict.lower()}: {len(cases)} cases, and {planned} of them planned"
        yield failure(program, "(plan)", text)
    elif verdict not in ("OK", "SKIP") and not any_failed:
        yield failure(program, "(all)", f": {verdict.lower()}, see the log")


# --- what should have run -----------------------------------------------------


def suite_of(test: dict[str, Any]) -> str:
    """The suite of a test in meson's list; each of ours is in one."""
    suite: str = test["suite"][0]
    return suite.split(":")[-1]


def not_run(tests: list[dict[str, Any]], records: list[dict[str, Any]]) -> Iterator[Case]:
    """The programs that meson knows, but that are not in the log."""
    ran = Counter(record["name"].split("/")[-1].strip() for record in records)
    for test in tests:
        if ran[test["name"]] != 1:
            yield failure(test["name"], "(all)", f": has run {ran[test['name']]} times")


def unexecuted(
    tests: list[dict[str, Any]], cases: list[Case], skips: Skips
) -> Iterator[Case]:
    """The cases that the sources register, but that no program of their suite has printed."""
    programs: dict[str, set[str]] = {}
    for test in tests:
        programs.setdefault(suite_of(test), set()).add(test["name"])

    def printed(suite: str) -> Iterator[str]:
        return (case.name for case in cases if case.program in programs[suite])

    if "qtest" in programs:
        ran = Counter(map(registered.qtest_name, printed("qtest")))
        for name in sorted(registered.qtests()):
            if not ran[name]:
                yield failure("qtest", name, ": is registered, and has not run")
    if "kunit" in programs:
        # SUITE.CASE, perhaps with a parameter after that.
        both = {tuple(name.split(".")[:2]) for name in printed("kunit")}
        ran = Counter(parts[-1] for parts in both)
        for name, count in registered.kunit_cases().items():
            if ran[name] != count:
                text = f": is registered {count} times, and ran {ran[name]} times"
                yield failure("kunit", name, text)
    if "functional" in programs:
        ran = Counter(printed("functional"))
        for name in sorted(registered.functional_tests()):
            if not ran[name] and not skips.runs_elsewhere(name):
                yield failure("functional", name, ": is there, and has not run")


def read_log(path: Path) -> tuple[list[dict[str, Any]], list[Case]]:
    """The records of a log, and what is wrong with the log as a whole."""
    records, complaints = [], []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            complaints.append(failure(path.name, "(all)", ": ends in the middle"))
    return records, complaints


def judge(build: Path, suites: set[str], skips: Skips) -> list[Case]:
    tests = json.loads((build / "meson-info" / "intro-tests.json").read_text())
    tests = [test for test in tests if not suites or suite_of(test) in suites]
    records, cases = read_log(build / "meson-logs" / "testlog.json")
    for record in records:
        cases += cases_of(record, skips)
    cases += not_run(tests, records)
    cases += list(unexecuted(tests, cases, skips))
    return cases


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("build", type=Path, metavar="BUILD")
    parser.add_argument("suites", nargs="*", metavar="SUITE", help="default: all")
    parser.add_argument("--skips", type=Path, default=SKIPS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    cases = judge(options.build, set(options.suites), Skips(options.skips))
    by_outcome = {
        outcome: [case for case in cases if case.outcome == outcome]
        for outcome in ("passed", "failed", "skipped")
    }
    for case in by_outcome["skipped"]:
        print(f"skipped: {case}")
    for case in by_outcome["failed"]:
        print(f"FAILED: {case}")
    if by_outcome["failed"]:
        print(f"what they printed is in {options.build}/meson-logs/testlog.txt")
    print(", ".join(f"{len(found)} {name}" for name, found in by_outcome.items()))
    sys.exit(0 if by_outcome["passed"] and not by_outcome["failed"] else 1)


if __name__ == "__main__":
    main()
