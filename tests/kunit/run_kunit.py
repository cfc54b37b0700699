#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Boot the KUnit kernel and print a TAP line for each case of our suites.

The kernel runs the tests before it looks for an init, and then powers off.
The kernel's own parser, tools/testing/kunit, reads the results. One more line says
whether the kernel complained of anything: the cases may pass all the same.
"""

import argparse
import contextlib
import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT / "scripts" / "lib"))

from accel import chosen  # noqa: E402
from splats import complaints  # noqa: E402
from tap import TapReport  # noqa: E402

# Options of KUnit also bring suites of others, which are not ours to run.
OUR_SUITES = "freehint*"
TIMEOUT = 300


def boot(qemu: Path, kernel: Path, accel: str, case: str = "*") -> str:
    """Run the cases that match, and return what the kernel printed."""
    command = [
        *(str(qemu), "-accel", accel),
        *("-machine", "q35", "-m", "640", "-nodefaults", "-no-user-config"),
        *("-display", "none", "-monitor", "none", "-serial", "stdio", "-no-reboot"),
        *("-kernel", str(kernel)),
        "-append",
        # Some cases need two zones.
        "console=ttyS0 panic=-1 kunit_shutdown=poweroff movablecore=128M "
        f"kunit.filter_glob={OUR_SUITES}.{case}",
    ]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        said = (late.stdout or b"").decode(errors="replace")
        sys.exit(f"the kernel has not powered off after {TIMEOUT} s:\n{said}")
    return done.stdout.decode(errors="replace")


def cases(test: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every case in a result of the parser, after its full name."""
    if not test.subtests:
        yield ".".join(path), test
    for subtest in test.subtests:
        yield from cases(subtest, (*path, subtest.name))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("build", type=Path, metavar="BUILD")
    parser.add_argument("case", nargs="?", default="*", metavar="CASE")
    parser.add_argument("--kernel", default="linux-kunit", help="directory in BUILD")
    options = parser.parse_args()
    build = options.build.resolve()
    sys.path.insert(0, str(build / "src" / "linux" / "tools" / "testing" / "kunit"))
    # The parser keeps the standard output that it finds when it is imported, for
    # a report of its own.
    with contextlib.redirect_stdout(io.StringIO()):
        import kunit_parser

        console = boot(
            build / "qemu" / "qemu-system-x86_64",
            build / options.kernel / "arch" / "x86" / "boot" / "bzImage",
            chosen(build),
            options.case,
        )
        result = kunit_parser.parse_run_tests(console.splitlines())
    report = TapReport()
    status = kunit_parser.TestStatus
    for name, case in cases(result):
        if case.status == status.SUCCESS:
            report.passed(name)
        elif case.status == status.SKIPPED:
            report.skipped(name, "the kernel skips it")
        else:
            report.failed(name or "kunit", "\n".join(case.log) or console)
    report.result("the kernel does not complain", "\n".join(complaints(console)))
    report.finish()


if __name__ == "__main__":
    main()
