# SPDX-License-Identifier: GPL-2.0-or-later
"""What a device saw and did, from QEMU's trace: ranges, addresses, times.

Times are seconds since the epoch, as QEMU writes them. The trace has what the device really
does to a range, even if it answers something else.
"""

import dataclasses
import re
import tempfile
from pathlib import Path

_LINE = re.compile(r"^\d+@(?P<when>[\d.]+):virtio_freehint_(?P<event>\w+) (?P<rest>.*)$")


@dataclasses.dataclass(frozen=True)
class Range:
    """A range with its status, and the flags of its hint."""

    when: float
    cookie: int
    flags: int
    addr: int
    len: int
    status: int

    def granules(self, granule: int) -> range:
        return range(self.addr // granule, (self.addr + self.len) // granule)


class HintTrace:
    """The trace of a QEMU that is started with `args`."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="freehint-trace-")
        self._path = Path(self._folder.name) / "log"
        self.args = (
            *("-D", str(self._path), "-msg", "timestamp=on"),
            *("-trace", "virtio_freehint_hint", "-trace", "virtio_freehint_range"),
            *("-trace", "virtio_freehint_done", "-trace", "virtio_freehint_drain"),
            *("-trace", "virtio_freehint_flush_answer"),
        )

    def close(self) -> None:
        self._folder.cleanup()

    def mark(self) -> int:
        """The present end of the trace."""
        return self._path.stat().st_size if self._path.exists() else 0

    def text(self, mark: int = 0) -> str:
        """The trace since the mark, as text."""
        with self._path.open() as stream:
            stream.seek(mark)
            return stream.read()

    def _events(self, mark: int, *names: str) -> list[tuple[float, str, dict[str, int]]]:
        found = []
        for line in self.text(mark).splitlines():
            match = _LINE.match(line)
            if match and match["event"] in names:
                pairs = (word.split("=") for word in match["rest"].split())
                values = {key: int(value, 0) for key, value in pairs}
                found.append((float(match["when"]), match["event"], values))
        return found

    def ranges(self, mark: int = 0) -> list[Range]:
        """Ranges since the mark, in the order in which they got their status."""
        found, flags = [], {}
        for when, event, e in self._events(mark, "hint", "range"):
            cookie = e["cookie"]
            if event == "hint":
                flags[cookie] = e["flags"]
            # Hints from before the mark are unknown here.
            elif cookie in flags:
                found.append(
                    Range(when, cookie, flags[cookie], e["addr"], e["len"], e["status"])
                )
        return found

    def granules(self, granule: int, mark: int = 0) -> set[int]:
        """All ranges that got a status since the mark, by number."""
        return {g for r in self.ranges(mark) for g in r.granules(granule)}

    def answers(self, mark: int = 0) -> dict[int, float]:
        """When each hint was used, by cookie."""
        return {e["cookie"]: when for when, _, e in self._events(mark, "done")}

    def hints(self, mark: int = 0) -> list[tuple[float, int]]:
        """When each hint was taken off the queue, and its cookie."""
        return [(when, e["cookie"]) for when, _, e in self._events(mark, "hint")]

    def flush_answers(self, mark: int = 0) -> list[int]:
        """The ID in each answer to a flush."""
        return [e["id"] for _, _, e in self._events(mark, "flush_answer")]

    def overlaps(self, granule: int) -> tuple[int, set[int]]:
        """The most hints that the device had at a time, and what two of them named.

        Only if the device was not reset: a hint ends with its answer.
        """
        open_hints: set[int] = set()
        most = 0
        # Which granules a hint names is known only when they get their status. Until then,
        # other hints may name them, too.
        named: dict[int, list[int]] = {}
        began: dict[int, int] = {}
        ended: dict[int, int] = {}
        events = self._events(0, "hint", "range", "done")
        for number, (_, event, e) in enumerate(events):
            cookie = e["cookie"]
            if event == "hint":
                open_hints.add(cookie)
                began[cookie] = number
                most = max(most, len(open_hints))
            elif event == "range":
                first = e["addr"] // granule
                for g in range(first, first + e["len"] // granule):
                    named.setdefault(g, []).append(cookie)
            else:
                open_hints.remove(cookie)
                ended[cookie] = number
        both = {
            g
            for g, cookies in named.items()
            for one, next_one in zip(cookies, cookies[1:])
            if began[next_one] < ended.get(one, len(events))
        }
        return most, both
