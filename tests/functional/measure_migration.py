# SPDX-License-Identifier: GPL-2.0-or-later
"""Measure what it costs to move or save a guest that has freed memory.

First by precopy: a guest writes to memory and frees it while the device is disabled, and
moves at 100 MiB/s to a destination whose device is disabled. Three cases: device disabled
on the source; enabled just before; and enabled with postcopy allowed but not used, so that
nothing is skipped.

Then by postcopy, by a background snapshot to nowhere (both at 100 MiB/s) and by savevm,
with the device disabled, and with it enabled when memory was freed.

Memory is what is resident where the guest runs, right after the end, and after free memory
has been hinted again. How long the device was vetoed comes from its events. Prints a line
for each case, in MiB and seconds.
"""

import contextlib
import tempfile
import time
from pathlib import Path
from typing import Any

import migration
from freehint_vm import DEVICE_ID, MIB, FreehintVM

MEMORY_MIB = 1536
HOG_MIB = 1024
BANDWIDTH = 100 * MIB

BACKINGS = {
    "anonymous": (),
    "memfd": (
        *("-object", f"memory-backend-memfd,id=pc.ram,size={MEMORY_MIB}M,share=on"),
        *("-machine", "memory-backend=pc.ram"),
    ),
}
MODES = ("disabled", "discards", "skips")
WAYS = ("postcopy", "snapshot", "savevm")


def start_vm(backing: str, origin: FreehintVM | None = None) -> FreehintVM:
    device = ("-device", f"virtio-freehint-pci,id={DEVICE_ID},enabled=off")
    return FreehintVM(
        "none",
        memory_mib=MEMORY_MIB,
        extra_args=(*device, *BACKINGS[backing]),
        origin=origin,
    )


def measure(backing: str, mode: str) -> str:
    with start_vm(backing) as source, start_vm(backing, source) as target:
        source.check(f"memhog {HOG_MIB}m")
        if mode == "discards":
            for vm in source, target:
                migration.set_capabilities(vm, "postcopy-ram")
        migration.set_bandwidth(source, BANDWIDTH)
        source.set_enabled(mode != "disabled")
        answer = migration.move(source, target)
        ram = answer["ram"]
        figures = (
            answer["total-time"] / 1000,
            ram["transferred"] / MIB,
            ram["duplicate"] * ram["page-size"] / MIB,
            source.query()["stats"]["skipped-bytes"] / MIB,
            target.memory.now().rss / MIB,
        )
        return f"{backing:10} {mode:10}" + "".join(f"{f:11.1f}" for f in figures)


# -- not by precopy --


def vetoed_for(vm: FreehintVM) -> float:
    """How many seconds the last veto lasted, by the device's events."""
    times = []
    for state in "vetoed", "active":
        event: Any = vm.machine.events_wait(
            [("FREEHINT_STATE_CHANGED", {"data": {"state": state}})], timeout=60.0
        )
        assert event is not None, f"never {state}"
        when = event["timestamp"]
        times.append(when["seconds"] + when["microseconds"] / 1e6)
    return float(times[1] - times[0])


def by_postcopy(source: FreehintVM, target: FreehintVM) -> float:
    for vm in source, target:
        migration.set_capabilities(vm, "postcopy-ram")
    with migration.socket_uri() as uri:
        migration.start(source, target, uri)
        migration.wait_for(source, "active")
        source.machine.cmd("migrate-start-postcopy")
        answer = migration.wait_for(source, "completed")
    migration.wait_running(target)
    return float(answer["ram"]["transferred"])


def by_snapshot(source: FreehintVM) -> float:
    migration.set_capabilities(source, "background-snapshot")
    source.machine.cmd("migrate", uri="exec:cat > /dev/null")
    return float(migration.wait_for(source, "completed")["ram"]["transferred"])


def by_savevm(source: FreehintVM) -> float:
    with tempfile.TemporaryDirectory(prefix="freehint-") as folder:
        path = Path(folder) / "state.qcow2"
        migration.add_image(source, path)
        complaint = migration.hmp(source, "savevm saved")
        assert not complaint, complaint
        return float(path.stat().st_blocks * 512)


def measure_way(way: str, enabled: bool) -> str:
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(start_vm("anonymous"))
        there = source
        if way == "postcopy":
            there = stack.enter_context(start_vm("anonymous", source))
        for vm in {source, there}:
            vm.set_enabled(enabled)
            migration.set_bandwidth(vm, BANDWIDTH)
        source.check(f"memhog {HOG_MIB}m")
        source.settle(quiet=3)
        there.machine.get_qmp_events()
        before, begun = source.memory.now().rss, time.monotonic()
        if way == "postcopy":
            amount = by_postcopy(source, there)
        elif way == "snapshot":
            amount = by_snapshot(source)
        else:
            amount = by_savevm(source)
        took, after = time.monotonic() - begun, there.memory.now().rss
        veto = "-"
        if enabled and way != "savevm":
            veto = f"{vetoed_for(there):.1f}"
        there.settle(quiet=3)
        sizes = (amount, before, after, there.memory.now().rss)
    return (
        f"{way:10} {'enabled' if enabled else 'disabled':10}{took:11.1f}"
        + "".join(f"{size / MIB:11.1f}" for size in sizes)
        + f"{veto:>11}"
    )


def main() -> None:
    names = ("seconds", "sent", "as zeros", "skipped", "RSS there")
    print(f"{'memory':10} {'device':10}" + "".join(f"{n:>11}" for n in names))
    for backing in BACKINGS:
        for mode in MODES:
            print(measure(backing, mode), flush=True)
    headings = ("seconds", "written", "RSS before", "at the end", "settled", "vetoed")
    print(f"{'way':10} {'device':10}" + "".join(f"{n:>11}" for n in headings))
    for way in WAYS:
        for enabled in False, True:
            print(measure_way(way, enabled), flush=True)


if __name__ == "__main__":
    main()
