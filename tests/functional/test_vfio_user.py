# SPDX-License-Identifier: GPL-2.0-or-later
"""A vfio-user device vetoes discards for as long as it is there.

Its server is a sample of libvfio-user, another process, which maps guest memory. It takes
QEMU 10.2: scripts/build-qemu --10.2.
"""

import os
import subprocess
import tempfile
import time
import unittest
from pathlib import Path
from typing import Any

from freehint_vm import BUILD, HOTPLUG_PORT, MIB, PORT, SYSFS, FreehintVM
from guest_driver import wait_for

QEMU = Path(os.environ.get("FREEHINT_OTHER_QEMU", ""))
SERVER = BUILD / "libvfio-user" / "samples" / "gpio-pci-idio-16"

DEVICE = "vu0"
QOM_PATH = f"/machine/peripheral/{DEVICE}"
MEMORY_MIB = 512
HOG_MIB = 256
# How long a discard takes that is to be in progress at that time.
SLOW_MS = 500

SLICE_BEGIN, SLICE_END = "virtio_freehint_job_begin", "virtio_freehint_job_end"
# What vfio-user does before it disables discards, and while they are disabled.
CONNECT, MAP = "vfio_user_version", "vfio_user_dma_map"
TRACED = (SLICE_BEGIN, SLICE_END, CONNECT, MAP)

# Memory that the server can map, and a slot for its device.
MACHINE = (
    *("-object", f"memory-backend-memfd,id=ram,size={MEMORY_MIB}M,share=on"),
    *("-machine", "memory-backend=ram"),
    *HOTPLUG_PORT,
)


class VFIOUserTest(unittest.TestCase):
    def setUp(self) -> None:
        for program in QEMU, SERVER:
            if not program.is_file():
                self.skipTest(f"FREEHINT_OTHER_QEMU is no QEMU 10.2, or no {SERVER}")
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.start_server()

    def start_server(self) -> None:
        socket = self.folder / "socket"
        server = subprocess.Popen([SERVER, socket])
        self.addCleanup(server.wait)
        self.addCleanup(server.kill)
        wait_for("the server listens", socket.exists)
        self.device: dict[str, Any] = {
            "driver": "vfio-user-pci",
            "id": DEVICE,
            "bus": PORT,
            "socket": {"type": "unix", "path": str(socket)},
        }

    def start_vm(self) -> FreehintVM:
        slow = f"virtio-freehint-testdev.x-job-delay-ms={SLOW_MS}"
        traced = (arg for name in TRACED for arg in ("-trace", name))
        log = ("-D", str(self.folder / "events"))
        vm = FreehintVM(
            "testdev",
            memory_mib=MEMORY_MIB,
            extra_args=(*MACHINE, "-global", slow, *traced, *log),
            qemu=QEMU,
        )
        return self.enterContext(vm)

    def events(self) -> list[str]:
        lines = (self.folder / "events").read_text().splitlines()
        return [line.split()[0] for line in lines]

    def assert_guest_knows(self, vm: FreehintVM, *state: str) -> None:
        known = vm.check(f"cat {SYSFS}/device_state {SYSFS}/device_reason")
        self.assertEqual(tuple(known.split()), state)

    def plug_during_a_discard(self, vm: FreehintVM) -> None:
        """So that the call that disables discards has to wait for one."""
        begun = self.events().count(SLICE_BEGIN)
        wait_for("a discard", lambda: self.events().count(SLICE_BEGIN) > begun)
        vm.machine.cmd("device_add", **self.device)
        events = self.events()
        before = events[: events.index(CONNECT)]
        slices = [name for name in before if name in (SLICE_BEGIN, SLICE_END)]
        self.assertEqual(slices[-1], SLICE_BEGIN, "plugged too late")

    def assert_order(self) -> None:
        """Memory was mapped after the discard, and none has started since."""
        events = self.events()
        slices = [name for name in events if name in (SLICE_BEGIN, SLICE_END)]
        self.assertEqual(slices[-1], SLICE_END)
        last = len(events) - 1 - events[::-1].index(SLICE_END)
        self.assertLess(last, events.index(MAP))

    def assert_vetoed(self, info: dict[str, Any]) -> None:
        self.assertEqual((info["state"], info["reason"]), ("vetoed", "pinned"))
        (obstacle,) = info["obstacles"]
        self.assertEqual(obstacle["reason"], "pinned")
        self.assertEqual(obstacle.get("qom-paths"), [QOM_PATH])

    def test_plugged_and_unplugged(self) -> None:
        vm = self.start_vm()
        churn = vm.start("churn -m 64 -n 100000 -p 50")
        self.plug_during_a_discard(vm)
        vetoed = vm.query()
        self.assert_vetoed(vetoed)
        vm.check(f"memhog {HOG_MIB}m")
        time.sleep(4 * SLOW_MS / 1000)
        self.assertFalse(churn.done.is_set(), "nothing frees memory any more")
        self.assertEqual(
            vm.query()["stats"]["discard-calls"], vetoed["stats"]["discard-calls"]
        )
        self.assert_guest_knows(vm, "vetoed", "pinned")
        self.assert_order()

        rss = vm.settle()
        vm.unplug(DEVICE)
        target = rss - HOG_MIB // 2 * MIB
        self.assertIsNotNone(vm.wait_rss_below(target, 120), "memory is not returned")
        info = vm.query()
        self.assertEqual((info["state"], info.get("reason")), ("active", None))
        self.assertEqual(info["obstacles"], [])
        self.assertNotEqual(info["rehint-epoch"], vetoed["rehint-epoch"])
        self.assert_guest_knows(vm, "active", "none")


if __name__ == "__main__":
    unittest.main()
