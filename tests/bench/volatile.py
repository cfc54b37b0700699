#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The figures that a volatile page cache stands or falls with; see docs/volatile.md.

Tables go to the standard output, and raw figures to FREEHINT_BUILD/bench. `order` needs
root, a version 1 memory cgroup and room for a swap file of 1 GiB; `day` needs the disk that
tests/bench/build-programs-image makes, and the benchmarks' kernel; `pool` needs what `day`
has saved, and what `scripts/build-guest` builds.
"""

import argparse
import dataclasses
import json
import signal
import statistics
import subprocess
import sys
import time

import evictions
import lazy_order
import pool_model
from freehint_vm import BUILD, MIB
from run import stop

FOLDER = BUILD / "bench"
DAYS = "volatile-day-*.json"


def spread_of(values: list[int]) -> str:
    """Median and range, in MiB."""
    figures = (statistics.median(values), min(values), max(values))
    middle, low, high = (round(figure / MIB) for figure in figures)
    return f"{middle} ({low} to {high})"


def order(runs: int) -> None:
    found: dict[lazy_order.Case, list[lazy_order.Taken]] = {}
    for _ in range(runs):
        for case in lazy_order.cases():
            found.setdefault(case, []).append(lazy_order.measure(case))
            print(case, found[case][-1], file=sys.stderr, flush=True)
    if not lazy_order.LRU_GEN.exists():
        print("This kernel has no MGLRU.\n")
    columns = ("lazy", "left", "swapped", "read")
    print("| pages | it is | neighbour | MGLRU | taken | left | swapped | read again |")
    print("| --- " * (4 + len(columns)) + "|")
    for case, samples in found.items():
        place = "older" if case.lazy_first else "younger"
        cells = [
            "huge" if case.huge else "small",
            place if case.freed else "not freed",
            "reads" if case.neighbour else "none",
            {True: "on", False: "off", None: "as it is"}[case.mglru],
            *(spread_of([getattr(sample, name) for sample in samples]) for name in columns),
        ]
        print(f"| {' | '.join(cells)} |")
    rows = [
        dataclasses.asdict(case) | {"samples": list(map(dataclasses.asdict, samples))}
        for case, samples in found.items()
    ]
    (FOLDER / "volatile-order.json").write_text(json.dumps(rows, indent=1))


def day(runs: int) -> None:
    for _ in range(runs):
        path = FOLDER / time.strftime(DAYS.replace("*", "%Y%m%d-%H%M%S"), time.gmtime())
        steps = evictions.observed_day()
        evictions.save(steps, path)
        print(f"{path.name}, {sum(step.lost for step in steps)} events lost\n")
        print(evictions.table(steps), "\n", flush=True)


def pool(runs: int) -> None:
    program = str(BUILD / "guest" / "pagecost")
    costs = [
        pool_model.Cost.parse(subprocess.check_output([program], text=True))
        for _ in range(runs)
    ]
    print(pool_model.cost_table(costs), "\n")
    for path in sorted(FOLDER.glob(DAYS)):
        print(f"{path.name}\n")
        print(pool_model.table(evictions.load(path), pool_model.middle(costs)), "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = {"order": order, "day": day, "pool": pool}
    parser.add_argument("part", choices=parts)
    parser.add_argument("--runs", type=int, default=3, help="how often (default: 3)")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, stop)
    FOLDER.mkdir(parents=True, exist_ok=True)
    parts[args.part](args.runs)


if __name__ == "__main__":
    main()
