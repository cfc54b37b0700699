# SPDX-License-Identifier: GPL-2.0-or-later
"""Test results in the Test Anything Protocol."""

import sys


class TapReport:
    """Prints a line per result; `finish` exits, and prints the plan if there was none.

    Give the number of results beforehand if you know it: then missing ones are noticed even
    if `finish` is never called.
    """

    def __init__(self, planned: int | None = None) -> None:
        self._planned = planned
        self._count = 0
        self._failed = 0
        print("TAP version 13", flush=True)
        if planned is not None:
            print(f"1..{planned}", flush=True)

    def passed(self, name: str) -> None:
        self._print("ok", name)

    def failed(self, name: str, details: str = "") -> None:
        self._failed += 1
        self._print("not ok", name)
        for line in details.splitlines():
            print(f"# {line}", flush=True)

    def skipped(self, name: str, reason: str) -> None:
        self._print("ok", f"{name} # SKIP {reason}")

    def result(self, name: str, problems: str) -> None:
        """Passed if there are no problems."""
        if problems:
            self.failed(name, problems)
        else:
            self.passed(name)

    def finish(self) -> None:
        if self._planned is None:
            print(f"1..{self._count}", flush=True)
        sys.exit(1 if self._failed or self._planned not in (None, self._count) else 0)

    def _print(self, verdict: str, name: str) -> None:
        self._count += 1
        print(f"{verdict} {self._count} - {name}", flush=True)
