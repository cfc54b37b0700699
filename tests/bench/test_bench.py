# SPDX-License-Identifier: GPL-2.0-or-later
"""The benchmarks can be run, and the report follows from the measurements."""

import re
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from typing import Any

import curves
import report
from meters import TraceLog
from metrics.day import Day, Use
from plots import band, draw_all
from results import Results, ResultsError, changes, load, load_all
from samples import Samples
from spread import spread
from targets import verdicts

HERE = Path(__file__).resolve().parent
MIB = 1 << 20
# A trace as QEMU writes it; the last line is not complete yet.
TRACE = """\
12@1700000000.100000:virtio_queue_notify vdev 0x55aa n 5 vq 0x7f01
12@1700000000.200000:virtio_queue_notify vdev 0x66bb n 0 vq 0x7f02
12@1700000000.300000:ram_block_discard_range ram@0x7f00 + 0x200000: madvise: 1
12@1700000000.400000:virtio_notify vdev 0x66bb vq 0x7f02
12@1700000000.500000:virtio_notify vdev 0x55aa vq 0x7f01
12@1700000000.600000:virtio_queue_not"""


def lag_sample(arm: str, t90: float | None, calls: int) -> dict[str, Any]:
    values = {"t50": t90, "t90": t90, "t99": None, "returned": 1 << 30, "runs": 3}
    values |= {"discard_calls": calls, "notifications": 9, "interrupts": 9}
    values |= {"cpu_ns": 5000000, "cpu_s": 2.0, "used": 1 << 30, "free_s": 0.01}
    return {
        "run": 0,
        "metric": "lag",
        "arm": arm,
        "rep": 0,
        "load": 0.1,
        "params": {"mib": 1024, "huge": True},
        "values": values,
        "series": {"kept_mib": [[0, 1100], [1, 100]]},
        "guest": "toucher -m 1024 -t",
        "qemu": "qemu-system-x86_64",
    }


def day_sample(arm: str, share: float, excess_mib: int) -> dict[str, Any]:
    """A day in which 1 GiB min were in use, and as much was page cache."""
    values = {"host_gib_min": share, "seen_gib_min": share, "use_gib_min": 1.0}
    values |= {"cache_gib_min": 1.0, "host_per_use": share, "host_per_use_aside": share - 1}
    values |= {"day_s": 200.0, "cleaned_excess": excess_mib * MIB, "dropped_excess": 1}
    series = {"kept_mib": [[0, 300], [9, 200]], "use_mib": [[-1, 90], [8, 90]]}
    return lag_sample(arm, None, 0) | {
        "metric": "day",
        "params": {"upkeep": "none"},
        "values": values,
        "series": series | {"cache_mib": [[-1, 50], [1, 60], [8, 10]]},
    }


