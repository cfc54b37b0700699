# SPDX-License-Identifier: GPL-2.0-or-later
"""Instructions that the hooks add to allocating and freeing, counted by QEMU.

The kernel without hints is built by the same compiler from the same source. A guest
under -icount counts the instructions that it executes, so neither the host nor what
else it does matters.
"""

import dataclasses
import unittest

from freehint_vm import BUILD, KERNEL, FreehintVM

KERNEL_WITHOUT = BUILD / "linux-cost/arch/x86/boot/bzImage"
MEMORY_MIB = 512

# Of a page fault; and of an allocation, or a free, in the buddy allocator.
MOST_SHARE = 0.005
MOST_INSTRUCTIONS = 4


@dataclasses.dataclass(frozen=True)
class Loop:
    """A line of tests/guest/cost.c, which says what the figures mean."""

    operations: int
    buddy: int
    instructions: int

    def each(self) -> float:
        """Instructions for an allocation and its free."""
        return self.instructions / self.operations

    def more(self, without: "Loop") -> float:
        """Instructions more than `without` for each buddy operation, at most."""
        return (self.instructions - without.instructions) / (2 * self.buddy)


def measure(reporter: str, hints: bool) -> dict[str, Loop]:
    with FreehintVM(
        reporter,
        kernel=KERNEL if hints else KERNEL_WITHOUT,
        accel="tcg,thread=single",
        memory_mib=MEMORY_MIB,
        extra_args=("-icount", "shift=0"),
        append="tsc=reliable",
    ) as vm:
        vm.settle()
        lines = vm.check("cost", timeout=900).splitlines()
    words = [line.split() for line in lines]
    return {name: Loop(*map(int, figures)) for name, *figures in words}


class CostTest(unittest.TestCase):
    def test_hooks_that_are_off_cost_next_to_nothing(self) -> None:
        without = measure("none", hints=False)
        off = measure("none", hints=True)
        active = measure("freehint", hints=True)
        print("# | loop | without hints | key off | device active |")
        for name, loop in without.items():
            print(
                f"# | {name} | {loop.each():.1f} |"
                f" {off[name].each() - loop.each():+.2f} |"
                f" {active[name].each() - loop.each():+.2f} |"
            )
        self.assertEqual(set(without), {"fault", "order0", "order9"})
        fault = without["fault"]
        self.assertEqual(fault.buddy, 0)
        self.assertLessEqual(off["fault"].each(), fault.each() * (1 + MOST_SHARE))
        for name in ("order0", "order9"):
            self.assertGreater(without[name].buddy, 0, name)
            more = off[name].more(without[name])
            self.assertLessEqual(more, MOST_INSTRUCTIONS, name)


if __name__ == "__main__":
    unittest.main()
