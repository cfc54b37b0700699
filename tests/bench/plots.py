# SPDX-License-Identifier: GPL-2.0-or-later
"""Draw the report's pictures with gnuplot, from the series of samples.

samples.py selects them. What a metric computes of sizes over time, it does with curves.py.
"""

import statistics
import subprocess
from collections.abc import Iterable
from pathlib import Path

from arms import BY_NAME
from results import LICENCE
from samples import Sample, Samples

HEAD = """\
set terminal svg size 800,{height} font 'sans,12' background rgb 'white'
set grid lc rgb '#dddddd'
set key below
set yrange [0:*]
"""
QEMU = "memory of QEMU"
FIT = "Guests of 1 GiB in 2600 MiB before anything is swapped out"
MEMORY = "set xlabel 'seconds'"
# Seconds between the points of a band.
STEP = 0.02
MOST_POINTS = 300
COLOURS = {
    "off": "#888888",
    "balloon": "#d55e00",
    "balloon-100ms": "#e69f00",
    "balloon-0ms": "#cc79a7",
    "freehint": "#0072b2",
    "freehint-drop": "#56b4e9",
    "freehint-lazy": "#009e73",
    "freehint-uncompacted": "#a6761d",
}


class PlotError(Exception):
    """gnuplot is missing, or has failed."""


Points = list[tuple[float, float]]


def draw(path: Path, title: str, what: str, script: list[str], height: int = 400) -> str:
    """Have gnuplot draw a file; return its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join([HEAD.format(height=height), *script])
    try:
        done = subprocess.run(["gnuplot"], input=text, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise PlotError(
            "gnuplot is not installed: run scripts/install-deps --bench"
        ) from None
    if done.returncode or not done.stdout:
        raise PlotError(f"gnuplot draws no {path.name}: {done.stderr.strip()}")
    # Screen readers read this.
    drawn = done.stdout.replace("<title>Gnuplot</title>", f"<title>{title}: {what}</title>")
    head, newline, rest = drawn.partition("\n")
    path.write_text(f"{head}{newline}<!-- {LICENCE} -->\n{rest}")
    return path.name


def block(name: str, rows: Iterable[Iterable[object]]) -> str:
    """Data for gnuplot, by name."""
    lines = (" ".join(str(value) for value in row) for row in rows)
    return "\n".join([f"${name} << EOD", *lines, "EOD"])


def step(points: Points, when: float) -> float:
    """A size that stays as it is between its points."""
    before = [y for x, y in points if x <= when]
    return before[-1] if before else points[0][1]


def band(series: list[Points]) -> list[tuple[float, float, float, float]]:
    """Time, least, median and most, from 0 s on for as long as all of them last."""
    end = min(points[-1][0] for points in series)
    rows = []
    for index in range(int(end / STEP) + 1):
        when = index * STEP
        found = [step(points, when) for points in series]
        middle = statistics.median(found)
        rows.append((round(when, 2), min(found), middle, max(found)))
    return rows


def draw_bands(path: Path, title: str, what: str, samples: Samples) -> str:
    """Memory over time: each arm's median, in a band from its least to its most."""
    script, fills, curves = [], [], []
    for index, arm in enumerate(a for a in samples.arms() if a.name in COLOURS):
        series = [sample["series"]["kept_mib"] for sample in samples.of(arm=arm.name)]
        script.append(block(f"d{index}", band(series)))
        colour = f"lc rgb '{COLOURS[arm.name]}'"
        fills.append(
            f"$d{index} using 1:2:4 with filledcurves fs transparent solid 0.3 {colour} notitle"
        )
        curves.append(f"$d{index} using 1:3 with lines lw 2 {colour} title '{arm.title}'")
    script += [MEMORY, f"set title '{title}'", f"set ylabel '{what}, MiB'"]
    script.append("set xrange [-0.5:*]")
    return draw(path, title, what, [*script, "plot " + ", ".join(fills + curves)])


def draw_curves(path: Path, title: str, what: str, samples: Samples) -> str:
    """Memory over time: the first sample of each arm."""
    script, curves = [], []
    for index, sample in enumerate(one_each(samples)):
        script.append(block(f"d{index}", sample["series"]["kept_mib"]))
        name = sample["arm"]
        curves.append(
            f"$d{index} using 1:2 with steps lw 2 lc rgb '{COLOURS[name]}' "
            f"title '{BY_NAME[name].title}'"
        )
    script += [MEMORY, f"set title '{title}'", f"set ylabel '{what}, MiB'"]
    return draw(path, title, what, [*script, "plot " + ", ".join(curves)])


