# SPDX-License-Identifier: GPL-2.0-or-later
"""A day in a guest's life: real programs, one after the other, with idle time between them.

A compiler, a database, a web service, an archive and git, each with the same input every
time. The host's memory is held against what the guest says that it uses. When all is
cleaned up, the guest drops its page cache, and then compacts its memory, so that it shows
what was left: cache, or free memory in pieces that no hint can name.

Days differ in their upkeep: what is done, while the guest idles, so that more of its memory
can be given back.
"""

import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import program_disk
from arms import Arm, BenchGuest
from curves import Curve, area, at, thin
from freehint_vm import MIB
from plan import Case, Metric, Outcome, Values
from program_disk import check, inside

MEMORY_MIB = 1536
VCPUS = 2
ARMS = (
    *("off", "balloon", "balloon-100ms", "balloon-0ms"),
    *("freehint", "freehint-uncompacted", "freehint-drop"),
)
REPORTERS = ("balloon", "freehint", "freehint-uncompacted")
GIB_MINUTE = 60 << 30
WATCH_MS = 500
# Longer than any day.
WATCH_S = 3600
IDLE = 10.0
PLOT_STEP = 2.0

# With stacks that are mapped, VmallocUsed has those of the kernel, too.
IN_USE = (
    *("AnonPages", "Shmem", "Slab", "PageTables", "SecPageTables"),
    *("Percpu", "VmallocUsed", "Dirty", "Writeback"),
)

POSTGRES = "/usr/lib/postgresql/*/bin"
# Its programs refuse to run as root, and look for a socket elsewhere.
AS_POSTGRES = "setpriv --reuid=postgres --regid=postgres --clear-groups"
DATABASE = "/tmp/database"
OPTIONS = "-c unix_socket_directories=/tmp -c listen_addresses="
PORT = 8080
DOCUMENTS = 1000
REQUESTS = 1500
GIT = "git -c user.name=day -c user.email=day@localhost -c gc.auto=0"


def as_postgres(*commands: str) -> str:
    each = (f"{AS_POSTGRES} {POSTGRES}/{command} >>/tmp/log" for command in commands)
    return inside(f"touch /tmp/log; chmod 666 /tmp/log; {' && '.join(each)}")


@dataclasses.dataclass(frozen=True)
class Step:
    """Some work, after which the guest idles."""

    name: str
    title: str
    command: str


STEPS = (
    Step(
        "lua",
        "Lua compiled",
        inside(f"cd /work/lua/src && make -s -j{VCPUS} liblua.a CC=gcc MYCFLAGS=-O0"),
    ),
    Step(
        "sqlite",
        "SQLite compiled",
        inside("cd /work/sqlite && gcc -O0 -DSQLITE_THREADSAFE=0 -c sqlite3.c"),
    ),
    Step(
        "database",
        "PostgreSQL filled and loaded",
        as_postgres(
            f"initdb -D {DATABASE}",
            f'pg_ctl -D {DATABASE} -l {DATABASE}.log -o "{OPTIONS}" -w start',
            "pgbench -h /tmp -i -q -s 3 postgres",
            f"pgbench -h /tmp -c 4 -j {VCPUS} -t 100 postgres",
        ),
    ),
    Step("stopped", "PostgreSQL stopped", as_postgres(f"pg_ctl -D {DATABASE} -m fast -w stop")),
    Step(
        "service",
        "Node has served",
        inside(
            ">/tmp/service.log; "
            f"node /work/service.js {PORT} {DOCUMENTS} >>/tmp/service.log 2>&1 & "
            "echo $! >/tmp/service.pid; "
            "until grep -q listening /tmp/service.log; do sleep 0.2; done; "
            f"node /work/requests.js {PORT} {REQUESTS}"
        ),
    ),
    Step("ended", "Node stopped", inside("kill $(cat /tmp/service.pid)")),
    Step(
        "git",
        "unpacked, committed, packed by git",
        inside(
            "mkdir /tmp/tree && cd /tmp/tree && tar -xzf /work/tree.tar.gz && "
            f"{GIT} init -q && {GIT} add . && {GIT} commit -q -m all && "
            f"{GIT} rm -rq ext && {GIT} commit -q -m less && "
            f"{GIT} checkout -q HEAD~ && {GIT} gc -q"
        ),
    ),
    Step(
        "cleaned",
        "cleaned up",
        inside("rm -rf /tmp/tree /tmp/database* /work/sqlite/*.o /work/lua/src/*.o; sync"),
    ),
)
# What shows what is left; it is not a part of the day.
AFTER = (
    Step("dropped", "page cache dropped", "echo 3 >/proc/sys/vm/drop_caches"),
    Step("compacted", "compacted", "echo 1 >/proc/sys/vm/compact_memory"),
)


