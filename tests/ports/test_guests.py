# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests of other architectures: with large pages, big-endian, on channel devices.

They run guest.c, or our KUnit tests, without a device: the tests take its place. They
assume pages of 4 KiB and pageblocks of 2 MiB.
"""

import contextlib
import dataclasses
import os
import re
import sys
import tempfile
import time
import unittest
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("FREEHINT_BUILD", PROJECT / "build"))
sys.path.insert(0, str(BUILD / "src" / "qemu" / "python"))
sys.path.insert(0, str(PROJECT / "scripts" / "lib"))

import registered  # noqa: E402
from qemu.machine import QEMUMachine  # noqa: E402

MIB = 1 << 20
MEMORY_MIB = 1024
TIMEOUT = 600
SPLAT = re.compile(r"WARNING:|BUG:|Oops")
BAD = re.compile(r"Kernel panic.*|port: failed.*")


@dataclasses.dataclass(frozen=True)
class Guest:
    """How to boot a kernel, and what its guest has to report."""

    kernel: str
    arch: str
    image: str
    machine: tuple[str, ...]
    console: str
    pages: str
    options: str = ""

    @property
    def paths(self) -> tuple[Path, Path]:
        folder = "arm64" if self.arch == "aarch64" else "s390"
        return (
            BUILD / f"linux-{self.kernel}/arch/{folder}/boot/{self.image}",
            BUILD / f"guest-{self.arch}/initramfs.cpio.gz",
        )


VIRT = ("-M", "virt", "-cpu", "max")
# The machine needs firmware, but does not run it. Debian's qemu-system-data has it.
FIRMWARE = ("-bios", "/usr/share/qemu/s390-ccw.img")
CCW = ("-M", "s390-ccw-virtio", "-cpu", "max", *FIRMWARE)
ARM = Guest("aarch64", "aarch64", "Image", VIRT, "ttyAMA0", "4096 bytes, little-endian")
ARM_64K = dataclasses.replace(
    ARM, kernel="aarch64_64k", pages="65536 bytes, little-endian"
)
# An s390x host has huge pages of 1 MiB, and the device has the same granule.
S390X = Guest(
    *("s390x", "s390x", "bzImage", CCW, "ttysclp0", "4096 bytes, big-endian"),
    options="x-granule=1M",
)


class GuestsTest(unittest.TestCase):
    def test_aarch64(self) -> None:
        self.check(ARM, "virtio-freehint-pci")

    def test_aarch64_with_large_pages(self) -> None:
        self.check(ARM_64K, "virtio-freehint-pci")

    def test_s390x_on_pci(self) -> None:
        self.check(S390X, "virtio-freehint-pci")

    def test_s390x_on_channels(self) -> None:
        self.check(S390X, "virtio-freehint-ccw")

    def test_kunit(self) -> None:
        source = BUILD / "src" / "linux"
        there = registered.kunit_cases(source, ("mm/freehint", "drivers/virtio"))
        # There are cases that want two zones.
        tests = "kunit.enable=1 kunit.filter_glob=freehint* movablecore=128M"
        with self.booted(ARM, append=tests) as (_, console):
            said = self.said_until(console, "port: ")
        self.assertEqual(re.findall(r"^ *not ok .*|.*# SKIP.*", said, re.M), [])
        passed = re.findall(r"^ {4}ok \d+ ", said, re.M)
        self.assertEqual(len(passed), there.total())

    def check(self, guest: Guest, device: str) -> None:
        options = ",".join(filter(None, (f"{device},id=fh0", guest.options)))
        with self.booted(guest, "-device", options) as (machine, console):
            said = self.said_until(console, "port: ok")
            self.assertNotRegex(said, SPLAT)
            self.assertIn(f"port: pages of {guest.pages}", said)
            self.check_device(machine)
            self.check_next_epoch(machine)
            self.check_flush(machine)

    @contextlib.contextmanager
    def booted(
        self, guest: Guest, *args: str, append: str = ""
    ) -> Iterator[tuple[QEMUMachine, Path]]:
        """Boot a guest; yield its machine and the file with its console."""
        with tempfile.TemporaryDirectory() as folder:
            console = Path(folder, "console")
            console.touch()
            kernel, initramfs = guest.paths
            machine = QEMUMachine(str(BUILD / f"qemu-ports/qemu-system-{guest.arch}"))
            machine.add_args(
                *guest.machine,
                *("-nodefaults", "-m", str(MEMORY_MIB), "-serial", f"file:{console}"),
                *("-kernel", str(kernel), "-initrd", str(initramfs)),
                *("-append", f"console={guest.console} {append}", *args),
            )
            with machine:
                machine.launch()
                yield machine, console

    def said_until(self, console: Path, end: str) -> str:
        deadline = time.monotonic() + TIMEOUT
        while time.monotonic() < deadline:
            said = console.read_text(errors="replace")
            if end in said:
                return said
            if bad := BAD.search(said):
                self.fail(f"{bad[0]}:\n{said[-4000:]}")
            time.sleep(0.5)
        self.fail(f"it does not say '{end}' within {TIMEOUT} s:\n{said[-4000:]}")

    def query(self, machine: QEMUMachine) -> dict[str, Any]:
        devices: Any = machine.cmd("query-freehint")
        (device,) = devices
        answer: dict[str, Any] = device
        return answer

    def check_device(self, machine: QEMUMachine) -> None:
        """The device's figures agree with the guest's."""
        device = self.query(machine)
        self.assertEqual(device["driver-status"], "active")
        stats = device["stats"]
        self.assertGreater(stats["discarded"]["bytes"], 3 * (256 - 32) * MIB)
        wrong = {"failed": stats["failed"], **stats["rejected"]}
        self.assertEqual({why: c for why, c in wrong.items() if c["ranges"]}, {})

    def check_next_epoch(self, machine: QEMUMachine) -> None:
        """The next epoch has another value in the other byte order."""
        for enabled in False, True:
            machine.cmd("freehint-set", id="fh0", enabled=enabled)
            wanted = "active" if enabled else "waiting"
            deadline = time.monotonic() + TIMEOUT
            while self.query(machine)["driver-status"] != wanted:
                self.assertLess(time.monotonic(), deadline, f"it is not {wanted}")
                time.sleep(0.1)
        self.assertNotEqual(self.query(machine)["rehint-epoch"], 0)

    def check_flush(self, machine: QEMUMachine) -> None:
        """A flush ends with the guest's figures, and all free memory is discarded."""
        started: Any = machine.cmd("freehint-flush", id="fh0", timeout_ms=20000)
        event: Any = machine.event_wait("FREEHINT_FLUSH_COMPLETED", timeout=60)
        self.assertEqual(event["data"]["flush-id"], started["flush-id"])
        self.assertEqual(event["data"]["result"], "done")
        gauges = event["data"]["guest-gauges"]
        self.assertLess(gauges["free"], MEMORY_MIB * MIB)
        self.assertGreater(gauges["hinted"], gauges["free"] // 2)
        self.assertEqual(gauges["in-flight"], 0)


if __name__ == "__main__":
    unittest.main()
