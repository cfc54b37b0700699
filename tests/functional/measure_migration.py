# SPDX-License-Identifier: GPL-2.0-or-later
"""Measure what a migration sends after the guest has freed memory.

A guest writes to memory and frees it while the device is disabled, and moves
with 100 MiB/s to a destination whose device is disabled: as it is, with the
device enabled just before, and so again with postcopy allowed, but not used,
with which nothing is skipped. Prints a line for each, in MiB.
"""

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
        return f"{backing:10} {mode:10}" + "".join(f"{f:10.1f}" for f in figures)


def main() -> None:
    names = ("seconds", "sent", "as zeros", "skipped", "RSS there")
    print(f"{'memory':10} {'device':10}" + "".join(f"{n:>10}" for n in names))
    for backing in BACKINGS:
        for mode in MODES:
            print(measure(backing, mode), flush=True)


if __name__ == "__main__":
    main()
