# SPDX-License-Identifier: GPL-2.0-or-later
"""scripts/coverage, in a project with one small source: a program is its kernel, or its QEMU."""

import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]

# What it executes depends on how many words it is given. It has nine lines.
SOURCE = """\
int main(int count, char **words)
{
    int sum = 0;

    if (count == 1)
        sum += 1;
    if (count == 2)
        sum += 2;
    if (count == 3)
        sum += 3;
    return !sum;
}
"""
NOT_EXECUTED = "[main]\nlines = ['sum += 3;']"

BUILD_LINUX = """\
#!/bin/sh -e
source=$(dirname "$0")/../guest-driver/mm/freehint/sums.c
out=$3/linux-gcov/mm/freehint
mkdir -p "$out"
gcc --coverage -c "$source" -o "$out/sums.o"
gcc --coverage "$out/sums.o" -o "$out/sums"
"""
# Its guest runs the program, and saves its counts as functional tests do.
FUNCTIONAL = """\
import os, subprocess, unittest
class Test(unittest.TestCase):
    def test(self):
        sums = os.environ["FREEHINT_BUILD"] + "/linux-gcov/mm/freehint/sums"
        folder = os.environ["FREEHINT_COVERAGE"] + "/guest-" + __name__
        env = {"GCOV_PREFIX": folder, "GCOV_PREFIX_STRIP": "99"}
        subprocess.run([sums, *WORDS], env=env, check=True)
        self.assertEqual(WORDS, [])
"""

BUILD_NINJA = """\
rule c_COMPILER
  command = gcc $ARGS -c $in -o $out
rule c_LINKER
  command = gcc $in -o $out $LINK_ARGS
build qemu.p/hw_virtio_sums.c.o: c_COMPILER ../../../qemu-device/hw/virtio/sums.c |
 ARGS = -O0
build qemu-system-x86_64: c_LINKER qemu.p/hw_virtio_sums.c.o
 LINK_ARGS = -O0
"""
QTEST = "#!/bin/sh\n$QTEST_QEMU_BINARY"


class CoverageTest(unittest.TestCase):
    def setUp(self) -> None:
        self.project = Path(self.enterContext(tempfile.TemporaryDirectory()))
        shutil.copytree(PROJECT / "scripts/lib", self.project / "scripts/lib")
        shutil.copy(PROJECT / "scripts/coverage", self.project / "scripts")
        self.write("tests/not-executed.toml", NOT_EXECUTED)
        self.report = self.write("docs/reliability.md", "")
        self.set_up_guest()
        self.set_up_device()

    def write(self, name: str, text: str, mode: int = 0o644) -> Path:
        path = self.project / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
        return path

    def set_up_guest(self) -> None:
        self.write("guest-driver/mm/freehint/sums.c", SOURCE)
        self.write("scripts/build-linux", BUILD_LINUX, 0o755)
        for path in (PROJECT / "tests/functional").glob("test_*.py"):
            self.write(f"tests/functional/{path.name}", f"WORDS = []\n{FUNCTIONAL}")

    def set_up_device(self) -> None:
        self.write("qemu-device/hw/virtio/sums.c", SOURCE)
        self.write("build/qemu/build.ninja", BUILD_NINJA)
        for name in "qos-test", "virtio-freehint-memory-test":
            self.write(f"build/qemu/tests/qtest/{name}", QTEST, 0o755)

    def run_it(self, side: str) -> list[str]:
        """The lines of TAP that tell of what failed, with what they say of it."""
        marks = (f"<!-- coverage of the {side}: {which} -->\n" for which in ("begin", "end"))
        self.report.write_text("".join(marks))
        done = subprocess.run(
            [self.project / "scripts/coverage", "--only", side, "--report", "build"],
            cwd=self.project,
            capture_output=True,
            text=True,
            check=False,
        )
        self.assertEqual(done.stderr, "")
        lines = [line for line in done.stdout.splitlines()[2:] if not line.startswith("ok ")]
        self.assertEqual(done.returncode, 1 if lines else 0)
        return lines

    def test_a_line_that_is_never_executed(self) -> None:
        for side in "device", "guest":
            with self.subTest(side):
                problems = self.run_it(side)
                self.assertRegex(problems[0], r"^not ok \d+ - sums.c$")
                self.assertEqual(problems[1:], ["# 8: sum += 2;"])
                self.assertIn("| `sums.c` | 9 | 77.8 % |", self.report.read_text())

    def test_what_a_program_executes_before_it_fails_counts(self) -> None:
        """Here, that is what no other one executes."""
        self.write("tests/functional/test_answers.py", f"WORDS = ['one']\n{FUNCTIONAL}")
        self.write("build/qemu/tests/qtest/qos-test", f"{QTEST} one; false", 0o755)
        for side, name in ("device", "qos-test"), ("guest", "test_answers"):
            with self.subTest(side):
                problems = self.run_it(side)
                self.assertRegex(problems[0], rf"^not ok \d+ - {name}$")
                self.assertRegex(problems[1], r"^# it has failed; see /.*\.log$")
                self.assertEqual(problems[2:], [])
                self.assertNotIn("sums.c", self.report.read_text())

    def test_nothing_counts_if_nothing_runs(self) -> None:
        for path in (self.project / "tests/functional").iterdir():
            path.write_text("import nothing\n")
        for path in (self.project / "build/qemu/tests/qtest").iterdir():
            path.write_text("#!/bin/false")
        for side in "device", "guest":
            with self.subTest(side):
                problems = self.run_it(side)
                self.assertRegex(problems[-2], r"^not ok \d+ - sums.c$")
                self.assertEqual(problems[-1], "# gcov has counted nothing of it")
                self.assertNotIn("sums.c", self.report.read_text())


if __name__ == "__main__":
    unittest.main()
