# SPDX-License-Identifier: GPL-2.0-or-later
"""The deliberate faults of scripts/mutate apply to the sources, and name existing tests."""

import importlib.machinery
import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts" / "lib"))

import registered  # noqa: E402

PROJECT = registered.PROJECT
MUTATIONS = sorted((PROJECT / "tests" / "mutations").glob("*.patch"))
# Nobody would overlook a larger fault.
MOST_LINES = 6


def load_mutate() -> Any:
    """The script, as a module."""
    path = PROJECT / "scripts" / "mutate"
    loader = importlib.machinery.SourceFileLoader("mutate", str(path))
    spec = importlib.util.spec_from_loader("mutate", loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutate"] = module
    loader.exec_module(module)
    return module


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
        # Names that a loop makes, or that belong to another suite.
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

    def test_what_a_result_was_seen_with(self) -> None:
        """A result holds for the code, and for the tests that the fault names."""
        path = PROJECT / "tests/mutations/limit-without-effect.patch"
        fault = load_mutate().Mutation.read(path)
        matters = {
            "qemu-device/hw/virtio/virtio-freehint.c": True,
            "qemu-device/patches/qemu-10.0/0007-hw-virtio-add-virtio-freehint.patch": True,
            "spec/virtio_freehint.h": True,
            "tests/qtest/virtio-freehint-control-test.c": True,
            "tests/qtest/virtio-freehint-drain-test.c": False,
            "qemu-device/hw/misc/discard-testdev.c": False,
            "qemu-device/docs/devel/virtio-freehint.rst": False,
            "guest-driver/mm/freehint/core.c": False,
        }
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder)
            for name in "qemu-device", "guest-driver", "spec", "tests/qtest":
                shutil.copytree(PROJECT / name, copy / name)
            seen = fault.seen_with(copy)
            self.assertEqual(seen, fault.seen_with(PROJECT))
            for name, does in matters.items():
                before = (copy / name).read_text()
                (copy / name).write_text(f"{before}\n")
                self.assertEqual(fault.seen_with(copy) != seen, does, name)
                (copy / name).write_text(before)
            self.assertEqual(fault.seen_with(copy), seen)


if __name__ == "__main__":
    unittest.main()
