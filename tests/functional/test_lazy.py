# SPDX-License-Identifier: GPL-2.0-or-later
"""Lazily freed memory goes before anything is swapped, and is free to use again."""

import contextlib
import ctypes
import os
import re
import subprocess
import tempfile
import time
import unittest
from collections.abc import Iterator
from pathlib import Path

from freehint_vm import DEVICE_ID, MIB, FreehintVM

V1 = Path("/sys/fs/cgroup/memory")
GUEST_MIB = 640
USED = 256 * MIB
PAGE = os.sysconf("SC_PAGESIZE")
PR_SET_THP_DISABLE = 41


class Cgroup:
    """A version 1 memory cgroup; who is in it when it ends goes to the root."""

    def __init__(self) -> None:
        self.path = V1 / f"freehint-test-{os.getpid()}"

    def __enter__(self) -> "Cgroup":
        self.path.mkdir()
        return self

    def __exit__(self, *exception: object) -> None:
        for pid in (self.path / "cgroup.procs").read_text().split():
            (V1 / "cgroup.procs").write_text(pid)
        self.path.rmdir()

    @contextlib.contextmanager
    def for_children(self) -> Iterator[None]:
        """What is started in this context is in the cgroup, and stays there."""
        (self.path / "cgroup.procs").write_text(str(os.getpid()))
        try:
            yield
        finally:
            (V1 / "cgroup.procs").write_text(str(os.getpid()))

    def usage(self) -> int:
        return int((self.path / "memory.usage_in_bytes").read_text())

    def limit(self, size: int) -> None:
        """The kernel reclaims what is over it before this returns."""
        (self.path / "memory.limit_in_bytes").write_text(str(size))

    def swapped(self) -> int:
        stat = (self.path / "memory.stat").read_text()
        found = re.search(r"^total_swap (\d+)$", stat, re.M)
        assert found
        return int(found[1])


@contextlib.contextmanager
def swap_file(size: int) -> Iterator[None]:
    with tempfile.NamedTemporaryFile(prefix="freehint-swap-") as file:
        os.posix_fallocate(file.fileno(), 0, size)
        for tool in ("mkswap", "swapon"):
            subprocess.run([tool, file.name], check=True, capture_output=True)
        try:
            yield
        finally:
            subprocess.run(["swapoff", file.name], check=True)


@contextlib.contextmanager
def no_huge_pages() -> Iterator[None]:
    """What is started in this context gets no transparent huge pages."""
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)
    try:
        yield
    finally:
        libc.prctl(PR_SET_THP_DISABLE, 0, 0, 0, 0)


def faults(pid: int) -> int:
    """Page faults of all threads of a process that needed no I/O."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return int(fields[7])


def lazily_freed(pid: int) -> int:
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    found = re.search(r"^LazyFree: +(\d+) kB$", rollup, re.M)
    assert found
    return int(found[1]) * 1024


def use_memory(vm: FreehintVM, size: int = USED) -> None:
    """Have the guest use memory and free it, and the device deal with it."""
    before = vm.query()["stats"]["hinted"]["bytes"]
    vm.check(f"memhog {size // MIB}m")
    deadline = time.monotonic() + 60
    while vm.query()["stats"]["hinted"]["bytes"] < before + size * 3 // 4:
        if time.monotonic() > deadline:
            raise TimeoutError("the guest does not hint what it has freed")
        time.sleep(0.1)
    time.sleep(1)


class LazyTest(unittest.TestCase):
    def pid(self, vm: FreehintVM) -> int:
        pid = vm.machine.get_pid()
        assert pid is not None
        return pid

    def swapped_under_limit(self, mode: str) -> int:
        """How much is swapped when the host takes back half of what was freed."""
        with Cgroup() as cgroup, swap_file(2 * USED), contextlib.ExitStack() as stack:
            with cgroup.for_children():
                vm = stack.enter_context(FreehintVM(memory_mib=GUEST_MIB))
            vm.settle()
            if mode == "off":
                vm.set_enabled(False)
                vm.check(f"memhog {USED // MIB}m")
            else:
                vm.machine.cmd("freehint-set", id=DEVICE_ID, discard=mode)
                use_memory(vm)
                self.assertGreater(vm.query()["stats"]["lazy-bytes"], USED // 2)
            before = cgroup.usage()
            self.assertGreater(before, USED)
            cgroup.limit(before - USED // 2)
            self.assertLessEqual(cgroup.usage(), before - USED // 2)
            swapped = cgroup.swapped()
            result = vm.run("churn -n 1 -m 128", timeout=300)
            self.assertIn(" 0 bytes lost", result.output)
        return swapped

    @unittest.skipIf(os.geteuid(), "limiting memory and swapping to a file need root")
    @unittest.skipUnless(
        (V1 / "memory.limit_in_bytes").exists(), f"no version 1 memory cgroup at {V1}"
    )
    def test_the_host_takes_it_before_it_swaps(self) -> None:
        self.assertGreater(self.swapped_under_limit("off"), USED // 4, "the control")
        self.assertLess(self.swapped_under_limit("lazy"), 32 * MIB)

    def faults_of_second_use(self, vm: FreehintVM, mode: str) -> int:
        vm.machine.cmd("freehint-set", id=DEVICE_ID, discard=mode)
        # The guest uses first what it has not used for longest, so that all of
        # its memory has been in use after two rounds.
        use_memory(vm, 400 * MIB)
        use_memory(vm, 400 * MIB)
        before = faults(self.pid(vm))
        use_memory(vm)
        return faults(self.pid(vm)) - before

    def test_using_it_again_takes_no_fault(self) -> None:
        """As many as pages where it was dropped, next to none where it was not."""
        with no_huge_pages():
            vm = FreehintVM(memory_mib=GUEST_MIB)
            with vm:
                vm.settle()
                pages = USED // PAGE
                self.assertGreater(self.faults_of_second_use(vm, "drop"), pages * 3 // 4)
                self.assertLess(self.faults_of_second_use(vm, "lazy"), pages // 20)

    def test_it_is_the_guests_until_the_host_takes_it(self) -> None:
        with FreehintVM(memory_mib=GUEST_MIB) as vm:
            before = vm.settle()
            discarded = vm.query()["stats"]["discarded"]["bytes"]
            vm.machine.cmd("freehint-set", id=DEVICE_ID, discard="lazy")
            use_memory(vm)
            discarded = vm.query()["stats"]["discarded"]["bytes"] - discarded
            self.assertGreater(discarded, USED // 2)
            self.assertGreater(lazily_freed(self.pid(vm)), USED // 2)
            self.assertGreater(vm.settle(), before + USED // 2)
            result = vm.run("churn -n 3 -m 128", timeout=300)
            self.assertEqual(result.status, 0, result.output)
            self.assertIn(" 0 bytes lost", result.output)


if __name__ == "__main__":
    unittest.main()
