# SPDX-License-Identifier: GPL-2.0-or-later
"""The device in libvirt domains, with each backing of memory.

The results are a table in the operator's guide: each row comes from one case here, and has
to say what that case saw.
"""

import contextlib
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from freehint_vm import BUILD, DEVICE_ID, MIB, PROJECT, QEMU, GuestError
from guest_driver import wait_for
from libvirt_vm import DEVICE, NO_BALLOON, NOBODY, Domain, Host

sys.path.insert(0, str(PROJECT / "tests" / "bench"))

from hugepool import POOL, HugePool  # noqa: E402

TOP = BUILD / "tools" / "freehint-top"
BACK_END = BUILD / "qemu" / "contrib" / "vhost-user-blk" / "vhost-user-blk"
FIRMWARE = BUILD / "qemu" / "qemu-bundle" / "usr" / "local" / "share" / "qemu"
GUIDE = PROJECT / "docs" / "operator-guide.md"

MEMORY_MIB = 512
HOG_MIB = 256
# QEMU has less than 200 MiB if the freed memory is back, and at least 450 if not.
BACK_MIB = 320
# The pool has room for both ends of a migration.
POOL_MIB = 2 * MEMORY_MIB
# The balloon takes some of it every 2 s, and has finished after 8 s.
PATIENCE_S = 20

SHARED = "<source type='memfd'/><access mode='shared'/>"


def documented() -> dict[str, list[str]]:
    """The cells of the guide's table, by the first cell of each row."""
    _, _, text = GUIDE.read_text().partition("\n### Libvirt domains\n")
    lines = re.findall(r"^\| (.*) \|$", text.partition("\n## ")[0], re.M)
    rows = [line.split(" | ") for line in lines]
    return {name: cells for name, *cells in rows}


@contextlib.contextmanager
def back_end(folder: Path) -> Iterator[str]:
    """A process that maps the guest's memory, for a disk; the disk."""
    disk, path = folder / "disk", folder / "vhost-user"
    with disk.open("w") as file:
        file.truncate(16 * MIB)
    process = subprocess.Popen([BACK_END, f"--socket-path={path}", f"--blk-file={disk}"])
    try:
        wait_for("the back end listens", path.exists)
        os.chown(path, NOBODY, NOBODY)
        yield (
            "<disk type='vhostuser' device='disk'><driver name='qemu' type='raw'/>"
            f"<source type='unix' path='{path}'/><target dev='vda' bus='virtio'/></disk>"
        )
    finally:
        process.terminate()
        process.wait(timeout=30)


class LibvirtTest(unittest.TestCase):
    def setUp(self) -> None:
        if os.geteuid():
            self.skipTest("daemons as if on hosts of their own need root")

    def start_host(self, name: str = "one", **options: bool) -> Host:
        return self.enterContext(Host(name, **options))

    def start_vm(self, host: Host, **options: Any) -> Domain:
        vm = self.enterContext(Domain(host, memory_mib=MEMORY_MIB, **options))
        wait_for(
            "the guest has a driver",
            lambda: vm.query()["driver-status"] != "not-ready",
        )
        return vm


class OperatorTest(LibvirtTest):
    """What the guide tells operators to do."""

    def test_what_is_asked_and_told(self) -> None:
        host = self.start_host()
        vm = self.start_vm(host)
        said = host.virsh("qemu-monitor-command", vm.name, "--hmp", "info freehint")
        self.assertIn("fh0: active, driver active", said)
        self.assertIn("is tainted: custom-argv", vm.machine.get_log() or "")
        vm.check(f"memhog {HOG_MIB}m")
        outcome = vm.flush()
        self.assertEqual((outcome["result"], outcome["driver-status"]), ("done", "active"))
        self.assertGreater(vm.query()["stats"]["discarded"]["bytes"], HOG_MIB * MIB)

    def test_domains_are_looked_at(self) -> None:
        host = self.start_host()
        vm = self.start_vm(host)
        done = subprocess.run(
            [TOP, "--once", "--json", f"--domain={vm.name}"],
            env={**os.environ, "LIBVIRT_DEFAULT_URI": host.uri},
            capture_output=True,
            text=True,
            check=True,
        )
        (seen,) = json.loads(done.stdout)["vms"]
        self.assertEqual((seen["vm"], seen["works"]), (vm.name, 1))

    def test_events_are_passed_on(self) -> None:
        host = self.start_host()
        vm = self.start_vm(host)
        event = "FREEHINT_STATE_CHANGED"
        command = ("qemu-monitor-event", vm.name, "--loop", "--event", event)
        with tempfile.TemporaryFile("w+") as heard:
            virsh = subprocess.Popen(["virsh", "-c", host.uri, *command], stdout=heard)

            def is_heard() -> bool:
                """virsh does not say when it starts to listen."""
                for enabled in False, True:
                    vm.set_enabled(enabled)
                heard.seek(0)
                return event in heard.read()

            try:
                wait_for("virsh tells of an event", is_heard)
            finally:
                virsh.terminate()
                virsh.wait(timeout=30)


