# SPDX-License-Identifier: GPL-2.0-or-later
"""An exact account of the pages that the driver takes off the free lists and puts back."""

import re
from collections import Counter

from freehint_vm import TRACING, FreehintVM

_EVENT = re.compile(r"freehint_(take|give): pfn=(0x[0-9a-f]+) order=(\d+)")


class PageBooks:
    """Reads the trace of the guest's kernel. Start it when the driver holds no memory."""

    def __init__(self, vm: FreehintVM) -> None:
        self._vm = vm
        vm.trace("freehint/freehint_take", "freehint/freehint_give")
        self.taken = 0

    def _lost_events(self) -> int:
        stats = self._vm.check(f"cat {TRACING}/per_cpu/cpu*/stats")
        return sum(map(int, re.findall(r"^(?:commit )?overrun: (\d+)$", stats, re.M)))

    def close(self) -> list[str]:
        """Return what does not add up, and begin anew. The driver must hold no memory.

        A block can be given back in pieces of other sizes, so pages are counted.
        """
        wrong = [f"{lost} events are lost"] if (lost := self._lost_events()) else []
        out: Counter[int] = Counter()
        self.taken = 0
        for line in self._vm.traced("freehint_take", "freehint_give"):
            event = _EVENT.search(line)
            assert event, line
            first, pages = int(event[2], 16), 1 << int(event[3])
            sign = 1 if event[1] == "take" else -1
            self.taken += pages if sign > 0 else 0
            for pfn in range(first, first + pages):
                out[pfn] += sign
        if not_back := sum(count > 0 for count in out.values()):
            wrong.append(f"{not_back} of {self.taken} pages are not back")
        if twice := sum(count < 0 for count in out.values()):
            wrong.append(f"{twice} pages are back more often than they were taken")
        return wrong
