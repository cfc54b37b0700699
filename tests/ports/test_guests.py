# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests of other architectures: with large pages, big-endian, on channel devices.

The kernel runs our KUnit tests first, and then the process of guest.c.
"""

import dataclasses
import os
import re
import sys
import time
import unittest
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("FREEHINT_BUILD", PROJECT / "build"))
sys.path.insert(0, str(BUILD / "src" / "qemu" / "python"))
sys.path.insert(0, str(PROJECT / "scripts" / "lib"))

import registered  # noqa: E402
from qemu.machine import QEMUMachine  # noqa: E402

MIB = 1 << 20
# Emulated, and the kernel's tests come first.
TIMEOUT = 600
SPLAT = re.compile(r"WARNING:|BUG:|Oops|Kernel panic|port: failed.*")


@dataclasses.dataclass(frozen=True)
class Guest:
    """Where a kernel boots, and what it has to say of itself."""

    kernel: str
    arch: str
    image: str
    machine: tuple[str, ...]
    console: str
    pages: str

    @property
    def paths(self) -> tuple[Path, Path]:
        folder = "arm64" if self.arch == "aarch64" else "s390"
        return (
            BUILD / f"linux-{self.kernel}/arch/{folder}/boot/{self.image}",
            BUILD / f"guest-{self.arch}/initramfs.cpio.gz",
        )


VIRT = ("-M", "virt", "-cpu", "max")
CCW = ("-M", "s390-ccw-virtio", "-cpu", "max")
ARM = Guest("aarch64", "aarch64", "Image", VIRT, "ttyAMA0", "4096 bytes, little-endian")
ARM_64K = dataclasses.replace(
    ARM, kernel="aarch64_64k", pages="65536 bytes, little-endian"
)
S390X = Guest("s390x", "s390x", "bzImage", CCW, "ttyS0", "4096 bytes, big-endian")


class GuestsTest(unittest.TestCase):
    def test_aarch64(self) -> None:
        self.check(ARM, "virtio-freehint-pci")

    def test_aarch64_with_large_pages(self) -> None:
        self.check(ARM_64K, "virtio-freehint-pci")

    def test_s390x_on_pci(self) -> None:
        self.check(S390X, "virtio-freehint-pci")

    def test_s390x_on_channels(self) -> None:
        self.check(S390X, "virtio-freehint-ccw")

    def check(self, guest: Guest, device: str) -> None:
        console = BUILD / "logs" / f"guest-{guest.kernel}-{device}.log"
        console.unlink(missing_ok=True)
        kernel, initramfs = guest.paths
        machine = QEMUMachine(str(BUILD / f"qemu-ports/qemu-system-{guest.arch}"))
        machine.add_args(
            *guest.machine,
            *("-nodefaults", "-m", "1024", "-serial", f"file:{console}"),
            *("-kernel", str(kernel), "-initrd", str(initramfs)),
            *("-append", f"console={guest.console} kunit.filter_glob=freehint*"),
            *("-device", f"{device},id=fh0"),
        )
        with machine:
            machine.launch()
            said = self.wait_for_end(console)
            self.assertIn(f"port: pages of {guest.pages}", said)
            self.check_kunit(said)
            self.check_device(machine)

    def wait_for_end(self, console: Path) -> str:
        deadline = time.monotonic() + TIMEOUT
        while time.monotonic() < deadline:
            said = console.read_text(errors="replace") if console.exists() else ""
            bad = SPLAT.search(said)
            self.assertIsNone(bad, f"{bad and bad[0]}: see {console}")
            if "port: ok" in said:
                return said
            time.sleep(0.5)
        self.fail(f"the guest has not ended after {TIMEOUT} s: see {console}")

    def check_kunit(self, said: str) -> None:
        source = BUILD / "src" / "linux"
        there = registered.kunit_cases(source, ("mm/freehint", "drivers/virtio"))
        self.assertEqual(re.findall(r"^ *not ok .*", said, re.M), [])
        passed = re.findall(r"^ {4}ok \d+ ", said, re.M)
        self.assertEqual(len(passed), there.total())

    def check_device(self, machine: QEMUMachine) -> None:
        """It agrees with the guest on what was freed."""
        (device,) = machine.cmd("query-freehint")
        self.assertEqual(device["driver-status"], "active")
        stats: dict[str, Any] = device["stats"]
        self.assertGreater(stats["discarded"]["bytes"], 3 * (256 - 32) * MIB)
        wrong = {"failed": stats["failed"], **stats["rejected"]}
        self.assertEqual({why: c for why, c in wrong.items() if c["ranges"]}, {})


if __name__ == "__main__":
    unittest.main()