class SmokeTest(unittest.TestCase):
    def test_measures_and_reports(self) -> None:
        """The meters see what each arm is known to do."""
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "results.json"
            command = [sys.executable, str(HERE / "run.py"), "--scale", "smoke"]
            command += ["--output", str(output)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
            results = load(output)
        lags = Samples(results.samples).of("lag")
        for arm, least in (("balloon", 128 * MIB), ("freehint", 128 * MIB)):
            for key in ("notifications", "interrupts", "discard_calls"):
                found = lags.of(arm=arm).median(key)
                self.assertGreater(found or 0, 0, f"{arm}: {key}")
            self.assertGreater(lags.of(arm=arm).median("returned") or 0, least, arm)
        self.assertLess(abs(lags.of(arm="off").median("returned") or 0), 16 * MIB)
        self.assertEqual(lags.of(arm="off").median("discard_calls"), 0)
        churned = Samples(results.samples).of("churn", arm="freehint-drop")
        self.assertGreater(churned.median("refaulted") or 0, 128 * MIB)
        self.assertIn("## Churn", report.text_of(results))


class ReportTest(unittest.TestCase):
    def results(self) -> Results:
        results = Results()
        results.begin_run("scripts/bench", "full", {"freehint-lazy": "no such option"})
        results.samples = [
            lag_sample("off", None, 0),
            lag_sample("balloon", 10.0, 512),
            lag_sample("freehint", 0.25, 32),
        ]
        return results

    def test_the_report_says_what_was_measured(self) -> None:
        results = self.results()
        text = report.text_of(results)
        self.assertIn("3 of 3 are met.", text)
        self.assertIn("| 1024 MiB | 10.00 | 0.25 |", text)
        self.assertIn("not run: no such option", text)
        self.assertEqual(text, report.text_of(results))

    def test_the_published_report_is_of_the_samples_beside_it(self) -> None:
        results = load(report.DOCS / "benchmarks" / "results.json")
        published = (report.DOCS / "benchmarks.md").read_text()
        self.assertEqual(report.text_of(results), published)

    def test_a_missed_target_is_told(self) -> None:
        results = self.results()
        results.samples[2]["values"]["t90"] = 0.6
        missed = [v for v in verdicts(Samples(results.samples)) if not v.met]
        self.assertEqual([v.measured for v in missed], ["1/17"])
        self.assertIn("2 of 3 are met.", report.text_of(results))

    def test_what_never_happened_has_no_median_and_is_missed(self) -> None:
        results = self.results()
        results.samples.append(lag_sample("freehint", None, 32))
        samples = Samples(results.samples)
        self.assertIsNone(samples.of(arm="freehint").median("t90"))
        missed = [v.ours for v in verdicts(samples) if not v.met]
        self.assertEqual(missed, ["never"])

    def test_a_day_is_held_against_what_is_in_use(self) -> None:
        results = self.results()
        results.samples = [day_sample("balloon", 2.3, 90), day_sample("freehint", 2.14, 65)]
        found = [(v.case, v.ours, v.met) for v in verdicts(Samples(results.samples))]
        wanted = [("with page cache", "2.14", False), ("page cache aside", "1.14", True)]
        wanted += [("at its end", "65", False), ("page cache dropped", "0", True)]
        self.assertEqual(found, wanted)
        self.assertIn("| host memory per in use | 2.30 | 2.14 |", report.text_of(results))

    @unittest.skipUnless(shutil.which("gnuplot"), "gnuplot is not installed")
    def test_plots_are_drawn(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            samples = [*self.results().samples, day_sample("freehint", 2.1, 65)]
            drawn = draw_all(Samples(samples), Path(folder))
            self.assertEqual(drawn, ["lag.svg", "day.svg"])
            for name in drawn:
                self.assertIn("</svg>", (Path(folder) / name).read_text())

    @unittest.skipUnless(shutil.which("gnuplot"), "gnuplot is not installed")
    def test_each_published_plot_can_be_drawn_again(self) -> None:
        results = load_all([report.DOCS / "benchmarks" / "results.json"])
        linked = re.findall(r"\(benchmarks/(\S+\.svg)\)", report.text_of(results))
        with tempfile.TemporaryDirectory() as folder:
            drawn = draw_all(Samples(results.samples), Path(folder))
        self.assertEqual(sorted(drawn), sorted(linked))
        for name in linked:
            picture = (report.DOCS / "benchmarks" / name).read_text()
            self.assertRegex(picture, "<title>.+: .+</title>")

    def test_a_band_is_as_long_as_all_of_its_samples(self) -> None:
        rows = band([[(-1, 5), (0.5, 1)], [(0, 9), (0.02, 4), (9, 0)], [(0, 6), (9, 6)]])
        self.assertEqual(rows[:2], [(0, 5, 6, 9), (0.02, 4, 5, 6)])
        self.assertEqual(rows[-1], (0.5, 1, 4, 6))

    def test_results_survive_saving_and_merging(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            first, second = (Path(folder) / f"{n}.json" for n in (1, 2))
            self.results().save(first)
            newer = self.results()
            newer.samples = [lag_sample("balloon", 8.0, 512)]
            newer.save(second)
            merged = load_all([first, second])
            self.assertEqual(len(merged.runs), 2)
            self.assertEqual([s["run"] for s in merged.samples], [1])
            self.assertEqual(load(first).samples, self.results().samples)
            second.write_text('{"schema": 0}')
            with self.assertRaises(ResultsError):
                load(second)

    def test_changes_are_of_the_same_case_and_arm(self) -> None:
        results = self.results()
        results.samples = [
            lag_sample(arm, t90, 512)
            for arm, t90 in (
                *(("freehint", 1.0), ("freehint", 3.0), ("freehint", 2.0)),
                *(("freehint-before", 5.0), ("balloon", 8.0)),
            )
        ]
        table = [line for line in changes(results) if "| t90 |" in line]
        self.assertEqual(len(table), 1)
        self.assertIn("| freehint | t90 | 5 (5 to 5) | 2 (1 to 3) |", table[0])


class CurveTest(unittest.TestCase):
    """A size stays as it is until its next point."""

    CURVE = [(1.0, 4 * MIB), (3.0, 8 * MIB), (4.0, 0)]

    def test_at(self) -> None:
        found = [curves.at(self.CURVE, when) for when in (0.0, 1.0, 2.9, 3.0, 9.0)]
        self.assertEqual(found, [4 * MIB, 4 * MIB, 4 * MIB, 8 * MIB, 0])

    def test_area(self) -> None:
        self.assertEqual(curves.area(self.CURVE, 1, 9), 16 * MIB)
        self.assertEqual(curves.area(self.CURVE, 2, 3.5), 8 * MIB)
        self.assertEqual(curves.area(self.CURVE, 1.5, 2), 2 * MIB)

    def test_thin(self) -> None:
        self.assertEqual(curves.thin(self.CURVE, 1, 2.5), [(0.0, 4.0), (3.0, 0.0)])


class DayTest(unittest.TestCase):
    def test_what_is_in_use(self) -> None:
        """What waits to be written is in use; shared memory is no page cache."""
        fields = {"MemTotal": 100, "MemFree": 40, "Cached": 30, "Buffers": 5, "Shmem": 3}
        fields |= {"Dirty": 2, "Writeback": 1, "AnonPages": 10, "Slab": 6, "PageTables": 1}
        fields |= {"SecPageTables": 0, "Percpu": 1, "VmallocUsed": 2, "KernelStack": 1}
        words = ["32"] + [str(word) for field in fields.items() for word in field]
        use = Use.parse(words, 120)
        self.assertEqual(use.cache, 30 + 5 - 3 - 2 - 1)
        self.assertEqual(use.used, 10 + 3 + 6 + 1 + 1 + 2 + 2 + 1 + (120 - 100))
        self.assertEqual(use.small, 40 - 32)
        self.assertEqual(use.other, 100 - 40 - use.cache - (use.used - 20))

    def test_what_is_beyond_use(self) -> None:
        """Each size is the last one that was taken, as they come at different times."""
        day = Day(
            host=[(0, 100), (4, 90)],
            seen=[(0, 100), (4, 95)],
            used=[(1, 50), (3, 60)],
            cache=[(1, 20), (3, 5)],
            small=[(1, 7)],
            other=[(1, 3)],
        )
        self.assertEqual([day.excess(when) for when in (2, 3, 5)], [30, 35, 25])
        self.assertEqual(day.sizes("end", 5)["end_small"], 7)


class MeterTest(unittest.TestCase):
    def test_trace_is_counted(self) -> None:
        """The agent's serial port is not counted; half a line is read when it is complete."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace"
            path.write_text(TRACE)
            log = TraceLog(path)
            counted = log.reports(float("-inf"), float("inf"))
            self.assertEqual(counted.notifications, 1)
            self.assertEqual(counted.interrupts, 1)
            self.assertEqual(counted.discard_calls, 1)
            self.assertEqual(counted.discarded, 2 * MIB)
            path.write_text(TRACE + "ify vdev 0x66bb n 0 vq 0x7f02\n")
            counted = log.reports(float("-inf"), float("inf"))
            self.assertEqual(counted.notifications, 2)

    def test_spread(self) -> None:
        found = spread([3.0, 1.0, 2.0, 100.0, 2.5])
        self.assertEqual(found.median, 2.5)
        self.assertLessEqual(found.low, 2.5)
        self.assertGreaterEqual(found.high, 2.5)
        self.assertEqual(spread([4.0]).low, 4.0)


if __name__ == "__main__":
    unittest.main()
