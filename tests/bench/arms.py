# SPDX-License-Identifier: GPL-2.0-or-later
"""The arms of the comparison, and the guest of each: all else is the same.

Every arm runs the same QEMU, kernel and initramfs with the same command line,
but for the device that reports free memory and the parameters named here.
"""

import dataclasses
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT / "tests" / "functional"))

from freehint_vm import BUILD, KERNEL, MIB, NO_COMPACTION, FreehintVM, GuestError  # noqa: E402
from meters import CpuMeter, ResidentWatch, TraceLog  # noqa: E402

# The kernel whose page reporting has a delay that can be set; if that does not
# matter, the ordinary one will do.
BENCH_KERNEL = BUILD / "linux-bench" / "arch" / "x86" / "boot" / "bzImage"
DELAY_PARAMETER = "page_reporting.delay_ms"
DEVICE = "virtio-freehint-device"
STARVED = re.compile(r"rcu: INFO: rcu_sched (self-)?detected stall")


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to handle free memory."""

    name: str
    title: str
    reporter: str = "none"
    append: str = ""
    device_options: tuple[str, ...] = ()
    kernel: Path | None = None

    def before(self, kernel: Path) -> "Arm":
        """The same arm with another guest kernel, from before a change."""
        name, title = f"{self.name}-before", f"{self.title}, before"
        return dataclasses.replace(self, name=name, title=title, kernel=kernel)


ARMS = [
    Arm("off", "off"),
    Arm("off-again", "off, again"),
    Arm("balloon", "balloon reporting", "balloon"),
    Arm(
        "balloon-100ms",
        "balloon reporting, 100 ms",
        "balloon",
        append=f"{DELAY_PARAMETER}=100",
    ),
    Arm(
        "balloon-0ms",
        "balloon reporting, no delay",
        "balloon",
        append=f"{DELAY_PARAMETER}=0",
    ),
    Arm("freehint", "freehint", "freehint"),
    Arm("freehint-20ms", "freehint, 20 ms", "freehint", device_options=("min-age-ms=20",)),
    Arm(
        "freehint-uncompacted",
        "freehint, no compaction",
        "freehint",
        append=NO_COMPACTION,
    ),
    Arm("freehint-drop", "freehint, drop", "freehint", device_options=("discard=drop",)),
    Arm("freehint-lazy", "freehint, lazy", "freehint", device_options=("discard=lazy",)),
]
BY_NAME = {arm.name: arm for arm in ARMS}


def kernel() -> Path:
    return BENCH_KERNEL if BENCH_KERNEL.exists() else KERNEL


def device_properties() -> str:
    """What QEMU says about our device's options."""
    qemu = BUILD / "qemu" / "qemu-system-x86_64"
    command = [str(qemu), "-device", "virtio-freehint-pci,help"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def why_missing(arm: Arm) -> str:
    """Why an arm cannot be run with what was built; empty if it can."""
    if DELAY_PARAMETER in arm.append and kernel() != BENCH_KERNEL:
        return "the kernel's reporting delay is fixed: build linux-bench.stamp"
    for option in arm.device_options:
        name = option.partition("=")[0]
        if f"  {name}=<" not in device_properties():
            return f"the device has no option '{name}'"
    return ""


def backing_options(arm: Arm, backing: str, memory_mib: int) -> list[str]:
    """QEMU's options for the guest's RAM: "anon", or "hugetlb" from a pool.

    A host below the host may take anonymous memory that the host has freed, which
    is then slow to come back. A pool of huge pages stays where it is.
    """
    if backing == "anon":
        return []
    memory = "memory-backend-memfd,id=ram0,prealloc=off"
    huge = f"size={memory_mib}M,hugetlb=on,hugetlbsize=2M"
    options = ["-object", f"{memory},{huge}", "-machine", "memory-backend=ram0"]
    if arm.reporter == "freehint":
        options += ["-global", f"{DEVICE}.discard-reserved=on"]
    return options


class BenchGuest(FreehintVM):
    """A guest of an arm, with meters on its QEMU; use it as a context manager."""

    def __init__(
        self,
        arm: Arm,
        *,
        memory_mib: int,
        cpus: int = 1,
        backing: str = "anon",
        trace: bool = False,
        ram_only: bool = False,
        accel: str = "tcg",
        extra_args: tuple[str, ...] = (),
        wrapper: tuple[str, ...] = (),
    ) -> None:
        options = backing_options(arm, backing, memory_mib)
        for option in arm.device_options:
            options += ["-global", f"{DEVICE}.{option}"]
        self._folder = tempfile.TemporaryDirectory(prefix="freehint-bench-")
        self.host_trace = TraceLog(Path(self._folder.name) / "trace") if trace else None
        if self.host_trace:
            options += self.host_trace.options()
        super().__init__(
            arm.reporter,
            accel=accel,
            memory_mib=memory_mib,
            cpus=cpus,
            append=arm.append,
            kernel=arm.kernel or kernel(),
            extra_args=(*options, *extra_args),
            wrapper=wrapper,
            compacts=True,
        )
        self.arm = arm
        self.backing = backing
        self._ram = memory_mib * MIB
        self._ram_only = ram_only

    def __enter__(self) -> "BenchGuest":
        super().__enter__()
        try:
            self.attach_meters()
        except BaseException:
            super().__exit__(*sys.exc_info())
            self._folder.cleanup()
            raise
        return self

    def attach_meters(self) -> None:
        if self.arm.append:
            self.check_parameter(*self.arm.append.split("="))
        pid = self.machine.get_pid()
        assert pid is not None
        threads: Any = self.machine.cmd("query-cpus-fast")
        self.cpu = CpuMeter(pid, [entry["thread-id"] for entry in threads])
        self.resident = ResidentWatch(pid, self.kind(), self._ram)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if hasattr(self, "resident"):
            self.resident.stop()
        super().__exit__(kind, value, trace)
        self._folder.cleanup()

    def check_parameter(self, name: str, wanted: str) -> None:
        """Check a parameter, as a kernel silently ignores one that it does not know."""
        found = self.check(f"cat /sys/module/{name.replace('.', '/parameters/')}").strip()
        if found != wanted:
            raise GuestError(f"{name} is '{found}' in the guest, not '{wanted}'")

    def splats(self) -> list[str]:
        """The kernel's complaints, except that a busy host starved the guest."""
        lines = super().splats()
        return [] if lines and STARVED.search(lines[0]) else lines

    def kind(self) -> str:
        """Which of QEMU's memory the host could not use for something else."""
        if self.backing == "hugetlb":
            return "hugetlb"
        if self._ram_only:
            return "ram"
        lazy = self.arm.reporter == "freehint" and self.arm.name != "freehint-drop"
        return "lazy" if lazy else "rss"

    def command(self) -> str:
        """QEMU's command line without the parts that differ between machines."""
        words = Path(f"/proc/{self.machine.get_pid()}/cmdline").read_text()
        text = " ".join(words.rstrip("\0").split("\0"))
        return text.replace(str(BUILD), "BUILD").replace(self._folder.name, "TMP")

    def discard_calls(self) -> int | None:
        """How often the device had memory discarded, where it counts that."""
        if self.arm.reporter != "freehint":
            return None
        calls: int = self.query()["stats"]["discard-calls"]
        return calls

    def rest(self, quiet: float = 3.0, timeout: float = 90) -> int:
        """Wait until nothing has been reported, or changed, for a while."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            self.settle(quiet=quiet, timeout=timeout)
            last = self.host_trace.last_report() if self.host_trace else None
            if last is None or time.monotonic() - last > quiet:
                return self.resident.now()
            time.sleep(0.2)
        raise TimeoutError(f"reports have not ended within {timeout:.0f} s")
