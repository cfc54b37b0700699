# SPDX-License-Identifier: GPL-2.0-or-later
"""Lazily freed memory goes before anything is swapped, and is free to use again.

By default what a guest wants back soon is freed lazily, and dropped when it has settled.
"""

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

from freehint_vm import DEVICE_ID, MIB, SYSFS, FreehintVM
from guest_driver import GuestDriver, wait_for

V1 = Path("/sys/fs/cgroup/memory")
GUEST_MIB = 640
USED = 256 * MIB
PAGE = os.sysconf("SC_PAGESIZE")
PR_SET_THP_DISABLE = 41


class Cgroup:
    """A version 1 memory cgroup; its processes go to the root when it ends."""

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
        """Processes that start in this context are in the cgroup, and stay there."""
        (self.path / "cgroup.procs").write_text(str(os.getpid()))
        try:
            yield
        finally:
            (V1 / "cgroup.procs").write_text(str(os.getpid()))

    def usage(self) -> int:
        return int((self.path / "memory.usage_in_bytes").read_text())

    def limit(self, size: int) -> None:
        """Set the limit; the kernel reclaims what exceeds it before this returns."""
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
    """Processes that start in this context get no transparent huge pages."""
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
    """Have the guest use memory and free it, and wait until it is hinted."""
    before = vm.query()["stats"]["hinted"]["bytes"]
    vm.check(f"memhog {size // MIB}m")
    deadline = time.monotonic() + 60
    while vm.query()["stats"]["hinted"]["bytes"] < before + size * 3 // 4:
        if time.monotonic() > deadline:
            raise TimeoutError("the guest does not hint what it has freed")
        time.sleep(0.1)
    time.sleep(1)


def pid_of(vm: FreehintVM) -> int:
    pid = vm.machine.get_pid()
    assert pid is not None
    return pid


LIMITS_NEED_ROOT = unittest.skipIf(
    os.geteuid(), "limiting memory and swapping to a file need root"
)
LIMITS_NEED_V1 = unittest.skipUnless(
    (V1 / "memory.limit_in_bytes").exists(), f"no version 1 memory cgroup at {V1}"
)


