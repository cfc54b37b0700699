# SPDX-License-Identifier: GPL-2.0-or-later
"""The driver in the guest: what it reports, how to bind it, its memory."""

import re
import time
from collections.abc import Callable
from typing import Any

from freehint_vm import COUNTERS, DEVICE_ID, MIB, FreehintVM, GuestError

DRIVER = "/sys/bus/virtio/drivers/virtio_freehint"
DEVICES = "/sys/bus/virtio/devices"
CHECK = "/sys/kernel/debug/freehint/check"

# The outcomes of hinted bytes; all other hinted bytes are in flight.
OUTCOMES = (
    *("discarded", "lazy", "declined", "throttled", "never", "failed"),
    *("aborted", "leaked"),
)

# How much the driver may leave unhinted, for the guest's own needs.
KEPT = 32 * MIB

# How many bytes may be missing where all memory has to be accounted for: slab caches, page
# tables and the like grow for other reasons.
MEMORY_SLACK = 6 * MIB


def wait_for(what: str, condition: Callable[[], Any], timeout: float = 30) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise GuestError(f"not within {timeout:.0f} s: {what}")
        time.sleep(0.1)


class GuestDriver:
    """The virtio-freehint driver of a running guest."""

    def __init__(self, vm: FreehintVM) -> None:
        self._vm = vm

    # -- the device, as it presents itself to this driver --

    def set_faults(self, **faults: int) -> None:
        """Set the device's faults; they replace those that were set before.

        See qemu-device/hw/virtio/virtio-freehint-testdev.c; write "_" for "-".
        """
        value = {name.replace("_", "-"): number for name, number in faults.items()}
        self._vm.machine.cmd(
            "qom-set",
            path=f"/machine/peripheral/{DEVICE_ID}",
            property="x-faults",
            value=value,
        )

    def hold(self) -> None:
        """Keep the first free memory of each zone in flight until the next set_faults()."""
        self._vm.set_enabled(False)
        self.set_faults(hang=1)
        self._vm.set_enabled(True)
        seen = [0]

        def is_stable() -> bool:
            seen.append(self.counters()["in_flight_bytes"])
            return seen[-1] > 0 and seen[-1] == seen[-2]

        wait_for("hints are in flight, and no more come", is_stable)

    def wait_in_flight(self) -> None:
        """Wait until the device has hints; it reports that earlier than the guest."""
        wait_for(
            "hints are in flight",
            lambda: self._vm.query()["stats"]["in-flight"]["bytes"],
        )

    def move_epoch(self) -> None:
        before = self._vm.query()["rehint-epoch"]
        self._vm.set_enabled(False)
        self._vm.set_enabled(True)
        assert self._vm.query()["rehint-epoch"] != before

    def set_timeout(self, ms: int) -> None:
        """Set how long the driver waits for an answer."""
        self._vm.check(f"echo {ms} >/sys/module/virtio_freehint/parameters/timeout_ms")

    # -- binding --

    def device(self) -> str:
        """The guest's name for the device, e.g. "virtio3"."""
        path = self._vm.check(f"grep -lix 0x003f {DEVICES}/*/device")
        return path.split("/")[-2]

    def is_bound(self) -> bool:
        """The link exists before the probe has ended; the files below it do not."""
        return self._vm.run(f"ls {DRIVER}/virtio*/freehint/status").status == 0

    def bind(self) -> bool:
        """Return whether the driver took the device."""
        return self._vm.run(f"echo {self.device()} >{DRIVER}/bind").status == 0

    def unbind(self, timeout: float = 60) -> None:
        self._vm.check(f"echo {self.device()} >{DRIVER}/unbind", timeout)

    def allow(self, allowed: bool) -> None:
        """What the guest's administrator does; with False, the driver then holds no memory."""
        self._vm.check(f"echo {int(allowed)} | tee {DRIVER}/virtio*/freehint/allowed")

    # -- what it reports --

    def attribute(self, name: str) -> str:
        return self._vm.check(f"cat {DRIVER}/virtio*/freehint/{name}")

    def counters(self) -> dict[str, int]:
        """The driver's counters."""
        lines = self._vm.check(f"cat {COUNTERS}").splitlines()
        pairs = (line.split() for line in lines)
        return {name: int(value) for name, value in pairs}

    def unaccounted(self) -> int:
        """Hinted bytes that are not in flight and have no outcome; must be zero."""
        counters = self.counters()
        known = sum(counters[f"{name}_bytes"] for name in OUTCOMES)
        return counters["hinted_bytes"] - known - counters["in_flight_bytes"]

    def wait_accounted(self) -> None:
        """Wait for zero: while hints come and go, the counters are not read at once."""
        wait_for("each hint has an outcome", lambda: self.unaccounted() == 0)

    def engine(self) -> str:
        """What tells the driver which memory is free."""
        return self.attribute("engine")

    def violations(self) -> int:
        """Granules whose state contradicts the allocator's lists; must be zero.

        With page reporting, granules have no state.
        """
        if self.engine() == "page-reporting":
            return 0
        text = self._vm.check(f"cat {CHECK}")
        return int(re.findall(r"^violations (\d+)$", text, re.M)[0])

    def mark_log(self) -> str:
        """Remember this point of the kernel's log, for `log`."""
        mark = f"mark-{time.monotonic_ns()}"
        self._vm.check(f"echo {mark} >/dev/kmsg")
        return mark

    def log(self, mark: str) -> list[str]:
        """What the driver and the engine wrote to the kernel's log since `mark`."""
        lines = self._vm.check("dmesg").splitlines()
        start = next(i for i, line in enumerate(lines) if mark in line)
        return [line for line in lines[start:] if "freehint" in line]

    # -- memory --

    def settle(self, timeout: float = 60) -> None:
        """Wait until the driver has nothing to do.

        What is lazy is hinted once more when it has settled; that may take ten seconds.
        """
        last: list[tuple[int, int]] = []

        def is_quiet() -> bool:
            counters = self.counters()
            last.append((counters["hinted_bytes"], counters["free_lazy_bytes"]))
            return (
                len(last) > 5
                and len(set(last[-5:])) == 1
                and not counters["free_lazy_bytes"]
                and not counters["in_flight_bytes"]
                and counters["free_pending_bytes"] < KEPT
            )

        wait_for("the driver is at rest", is_quiet, timeout)

    def free_by_zone(self) -> dict[str, int]:
        """Free bytes of each zone, per-CPU lists included, caches dropped."""
        self._vm.check("sync; echo 3 >/proc/sys/vm/drop_caches")
        self._vm.check("echo 1 >/proc/sys/vm/stat_refresh; sleep 0.2")
        free: dict[str, int] = {}
        zone = ""
        for line in self._vm.check("cat /proc/zoneinfo").splitlines():
            words = line.split()
            if line.startswith("Node"):
                zone = f"{words[1]}{words[3]}"
                free[zone] = 0
            elif words[:2] == ["pages", "free"]:
                free[zone] += int(words[2]) * 4096
            elif words[0] == "count:":
                free[zone] += int(words[1]) * 4096
        return free

    def missing(self, before: dict[str, int]) -> dict[str, int]:
        """Bytes that each zone has lost for good since `before`, if they are many.

        Caches that are dropped for the count are hinted, so they are not free for a moment.
        """
        for pause in 0, 1, 2, 4, 8:
            time.sleep(pause)
            now = self.free_by_zone()
            lost = {zone: before[zone] - now[zone] for zone in before}
            lost = {zone: size for zone, size in lost.items() if size > MEMORY_SLACK}
            if not lost:
                break
        return lost
