# SPDX-License-Identifier: GPL-2.0-or-later
"""When events happened in the guest, by the clock that its timers go by."""

from freehint_vm import TRACING, FreehintVM

# The trace clock "uptime", in seconds: it has no fractions, and one second may be missing.
TICK = 0.01


def count_time_in_ticks(vm: FreehintVM) -> None:
    """The clock that the guest goes by; others run ahead on a busy host."""
    vm.check(f"echo uptime > {TRACING}/trace_clock")


def traced(vm: FreehintVM, *names: str) -> list[tuple[float, list[str]]]:
    """Events of these names since the last call: time in seconds, and the words of each.

    The first word is the name.
    """
    found = []
    for line in vm.traced(*(f": {name}:" for name in names)):
        head, _, event = line.partition(": ")
        name, _, rest = event.partition(": ")
        found.append((float(head.split()[-1]) * TICK, [name, *rest.split()]))
    return found
