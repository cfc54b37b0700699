# SPDX-License-Identifier: GPL-2.0-or-later
"""Every fault of the lying device in every phase of a guest's life.

A cell is one fault in one phase. Whatever the device does, the guest completes the phase,
keeps the content of its memory, and hints again when the device behaves. Only if a reset
is not confirmed, the driver has to be bound again. The outcome of each cell is written to
BUILD/logs/faults.md.
"""

import contextlib
import unittest
from collections.abc import Callable

from freehint_vm import BUILD, MIB, FreehintVM, GuestError
from guest_driver import GuestDriver, wait_for

TIMEOUT_MS = 500
# The pause is for the hints, and for the driver to give the device up.
FREED = "memhog 96m && sleep 1.5"
# It can go offline, as the boot allocator uses other memory.
DIMM = (
    *("-m", "slots=1,maxmem=2G"),
    *("-object", "memory-backend-ram,id=dimm0,size=128M"),
    *("-device", "pc-dimm,memdev=dimm0"),
)
MOVABLE = "memhp_default_state=online_movable virtio_freehint.adapt=0"

FAULTS: dict[str, dict[str, int]] = {
    "offers no event index": {"features": 1 << 29},
    "granule of 3 bytes": {"granule": 3},
    "no ranges": {"max_ranges": 0},
    "unknown state": {"state": 7},
    "unknown result": {"result": 0xBEEF},
    "reserved bits": {"reserved": 0xFFFF},
    "more statuses than ranges": {"nstatus": 0xFFFF},
    "another epoch": {"epoch_offset": 1},
    "retry in an hour": {"retry_after_ms": 3600000},
    "failed, always": {"status": 0x30},
    "refused for good": {"status": 0x48},
    "unknown status": {"status": 0x00},
    "nothing written": {"used_length": 0},
    "used twice": {"used_id": 0},
    "hangs": {"hang": 1},
    "loses one": {"lose": 1},
    "asks for a reset": {"needs_reset": 1},
    "does not reset": {"hang": 1, "stuck_status": 1},
}

# Linux resets each virtio device when it wakes up, and this driver does when it is unbound.
# Both wait for the reset without end, as the device still has the rings.
NOT_TRIED = {("does not reset", "suspend"), ("does not reset", "unbind")}


class FaultsTest(unittest.TestCase):
    vm: FreehintVM
    driver: GuestDriver

    @classmethod
    def setUpClass(cls) -> None:
        vm = FreehintVM("testdev", memory_mib=768, cpus=2, extra_args=DIMM, append=MOVABLE)
        cls.vm = cls.enterClassContext(vm)
        cls.driver = GuestDriver(cls.vm)
        cls.driver.set_timeout(TIMEOUT_MS)

    # -- phases: each begins with a device that behaves --

    def probe(self, fault: dict[str, int]) -> None:
        self.driver.unbind()
        self.driver.set_faults(**fault)
        self.driver.bind()
        self.vm.check(FREED)

    def idle(self, fault: dict[str, int]) -> None:
        self.driver.settle()
        self.driver.set_faults(**fault)
        self.vm.check("sleep 1")

    def burst(self, fault: dict[str, int]) -> None:
        self.driver.set_faults(**fault)
        self.vm.check(FREED)

    def flush(self, fault: dict[str, int]) -> None:
        self.driver.set_faults(**fault)
        # Flush before the driver gives the device up, as it cannot flush after that.
        freed = self.vm.start(FREED)
        self.vm.flush(timeout_ms=1000)
        self.vm.finish(freed)

    def offline(self, fault: dict[str, int]) -> None:
        self.driver.set_faults(**fault)
        block = "$(dirname $(grep -l Movable /sys/devices/system/memory/*/valid_zones"
        block += " | head -1))/state"
        self.vm.check(FREED)
        # Memory that the device does not return cannot go offline, and Linux tries until
        # it is told to stop.
        self.vm.run(f"timeout 10 sh -c 'echo offline >{block}'", timeout=180)
        self.vm.check("for s in /sys/devices/system/memory/*/state; do"
                      " grep -q '^online' $s || echo online_movable >$s; done")

    def suspend(self, fault: dict[str, int]) -> None:
        self.driver.set_faults(**fault)
        self.vm.check(FREED)
        # A device that cannot be stopped may prevent the suspend.
        self.vm.run("echo devices >/sys/power/pm_test; echo mem >/sys/power/state", 180)

    def unbind(self, fault: dict[str, int]) -> None:
        self.driver.set_faults(**fault)
        self.vm.check(FREED)
        self.driver.unbind(timeout=180)

    def off_and_on(self, fault: dict[str, int]) -> None:
        self.driver.set_faults(**fault)
        self.vm.check(FREED)
        switch = "$(echo /sys/bus/virtio/drivers/virtio_freehint/virtio*/freehint/allowed)"
        for allowed in 0, 1:
            self.vm.run(f"echo {allowed} >{switch}", timeout=180)

    # -- what has to hold after each --

    def heal(self) -> str:
        """Make the driver hint again; how it came back."""
        self.driver.set_faults()
        found = "unbound"
        if self.driver.is_bound():
            found = self.driver.attribute("status")
            with contextlib.suppress(GuestError):
                wait_for("the driver comes back", self.is_active, 40)
        if self.is_active():
            return found if found == "active" else f"{found}, comes back"
        if self.driver.is_bound():
            self.driver.unbind(timeout=180)
        self.assertTrue(self.driver.bind())
        self.assertTrue(self.is_active())
        return f"{found}, is bound again"

    def is_active(self) -> bool:
        return self.driver.is_bound() and self.driver.attribute("status") == "active"

    def check(self) -> None:
        self.driver.move_epoch()
        self.driver.settle()
        self.driver.wait_accounted()
        self.assertEqual(self.driver.violations(), 0)
        self.assertEqual(self.driver.counters()["in_flight_bytes"], 0)
        self.assertEqual(self.driver.counters()["leaked_bytes"], 0)
        before = self.vm.query()["stats"]["discarded"]["bytes"]
        result = self.vm.run("churn -n 1 -m 96 -p 150")
        self.assertIn(" 0 bytes lost", result.output)
        wait_for(
            "what is freed is discarded",
            lambda: self.vm.query()["stats"]["discarded"]["bytes"] > before + 48 * MIB,
        )

    def test_every_fault_in_every_phase(self) -> None:
        phases: list[Callable[[dict[str, int]], None]] = [
            *(self.probe, self.idle, self.burst, self.flush, self.offline),
            *(self.suspend, self.unbind, self.off_and_on),
        ]
        names = [phase.__name__.replace("_", " ") for phase in phases]
        rows = [f"| the device | {' | '.join(names)} |", "| --- " * (1 + len(names)) + "|"]
        for name, fault in FAULTS.items():
            cells = []
            for phase in phases:
                if (name, phase.__name__) in NOT_TRIED:
                    cells.append("not tried")
                    continue
                cells.append("**fails**")
                with self.subTest(name, phase=phase.__name__):
                    phase(fault)
                    outcome = self.heal()
                    self.check()
                    cells[-1] = outcome
            rows.append(f"| {name} | {' | '.join(cells)} |")
            table = BUILD / "logs" / "faults.md"
            table.write_text("\n".join(rows) + "\n")


if __name__ == "__main__":
    unittest.main()