class PlugTest(LibvirtTest):
    # Behind one of libvirt's ports, which QEMU creates after devices that are not given as
    # JSON.
    device: dict[str, Any] = {"driver": "virtio-freehint-pci", "id": DEVICE_ID, "bus": "pci.2"}

    def check_hints(self, vm: Domain) -> None:
        wait_for("it hints", lambda: vm.query()["driver-status"] == "active")
        vm.check(f"memhog {HOG_MIB}m")
        self.assertEqual(vm.flush()["result"], "done")
        self.assertGreater(vm.query()["stats"]["discarded"]["bytes"], HOG_MIB // 2 * MIB)

    def test_it_comes_and_goes(self) -> None:
        """The destination has the device on its command line; the source has it plugged."""
        source, target = self.start_host("source"), self.start_host("target")
        vm = self.enterContext(Domain(source, device=""))
        self.assertEqual(vm.machine.cmd("query-freehint"), [])
        vm.machine.cmd("device_add", **self.device)
        self.check_hints(vm)
        vm.migrate(target, "-device", json.dumps({**self.device, "addr": "0x0"}))
        self.check_hints(vm)
        vm.machine.cmd("device_del", id=DEVICE_ID)
        wait_for("it is gone", lambda: vm.machine.cmd("query-freehint") == [])


class BackingTest(LibvirtTest):
    """One row of the guide's table each."""

    def start_hosts(self, **options: bool) -> None:
        self.source = self.start_host("source", **options)
        self.target = self.start_host("target", **options)

    def held(self, vm: Domain) -> int:
        """Host memory that QEMU uses; pool huge pages are not part of its RSS."""
        pid = vm.machine.get_pid()
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        sizes = re.findall(r"^(?:Rss|\w+_Hugetlb): +(\d+) kB", text, re.M)
        return sum(map(int, sizes)) * 1024

    def who_gives_back(self, vm: Domain) -> str:
        """Who gives back what the guest has used and freed."""
        before = vm.query()["stats"]["discarded"]["bytes"]
        vm.check(f"memhog {HOG_MIB}m")
        try:
            wait_for("it is", lambda: self.held(vm) < BACK_MIB * MIB, PATIENCE_S)
        except GuestError:
            return "no"
        discarded = vm.query()["stats"]["discarded"]["bytes"] - before
        return "yes" if discarded > HOG_MIB // 2 * MIB else "by the balloon"

    def look(self, vm: Domain) -> list[str]:
        """Two cells: what is in the way, and whether memory comes back."""
        info = vm.query()
        words = [entry["reason"] for entry in info["obstacles"]]
        if "guest" in words:
            words.append(info["driver-status"])
        return [", ".join(f"`{word}`" for word in words) or "–", self.who_gives_back(vm)]

    def check_row(self, name: str, vm: Domain) -> None:
        seen = self.look(vm)
        migrate = functools.partial(vm.migrate, self.target)
        moves: list[Callable[[], None]] = [vm.save_and_restore, migrate]
        for move in moves:
            move()
            moved = self.look(vm)
            seen.append("as before" if moved == seen[:2] else ", ".join(moved))
        self.assertEqual(seen, documented().get(name))

    def test_nothing_special(self) -> None:
        self.start_hosts()
        self.check_row("nothing of these", self.start_vm(self.source))

    def test_balloon(self) -> None:
        self.start_hosts()
        balloon = "<memballoon model='virtio'/>"
        vm = self.start_vm(self.source, devices=balloon)
        self.check_row(f"`{balloon}`", vm)

    def test_balloon_that_reports(self) -> None:
        self.start_hosts()
        balloon = "<memballoon model='virtio' freePageReporting='on'/>"
        vm = self.start_vm(self.source, devices=balloon)
        self.check_row(f"`{balloon}`", vm)

    def check_huge(self, name: str, device: str) -> None:
        if not os.access(POOL, os.W_OK):
            self.skipTest("huge pages cannot be set aside, see nr_hugepages")
        self.enterContext(HugePool(POOL_MIB))
        self.start_hosts(huge=True)
        vm = self.start_vm(self.source, backing="<hugepages/>", device=device)
        self.check_row(name, vm)

    def test_huge_pages(self) -> None:
        self.check_huge("`<hugepages/>`", DEVICE)

    def test_huge_pages_that_may_be_discarded(self) -> None:
        props = "discard-reserved=on"
        self.check_huge(f"`<hugepages/>`, and `{props}`", f"{DEVICE},{props}")

    def test_shared(self) -> None:
        self.start_hosts()
        vm = self.start_vm(self.source, backing=SHARED)
        self.check_row(f"`{SHARED}`, as for virtiofs", vm)

    def test_shared_with_a_back_end(self) -> None:
        """A disk stands for virtiofs, which libvirt 9.0 has for root alone."""
        host = self.start_host()
        disk = self.enterContext(back_end(host.folder))
        vm = self.start_vm(host, backing=SHARED, devices=disk + NO_BALLOON)
        table = documented()
        self.assertEqual(self.look(vm), table["the same, and a vhost-user disk"][:2])
        vm.machine.cmd("freehint-set", id=DEVICE_ID, assume_vhost_user_safe=True)
        row = "the same, with `assume-vhost-user-safe`"
        self.assertEqual(self.look(vm), table[row][:2])

    def test_locked(self) -> None:
        """If libvirt may not raise the limit, QEMU gets the capability and the option."""
        self.start_hosts()
        limits = ["prlimit", "--memlock=unlimited", "true"]
        if subprocess.run(limits, capture_output=True, check=False).returncode == 0:
            vm = self.start_vm(self.source, backing="<locked/>")
        else:
            for host in self.source, self.target:
                emulator = shutil.copy(QEMU, host.folder)
                subprocess.run(["setcap", "cap_ipc_lock+ep", emulator], check=True)
            args = ("-overcommit", "mem-lock=on", "-L", str(FIRMWARE))
            vm = self.start_vm(
                self.source, emulator=self.source.folder / QEMU.name, args=args
            )
        self.check_row("`<locked/>`", vm)


if __name__ == "__main__":
    unittest.main()
