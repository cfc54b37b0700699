# SPDX-License-Identifier: GPL-2.0-or-later
"""Results as JSON: what ran, where, and every raw sample.

A file has a list of runs and a list of samples; each sample names its run by
number. Files of separate runs can be merged into one, and the report is made
from such a file alone.
"""

import dataclasses
import json
import os
import platform
import re
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

from arms import Arm, kernel
from freehint_vm import BUILD, PROJECT
from plan import Metric, Outcome

SCHEMA = 1
LICENCE = "SPDX-License-Identifier: GPL-2.0-or-later"


class ResultsError(Exception):
    """A file does not have results, or not in this form."""


def first_match(pattern: str, path: str) -> str:
    found = re.search(pattern, Path(path).read_text(), re.M)
    return found[1].strip() if found else "unknown"


def output_of(*command: str) -> str:
    done = subprocess.run(
        command, cwd=PROJECT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def describe_machine() -> dict[str, Any]:
    thp = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    chosen = re.search(r"\[(\w+)\]", thp)
    return {
        "cpu": first_match(r"^model name\s*:(.*)$", "/proc/cpuinfo"),
        "cpus": os.cpu_count(),
        "memory_mib": int(first_match(r"^MemTotal:\s*(\d+)", "/proc/meminfo")) // 1024,
        "kernel": platform.release(),
        "thp": chosen[1] if chosen else "unknown",
    }


def describe_versions() -> dict[str, Any]:
    qemu = output_of(str(BUILD / "qemu" / "qemu-system-x86_64"), "--version")
    return {
        "project": output_of("git", "describe", "--always", "--dirty"),
        "qemu": qemu.splitlines()[0],
        "linux": (BUILD / "versions.linux").read_text().split()[1],
        "guest_kernel": str(kernel().relative_to(BUILD).parts[0]),
    }


def case_of(sample: dict[str, Any]) -> str:
    """The metric and its parameters, which are the same for all arms of a comparison."""
    return json.dumps([sample["metric"], sample["params"]], sort_keys=True)


@dataclasses.dataclass
class Results:
    """The content of a file."""

    runs: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    samples: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def begin_run(self, command: str, scale: str, skipped: dict[str, str]) -> None:
        self.runs.append(
            {
                "command": command,
                "scale": scale,
                "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "accel": os.environ.get("FREEHINT_ACCEL") or "tcg",
                "machine": describe_machine(),
                "versions": describe_versions(),
                "skipped": skipped,
            }
        )

    def add(
        self, metric: Metric, arm: Arm, rep: int, load: float, outcome: Outcome
    ) -> None:
        self.samples.append(
            {
                "run": len(self.runs) - 1,
                "metric": metric.name,
                "arm": arm.name,
                "rep": rep,
                "load": round(load, 2),
                **dataclasses.asdict(outcome),
            }
        )

    def merge(self, other: "Results") -> None:
        """Add other results; a case that was measured again replaces the old samples."""
        fresh = {case_of(sample) for sample in other.samples}
        kept = [s for s in self.samples if case_of(s) not in fresh]
        shift = len(self.runs)
        moved = [s | {"run": s["run"] + shift} for s in other.samples]
        self.runs += other.runs
        self.samples = kept + moved

    def save(self, path: Path) -> None:
        """Write the whole file or nothing, as a run may end at any time."""
        record = {"comment": LICENCE, "schema": SCHEMA, "runs": self.runs}
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(".new")
        lines = ",\n".join(json.dumps(s, sort_keys=True) for s in self.samples)
        head = json.dumps(record | {"samples": []}, indent=1, sort_keys=True)
        new.write_text(head.replace('"samples": []', f'"samples": [\n{lines}\n]') + "\n")
        new.replace(path)


def load(path: Path) -> Results:
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ResultsError(f"{path} cannot be read: {error}") from error
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        raise ResultsError(f"{path} has no results of schema {SCHEMA}")
    return Results(record["runs"], record["samples"])


def load_all(paths: list[Path]) -> Results:
    results = Results()
    for path in paths:
        results.merge(load(path))
    return results


def changes(results: Results, before: str = "-before") -> list[str]:
    """A table with the median, least and most of each figure, before and now."""
    cells: dict[tuple[str, ...], dict[bool, list[float]]] = {}
    for sample in results.samples:
        old = sample["arm"].endswith(before)
        arm = sample["arm"].removesuffix(before)
        case = " ".join(f"{key}={value}" for key, value in sample["params"].items())
        for name, value in sample["values"].items():
            if isinstance(value, (int, float)):
                pair = cells.setdefault((sample["metric"], case, arm, name), {})
                pair.setdefault(old, []).append(value)
    lines = ["| metric | case | arm | figure | before | now |", "|---|---|---|---|---|---|"]
    for key, pair in cells.items():
        if len(pair) == 2:
            shown = [median_and_range(pair[old]) for old in (True, False)]
            lines.append(f"| {' | '.join((*key, *shown))} |")
    return lines


def median_and_range(values: list[float]) -> str:
    middle = statistics.median(values)
    return f"{middle:.4g} ({min(values):.4g} to {max(values):.4g})"
