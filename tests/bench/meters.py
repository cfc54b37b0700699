# SPDX-License-Identifier: GPL-2.0-or-later
"""Meters on the host for a QEMU: memory, processor time, faults and traces.

Times are time.monotonic() in seconds unless a name says otherwise; sizes are bytes.
"""

import bisect
import dataclasses
import os
import re
import threading
import time
from pathlib import Path

KIB = 1024
PAGE = os.sysconf("SC_PAGESIZE")


def smaps_rollup(pid: int) -> dict[str, int]:
    """The fields of /proc/PID/smaps_rollup, in bytes."""
    found = re.findall(
        r"^(\w+): +(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M
    )
    return {name: int(kib) * KIB for name, kib in found}


def resident_ram(pid: int, size: int) -> tuple[int, int]:
    """Resident bytes of the guest's RAM, and how many of them the host may take.

    The guest's RAM are the mappings of that size.
    """
    found, length = {"Rss": 0, "LazyFree": 0}, 0
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if match := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            length = int(match[2], 16) - int(match[1], 16)
            continue
        name, _, rest = line.partition(":")
        if name in found and length >= size:
            found[name] += int(rest.split()[0]) * KIB
    return found["Rss"], found["LazyFree"]


@dataclasses.dataclass(frozen=True)
class Resident:
    """QEMU's memory at a moment; the host may take `lazy` bytes of it at any time."""

    when: float
    rss: int
    lazy: int = 0

    def kept(self) -> int:
        return self.rss - self.lazy


class ResidentWatch:
    """Keeps sampling QEMU's memory, of a kind: "rss", "lazy", "hugetlb" or "ram"."""

    INTERVALS = {"rss": 0.02, "lazy": 0.05, "hugetlb": 0.05, "ram": 0.25}

    def __init__(self, pid: int, kind: str, ram: int) -> None:
        self._pid = pid
        self._kind = kind
        self._ram = ram
        self._interval = self.INTERVALS[kind]
        self._stop = threading.Event()
        self.samples = [self._take()]
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def now(self) -> int:
        return self.samples[-1].kept()

    def since(self, begin: float, end: float | None = None) -> list[Resident]:
        first = bisect.bisect_left(self.samples, begin, key=lambda s: s.when)
        found = self.samples[first:]
        return [s for s in found if end is None or s.when <= end]

    def grown(self, begin: float, end: float) -> int:
        """How much memory the host had to populate, as far as the samples show."""
        sizes = [sample.rss for sample in self.since(begin, end)]
        return sum(max(b - a, 0) for a, b in zip(sizes, sizes[1:]))

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._interval):
            try:
                self.samples.append(self._take())
            except (FileNotFoundError, ProcessLookupError):
                return

    def _take(self) -> Resident:
        now = time.monotonic()
        if self._kind == "rss":
            pages = int(Path(f"/proc/{self._pid}/statm").read_text().split()[1])
            return Resident(now, pages * PAGE)
        if self._kind == "ram":
            return Resident(now, *resident_ram(self._pid, self._ram))
        fields = smaps_rollup(self._pid)
        if self._kind == "hugetlb":
            return Resident(now, fields["Shared_Hugetlb"] + fields["Private_Hugetlb"])
        return Resident(now, fields["Rss"], fields["LazyFree"])


@dataclasses.dataclass(frozen=True)
class CpuTime:
    """Processor time in nanoseconds, and page faults, since QEMU started."""

    vcpus: int
    others: int
    faults: int

    def __sub__(self, before: "CpuTime") -> "CpuTime":
        return CpuTime(
            self.vcpus - before.vcpus,
            self.others - before.others,
            self.faults - before.faults,
        )


class CpuMeter:
    """Processor time of a QEMU, for the vCPUs' threads and for all others.

    The clock of the process includes the time of threads that have ended.
    """

    def __init__(self, pid: int, vcpu_threads: list[int]) -> None:
        self._pid = pid
        self._vcpus = vcpu_threads

    def read(self) -> CpuTime:
        # The clock of the process: see clock_getcpuclockid(3).
        total = time.clock_gettime_ns((~self._pid << 3) | 2)
        vcpus = sum(self._thread_ns(tid) for tid in self._vcpus)
        stat = Path(f"/proc/{self._pid}/stat").read_text()
        minor, _, major = stat.rpartition(")")[2].split()[7:10]
        return CpuTime(vcpus, total - vcpus, int(minor) + int(major))

    def _thread_ns(self, tid: int) -> int:
        schedstat = Path(f"/proc/{self._pid}/task/{tid}/schedstat")
        return int(schedstat.read_text().split()[0])


@dataclasses.dataclass(frozen=True)
class Reports:
    """The traffic between a reporting device and its driver."""

    notifications: int
    interrupts: int
    discard_calls: int
    discarded: int


@dataclasses.dataclass(frozen=True)
class TraceEvent:
    when: float
    name: str
    device: str
    queue: int
    size: int


class TraceLog:
    """QEMU's trace of notifications, interrupts and discards, read as it grows.

    The guest has another virtio device, the serial port of the agent. It is the one that
    uses a queue above the third.
    """

    EVENTS = ("virtio_queue_notify", "virtio_notify", "ram_block_discard_range")
    SERIAL_QUEUE = 4
    LINE = re.compile(
        r"^\d+@(?P<time>[\d.]+):(?P<name>\w+) "
        r"(?:vdev (?P<device>\S+) (?:n (?P<queue>\d+) )?vq|\S+ \+ (?P<size>\w+):)"
    )

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0
        self._events: list[TraceEvent] = []
        self._serial: set[str] = set()

    def options(self) -> list[str]:
        options = ["-msg", "timestamp=on", "-D", str(self._path)]
        for name in self.EVENTS:
            options += ["-trace", name]
        return options

    def reports(self, begin: float, end: float) -> Reports:
        """The traffic between two moments."""
        self._refresh()
        events = [e for e in self._events if begin <= e.when <= end]
        mine = [e for e in events if e.device not in self._serial]
        discards = [e for e in events if e.name == "ram_block_discard_range"]
        return Reports(
            notifications=sum(e.name == "virtio_queue_notify" for e in mine),
            interrupts=sum(e.name == "virtio_notify" for e in mine),
            discard_calls=len(discards),
            discarded=sum(e.size for e in discards),
        )

    def last_report(self) -> float | None:
        """When the reporting device was last notified; None if it never was."""
        self._refresh()
        for event in reversed(self._events):
            if event.name == "virtio_queue_notify" and event.device not in self._serial:
                return event.when
        return None

    def _refresh(self) -> None:
        with self._path.open(errors="replace") as stream:
            stream.seek(self._read)
            text = stream.read()
        whole, newline, _ = text.rpartition("\n")
        self._read += len((whole + newline).encode())
        # The log has the time of day.
        offset = time.time() - time.monotonic()
        for line in whole.splitlines():
            if match := self.LINE.match(line):
                self._note(match, offset)

    def _note(self, match: re.Match[str], offset: float) -> None:
        event = TraceEvent(
            when=float(match["time"]) - offset,
            name=match["name"],
            device=match["device"] or "",
            queue=int(match["queue"] or 0),
            size=int(match["size"] or "0", 16),
        )
        if event.queue >= self.SERIAL_QUEUE:
            self._serial.add(event.device)
        self._events.append(event)
