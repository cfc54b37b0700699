# SPDX-License-Identifier: GPL-2.0-or-later
"""Each functional test runs in the suite that the lists name, and each suite can be chosen."""

import json
import subprocess
import sys
import tempfile
import tomllib
import unittest
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts" / "lib"))

import registered  # noqa: E402
import summary  # noqa: E402


def meson(*arguments: str) -> str:
    done = subprocess.run(
        ["meson", *arguments],
        cwd=registered.PROJECT,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def suites_option() -> dict[str, Any]:
    options = json.loads(meson("introspect", "meson.build", "--buildoptions"))
    found: dict[str, Any] = next(o for o in options if o["name"] == "suites")
    return found


def programs() -> list[dict[str, Any]]:
    """The tests that meson would run if all suites were chosen."""
    suites = suites_option()
    with tempfile.TemporaryDirectory() as folder:
        meson("setup", f"-Dsuites={','.join(suites['choices'])}", folder)
        found: list[dict[str, Any]] = json.loads(meson("introspect", folder, "--tests"))
    return found


def is_part(test: str, name: str) -> bool:
    """Whether MODULE.CLASS.METHOD is `name`, or belongs to it."""
    return f"{test}.".startswith(f"{name}.")


class ListsTest(unittest.TestCase):
    def test_each_functional_test_is_run_where_it_is_said(self) -> None:
        run: dict[str, set[str]] = {}
        for program in programs():
            suite = summary.suite_of(program)
            run.setdefault(suite, set()).update(program["cmd"][1:])
        elsewhere = tomllib.loads(summary.SKIPS.read_text())["elsewhere"]
        for test in registered.functional_tests():
            said = (text for name, text in elsewhere.items() if is_part(test, name))
            suite = next(said, "functional").split(":")[0]
            names = [name for name in run[suite] if is_part(test, name)]
            self.assertTrue(names, f"{suite} does not run {test}")

    def test_what_is_said_to_run_elsewhere_is_there(self) -> None:
        tests = registered.functional_tests()
        for name in tomllib.loads(summary.SKIPS.read_text())["elsewhere"]:
            found = [test for test in tests if is_part(test, name)]
            self.assertTrue(found, f"skips.toml names {name}")

    def test_each_default_suite_can_be_asked_for(self) -> None:
        """scripts/test checks its arguments one by one."""
        suites = suites_option()["value"]
        done = subprocess.run(
            [registered.PROJECT / "scripts" / "test", *suites, "--help"],
            capture_output=True,
            text=True,
            check=False,
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        for suite in suites:
            self.assertRegex(done.stdout, rf"\b{suite}\b")


if __name__ == "__main__":
    unittest.main()
