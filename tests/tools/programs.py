# SPDX-License-Identifier: GPL-2.0-or-later
"""The programs of tools/, and what they print."""

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
TOOLS = PROJECT / "tools"
BUILD = Path(os.environ.get("FREEHINT_BUILD", PROJECT / "build"))
TOP = BUILD / "tools" / "freehint-top"
EXPORTER = BUILD / "tools" / "freehint-exporter"


def run(
    *command: str | Path, status: int | None = 0, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run a command, which has to end with `status` unless that is None."""
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        **options,
    )
    if status not in (None, done.returncode):
        raise AssertionError(f"{command}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def look(*arguments: str | Path, status: int | None = 0) -> list[dict[str, Any]]:
    """All VMs, as freehint-top sees them."""
    options = ("--once", "--json", "--interval=0.5")
    done = run(TOP, *options, *arguments, status=status)
    vms: list[dict[str, Any]] = json.loads(done.stdout)["vms"]
    return vms


def wait_for(what: str, holds: Callable[[], Any], timeout: float = 30) -> Any:
    """Wait until `holds` returns something true, and return that."""
    deadline = time.monotonic() + timeout
    while not (found := holds()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout:.0f} s: {what}")
        time.sleep(0.05)
    return found
