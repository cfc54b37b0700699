# SPDX-License-Identifier: GPL-2.0-or-later
"""The report's plots, drawn by gnuplot from the series in the results."""

import subprocess
from pathlib import Path

from arms import BY_NAME
from results import LICENCE
from samples import Sample, Samples

HEAD = """\
set terminal svg size 800,400 font 'sans,12' background rgb 'white'
set grid lc rgb '#dddddd'
set key below
set xlabel 'seconds'
set yrange [0:*]
"""
QEMU = "memory of QEMU"
COLOURS = {
    "off": "#888888",
    "balloon": "#d55e00",
    "balloon-100ms": "#e69f00",
    "freehint": "#0072b2",
    "freehint-lazy": "#009e73",
}


class PlotError(Exception):
    """gnuplot is missing, or does not understand."""


def draw(path: Path, title: str, what: str, samples: list[Sample]) -> None:
    """Memory over time, a line for each sample's arm."""
    lines = []
    for index, sample in enumerate(samples):
        points = "\n".join(f"{x} {y}" for x, y in sample["series"]["kept_mib"])
        lines.append(f"$d{index} << EOD\n{points}\nEOD")
    curves = [
        f"$d{index} using 1:2 with steps lw 2 lc rgb '{COLOURS[s['arm']]}' "
        f"title '{BY_NAME[s['arm']].title}'"
        for index, s in enumerate(samples)
    ]
    labels = [f"set title '{title}'", f"set ylabel '{what}, MiB'"]
    script = "\n".join([HEAD, *labels, *lines, "plot " + ", ".join(curves)])
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        done = subprocess.run(
            ["gnuplot"], input=script, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise PlotError(
            "gnuplot is not installed: run scripts/install-deps --bench"
        ) from None
    if done.returncode or not done.stdout:
        raise PlotError(f"gnuplot draws no {path.name}: {done.stderr.strip()}")
    # What those hear who do not see it.
    drawn = done.stdout.replace("<title>Gnuplot</title>", f"<title>{title}: {what}</title>")
    head, newline, rest = drawn.partition("\n")
    path.write_text(f"{head}{newline}<!-- {LICENCE} -->\n{rest}")


def one_each(samples: Samples) -> list[Sample]:
    """The first sample of each arm that has a line of its own."""
    first = (next(iter(samples.of(arm=arm.name))) for arm in samples.arms())
    return [sample for sample in first if sample["arm"] in COLOURS]


def draw_all(samples: Samples, folder: Path) -> list[str]:
    """Every plot that there are samples for; their file names."""
    drawn = []
    for name, title, what, part in (
        ("lag", "1 GiB freed at 0 s", QEMU, samples.of("lag", mib=1024, huge=True)),
        ("footprint", "1.5 GiB used and freed, 5 s idle", QEMU, samples.of("footprint", idle_s=5)),
        ("compiling", "Compiling Lua, then cleaning up", "guest RAM", samples.of("compiling")),
    ):
        if part:
            draw(folder / f"{name}.svg", title, what, one_each(part))
            drawn.append(f"{name}.svg")
    return drawn
