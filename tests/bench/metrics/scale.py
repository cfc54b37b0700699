# SPDX-License-Identifier: GPL-2.0-or-later
"""How the engine's work grows with the machine, up to 12 TiB.

The KUnit suite freehint_scale has zones of that size, with state but without memory. With
-icount shift=0, the nanoseconds that it measures are instructions, which depend neither on
the host nor on emulation.
"""

import re
import subprocess
from collections.abc import Iterator

from arms import Arm
from freehint_vm import BUILD
from plan import Case, Metric, Outcome, Values

KERNEL = BUILD / "linux-kunit" / "arch" / "x86" / "boot" / "bzImage"
LINE = re.compile(
    r"scale: (?P<gib>\d+) GiB, (?P<what>.*): (?P<holds>\d+) holds, "
    r"(?P<max>\d+) ns at most, (?P<total>\d+) ns"
)
TIMEOUT = 600


def unavailable() -> str:
    return "" if KERNEL.exists() else "the KUnit kernel is missing: build linux-kunit.stamp"


def cases(scale: str) -> list[Case]:
    return [] if scale == "smoke" else [Case({}, ("freehint",))]


def measure(arm: Arm, params: Values) -> Iterator[Outcome]:
    append = "console=ttyS0 panic=-1 kunit_shutdown=poweroff"
    command = [
        *("BUILD/qemu/qemu-system-x86_64", "-accel", "tcg,thread=single"),
        *("-icount", "shift=0,sleep=off", "-machine", "q35", "-m", "512"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-monitor", "none"),
        *("-serial", "stdio", "-no-reboot"),
        *("-kernel", "BUILD/linux-kunit/arch/x86/boot/bzImage", "-append"),
        f"{append} kunit.filter_glob=freehint_scale",
    ]
    done = subprocess.run(
        [word.replace("BUILD", str(BUILD)) for word in command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=TIMEOUT,
        check=True,
    )
    found = list(LINE.finditer(done.stdout))
    if not found or re.search(r"^\s*not ok", done.stdout, re.M):
        raise RuntimeError(f"the suite has failed: {done.stdout[-2000:]}")
    for line in found:
        yield Outcome(
            params={"gib": int(line["gib"]), "what": line["what"]},
            values={
                "holds": int(line["holds"]),
                "max": int(line["max"]),
                "total": int(line["total"]),
            },
            guest="kunit.filter_glob=freehint_scale",
            qemu=" ".join(command),
        )


METRIC = Metric("scale", "Growth with the machine", cases, measure, unavailable)
