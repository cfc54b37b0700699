#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Run a qtest program on a QEMU with the sanitizer for threads.

It also fails if our code makes one of two accesses that race. Other races are reported all
the time: GLib is not compiled for this, and the sanitizer does not see the locks under
which it hands over threads and their work.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

# A report names two accesses, and then says where their memory comes from.
REPORT = re.compile(r"^WARNING: ThreadSanitizer.*?^SUMMARY.*?$", re.M | re.S)
ORIGIN = re.compile(r"^  (?:As if synchronized|Location|Mutex|Thread) ", re.M)
STACK = re.compile(r"(?:^    #\d+ .*\n)+", re.M)
# If a function was called to make an access, it comes first.
TOOL = re.compile(r" (?:__interceptor_)?mem\w+ ")
# Migration reads memory that may change; such memory is dirty then, and is sent again.
BY_DESIGN = " ram_save_"


def is_ours(report: str) -> bool:
    stacks = STACK.findall(ORIGIN.split(report)[0])
    if any(BY_DESIGN in stack for stack in stacks):
        return False
    frames = [stack.splitlines() for stack in stacks]
    made_by = [next((line for line in f if not TOOL.search(line)), "") for f in frames]
    return any("freehint" in line for line in made_by)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("program", nargs=argparse.REMAINDER)
    command = parser.parse_args().program
    with tempfile.TemporaryDirectory(prefix="freehint-tsan-") as folder:
        # A race neither ends the test nor changes QEMU's exit status.
        options = f"log_path={folder}/races exitcode=0 die_after_fork=0"
        done = subprocess.run(
            # The sanitizer's memory has a fixed address.
            ["setarch", "--addr-no-randomize", *command],
            env=os.environ | {"TSAN_OPTIONS": options},
            check=False,
        )
        logs = [path.read_text(errors="replace") for path in Path(folder).iterdir()]
    reports = [report for log in logs for report in REPORT.findall(log)]
    ours = [report for report in reports if is_ours(report)]
    print(f"# races: {len(reports)}, of ours: {len(ours)}", flush=True)
    print("\n".join(ours), file=sys.stderr)
    sys.exit(done.returncode or bool(ours))


if __name__ == "__main__":
    main()
