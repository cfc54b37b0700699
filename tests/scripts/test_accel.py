# SPDX-License-Identifier: GPL-2.0-or-later
"""scripts/lib/accel.py: what "auto" chooses, with QEMUs that behave in different ways."""

import contextlib
import io
import os
import sys
import tempfile
import unittest
import unittest.mock
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT / "scripts" / "lib"))

import accel  # noqa: E402

BUILD = Path(os.environ.get("FREEHINT_BUILD", PROJECT / "build"))


class AccelTest(unittest.TestCase):
    def setUp(self) -> None:
        self.build = Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.device = self.build / "kvm"
        self.device.touch()

    def play(self, script: str) -> None:
        qemu = self.build / "qemu" / "qemu-system-x86_64"
        qemu.parent.mkdir()
        qemu.write_text(f"#!/bin/sh\n{script}\n")
        qemu.chmod(0o755)

    def choose(self) -> tuple[str, str]:
        """What "auto" chooses, and what it prints."""
        accel.chosen.cache_clear()
        said = io.StringIO()
        with (
            unittest.mock.patch.dict(os.environ, FREEHINT_ACCEL="auto"),
            unittest.mock.patch.object(accel, "DEVICE", self.device),
            unittest.mock.patch.object(accel, "PATIENCE_S", 1),
            contextlib.redirect_stderr(said),
        ):
            return accel.chosen(self.build), said.getvalue()

    def test_a_kernel_that_boots(self) -> None:
        self.play("echo '[    0.5] Kernel panic - not syncing: VFS: no root'")
        self.assertEqual(self.choose(), ("kvm", "# guests run under kvm\n"))

    def test_a_kernel_that_crawls(self) -> None:
        self.play("echo '[    0.0] Linux version'; exec sleep 60")
        chosen, said = self.choose()
        self.assertEqual(chosen, "tcg")
        self.assertIn("not kvm: the guest's kernel does not boot within 1 s", said)

    def test_a_machine_that_resets(self) -> None:
        """QEMU then ends without an error."""
        self.play("echo SeaBIOS")
        chosen, said = self.choose()
        self.assertEqual(chosen, "tcg")
        self.assertIn("QEMU has ended early: SeaBIOS", said)

    def test_no_kvm(self) -> None:
        self.device.unlink()
        chosen, said = self.choose()
        self.assertEqual(chosen, "tcg")
        self.assertIn(f"{self.device} cannot be opened", said)

    def test_our_kernel_ends_as_is_waited_for(self) -> None:
        with unittest.mock.patch.object(accel, "PATIENCE_S", 60):
            self.assertEqual(accel.why_not("tcg", BUILD), "")

    def test_what_was_asked_for_is_not_doubted(self) -> None:
        for wanted, chosen in ("kvm", "kvm"), ("tcg", "tcg"), ("", "tcg"):
            accel.chosen.cache_clear()
            with unittest.mock.patch.dict(os.environ, FREEHINT_ACCEL=wanted):
                self.assertEqual(accel.chosen(self.build), chosen)


if __name__ == "__main__":
    unittest.main()
