# SPDX-License-Identifier: GPL-2.0-or-later
"""The deliberate faults of scripts/mutate fit the sources, and name tests there are."""

import re
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts" / "lib"))

import registered  # noqa: E402

PROJECT = registered.PROJECT
MUTATIONS = sorted((PROJECT / "tests" / "mutations").glob("*.patch"))
# More than that is no fault that somebody overlooks.
MOST_LINES = 6


def head(path: Path) -> str:
    return path.read_text().partition("\n---\n")[0] + "\n"


class MutationsTest(unittest.TestCase):
    def test_each_applies(self) -> None:
        for path in MUTATIONS:
            with self.subTest(path.stem), tempfile.TemporaryDirectory() as folder:
                for name in re.findall(r"^\+\+\+ b/(\S+)", path.read_text(), re.M):
                    copy = Path(folder) / name
                    copy.parent.mkdir(parents=True)
                    shutil.copy(PROJECT / name, copy)
                done = subprocess.run(
                    ["patch", "--batch", "--forward", "-p1", "-F0", "-i", str(path)],
                    cwd=folder,
                    capture_output=True,
                    text=True,
                    check=False,
                )
                self.assertEqual(done.returncode, 0, done.stdout)

    def test_each_is_small(self) -> None:
        for path in MUTATIONS:
            diff = path.read_text().partition("\n---\n")[2]
            for sign in "+", "-":
                changed = re.findall(rf"^\{sign}(?!\{sign}\{sign} ).*", diff, re.M)
                self.assertLessEqual(len(changed), MOST_LINES, path.stem)

    def test_each_says_what_it_breaks_and_what_notices(self) -> None:
        known = registered.names()
        # Made in a loop, or of another suite.
        other = re.compile(r"qtest/virtio-freehint/(backing|lazy)/memory-.*|spec/.*")
        for path in MUTATIONS:
            self.assertRegex(head(path), r"(?m)^Breaks: +\S.*\.$|^ +.*\.$", path.stem)
            tests = re.findall(r"^Caught-by: +(\S+)$", head(path), re.M)
            self.assertTrue(tests, path.stem)
            for test in tests:
                if not other.fullmatch(test):
                    self.assertTrue(test in known, f"{path.stem} names {test}")

    def test_how_many_there_are(self) -> None:
        quick = [path for path in MUTATIONS if "\nQuick:     yes\n" in head(path)]
        self.assertGreaterEqual(len(MUTATIONS), 50)
        self.assertEqual(len(quick), 8)


if __name__ == "__main__":
    unittest.main()
