# SPDX-License-Identifier: GPL-2.0-or-later
"""Instructions that the hooks add to allocations and frees, counted by QEMU.

The kernel without hints is built by the same compiler from the same source. A guest under
-icount counts the instructions that it executes, so the host's load does not matter.
"""

import dataclasses
import unittest

from freehint_vm import BUILD, FreehintVM
from guest_driver import wait_for

# The benchmarks' kernel has no debugging options, as the guest's own has.
KERNELS = {
    name: BUILD / name / "arch/x86/boot/bzImage"
    for name in ("linux", "linux-bench", "linux-cost")
}
WITHOUT = "linux-cost"
MEMORY_MIB = 512

# In some boots pages lie so that frees merge more; the lowest of several boots counts.
BOOTS = 4
FEW_BOOTS = 2

# For a page fault; and for an allocation, or a free, in the buddy allocator.
MOST_SHARE = 0.005
MOST_INSTRUCTIONS = 4

# For an allocation and its free, while the device is active.
MOST_ACTIVE = {"order0": 15, "order9": 250}
# Less would be a device that does not get to know of them.
LEAST_ACTIVE = 100

# A disabled device only changes how the guest boots, and thereby where pages lie.
MOST_DISABLED = 2


@dataclasses.dataclass(frozen=True)
class Loop:
    """A line of tests/guest/cost.c, which explains the figures."""

    operations: int
    buddy: int
    instructions: int

    def each(self) -> float:
        """Instructions for an allocation and its free."""
        return self.instructions / self.operations

    def more(self, without: "Loop") -> float:
        """Additional instructions over `without` per buddy operation, at most."""
        return (self.instructions - without.instructions) / (2 * self.buddy)


def boot(kernel: str, reporter: str, enabled: bool) -> dict[str, Loop]:
    with FreehintVM(
        reporter,
        kernel=KERNELS[kernel],
        memory_mib=MEMORY_MIB,
        icount=True,
    ) as vm:
        if not enabled:
            vm.set_enabled(False)
            wait_for(
                "the driver stops", lambda: vm.query()["driver-status"] == "waiting"
            )
        vm.settle()
        lines = vm.check("cost", timeout=900).splitlines()
    words = [line.split() for line in lines]
    return {name: Loop(*map(int, figures)) for name, *figures in words}


def measure(
    kernel: str, reporter: str, enabled: bool = True, times: int = BOOTS
) -> dict[str, Loop]:
    boots = [boot(kernel, reporter, enabled) for _ in range(times)]
    return {
        name: min((boot[name] for boot in boots), key=Loop.each) for name in boots[0]
    }


class DeviceTest(unittest.TestCase):
    """What the device adds in the guest's own kernel."""

    def test_one_that_is_disabled_adds_nothing(self) -> None:
        off = measure("linux", "none", times=FEW_BOOTS)
        disabled = measure("linux", "freehint", enabled=False, times=FEW_BOOTS)
        active = measure("linux", "freehint", times=FEW_BOOTS)
        for name, loop in off.items():
            each = [arm[name].each() for arm in (off, disabled, active)]
            print(f"# {name}: off, disabled, active: {each}")
            self.assertLessEqual(disabled[name].each(), loop.each() + MOST_DISABLED)
        for name, most in MOST_ACTIVE.items():
            self.assertLessEqual(active[name].each(), off[name].each() + most, name)
        more = active["order9"].each() - off["order9"].each()
        self.assertGreater(more, LEAST_ACTIVE)


class CostTest(unittest.TestCase):
    def test_hooks_cost_next_to_nothing(self) -> None:
        without = measure(WITHOUT, "none")
        off = measure("linux-bench", "none")
        disabled = measure("linux-bench", "freehint", enabled=False)
        active = measure("linux-bench", "freehint")
        print("# | loop | without hints | key off | device disabled | device active |")
        for name, loop in without.items():
            more = [arm[name].each() - loop.each() for arm in (off, disabled, active)]
            cells = " | ".join(f"{figure:+.2f}" for figure in more)
            print(f"# | {name} | {loop.each():.1f} | {cells} |")
        self.assertEqual(set(without), {"fault", "order0", "order9"})
        fault = without["fault"]
        self.assertEqual(fault.buddy, 0)
        self.assertLessEqual(off["fault"].each(), fault.each() * (1 + MOST_SHARE))
        self.assertLessEqual(disabled["fault"].each(), fault.each() * (1 + MOST_SHARE))
        for name, most in MOST_ACTIVE.items():
            self.assertGreater(without[name].buddy, 0, name)
            self.assertLessEqual(off[name].more(without[name]), MOST_INSTRUCTIONS, name)
            self.assertLessEqual(
                disabled[name].each(), off[name].each() + MOST_DISABLED, name
            )
            self.assertLessEqual(
                active[name].each(), without[name].each() + most, name
            )


if __name__ == "__main__":
    unittest.main()
