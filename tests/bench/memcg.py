# SPDX-License-Identifier: GPL-2.0-or-later
"""A memory cgroup with a limit, and a swap file for what does not fit.

All changes are undone on every exit, except after SIGKILL: then `swapoff` and `rmdir` what
the error of the next start names.
"""

import os
import re
import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType

MIB = 1 << 20
PAGE = os.sysconf("SC_PAGESIZE")
V1 = Path("/sys/fs/cgroup/memory")
NAME = "freehint-bench"


class MemcgError(RuntimeError):
    """The experiment cannot be set up here."""


def unavailable() -> str:
    """Why there can be no such cgroup here; empty if there can."""
    if os.geteuid():
        return "limiting memory and swapping to a file need root"
    if not (V1 / "memory.limit_in_bytes").exists():
        return f"no version 1 memory cgroup at {V1}"
    return ""


class MemoryCgroup:
    """A context manager; `wrapper` starts a program in it."""

    def __init__(self, limit_mib: int, swap_mib: int, swap_file: Path) -> None:
        self._limit = limit_mib * MIB
        self._swap_mib = swap_mib
        self._swap_file = swap_file
        self._path = V1 / NAME

    def __enter__(self) -> "MemoryCgroup":
        if self._path.exists() or self._swap_file.exists():
            raise MemcgError(
                f"{self._path} or {self._swap_file} is left over, or another run is "
                "under way: if none is, swapoff and remove them"
            )
        try:
            self._path.mkdir()
            self._write("memory.limit_in_bytes", self._limit)
            self._write("memory.swappiness", 60)
            self._start_swapping()
        except BaseException:
            self._take_down()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._take_down()

    def wrapper(self) -> tuple[str, ...]:
        join = f'echo $$ >{self._path}/cgroup.procs && exec "$@"'
        return ("/bin/sh", "-c", join, "sh")

    def peak(self) -> int:
        return int((self._path / "memory.max_usage_in_bytes").read_text())

    def swapped(self) -> int:
        """The number of bytes in the swap file now."""
        return self._stat("swap")

    def refaulted(self) -> int:
        """The number of bytes of files that were read again soon after reclaim."""
        return self._stat("workingset_refault_file") * PAGE

    def oom_kills(self) -> int:
        control = (self._path / "memory.oom_control").read_text()
        found = re.search(r"^oom_kill (\d+)$", control, re.M)
        assert found
        return int(found[1])

    def _stat(self, name: str) -> int:
        stat = (self._path / "memory.stat").read_text()
        found = re.search(rf"^total_{name} (\d+)$", stat, re.M)
        assert found
        return int(found[1])

    def _write(self, name: str, value: int) -> None:
        (self._path / name).write_text(str(value))

    def _start_swapping(self) -> None:
        with self._swap_file.open("wb") as file:
            os.fchmod(file.fileno(), 0o600)
            os.posix_fallocate(file.fileno(), 0, self._swap_mib * MIB)
        for tool in ("mkswap", "swapon"):
            command = [tool, str(self._swap_file)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise MemcgError(f"{tool} has failed: {done.stderr.strip()}")

    def _take_down(self) -> None:
        """Kill all processes that are still in the cgroup; to swap them in would take long."""
        if self._path.exists():
            for pid in (self._path / "cgroup.procs").read_text().split():
                os.kill(int(pid), signal.SIGKILL)
        command = ["swapoff", str(self._swap_file)]
        subprocess.run(command, capture_output=True, check=False)
        self._swap_file.unlink(missing_ok=True)
        deadline = time.monotonic() + 10
        while self._path.exists():
            try:
                self._path.rmdir()
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)


def swap_traffic() -> tuple[int, int]:
    """The number of bytes swapped out and in on this host since boot."""
    vmstat = Path("/proc/vmstat").read_text()
    found = dict(re.findall(r"^(pswpout|pswpin) (\d+)$", vmstat, re.M))
    return int(found["pswpout"]) * PAGE, int(found["pswpin"]) * PAGE