class LazyTest(unittest.TestCase):
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

    @LIMITS_NEED_ROOT
    @LIMITS_NEED_V1
    def test_the_host_takes_it_before_it_swaps(self) -> None:
        self.assertGreater(self.swapped_under_limit("off"), USED // 4, "the control")
        self.assertLess(self.swapped_under_limit("lazy"), 32 * MIB)

    def faults_of_second_use(self, vm: FreehintVM, mode: str) -> int:
        vm.machine.cmd("freehint-set", id=DEVICE_ID, discard=mode)
        # The guest uses first what it has not used for longest, so that all of
        # its memory has been in use after two rounds.
        use_memory(vm, 400 * MIB)
        use_memory(vm, 400 * MIB)
        before = faults(pid_of(vm))
        use_memory(vm)
        return faults(pid_of(vm)) - before

    def test_using_it_again_takes_no_fault(self) -> None:
        """There are as many faults as pages after a drop, and next to none if lazy."""
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
            self.assertGreater(lazily_freed(pid_of(vm)), USED // 2)
            self.assertGreater(vm.settle(), before + USED // 2)
            result = vm.run("churn -n 3 -m 128", timeout=300)
            self.assertEqual(result.status, 0, result.output)
            self.assertIn(" 0 bytes lost", result.output)


# A guest has history when it has wanted back what was dropped. That takes one pause between
# the age and a reuse window. Then what it frees settles in twice to four times the age.
AGE_MS = 1000
PAUSE_MS = 3000
# This much may be left to the guest, or not have come yet.
REST = 32 * MIB


class AutoTest(unittest.TestCase):
    def teach(self, vm: FreehintVM) -> None:
        """Have the guest learn that it wants memory back soon."""
        vm.settle()
        vm.machine.cmd("freehint-set", id=DEVICE_ID, min_age_ms=AGE_MS)
        loop = f"toucher -t -m {USED // MIB} -n 3 -p {PAUSE_MS} >/dev/null"
        age_ms = int(vm.check(f"{loop}; cat {SYSFS}/age_ms"))
        self.assertGreater(age_ms, AGE_MS)
        wait_for("all of it is hinted", lambda: vm.figure("free_pending_bytes") < REST)
        wait_for("it has settled", lambda: vm.figure("free_lazy_bytes") == 0)

    def lend(self, vm: FreehintVM) -> None:
        """Have the guest use and free memory, and wait until that is lazily freed."""
        vm.check(f"toucher -t -m {USED // MIB}")
        wait_for(
            "what was freed is lazily freed",
            lambda: lazily_freed(pid_of(vm)) > USED - REST,
        )

    def test_what_is_wanted_back_is_lazy_and_dropped_when_it_has_settled(self) -> None:
        with FreehintVM(memory_mib=GUEST_MIB) as vm:
            before = vm.settle()
            self.teach(vm)
            discarded = vm.figure("discarded_bytes")
            self.lend(vm)
            # None of it has gone, and it was hinted long before the age.
            lazy = vm.figure("free_lazy_bytes")
            self.assertGreater(lazy, USED - REST)
            self.assertGreaterEqual(vm.figure("free_discarded_bytes"), lazy)
            self.assertLess(vm.figure("discarded_bytes") - discarded, REST)
            self.assertGreater(vm.memory.now().rss, before + USED - 2 * REST)

            # A driver that is at rest has hinted it once more.
            driver = GuestDriver(vm)
            driver.settle(30)
            self.assertEqual(vm.figure("free_lazy_bytes"), 0)
            self.assertGreater(vm.figure("discarded_bytes") - discarded, USED - REST)
            self.assertLess(lazily_freed(pid_of(vm)), REST)
            self.assertLess(vm.settle(), before + 2 * REST)
            driver.wait_accounted()
            self.assertEqual(driver.violations(), 0)

    def test_what_was_lazy_is_used_again_at_no_cost(self) -> None:
        """A guest that has learned a loop keeps its memory, but the host could take it.

        Time is what the guest executes: else, on a busy host, memory would settle.
        """
        with no_huge_pages():
            with FreehintVM(memory_mib=GUEST_MIB, icount=True) as vm:
                self.teach(vm)
                # Most of the guest's memory.
                size = 400 * MIB
                before = faults(pid_of(vm))
                lazy = vm.query()["stats"]["lazy-bytes"]
                vm.check(f"toucher -m {size // MIB} -n 4 -p 800")
                lazy = vm.query()["stats"]["lazy-bytes"] - lazy
                self.assertGreater(lazy, 2 * size)
                # Only the first two cycles use memory that has settled before.
                self.assertLess(faults(pid_of(vm)) - before, 2 * size // PAGE)

    def test_a_flush_drops_what_is_lazy(self) -> None:
        with FreehintVM(memory_mib=GUEST_MIB) as vm:
            before = vm.settle()
            self.teach(vm)
            self.lend(vm)
            outcome = vm.flush()
            self.assertEqual(outcome["result"], "done", outcome)
            self.assertGreater(outcome["hinted"], USED - REST)
            self.assertEqual(vm.figure("free_lazy_bytes"), 0)
            self.assertLess(lazily_freed(pid_of(vm)), REST)
            self.assertLess(vm.memory.now().rss, before + 2 * REST)

    def test_a_guest_without_history_hints_once(self) -> None:
        with FreehintVM(memory_mib=GUEST_MIB) as vm:
            self.assertEqual(vm.query()["discard-in-effect"], "auto")
            before = vm.settle()
            hinted = vm.figure("hinted_bytes")
            use_memory(vm)
            self.assertEqual(vm.query()["stats"]["lazy-bytes"], 0)
            self.assertLess(vm.figure("hinted_bytes") - hinted, USED + REST)
            self.assertLess(vm.settle(), before + 2 * REST)

    def test_where_it_would_be_dropped_it_rests(self) -> None:
        """If memory cannot be lazy, it rests for the age that was learned, as for drop."""
        backing = f"memory-backend-memfd,id=ram0,size={GUEST_MIB}M"
        args = ("-object", backing, "-machine", "memory-backend=ram0")
        with FreehintVM(memory_mib=GUEST_MIB, extra_args=args) as vm:
            self.assertEqual(vm.query()["discard-in-effect"], "drop")
            self.teach(vm)
            hinted = vm.figure("hinted_bytes")
            again = f"toucher -t -m {USED // MIB} -n 3 -p 800 >/dev/null"
            said = vm.check(f"{again}; cat {SYSFS}/hinted_bytes")
            self.assertLess(int(said) - hinted, USED // 2)
            self.assertEqual(vm.figure("lazy_bytes"), 0)

    @LIMITS_NEED_ROOT
    @LIMITS_NEED_V1
    def test_a_host_that_is_short_has_what_the_guest_may_want_back(self) -> None:
        """The host takes it before it swaps anything, whatever the guest has learned."""
        with Cgroup() as cgroup, swap_file(2 * USED), contextlib.ExitStack() as stack:
            with cgroup.for_children():
                vm = stack.enter_context(FreehintVM(memory_mib=GUEST_MIB))
            self.teach(vm)
            self.lend(vm)
            before = cgroup.usage()
            cgroup.limit(before - USED // 2)
            self.assertLessEqual(cgroup.usage(), before - USED // 2)
            self.assertLess(cgroup.swapped(), 32 * MIB)
            result = vm.run("churn -n 1 -m 128", timeout=300)
            self.assertIn(" 0 bytes lost", result.output)


if __name__ == "__main__":
    unittest.main()
