#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Run a command in a guest, and print what both sides trace on one time line.

Times are milliseconds since the command started. Those of the guest's kernel are as exact
as its messages to the host are fast: about a millisecond.
"""

import argparse
import re
import time
from collections.abc import Iterator

from freehint_vm import TRACING, FreehintVM
from guest_driver import GuestDriver
from hint_trace import HintTrace

GUEST = re.compile(r"^\s*\S+\s+\[\d+\]\s+\S+\s+(?P<when>[\d.]+): (?P<what>.*)$")
HOST = re.compile(r"^\d+@(?P<when>[\d.]+):(?P<what>.*)$")


def guest_events(vm: FreehintVM) -> Iterator[tuple[float, str]]:
    for line in vm.check(f"cat {TRACING}/trace").splitlines():
        if match := GUEST.match(line):
            when = vm.agent.host_time(float(match["when"]) * 1000)
            yield when, f"guest  {match['what']}"


def host_events(trace: HintTrace, mark: int) -> Iterator[tuple[float, str]]:
    # QEMU's trace has the time of day.
    offset = time.monotonic() - time.time()
    for line in trace.text(mark).splitlines():
        if match := HOST.match(line):
            yield float(match["when"]) + offset, f"host   {match['what']}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", nargs="?", default="memhog 256m")
    command = parser.parse_args().command
    trace = HintTrace()
    every_event = ("-trace", "virtio_freehint_*")
    with FreehintVM(extra_args=(*trace.args, *every_event)) as vm:
        vm.settle()
        vm.check(f"echo mono >{TRACING}/trace_clock")
        vm.trace("freehint")
        mark = trace.mark()
        result = vm.run(command)
        GuestDriver(vm).settle()
        events = [*guest_events(vm), *host_events(trace, mark)]
    trace.close()
    for when, what in sorted(events):
        if when >= result.started:
            print(f"{(when - result.started) * 1000:9.1f}  {what}")


if __name__ == "__main__":
    main()
