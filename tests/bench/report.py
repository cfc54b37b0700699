#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Write the benchmark report and its plots, from results alone.

Several files are merged: if a case is in more than one of them, the last one counts.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import markdown
from arms import ARMS, BY_NAME, PROJECT
from metrics import METRICS
from plots import PlotError, draw_all
from results import Results, ResultsError, case_of, load_all
from samples import Samples
from sections import SECTIONS
from targets import verdicts

DOCS = PROJECT / "docs"
HEAD = """\
<!-- SPDX-License-Identifier: GPL-2.0-or-later -->
<!-- Written by scripts/bench --report from docs/benchmarks/results.json; what is
     edited here is lost. -->
# Benchmarks

virtio-freehint is compared with what a user would pick instead: nothing, or
virtio-balloon's free page reporting. All arms run on the same QEMU, kernel, initramfs and
host, one after the other, interleaved. [The analysis](benchmarks-analysis.md) says why
targets are missed, what was done about it, and what these figures do not show.

Figures are medians. If there was more than one sample, the brackets have the bootstrap's
interval for the median, 95 %; of three samples, as most have, that is the lowest and the
highest. Two arms without any reporter, "off" and "off, again", show how much of a
difference is noise.
"""
TELLS = {
    "off": "nothing reports free memory",
    "off-again": "the same once more: the noise floor",
    "balloon": "`virtio-balloon-pci,free-page-reporting=on`, as shipped: 2 s delay",
    "balloon-100ms": "the same at a delay of 100 ms, by a patch of the bench's kernel",
    "balloon-0ms": "the same without a delay, as Linux 7.3 allows with"
    " `page_reporting.page_reporting_delay_ms=0`",
    "freehint": "`virtio-freehint-pci`, as shipped",
    "freehint-20ms": "the same with `min-age-ms=20`: memory rests for 20 ms, not 100 ms",
    "freehint-uncompacted": "the same with `virtio_freehint.compact=N` in the guest: it does"
    " not compact when it idles",
    "freehint-drop": "the same with `discard=drop`: nothing is left to the host for a while",
    "freehint-lazy": "as shipped, with `discard=lazy`: the host takes when it needs",
}


def section_of_arms(results: Results) -> list[str]:
    used = {sample["arm"] for sample in results.samples}
    skipped: dict[str, str] = {}
    for run in results.runs:
        skipped |= run["skipped"]
    rows = [
        [arm.title, TELLS[arm.name]]
        if arm.name in used
        else [arm.title, f"not run: {skipped.get(arm.name, 'not selected')}"]
        for arm in ARMS
    ]
    return ["## Arms", "", *markdown.table(["arm", "what it is"], rows)]


def section_of_targets(samples: Samples) -> list[str]:
    found = verdicts(samples)
    met = sum(verdict.met for verdict in found)
    rows = [
        [v.target, v.case, v.theirs, v.ours, v.measured, "yes" if v.met else "**no**"]
        for v in sorted(found, key=lambda v: v.met)
    ]
    head = ["target", "case", "balloon (or off)", "freehint", "ratio", "met"]
    text = f"{met} of {len(found)} are met."
    return ["## Targets", "", text, "", *markdown.table(head, rows)]


def runs_of(results: Results, metric: str) -> list[dict[str, Any]]:
    numbers = {s["run"] for s in results.samples if s["metric"] == metric}
    return [results.runs[number] for number in sorted(numbers)]


def span(low: int, high: int) -> str:
    return str(low) if low == high else f"{low} to {high}"


def provenance(results: Results, metric: str) -> list[str]:
    """How and where the numbers of a section were measured."""
    lines = []
    for run in runs_of(results, metric):
        samples = [
            s
            for s in results.samples
            if s["metric"] == metric and results.runs[s["run"]] is run
        ]
        loads = [s["load"] for s in samples]
        counts = Counter(f"{s['arm']} {case_of(s)}" for s in samples).values()
        versions, machine = run["versions"], run["machine"]
        lines.append(
            f"Made by `{run['command']}` at {run['started']}, {run['accel'].upper()}; "
            f"samples of each case and arm: {span(min(counts), max(counts))}; "
            f"load average before each sample {min(loads):.1f} to {max(loads):.1f}; "
            f"revision {versions['project']}, {versions['qemu']}, Linux "
            f"{versions['linux']} ({versions['guest_kernel']}); "
            f"{machine['cpus']} CPUs ({machine['cpu']}), {machine['memory_mib']} MiB, "
            f"host Linux {machine['kernel']}, THP {machine['thp']}."
        )
    return [*lines, ""]


def qemu_commands(samples: Samples) -> list[str]:
    """QEMU's command line of each arm, once."""
    lines = ["QEMU:", ""]
    for arm in samples.arms():
        lines.append(f"    # {BY_NAME[arm.name].title}")
        lines.append(f"    {next(iter(samples.of(arm=arm.name)))['qemu']}")
    return [*lines, ""]


def text_of(results: Results) -> str:
    samples = Samples(results.samples)
    lines = [HEAD, *section_of_targets(samples), *section_of_arms(results)]
    for metric in METRICS:
        part = samples.of(metric.name)
        if not part:
            continue
        lines += [f"## {metric.title}", "", *SECTIONS[metric.name](part)]
        lines += provenance(results, metric.name)
    lines += ["## Command lines", "", *qemu_commands(samples)]
    return "\n".join(lines).rstrip("\n") + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, nargs="+", metavar="RESULTS")
    parser.add_argument("--output", type=Path, default=DOCS / "benchmarks.md")
    parser.add_argument(
        "--plots",
        type=Path,
        default=DOCS / "benchmarks",
        help="for the plots, and results.json with every sample that the report is"
        " made from; the folder that the report expects beside it is 'benchmarks'",
    )
    args = parser.parse_args()
    try:
        results = load_all(args.results)
        draw_all(Samples(results.samples), args.plots)
    except (ResultsError, PlotError) as error:
        sys.exit(f"report: error: {error}")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(text_of(results))
    results.save(args.plots / "results.json")
    print(f"{args.output}: {len(results.samples)} samples of {len(results.runs)} runs")


if __name__ == "__main__":
    main()
