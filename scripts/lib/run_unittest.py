#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Run unittest cases of this directory; prints TAP, a line for each case.

The plan comes first, and each line when its case has ended, so the next case is the one
that hangs. If a subtest fails or is skipped, its case fails or is skipped, too. A case that
is expected to fail counts as failed: there is no list of known faults here.
"""

import argparse
import os
import sys
import traceback
import unittest
from typing import Any

sys.path.insert(0, os.getcwd())

from tap import TapReport  # noqa: E402


class TapResult(unittest.TestResult):
    def __init__(self, report: TapReport) -> None:
        super().__init__()
        self._report = report
        self._running = False
        self._problems = ""
        self._reason = ""

    def startTest(self, test: unittest.TestCase) -> None:
        super().startTest(test)
        self._running, self._problems, self._reason = True, "", ""

    def stopTest(self, test: unittest.TestCase) -> None:
        super().stopTest(test)
        self._running = False
        if self._reason and not self._problems:
            self._report.skipped(test.id(), self._reason)
        else:
            self._report.result(test.id(), self._problems)

    def _failed(self, test: unittest.TestCase, problem: str) -> None:
        """If no case is running, setUpClass() or setUpModule() has failed."""
        if self._running:
            self._problems += problem + "\n"
        else:
            self._report.failed(test.id(), problem)

    def addError(self, test: unittest.TestCase, err: Any) -> None:
        super().addError(test, err)
        self._failed(test, "".join(traceback.format_exception(*err)))

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:
        super().addFailure(test, err)
        self._failed(test, "".join(traceback.format_exception(*err)))

    def addSubTest(
        self, test: unittest.TestCase, subtest: unittest.TestCase, err: Any
    ) -> None:
        super().addSubTest(test, subtest, err)
        if err:
            trace = "".join(traceback.format_exception(*err))
            self._failed(test, f"{subtest}\n{trace}")

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        super().addSkip(test, reason)
        if self._running:
            self._reason = reason
        else:
            self._report.skipped(test.id(), reason)

    def addExpectedFailure(self, test: unittest.TestCase, err: Any) -> None:
        super().addExpectedFailure(test, err)
        self._failed(test, "it was expected to fail")

    def addUnexpectedSuccess(self, test: unittest.TestCase) -> None:
        super().addUnexpectedSuccess(test)
        self._failed(test, "it was expected to fail, and passed")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="MODULE[.CLASS[.METHOD]]")
    names = parser.parse_args().names
    loader = unittest.TestLoader()
    cases = loader.loadTestsFromNames(names) if names else loader.discover(".")
    report = TapReport(cases.countTestCases())
    cases.run(TapResult(report))
    report.finish()


if __name__ == "__main__":
    main()