def draw_beside_use(path: Path, title: str, what: str, samples: Samples) -> str:
    """Memory over time and its lower bound: a panel for each arm's first sample."""
    shown = [s for s in one_each(samples) if s["arm"] != "off"]
    end = max(sample["series"]["kept_mib"][-1][0] for sample in shown)
    caption = f"{title}: {what} (line) and its lower bound (grey), MiB"
    script = [f"set multiplot layout {len(shown)},1 title '{caption}'"]
    script += ["unset key", "set style fill solid", f"set xrange [0:{end}]", "set ytics 1000"]
    script += ["set tmargin 2", "set bmargin 3"]
    for sample in shown:
        arm, series = sample["arm"], sample["series"]
        script += [block("kept", series["kept_mib"]), block("bound", series["bound_mib"])]
        if sample is shown[-1]:
            script.append(MEMORY)
        script += [
            f"set title '{BY_NAME[arm].title}' offset 0,-0.7",
            "plot $bound using 1:2 with fillsteps lc rgb '#cccccc', "
            f"$kept using 1:2 with steps lw 2 lc rgb '{COLOURS[arm]}'",
        ]
    return draw(path, title, what, [*script, "unset multiplot"], 150 * len(shown))


def few(points: Points) -> Points:
    """As many points as a picture can show: a day on a busy host has more."""
    return points[:: len(points) // MOST_POINTS + 1]


def draw_day(path: Path, title: str, what: str, samples: Samples) -> str:
    """Memory over time on top of what it is for: a panel for each arm's first sample."""
    shown = one_each(samples)
    end = max(sample["series"]["kept_mib"][-1][0] for sample in shown)
    most = max(size for sample in shown for _, size in sample["series"]["kept_mib"])
    caption = f"{title}: {what} (line), in use (dark) and page cache (light), MiB"
    script = [f"set multiplot layout {len(shown)},1 title '{caption}'"]
    script += ["unset key", "set style fill solid", f"set xrange [0:{end}]"]
    script += [f"set yrange [0:{most * 1.05:.0f}]", "set ytics 200", "set format x ''"]
    script += ["set tmargin 2", "set bmargin 1.5"]
    for sample in shown:
        arm, series = sample["arm"], sample["series"]
        use = [(when, size) for when, size in few(series["use_mib"]) if when >= 0]
        both = [
            (when, size + step(series["use_mib"], when))
            for when, size in few(series["cache_mib"])
            if when >= 0
        ]
        script += [block("kept", few(series["kept_mib"]))]
        script += [block("use", use), block("both", both)]
        if sample is shown[-1]:
            script += ["set format x", "set bmargin 3", MEMORY]
        script += [
            f"set title '{BY_NAME[arm].title}' offset 0,-0.7",
            "plot $both using 1:2 with filledcurves y1=0 lc rgb '#cccccc', "
            "$use using 1:2 with filledcurves y1=0 lc rgb '#888888', "
            f"$kept using 1:2 with lines lw 2 lc rgb '{COLOURS[arm]}'",
        ]
    return draw(path, title, what, [*script, "unset multiplot"], 150 * len(shown))


def draw_fit(path: Path, title: str, what: str, samples: Samples) -> str:
    """How many guests fit: each arm's median, with its least and its most."""
    arms = [arm for arm in samples.arms() if arm.name in COLOURS]
    rows = []
    for index, arm in enumerate(arms):
        found = samples.of(arm=arm.name).values("guests")
        rows.append((index, statistics.median(found), min(found), max(found)))
    bars = [
        f"$fit every ::{index}::{index} using 1:2 with boxes lc rgb '{COLOURS[arm.name]}' notitle"
        for index, arm in enumerate(arms)
    ]
    names = ", ".join(f"'{arm.title}' {index}" for index, arm in enumerate(arms))
    script = [
        block("fit", rows),
        "set style fill solid",
        "set boxwidth 0.6",
        f"set xrange [-0.6:{len(arms) - 0.4}]",
        f"set xtics ({names})",
        f"set title '{title}'",
        f"set ylabel '{what}'",
    ]
    whiskers = "$fit using 1:3:(0):($4-$3) with vectors nohead lw 3 lc rgb 'black' notitle"
    return draw(path, title, what, [*script, "plot " + ", ".join([*bars, whiskers])])


def one_each(samples: Samples) -> list[Sample]:
    """The first sample of each arm that has a colour."""
    first = (next(iter(samples.of(arm=arm.name))) for arm in samples.arms())
    return [sample for sample in first if sample["arm"] in COLOURS]


def draw_all(samples: Samples, folder: Path) -> list[str]:
    """Draw every plot that there are samples for; return the file names."""
    lag = samples.of("lag", mib=1024, huge=True)
    footprint = samples.of("footprint", idle_s=5)
    compiling = samples.of("compiling")
    day = samples.of("day", upkeep="none")
    fit = samples.of("overcommit", kind="fit")
    plots = (
        (draw_bands, "lag", "1 GiB freed at 0 s", QEMU, lag),
        (draw_beside_use, "footprint", "1.5 GiB used and freed, 5 s idle", QEMU, footprint),
        (draw_curves, "compiling", "Compiling Lua, then cleaning up", "guest RAM", compiling),
        (draw_day, "day", "A day of real programs", "host memory", day),
        (draw_fit, "fit", FIT, "guests", fit),
    )
    return [
        draw(folder / f"{name}.svg", title, what, part)
        for draw, name, title, what, part in plots
        if part
    ]
