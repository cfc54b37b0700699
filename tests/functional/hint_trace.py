# SPDX-License-Identifier: GPL-2.0-or-later
"""What a device saw and did, from QEMU's trace: ranges, addresses, times.

Times are seconds since the epoch, as QEMU writes them. What the device does to
a range is in the trace even where it tells the driver something else.
"""

import dataclasses
import re
import tempfile
from pathlib import Path

_LINE = re.compile(r"^\d+@(?P<when>[\d.]+):virtio_freehint_(?P<event>\w+) (?P<rest>.*)$")


@dataclasses.dataclass(frozen=True)
class Range:
    """A range that got a status."""

    when: float
    cookie: int
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
        )

    def close(self) -> None:
        self._folder.cleanup()

    def mark(self) -> int:
        """The present end of the trace."""
        return self._path.stat().st_size if self._path.exists() else 0

    def text(self, mark: int = 0) -> str:
        """The trace since the mark, as QEMU wrote it."""
        with self._path.open() as stream:
            stream.seek(mark)
            return stream.read()

    def _events(self, mark: int, name: str) -> list[tuple[float, dict[str, int]]]:
        found = []
        for line in self.text(mark).splitlines():
            match = _LINE.match(line)
            if match and match["event"] == name:
                pairs = (word.split("=") for word in match["rest"].split())
                values = {key: int(value, 0) for key, value in pairs}
                found.append((float(match["when"]), values))
        return found

    def ranges(self, mark: int = 0) -> list[Range]:
        """Ranges since the mark, in the order in which they got their status."""
        return [
            Range(when, e["cookie"], e["addr"], e["len"], e["status"])
            for when, e in self._events(mark, "range")
        ]

    def answers(self, mark: int = 0) -> dict[int, float]:
        """When each hint was used, by cookie."""
        return {e["cookie"]: when for when, e in self._events(mark, "done")}

    def hints(self, mark: int = 0) -> list[tuple[float, int]]:
        """When each hint was taken off the queue, and its cookie."""
        return [(when, e["cookie"]) for when, e in self._events(mark, "hint")]