@dataclasses.dataclass(frozen=True)
class Upkeep:
    """What is done to give back more: in the guest at first and when it idles, or by the host.

    The host has our driver compact when it flushes; no other reporter can be asked. Samples
    have its name in UPKEEP as a parameter.
    """

    title: str
    first: str = ":"
    idle: str = ":"
    flush: bool = False
    arms: tuple[str, ...] = REPORTERS


CGROUP = "/sys/fs/cgroup"
UPKEEP = {
    "none": Upkeep("A guest that is left alone"),
    "unproactive": Upkeep(
        "With `vm.compaction_proactiveness=0`; it is 20 in the other guests",
        first="echo 0 >/proc/sys/vm/compaction_proactiveness",
    ),
    "proactive": Upkeep(
        "With `vm.compaction_proactiveness=100`",
        first="echo 100 >/proc/sys/vm/compaction_proactiveness",
    ),
    "compact": Upkeep(
        "Compacting when it idles", idle="echo 1 >/proc/sys/vm/compact_memory"
    ),
    "flush": Upkeep(
        "The host has it flush and compact when it idles", flush=True, arms=("freehint",)
    ),
    # More than there is, so it is refused when all is done.
    "reclaim": Upkeep(
        "Reclaiming page cache when it idles",
        first=f"mount -t cgroup2 cgroup {CGROUP}",
        idle=f"echo {MEMORY_MIB}M >{CGROUP}/memory.reclaim || true",
    ),
}


def cases(scale: str) -> list[Case]:
    if scale == "smoke":
        return []
    if scale == "quick":
        return [Case({"upkeep": "none"}, REPORTERS)]
    more = [Case({"upkeep": name}, UPKEEP[name].arms) for name in UPKEEP if name != "none"]
    return [Case({"upkeep": "none"}, ARMS, reps=3), *more]


@dataclasses.dataclass(frozen=True)
class Use:
    """The guest's memory at a moment, by what it is for.

    `used` has the kernel's own image and its map of all pages, which the page allocator
    never had. `small` is free, but not in blocks of 2 MiB; `other` is what nothing tells,
    for instance pages that lie free on the lists of a CPU.
    """

    used: int
    cache: int
    small: int
    other: int

    @staticmethod
    def parse(words: list[str], ram: int) -> "Use":
        """The words that freewatch prints after the time."""
        blocks = int(words[0])
        found = dict(zip(words[1::2], map(int, words[2::2])))
        dirty = found["Dirty"] + found["Writeback"]
        cache = found["Cached"] + found["Buffers"] - found["Shmem"] - dirty
        named = sum(found[name] for name in IN_USE)
        other = found["MemTotal"] - found["MemFree"] - cache - named
        used = named + ram - found["MemTotal"]
        return Use(used, max(cache, 0), found["MemFree"] - blocks, other)


@dataclasses.dataclass
class Day:
    """What was measured, on the host's clock."""

    host: Curve
    seen: Curve
    used: Curve
    cache: Curve
    small: Curve
    other: Curve

    def excess(self, when: float) -> int:
        """Host memory beyond what is in use, page cache aside."""
        return at(self.host, when) - at(self.used, when) - at(self.cache, when)

    def areas(self, begin: float, end: float) -> Values:
        curves = {"host": self.host, "seen": self.seen, "use": self.used, "cache": self.cache}
        return {
            f"{name}_gib_min": area(curve, begin, end) / GIB_MINUTE
            for name, curve in curves.items()
        }

    def sizes(self, name: str, when: float) -> Values:
        return {
            f"{name}_host": at(self.host, when),
            f"{name}_use": at(self.used, when),
            f"{name}_cache": at(self.cache, when),
            f"{name}_small": at(self.small, when),
            f"{name}_other": at(self.other, when),
            f"{name}_excess": self.excess(when),
        }


