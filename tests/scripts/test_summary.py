# SPDX-License-Identifier: GPL-2.0-or-later
"""What counts as a pass: not all that programs report as one."""

import json
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

LIB = Path(__file__).resolve().parents[2] / "scripts" / "lib"
sys.path.insert(0, str(LIB))

import registered  # noqa: E402

QOS = "/x86_64/pc/pci-bus/virtio-freehint-pci/virtio-freehint/virtio-freehint-tests"

SKIPS = """
[[skip]]
case = "program: needs-root"
reason = "no root*"
condition = "true"
[[skip]]
case = "program: needs-more"
reason = "no more"
condition = "false"
[elsewhere]
"test_far" = "where?"
"test_near.NearTest.test_far" = "where?"
"""


def tap(*lines: str) -> str:
    """TAP of these cases, with a plan."""
    return "\n".join(["TAP version 13", *lines, f"1..{len(lines)}", ""])


def passes(names: list[str]) -> str:
    return tap(*(f"ok {i} - {name}" for i, name in enumerate(names, 1)))


class SummaryTest(unittest.TestCase):
    def setUp(self) -> None:
        self.build = Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.skips = self.build / "skips.toml"
        self.skips.write_text(SKIPS)
        (self.build / "meson-info").mkdir()
        (self.build / "meson-logs").mkdir()
        self.tests: list[dict[str, object]] = []
        self.log = ""

    def add(self, name: str, stdout: str, result: str = "OK", suite: str = "x") -> None:
        """Add a program that meson knows, and its output and result."""
        self.tests.append({"name": name, "suite": [f"virtio-freehint:{suite}"]})
        record = {
            "name": f"virtio-freehint:{suite} / {name}",
            "stdout": stdout,
            "result": result,
        }
        self.log += json.dumps(record) + "\n"

    def summary(self, *suites: str) -> tuple[int, str]:
        (self.build / "meson-info/intro-tests.json").write_text(json.dumps(self.tests))
        (self.build / "meson-logs/testlog.json").write_text(self.log)
        command = [sys.executable, str(LIB / "summary.py"), f"--skips={self.skips}"]
        done = subprocess.run(
            [*command, str(self.build), *suites],
            capture_output=True,
            text=True,
            check=False,
        )
        self.assertEqual(done.stderr, "")
        return done.returncode, done.stdout

    def assert_counts(self, passed: int, failed: int, skipped: int) -> str:
        status, out = self.summary()
        counts = f"{passed} passed, {failed} failed, {skipped} skipped"
        self.assertEqual(out.splitlines()[-1], counts, out)
        self.assertEqual(status, 0 if passed and not failed else 1)
        return out

    def test_passes_are_counted_by_case(self) -> None:
        self.add("program", passes(["one", "two"]))
        self.add("other", passes(["three"]))
        self.assert_counts(3, 0, 0)

    def test_nothing_is_no_success(self) -> None:
        self.assert_counts(0, 0, 0)

    def test_a_program_that_has_nothing_to_run(self) -> None:
        """For instance one that is told to run a case that does not exist."""
        self.add("program", passes(["one"]))
        self.add("other", tap())
        self.assertIn("FAILED: other: ", self.assert_counts(1, 1, 0))

    def test_what_a_failed_case_said_is_shown(self) -> None:
        self.add("program", tap("ok 1 - one", "not ok 2 - two\n# why"), "FAIL")
        self.assertIn("FAILED: program: two\n  # why\n", self.assert_counts(1, 1, 0))

    # -- what should have run --

    def test_a_program_that_is_not_in_the_log(self) -> None:
        self.add("program", passes(["one"]))
        self.tests.append({"name": "vanished", "suite": ["virtio-freehint:x"]})
        self.assertIn("FAILED: vanished: ", self.assert_counts(1, 1, 0))

    def test_only_the_suites_that_were_asked_for(self) -> None:
        self.add("program", passes(["one"]))
        self.tests.append({"name": "other", "suite": ["virtio-freehint:y"]})
        self.assertEqual(self.summary("x")[0], 0)
        self.assertEqual(self.summary("x", "y")[0], 1)

    def test_a_log_that_ends_in_the_middle(self) -> None:
        self.add("program", passes(["one"]))
        self.add("other", passes(["two"]))
        self.log = self.log[:-20]
        out = self.assert_counts(1, 2, 0)
        self.assertIn("FAILED: testlog.json: ", out)
        self.assertIn("FAILED: other: ", out)

    def test_a_program_that_ends_in_the_middle(self) -> None:
        self.add("program", "TAP version 13\n1..3\nok 1 - one\nok 2 - two\n")
        self.assertIn("2 cases, and 3 of them planned", self.assert_counts(2, 1, 0))

    def test_a_program_without_a_plan(self) -> None:
        self.add("program", "ok 1 - one\n")
        self.assert_counts(1, 1, 0)

    def test_a_program_that_crashes_or_hangs(self) -> None:
        for result in "ERROR", "TIMEOUT", "INTERRUPT", "EXPECTEDFAIL":
            with self.subTest(result):
                self.tests, self.log = [], ""
                self.add("program", passes(["one"]), result)
                self.assert_counts(1, 1, 0)

    # -- what the sources register --

    def add_qtests(self, names: set[str]) -> None:
        self.add("qos-test", passes([f"{QOS}/{name}" for name in names]), suite="qtest")

    def test_a_qtest_that_has_not_run(self) -> None:
        names = registered.qtests()
        self.add_qtests(names)
        self.assert_counts(len(names), 0, 0)
        for lost in "veto", "drain/veto":
            with self.subTest(lost):
                self.tests, self.log = [], ""
                self.add_qtests(names - {lost})
                out = self.assert_counts(len(names) - 1, 1, 0)
                self.assertIn(f"FAILED: qtest: {lost}: ", out)

    def test_a_file_of_qtests_that_is_not_built(self) -> None:
        names = registered.qtests()
        rest = {name for name in names if not name.startswith("drain/")}
        self.add_qtests(rest)
        self.assert_counts(len(rest), len(names) - len(rest), 0)

    def test_a_suite_of_kunit_that_is_not_built(self) -> None:
        cases = [name for name in registered.kunit_cases().elements()]
        printed = [f"suite{i}.{name}.a" for i, name in enumerate(cases)]
        self.add("kunit", passes([*printed, f"suite0.{cases[0]}.b"]), suite="kunit")
        self.assert_counts(len(cases) + 1, 0, 0)
        self.tests, self.log = [], ""
        self.add("kunit", passes(printed[5:]), suite="kunit")
        self.assert_counts(len(cases) - 5, 5, 0)

    def test_a_functional_module_that_nothing_runs(self) -> None:
        self.skips.write_text("[elsewhere]\n")
        names = sorted(registered.functional_tests())
        self.add("module", passes(names), suite="functional")
        self.assert_counts(len(names), 0, 0)
        module = names[0].split(".")[0]
        self.tests, self.log = [], ""
        rest = [name for name in names if not name.startswith(f"{module}.")]
        self.add("module", passes(rest), suite="functional")
        self.assert_counts(len(rest), len(names) - len(rest), 0)
        with self.skips.open("a") as stream:
            stream.write(f'"{module}" = "elsewhere"\n')
        self.assert_counts(len(rest), 0, 0)

    # -- directives --

    def test_a_skip_needs_leave(self) -> None:
        self.add(
            "program",
            tap(
                "ok 1 - one",
                "ok 2 - needs-root # SKIP no root here",
                "ok 3 - needs-root # SKIP no time",
                "ok 4 - needs-more # SKIP no more",
                "ok 5 - needs-nothing # SKIP no root",
                "ok 6 - needs-root # SKIP",
            ),
        )
        out = self.assert_counts(1, 4, 1)
        self.assertIn("skipped: program: needs-root: no root here\n", out)
        self.assertIn("needs-more: skipped: no more: tests/skips.toml allows", out)

    def test_a_program_that_skips_all_needs_leave(self) -> None:
        self.add("program", "1..0 # SKIP no root\n", "SKIP")
        self.assert_counts(0, 1, 0)

    def test_what_is_still_to_be_done_has_failed(self) -> None:
        self.add("program", tap("not ok 1 - one # TODO later", "ok 2 - two # TODO"))
        self.assert_counts(0, 2, 0)


