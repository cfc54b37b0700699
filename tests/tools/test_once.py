# SPDX-License-Identifier: GPL-2.0-or-later
"""freehint-top --once, with VMs in any state, and with a real one."""

import os
import socket
import sys
import tempfile
import unittest
import unittest.mock
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "functional"))

from fake_qmp import FakeVM, QmpClient, recorded  # noqa: E402
from freehint_vm import MIB, FreehintVM  # noqa: E402
from programs import TOP, look, run  # noqa: E402

# Names of gauges in QEMU and in the tools.
GAUGES = {
    "free": "guest_free_bytes",
    "pending": "guest_pending_bytes",
    "hinted": "guest_hinted_bytes",
    "in-flight": "guest_in_flight_bytes",
    "stuck": "guest_stuck_bytes",
    "reused": "guest_reused_bytes_total",
}
STATS = {
    "hinted": "hinted_bytes_total",
    "discarded": "discarded_bytes_total",
    "throttled": "throttled_bytes_total",
    "failed": "failed_bytes_total",
    "in-flight": "in_flight_bytes",
}


class OnceTest(unittest.TestCase):
    def setUp(self) -> None:
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))

    def fake(self, name: str, answer: str | None, **options: Any) -> FakeVM:
        said = recorded(answer) if answer else None
        return self.enterContext(FakeVM(self.folder, name, said, **options))

    def test_a_vm_that_works_is_told_from_one_that_does_not(self) -> None:
        answers = ("active", "off", "disabled", "locked", "file")
        paths = [self.fake(answer, answer).path for answer in answers]
        none = self.enterContext(FakeVM(self.folder, "none", []))
        old = self.fake("old", None)
        found = {vm["vm"]: vm for vm in look(*paths, none.path, old.path)}
        works = {name: vm["works"] for name, vm in found.items()}
        self.assertEqual(works.pop("active"), 1)
        self.assertEqual(set(works.values()), {0}, works)
        self.assertEqual(found["off"]["driver_status"], "off")
        self.assertEqual(found["locked"]["reason"], "locked")
        self.assertEqual(found["file"]["obstacles"][0]["memory"][0]["region"], "m")
        self.assertEqual(found["none"]["problem"], "no-device")
        self.assertEqual(found["old"]["problem"], "no-command")

    def test_a_monitor_that_somebody_uses_is_left_alone(self) -> None:
        vm = self.fake("vm", "active")
        with QmpClient(vm.path) as client:
            done = run(TOP, "--once", vm.path, status=1)
            self.assertIn(f"{vm.path}: busy: another client uses", done.stderr)
            self.assertEqual(look(vm.path, status=1)[0]["problem"], "busy")
            self.assertEqual(client.cmd("query-name"), {"name": "vm"})
        # Nobody waited in its listen queue meanwhile.
        self.assertEqual(vm.clients, 1)
        self.assertEqual(look(vm.path)[0]["problem"], None)

    def test_where_others_wait_already(self) -> None:
        path = self.folder / "full"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen(0)
            for _ in range(2):
                client = self.enterContext(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                if client.connect_ex(str(path)):
                    break
            else:
                self.fail("it takes any number")
            self.assertEqual(look(path, status=1)[0]["problem"], "busy")

    def test_a_qemu_that_does_not_answer(self) -> None:
        mute, well = self.fake("mute", "active", mute=True), self.fake("well", "active")
        paths = ("named=" + str(mute.path), well.path)
        found = {vm["vm"]: vm for vm in look("--timeout=1", *paths, status=1)}
        self.assertEqual(found["named"]["problem"], "no-answer")
        self.assertIsNone(found["named"]["works"])
        self.assertEqual(found["well"]["works"], 1)

    def test_where_nobody_listens(self) -> None:
        found = look(self.folder / "nothing", status=1)[0]
        self.assertEqual((found["problem"], found["monitor_up"]), ("gone", 0))
        self.assertIsNone(found["guest_free_bytes"])

    def test_a_domain_of_libvirt(self) -> None:
        virsh = self.folder / "virsh"
        virsh.write_text(
            """#!/bin/sh
test "$1 $2 $3" = "qemu-monitor-command --domain web" || { echo no >&2; exit 1; }
case $4 in
*size-summary*) echo '{"return":{"base-memory":1048576},"id":"libvirt-1"}' ;;
*query-freehint*) echo '{"return":[],"id":"libvirt-2"}' ;;
esac
"""
        )
        virsh.chmod(0o700)
        with unittest.mock.patch.dict(
            os.environ, PATH=f"{self.folder}:{os.environ['PATH']}"
        ):
            found = {vm["vm"]: vm for vm in look("-d", "web", "-d", "x", status=1)}
        self.assertEqual(found["web"]["problem"], "no-device")
        self.assertEqual(found["web"]["vm_memory_bytes"], MIB)
        self.assertEqual(found["x"]["problem"], "gone")
        self.assertIn("virsh: no", found["x"]["problem_detail"])

    def test_what_makes_no_sense_is_refused(self) -> None:
        for options in (["--json"], ["-t0"], ["--once", "-i0"], ["--none"]):
            with self.subTest(options):
                self.assertTrue(run(TOP, *options, status=2).stderr)
        self.assertIn("not a terminal", run(TOP, status=2).stderr)

    def test_the_figures_of_a_guest(self) -> None:
        path = self.folder / "qmp"
        monitor = ("-name", "guest=web", "-qmp", f"unix:{path},server=on,wait=off")
        with FreehintVM(memory_mib=384, extra_args=monitor) as vm:
            vm.check("memhog 128m")
            vm.flush()
            vm.settle()
            before = vm.query()
            # Other VMs may run here, and their monitors may be busy.
            pid = vm.machine.get_pid()
            found = next(v for v in look(status=None) if v["pid"] == pid)
            after = vm.query()
            self.assertEqual((found["vm"], found["device"]), ("web", "fh0"))
            self.assertEqual((found["works"], found["problem"]), (1, None))
            self.assertEqual(found["vm_memory_bytes"], 384 * MIB)
            for ours, theirs, part in (
                *((name, name2, "guest-gauges") for name2, name in GAUGES.items()),
                *((name, name2, "stats") for name2, name in STATS.items()),
            ):
                with self.subTest(ours):
                    bounds = [query[part][theirs] for query in (before, after)]
                    if part == "stats":
                        bounds = [count["bytes"] for count in bounds]
                    self.assertLessEqual(min(bounds), found[ours])
                    self.assertGreaterEqual(max(bounds), found[ours])
            self.assertGreater(found["guest_hinted_bytes"], 128 * MIB)
            self.assertAlmostEqual(
                found["host_resident_bytes"], vm.memory.now().rss, delta=8 * MIB
            )
            # Lazily freed memory shows up as the host's LazyFree.
            vm.machine.cmd("freehint-set", id="fh0", discard="lazy")
            vm.check("memhog 128m")
            vm.flush()
            vm.settle()
            lazy = look(path)[0]
            self.assertEqual((lazy["vm"], lazy["discard"]), ("web", "lazy"))
            rollup = Path(f"/proc/{lazy['pid']}/smaps_rollup").read_text()
            kib = int(rollup.partition("LazyFree:")[2].split()[0])
            self.assertGreater(kib, 64 * 1024)
            self.assertAlmostEqual(
                lazy["host_lazy_free_bytes"], kib * 1024, delta=8 * MIB
            )
            # The same with QEMU's own socket.
            with QmpClient(path) as client:
                busy = look(path, status=1)[0]
                self.assertEqual((busy["problem"], busy["vm"]), ("busy", "web"))
                self.assertEqual(client.cmd("query-name"), {"name": "web"})
            vm.set_enabled(False)
            self.assertEqual(look(path)[0]["works"], 0)


if __name__ == "__main__":
    unittest.main()
