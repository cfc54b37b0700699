#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Every requirement of the specification has a test, or a reason why not.

coverage.toml has one table for each label of the text, with a list of names, `tests`, or
with `untested`, which says what no test can check and why, or with both.  A test is named

  qtest/NAME                   as registered in tests/qtest/
  kunit/CASE                   as listed in the kernel side's KUnit suites
  functional/MODULE.CLASS.METHOD  below tests/functional/
"""

import re
import sys
import tomllib
import unittest
from pathlib import Path

import chapter

sys.path.insert(0, str(chapter.ROOT / "scripts" / "lib"))

import registered  # noqa: E402

COVERAGE = Path(__file__).with_name("coverage.toml")


class Coverage(unittest.TestCase):
    def setUp(self) -> None:
        self.requirements = chapter.requirements()
        self.table = tomllib.loads(COVERAGE.read_text())

    def test_every_label_is_used_once(self) -> None:
        labels = re.findall(r"^%\W*(\w+-\w+-\w+)\s*$", chapter.text(), re.M)
        self.assertGreater(len(labels), 50)
        self.assertEqual(len(labels), len(set(labels)))
        self.assertEqual(set(labels), set(self.requirements), "a label is malformed")

    def test_every_requirement_is_normative(self) -> None:
        for label, statement in self.requirements.items():
            self.assertRegex(statement, r"\b(MUST|SHOULD)\b", label)
            side = {"DEV": "device", "DRV": "driver"}[label[:3]]
            self.assertRegex(statement.lower(), rf"\b{side}\b", label)

    def test_nothing_else_is_normative(self) -> None:
        statement = re.compile(rf"^% {chapter.LABEL}\n.*?(?=\n\n)", re.M | re.S)
        words = r"\b(?:MUST|SHOULD|MAY|SHALL|REQUIRED|RECOMMENDED|OPTIONAL)\b"
        rest = statement.sub("", chapter.text())
        self.assertEqual(re.findall(rf".*{words}.*", rest), [])

    def test_every_requirement_is_in_a_section_of_its_side(self) -> None:
        """The conformance clauses name sections, so they cover all requirements."""
        heading = r"^(?=\\(?:sub)*section\{|\\(?:device|driver)normative\{)"
        for piece in re.split(heading, chapter.text(), flags=re.M):
            sides = {label[:3] for label in re.findall(rf"^% ({chapter.LABEL})$", piece, re.M)}
            for side, macro in (("DEV", "\\devicenormative"), ("DRV", "\\drivernormative")):
                if side in sides or piece.startswith(macro):
                    self.assertTrue(piece.startswith(macro), piece[:80])
                    self.assertEqual(sides, {side}, piece[:80])

    def test_every_requirement_has_a_row(self) -> None:
        self.assertEqual(set(self.requirements), set(self.table))

    def test_every_row_is_complete(self) -> None:
        for label, row in self.table.items():
            self.assertLessEqual(set(row), {"tests", "untested"}, label)
            self.assertTrue(row.get("tests") or row.get("untested"), label)
            self.assertTrue(all(row.values()), label)

    def test_every_named_test_exists(self) -> None:
        known = registered.names()
        for label, row in self.table.items():
            for test in row.get("tests", []):
                self.assertIn(test, known, f"{label} names a test that is not there")


if __name__ == "__main__":
    unittest.main()
