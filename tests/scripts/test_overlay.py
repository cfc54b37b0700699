# SPDX-License-Identifier: GPL-2.0-or-later
"""scripts/overlay, on a small tree and with small patches."""

import os
import sys
import tempfile
import unittest
from pathlib import Path
from unittest import mock

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT / "scripts" / "lib"))

import overlay  # noqa: E402

LINES = "".join(f"line {n}\n" for n in range(1, 31))


def patch(name: str, after: int, text: str, path: str = "hw/Kconfig") -> overlay.Patch:
    """A patch that adds a line to LINES, after line number `after`."""
    around = [f" line {n}\n" for n in range(after - 2, after + 4)]
    around.insert(3, f"+{text}\n")
    head = f"--- a/{path}\n+++ b/{path}\n@@ -{after - 2},6 +{after - 2},7 @@\n"
    return overlay.Patch(name, (head + "".join(around)).encode())


class OverlayTest(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = Path(folder.name)
        (self.root / "include" / "standard-headers").mkdir(parents=True)
        (self.root / "VERSION").write_text("10.0.7\n")
        (self.root / "hw").mkdir()
        for name in ("Kconfig", "meson.build"):
            (self.root / "hw" / name).write_text(LINES)
        self.files = {"hw/freehint.c": b"int x;\n"}
        self.patches = [patch("0001-a.patch", 5, "first")]

    def wanted(self, series: str) -> overlay.Overlay:
        return overlay.Overlay(series, self.files, self.patches)

    def install(self) -> list[str]:
        with mock.patch.object(overlay, "overlay_for", self.wanted):
            return overlay.install(overlay.Tree(self.root))

    def content(self) -> dict[str, str]:
        return {
            str(path.relative_to(self.root)): path.read_text()
            for path in self.root.rglob("*")
            if path.is_file()
        }

    def kconfig(self) -> str:
        return (self.root / "hw" / "Kconfig").read_text()

    def test_install_and_undo_leave_the_tree_as_it_was(self) -> None:
        before = self.content()
        self.install()
        self.assertIn("line 5\nfirst\n", self.kconfig())
        self.assertEqual((self.root / "hw/freehint.c").read_bytes(), b"int x;\n")
        overlay.undo(overlay.Tree(self.root))
        self.assertEqual(self.content(), before)

    def test_installing_again_touches_nothing(self) -> None:
        self.install()
        os.utime(self.root / "hw/Kconfig", (1, 1))
        os.utime(self.root / "hw/freehint.c", (1, 1))
        self.assertEqual(self.install(), [])
        self.assertEqual((self.root / "hw/Kconfig").stat().st_mtime, 1)
        self.assertEqual((self.root / "hw/freehint.c").stat().st_mtime, 1)

    def test_only_what_differs_is_written(self) -> None:
        self.files["hw/other.c"] = b"int y;\n"
        self.install()
        os.utime(self.root / "hw/freehint.c", (1, 1))
        self.files["hw/other.c"] = b"int z;\n"
        self.assertEqual(self.install(), ["hw/other.c"])
        self.assertEqual((self.root / "hw/freehint.c").stat().st_mtime, 1)

    def test_a_file_that_is_no_longer_ours_goes(self) -> None:
        self.files["hw/new/other.c"] = b"int y;\n"
        self.install()
        del self.files["hw/new/other.c"]
        self.install()
        self.assertFalse((self.root / "hw/new").exists())

    def test_a_changed_patch_replaces_the_one_applied(self) -> None:
        self.install()
        self.patches = [patch("0001-a.patch", 5, "changed")]
        self.install()
        self.assertIn("line 5\nchanged\n", self.kconfig())
        self.assertNotIn("first", self.kconfig())

    def test_files_of_unchanged_patches_keep_their_time(self) -> None:
        self.patches = [
            patch("0001-a.patch", 5, "first"),
            patch("0002-b.patch", 10, "other", "hw/meson.build"),
        ]
        self.install()
        os.utime(self.root / "hw/meson.build", (1, 1))
        self.patches[0] = patch("0001-a.patch", 5, "changed")
        self.install()
        self.assertEqual((self.root / "hw/meson.build").stat().st_mtime, 1)
        self.assertIn("changed", self.kconfig())

    def test_a_patch_that_does_not_apply_is_refused_whole(self) -> None:
        bad = patch("0002-b.patch", 20, "other")
        self.patches.append(
            overlay.Patch(bad.name, bad.text.replace(b"line 19", b"line x"))
        )
        before = self.content()
        with self.assertRaisesRegex(overlay.OverlayError, "0002-b.patch does not apply"):
            self.install()
        self.assertEqual(self.content(), before)

    def test_an_edited_file_is_not_overwritten(self) -> None:
        self.install()
        (self.root / "hw/freehint.c").write_text("int mine;\n")
        self.files["hw/freehint.c"] = b"int newer;\n"
        with self.assertRaisesRegex(overlay.OverlayError, "was edited in the tree"):
            self.install()

    def test_a_file_of_the_tree_is_not_overwritten(self) -> None:
        (self.root / "hw/freehint.c").write_text("merged upstream\n")
        with self.assertRaisesRegex(overlay.OverlayError, "in the tree already"):
            self.install()

    def test_status_tells_what_differs(self) -> None:
        self.install()
        with mock.patch.object(overlay, "overlay_for", self.wanted):
            self.assertEqual(overlay.differences(overlay.Tree(self.root)), [])
            self.files["hw/freehint.c"] = b"int y;\n"
            self.patches = []
            report = overlay.differences(overlay.Tree(self.root))
        self.assertEqual(
            report, ["differs: hw/freehint.c", "no longer ours: 0001-a.patch"]
        )

    def test_a_copy_follows_its_origin_and_leaves_it_alone(self) -> None:
        before = self.content()
        with (
            tempfile.TemporaryDirectory() as folder,
            mock.patch.object(overlay, "overlay_for", self.wanted),
        ):
            copy = Path(folder) / "copy"
            overlay.install_copy(self.root, copy)
            os.utime(copy / "hw/Kconfig", (1, 1))
            (self.root / "hw/meson.build").write_text("new\n")
            overlay.install_copy(self.root, copy)
            self.assertEqual((copy / "hw/meson.build").read_text(), "new\n")
            self.assertIn("first", (copy / "hw/Kconfig").read_text())
            self.assertEqual((copy / "hw/Kconfig").stat().st_mtime, 1)
        self.assertEqual(self.content() | {"hw/meson.build": LINES}, before)

    def test_a_test_that_is_new_is_listed(self) -> None:
        """It comes beside the first of ours, by name; the memory test is not in qos-test."""
        names = ("fuzz", "memory", "drain")
        for name in names:
            self.files[f"tests/qtest/virtio-freehint-{name}-test.c"] = b""
        first = patch("0001-a.patch", 5, "  'virtio-freehint-test.c',")
        self.patches = [
            overlay.list_tests(first, self.files),
            patch("0002-b.patch", 20, "second"),
        ]
        self.install()
        added = [line for line in self.kconfig().splitlines() if "line" not in line]
        tests = [f"  'virtio-freehint-{name}test.c'," for name in ("drain-", "fuzz-", "")]
        self.assertEqual(added, [*tests, "second"])

    def test_trees_and_their_series_are_known(self) -> None:
        self.assertEqual(overlay.tree_series(self.root), "qemu-10.0")
        (self.root / "VERSION").unlink()
        with self.assertRaisesRegex(overlay.OverlayError, "neither a QEMU nor"):
            overlay.tree_series(self.root)
        (self.root / "mm").mkdir()
        (self.root / "mm/page_alloc.c").touch()
        (self.root / "Makefile").write_text("VERSION = 6\nPATCHLEVEL = 12\n")
        self.assertEqual(overlay.tree_series(self.root), "linux-6.12")

    def test_a_series_without_patches_is_refused(self) -> None:
        with self.assertRaisesRegex(overlay.OverlayError, "no wiring patches for"):
            overlay.overlay_for("qemu-4.2")


class QemuHeaderTest(unittest.TestCase):
    def test_types_are_as_qemu_imports_them(self) -> None:
        text = overlay.qemu_header().decode()
        self.assertNotRegex(text, r"\b__(le|u)\d")
        self.assertNotIn("<linux/", text)
        self.assertIn('#include "standard-headers/linux/types.h"', text)
        self.assertIn("uint64_t granule;", text)


if __name__ == "__main__":
    unittest.main()