class RegisteredTest(unittest.TestCase):
    def test_what_counts_as_registered(self) -> None:
        project = Path(self.enterContext(tempfile.TemporaryDirectory()))
        for name, text in {
            "tests/qtest/a-test.c": 'qos_add_test("a", x);\n qtest_add_func(\n "b/c",y);'
            'qtest_add_data_func("d", z, y); qtest_add_data_func(path, z, y);',
            "guest-driver/a.c": "KUNIT_CASE(a), KUNIT_CASE_PARAM(b, p),",
            "guest-driver/mm/b.c": "KUNIT_CASE_SLOW(a),",
            "tests/functional/test_a.py": "class A:\n    def test_b(self):\n"
            "    def tset_c(self):\nclass B:\n    def test_b(self):\n",
            "tests/functional/other.py": "class A:\n    def test_b(self):\n",
        }.items():
            path = project / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        self.assertEqual(registered.qtests(project), {"a", "b/c", "d"})
        self.assertEqual(registered.kunit_cases(project), {"a": 2, "b": 1})
        self.assertEqual(
            registered.functional_tests(project), {"test_a.A.test_b", "test_a.B.test_b"}
        )

    def test_the_name_of_a_qtest(self) -> None:
        for path, name in {
            f"{QOS}/drain/veto": "drain/veto",
            "/x86_64/virtio-freehint/backing/numa": "virtio-freehint/backing/numa",
        }.items():
            self.assertEqual(registered.qtest_name(path), name)


if __name__ == "__main__":
    unittest.main()
