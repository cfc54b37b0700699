# SPDX-License-Identifier: GPL-2.0-or-later
"""The runner of the Python suites: each case is one line, and none is lost."""

import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

RUNNER = Path(__file__).resolve().parents[2] / "scripts" / "lib" / "run_unittest.py"

HEAD = "import unittest, os\nclass T(unittest.TestCase):\n"


class RunUnittestTest(unittest.TestCase):
    def run_cases(self, body: str, *names: str) -> tuple[int, list[str]]:
        """The status, and all lines that are not diagnostics."""
        folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        (folder / "test_m.py").write_text(HEAD + body)
        done = subprocess.run(
            [sys.executable, RUNNER, *names],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        lines = done.stdout.splitlines()
        self.assertEqual(lines.pop(0), "TAP version 13")
        return done.returncode, [line for line in lines if not line.startswith("#")]

    def test_passes(self) -> None:
        body = "    def test_a(self):\n        '''Has a text.'''\n"
        expected = (0, ["1..1", "ok 1 - test_m.T.test_a"])
        self.assertEqual(self.run_cases(body), expected)
        self.assertEqual(self.run_cases(body, "test_m.T"), expected)

    def test_a_failure(self) -> None:
        body = "    def test_a(self): self.fail()\n    def test_b(self): 1 / 0\n"
        lines = ["1..2", "not ok 1 - test_m.T.test_a", "not ok 2 - test_m.T.test_b"]
        self.assertEqual(self.run_cases(body), (1, lines))

    def test_a_subtest_that_fails(self) -> None:
        body = (
            "    def test_a(self):\n        for i in range(3):\n"
            "            with self.subTest(i): self.assertNotEqual(i, 1)\n"
        )
        lines = ["1..1", "not ok 1 - test_m.T.test_a"]
        self.assertEqual(self.run_cases(body), (1, lines))

    def test_skips(self) -> None:
        body = (
            "    @unittest.skip('why')\n    def test_a(self): pass\n"
            "    def test_b(self):\n"
            "        with self.subTest(): self.skipTest('why')\n"
        )
        lines = [f"ok {i} - test_m.T.test_{n} # SKIP why" for i, n in ((1, "a"), (2, "b"))]
        self.assertEqual(self.run_cases(body), (0, ["1..2", *lines]))

    def test_nothing_is_expected_to_fail(self) -> None:
        body = (
            "    @unittest.expectedFailure\n    def test_a(self): self.fail()\n"
            "    @unittest.expectedFailure\n    def test_b(self): pass\n"
        )
        lines = ["1..2", "not ok 1 - test_m.T.test_a", "not ok 2 - test_m.T.test_b"]
        self.assertEqual(self.run_cases(body), (1, lines))

    def test_cases_that_cannot_start_are_missed(self) -> None:
        body = (
            "    @classmethod\n    def setUpClass(cls): 1 / 0\n"
            "    def test_a(self): pass\n    def test_b(self): pass\n"
        )
        lines = ["1..2", "not ok 1 - setUpClass (test_m.T)"]
        self.assertEqual(self.run_cases(body), (1, lines))

    def test_a_module_that_is_not_there(self) -> None:
        status, lines = self.run_cases("    pass\n", "test_n")
        self.assertEqual((status, lines[1][:8]), (1, "not ok 1"))

    def test_what_ends_in_the_middle_has_a_plan(self) -> None:
        body = "    def test_a(self): pass\n    def test_b(self): os._exit(0)\n"
        lines = ["1..2", "ok 1 - test_m.T.test_a"]
        self.assertEqual(self.run_cases(body), (0, lines))


if __name__ == "__main__":
    unittest.main()
