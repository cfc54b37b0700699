#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Measure: each metric with all of its arms, interleaved; the results are JSON.

Each repetition of a case runs every arm once, one after the other, so a drift on the host
affects all of them.
"""

import argparse
import itertools
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from arms import ARMS, BY_NAME, Arm, why_missing
from freehint_vm import BUILD, GuestError
from metrics import BY_NAME as METRICS
from plan import SCALES, Case, Metric
from results import Results, changes


def interleaved(
    case: Case, arms: list[Arm], reps: int | None
) -> Iterator[tuple[int, Arm]]:
    """Ordered by repetition, then arm; each repetition begins with another arm."""
    for rep in range(case.reps if reps is None else min(reps, case.reps)):
        shift = rep % max(len(arms), 1)
        for arm in arms[shift:] + arms[:shift]:
            yield rep, arm


class Progress:
    """Prints a line before and after each measurement."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = itertools.count(1)
        self._start = time.monotonic()

    def begin(self, metric: Metric, arm: Arm, rep: int) -> None:
        minutes, seconds = divmod(int(time.monotonic() - self._start), 60)
        number = f"{next(self._done)}/{self._total}"
        load = os.getloadavg()[0]
        print(
            f"{minutes:3}:{seconds:02}  {number:>7}  {metric.name:10} {arm.name:14}"
            f" run {rep + 1}  load {load:.1f}",
            flush=True,
        )

    def show(self, values: dict[str, object]) -> None:
        shown = (f"{k}={round(v, 3) if isinstance(v, float) else v}" for k, v in values.items())
        print("                  " + " ".join(shown), flush=True)


def selected_arms(
    case: Case, skipped: dict[str, str], only: list[str], before: Path | None
) -> Iterator[Arm]:
    for name in case.arms:
        if name in skipped or (only and name not in only):
            continue
        yield BY_NAME[name]
        if before and BY_NAME[name].reporter == "freehint":
            yield BY_NAME[name].before(before)


def wait_for_quiet(limit: float, patience: float) -> None:
    """Wait until the host is quiet, as other load lengthens every time measured here."""
    deadline = time.monotonic() + patience
    while os.getloadavg()[0] > limit and time.monotonic() < deadline:
        time.sleep(5)


def measure_all(args: argparse.Namespace, results: Results) -> int:
    skipped = {arm.name: why for arm in ARMS if (why := why_missing(arm))}
    for name, why in skipped.items():
        print(f"arm {name} is skipped: {why}", flush=True)
    chosen = []
    for metric in args.only:
        if why := metric.unavailable():
            skipped[metric.name] = why
            print(f"metric {metric.name} is skipped: {why}", flush=True)
        else:
            chosen.append(metric)
    results.begin_run(args.shown_command, args.scale, skipped)
    plan = [
        (metric, case, rep, arm)
        for metric in chosen
        for case in metric.cases(args.scale)
        if all(str(case.params.get(key)) == value for key, value in args.where)
        for rep, arm in interleaved(
            case, list(selected_arms(case, skipped, args.arms, args.before)), args.reps
        )
    ]
    progress, failures = Progress(len(plan)), 0
    for metric, case, rep, arm in plan:
        wait_for_quiet(args.max_load, args.patience)
        progress.begin(metric, arm, rep)
        load = os.getloadavg()[0]
        try:
            for outcome in metric.measure(arm, case.params):
                results.add(metric, arm, rep, load, outcome)
                progress.show(outcome.values)
        except (GuestError, RuntimeError, OSError, ValueError) as error:
            failures += 1
            print(f"error: {metric.name}, {arm.name}: {error}", file=sys.stderr)
        results.save(args.output)
    print(f"{len(results.samples)} samples are in {args.output}")
    if args.before:
        print("\n".join(changes(results)))
    return failures


def metric_list(text: str) -> list[Metric]:
    try:
        return [METRICS[name] for name in text.split(",")]
    except KeyError as error:
        known = ", ".join(METRICS)
        raise argparse.ArgumentTypeError(f"no metric {error}; there are {known}")


def arm_list(text: str) -> list[str]:
    unknown = [name for name in text.split(",") if name not in BY_NAME]
    if unknown:
        known = ", ".join(BY_NAME)
        raise argparse.ArgumentTypeError(f"no arm {unknown[0]}; there are {known}")
    return text.split(",")


def condition(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"'{text}' is not PARAMETER=VALUE")
    return key, value


def shown_command(args: argparse.Namespace) -> list[str]:
    """The command to repeat a run, without the file for its results."""
    names = ",".join(metric.name for metric in args.only)
    command = ["scripts/bench"] + ["--quick"] * (args.scale == "quick")
    if len(args.only) < len(METRICS):
        command += ["--only", names]
    for key, value in args.where:
        command += ["--where", f"{key}={value}"]
    if args.reps is not None:
        command += ["--reps", str(args.reps)]
    if args.arms:
        command += ["--arms", ",".join(args.arms)]
    if args.before:
        command += ["--before", args.before.name]
    return command


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--scale", choices=SCALES, default="full", help="how much to measure"
    )
    parser.add_argument(
        "--only",
        type=metric_list,
        default=list(METRICS.values()),
        metavar="METRIC,...",
        help="of " + ", ".join(METRICS),
    )
    parser.add_argument(
        "--arms", type=arm_list, default=[], metavar="ARM,...", help="default: all"
    )
    parser.add_argument(
        "--where",
        type=condition,
        action="append",
        default=[],
        metavar="PARAMETER=VALUE",
        help="only cases with this parameter, as the results have it",
    )
    parser.add_argument("--reps", type=int, metavar="N", help="at most so many samples")
    parser.add_argument(
        "--before",
        type=Path,
        metavar="BZIMAGE",
        help="measure each arm that has hints with this guest kernel, too, interleaved; "
        "its arm is ARM-before",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=BUILD / "bench" / time.strftime("%Y%m%d-%H%M%S.json", time.gmtime()),
    )
    parser.add_argument(
        "--max-load",
        type=float,
        default=float("inf"),
        help="wait before a measurement until the load average is below this",
    )
    parser.add_argument(
        "--patience", type=float, default=60, help="but for so many seconds at most"
    )
    args = parser.parse_args()
    args.shown_command = shlex.join(shown_command(args))
    return args


def stop(number: int, frame: FrameType | None) -> None:
    """Exit as after an error: all changes to the host are undone."""
    sys.exit(128 + number)


def main() -> int:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # Not if it was started to outlive its terminal.
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, stop)
    args = parse_arguments()
    return 1 if measure_all(args, Results()) else 0


if __name__ == "__main__":
    sys.exit(main())
