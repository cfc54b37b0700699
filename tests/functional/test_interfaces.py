# SPDX-License-Identifier: GPL-2.0-or-later
"""What a guest's administrator sees and can set is what is documented."""

import re
import time
import unittest

from freehint_vm import DEVICE_ID, PROJECT, SYSFS, TRACING, FreehintVM
from guest_driver import GuestDriver, wait_for

ABI = "sysfs-bus-virtio-drivers-virtio_freehint"
DOCUMENTATION = PROJECT / "guest-driver" / "Documentation"
# Seconds without reuse: part of a window, and three whole ones, of which the first does not
# count yet.
IDLE = 4 * 5 + 1
PARAMETERS = "/sys/module/virtio_freehint/parameters"


def documented_attributes() -> set[str]:
    """Names of the files in the group's folder, and of the folder itself."""
    text = (DOCUMENTATION / "ABI" / "testing" / ABI).read_text()
    return set(re.findall(r"/virtio<N>/freehint/(\w+)$", text, re.M))


def manual() -> str:
    return (DOCUMENTATION / "mm" / "freehint.rst").read_text()


class InterfacesTest(unittest.TestCase):
    """One guest for all cases, and what happened to it before them."""

    vm: FreehintVM
    # How long memory rested before the guest wanted it back, and after that.
    calm: int
    hot: int

    @classmethod
    def setUpClass(cls) -> None:
        cls.vm = cls.enterClassContext(FreehintVM(memory_mib=384, cpus=2))
        GuestDriver(cls.vm).settle()
        cls.calm = cls.vm.figure("age_ms")
        cls.vm.trace("freehint", "virtio_freehint")
        # Most of the memory, repeatedly, soon after it was hinted.
        cls.vm.check("churn -m 256 -p 500 -n 5")
        cls.hot = cls.vm.figure("age_ms")

    # -- what there is --

    def test_attributes(self) -> None:
        found = set(self.vm.check(f"ls {SYSFS}").split())
        self.assertEqual(found, documented_attributes())
        writable = self.vm.check(f"find {SYSFS}/ -type f -perm -200").split()
        self.assertEqual([path.split("/")[-1] for path in writable], ["allowed"])

    def test_values(self) -> None:
        """Figures are figures; the device's words are those that its operator knows."""
        read = f"cd {SYSFS} && for name in *; do echo $name $(cat $name); done"
        values = dict(line.split() for line in self.vm.check(read).splitlines())
        words = {
            **{"allowed": "1", "status": "active", "engine": "mm"},
            **{"device_state": "active", "device_reason": "none"},
        }
        self.assertEqual({name: values.pop(name) for name in words}, words)
        self.assertEqual({n: v for n, v in values.items() if not v.isdigit()}, {})

    def test_what_is_not_allowed_or_forbidden(self) -> None:
        """What the driver does not understand changes nothing."""
        # The shell does not look for files that a redirection's pattern matches.
        allowed = self.vm.check(f"echo {SYSFS}/allowed")
        self.assertNotEqual(self.vm.run(f"echo perhaps >{allowed}").status, 0)
        self.assertEqual(self.vm.check(f"cat {SYSFS}/allowed {SYSFS}/status"), "1\nactive")

    def test_parameters(self) -> None:
        found = set(self.vm.check(f"ls {PARAMETERS}").split())
        self.assertEqual(
            found, set(re.findall(r"``virtio_freehint\.(\w+)(?:=\d+)?``", manual()))
        )

    def test_events(self) -> None:
        """Each status is documented, and occurs in a guest's life."""
        folders = self.vm.check(f"ls -d {TRACING}/events/*freehint/*/").split()
        names = {folder.split("/freehint_")[1].rstrip("/") for folder in folders}
        section = manual().partition("\nTrace events\n")[2].partition("``<debugfs>")[0]
        self.assertEqual(names, set(re.findall(r"``(\w+)``", section)))

        self.assertEqual(self.vm.flush()["result"], "done")
        seen = self.vm.check(f"grep -o ': freehint_[a-z]*:' {TRACING}/trace | sort -u")
        self.assertEqual({f"freehint_{name}" for name in names}, set(re.findall(r"\w+", seen)))

    # -- for how long memory rests --

    def ask(self, min_age_ms: int, delay_ms: int) -> None:
        """Have the device ask for another pace, and the guest notice that."""
        before = self.vm.figure("age_ms")
        self.vm.machine.cmd(
            "freehint-set", id=DEVICE_ID, min_age_ms=min_age_ms, delay_ms=delay_ms
        )
        wait_for("another age", lambda: self.vm.figure("age_ms") != before)

    def test_memory_rests_longer_where_it_is_wanted_back(self) -> None:
        self.assertGreater(self.hot, self.calm)

    def test_memory_rests_for_less_again_after_idleness(self) -> None:
        """Each window that was slept through counts, whatever came before it."""
        learned = self.vm.figure("age_ms")
        self.assertGreaterEqual(learned, 4 * self.calm)
        time.sleep(IDLE)
        self.vm.check("memhog 64m")
        wait_for("a fourth", lambda: self.vm.figure("age_ms") <= learned // 4, 3)

    def test_the_guest_has_bounds_of_its_own(self) -> None:
        # Forget what was learned.
        self.vm.check(f"echo N >{PARAMETERS}/adapt")
        self.ask(min_age_ms=0, delay_ms=0)
        self.assertEqual(self.vm.figure("age_ms"), 20)
        self.vm.check(f"echo 500 >{PARAMETERS}/min_age_ceiling_ms")
        self.ask(min_age_ms=60000, delay_ms=60000)
        self.assertEqual(self.vm.figure("age_ms"), 500)
        # The delay that the device asks for has the same bound.
        for _ in range(3):
            hints = self.vm.figure("hints")
            self.vm.check("memhog 64m")
            wait_for("hints", lambda: self.vm.figure("hints") > hints)


class DrainTest(unittest.TestCase):
    """In a guest of its own: it teaches the guest for how long memory is to rest."""

    def drains(self, vm: FreehintVM) -> int:
        """How often lists for single CPUs are drained because small pages fill them."""
        before = vm.figure("pcp_drains")
        vm.check("memhog 192m")
        GuestDriver(vm).settle()
        return vm.figure("pcp_drains") - before

    def test_lists_are_left_alone_on_request(self) -> None:
        drain = f"{PARAMETERS}/drain"
        with FreehintVM(memory_mib=384, cpus=2) as vm:
            GuestDriver(vm).settle()
            self.assertNotEqual(vm.run(f"echo perhaps >{drain}").status, 0)
            self.assertGreater(self.drains(vm), 0)
            vm.check(f"echo N >{drain}")
            self.assertEqual(self.drains(vm), 0)


if __name__ == "__main__":
    unittest.main()