def measure(arm: Arm, params: Values) -> Iterator[Outcome]:
    upkeep = UPKEEP[params["upkeep"]]
    with BenchGuest(
        arm, memory_mib=MEMORY_MIB, cpus=VCPUS, ram_only=True, extra_args=program_disk.disk()
    ) as vm:
        vm.rest()
        check(vm, program_disk.MOUNT)
        check(vm, upkeep.first)
        watch = vm.start(f"freewatch use {WATCH_MS} {WATCH_S}")
        time.sleep(1)
        begin = time.monotonic()
        took, ends = run(vm, STEPS, upkeep)
        end = time.monotonic()
        gauges = gauges_of(vm)
        more, later = run(vm, AFTER, UPKEEP["none"])
        day = observed(vm, watch.lines, begin)
        values = {"day_s": end - begin} | took | day.areas(begin, end) | gauges
        values["host_per_use"] = values["host_gib_min"] / values["use_gib_min"]
        aside = values["host_gib_min"] - values["cache_gib_min"]
        values["host_per_use_aside"] = aside / values["use_gib_min"]
        for name, when in (ends | later).items():
            values |= day.sizes(name, when)
        yield Outcome(
            params=params,
            values=values,
            guest="\n    ".join(guest_commands(upkeep)),
            qemu=vm.command(),
            series={
                "kept_mib": thin(day.host, begin, PLOT_STEP),
                "use_mib": thin(day.used, begin, PLOT_STEP),
                "cache_mib": thin(day.cache, begin, PLOT_STEP),
                "ends_s": [round(when - begin, 1) for when in (ends | later).values()],
            },
        )


def guest_commands(upkeep: Upkeep) -> list[str]:
    packages = program_disk.versions("gcc", "git", "libc6-dev", "nodejs", "postgresql")
    steps = [step.command for step in STEPS]
    if upkeep.idle != ":":
        steps = [f"{step}; {upkeep.idle}" for step in steps]
    if upkeep.flush:
        steps = [f"{step} # freehint-flush compact=true" for step in steps]
    first = [upkeep.first] if upkeep.first != ":" else []
    after = [step.command for step in AFTER]
    return [f"# {packages}", program_disk.MOUNT, *first, *steps, *after]


def run(
    vm: BenchGuest, steps: tuple[Step, ...], upkeep: Upkeep
) -> tuple[Values, dict[str, float]]:
    """How long each step took, and when the guest had idled after it."""
    took, ends = {}, {}
    for step in steps:
        done = check(vm, step.command)
        took[f"{step.name}_s"] = done.ended - done.started
        idle = time.monotonic() + IDLE
        check(vm, upkeep.idle)
        if upkeep.flush:
            vm.flush(compact=True)
        time.sleep(max(idle - time.monotonic(), 0))
        ends[step.name] = time.monotonic()
    return took, ends


def gauges_of(vm: BenchGuest) -> Values:
    """What our driver says of free memory that it has not hinted, or cannot."""
    if vm.arm.reporter != "freehint":
        return {}
    gauges: dict[str, Any] = vm.query().get("guest-gauges") or {}
    return {f"gauge_{name}": gauges[name] for name in ("pending", "stuck") if gauges}


def observed(vm: BenchGuest, lines: list[str], begin: float) -> Day:
    """The curves of the host and of the guest, on one clock."""
    resident = vm.resident.since(begin)
    host = [(s.when, s.kept()) for s in resident]
    seen = [(s.when, s.rss) for s in resident]
    uses: list[tuple[float, Use]] = []
    # The last line may not be whole yet.
    for line in lines[:-1]:
        _, now, *words = line.split()
        uses.append((vm.agent.host_time(int(now)), Use.parse(words, MEMORY_MIB * MIB)))
    return Day(
        host,
        seen,
        used=[(when, use.used) for when, use in uses],
        cache=[(when, use.cache) for when, use in uses],
        small=[(when, use.small) for when, use in uses],
        other=[(when, use.other) for when, use in uses],
    )


METRIC = Metric("day", "A day in a guest's life", cases, measure, program_disk.unavailable)
