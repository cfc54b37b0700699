# SPDX-License-Identifier: GPL-2.0-or-later
"""The packages of QEMU and of the guest's kernel, installed in a separate Debian 13."""

import os
import re
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "functional"))

from freehint_vm import (  # noqa: E402
    BUILD,
    KERNEL,
    MIB,
    PROJECT,
    SYSFS,
    FreehintVM,
)

PACKAGES = BUILD / "packages"
ROOT_SCRIPT = PROJECT / "scripts" / "debian-root"
INSTALLED_QEMU = Path("/usr/bin/qemu-system-x86_64")

BURST = 512 * MIB
# For the first burst of each guest; a busy host takes longer.
PATIENCE_S = 10


@unittest.skipIf(os.geteuid(), "a Debian in a folder needs root")
class PackagesTest(unittest.TestCase):
    """One system for all cases; it has Debian's QEMU before ours is installed."""

    root: Path
    before: dict[str, str]
    files: set[str]

    @classmethod
    def setUpClass(cls) -> None:
        folder = cls.enterClassContext(tempfile.TemporaryDirectory(dir=BUILD))
        cls.root = Path(folder) / "trixie"
        cls.call(ROOT_SCRIPT, "make", cls.root)
        cls.apt("install", "qemu-system-x86", "qemu-utils", "initramfs-tools")
        cls.before = cls.installed()
        cls.files = cls.installed_files()
        names = [*(f"{name}_*.deb" for name in cls.before), "linux-image-*.deb"]
        cls.apt("install", *(path for name in names for path in PACKAGES.glob(name)))

    @classmethod
    def call(cls, *command: str | Path) -> str:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise AssertionError(f"{command}: {done.stdout}{done.stderr}")
        return done.stdout

    @classmethod
    def inside(cls, *command: str | Path) -> str:
        return cls.call(ROOT_SCRIPT, "run", cls.root, BUILD, *command)

    @classmethod
    def apt(cls, *words: str | Path) -> str:
        quietly = ("env", "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8")
        options = ("-q", "-y", "--no-install-recommends")
        return cls.inside(*quietly, "apt-get", *options, *words)

    @classmethod
    def installed(cls) -> dict[str, str]:
        """The version of each installed package of QEMU that depends on the architecture."""
        form = "${Package} ${Version} ${Architecture} ${source:Package}\n"
        lines = cls.inside("dpkg-query", "-W", "-f", form).splitlines()
        rows = (line.split() for line in lines)
        return {row[0]: row[1] for row in rows if row[2:] == ["amd64", "qemu"]}

    @classmethod
    def installed_files(cls) -> set[str]:
        """All installed files, except the second emulator for microvm, which is not built."""
        files = cls.inside("dpkg-query", "-L", *cls.before).splitlines()
        return {file for file in files if "qemu-system-x86_64-microvm" not in file}

    def installed_kernel(self) -> Path:
        (found,) = (self.root / "boot").glob("vmlinuz-*")
        return found

    def start(self, kernel: Path) -> FreehintVM:
        """Start a guest whose QEMU runs in the root."""
        wrapper = (str(ROOT_SCRIPT), "run", str(self.root), str(BUILD))
        vm = FreehintVM(qemu=INSTALLED_QEMU, wrapper=wrapper, kernel=kernel)
        return self.enterContext(vm)

    def check_memory_comes_back(self, vm: FreehintVM) -> None:
        before = vm.settle()
        self.assertEqual(vm.query()["driver-status"], "active")
        ended = vm.run(f"memhog {BURST}").ended
        peak = max(sample.rss for sample in vm.memory.samples)
        self.assertGreater(peak, before + BURST * 3 // 4)
        limit = before + BURST // 8
        came = vm.wait_rss_below(limit, PATIENCE_S, since=ended)
        self.assertIsNotNone(came, f"QEMU still has {vm.memory.now().rss >> 20} MiB")
        stats = vm.query()["stats"]
        self.assertGreater(stats["discarded"]["bytes"], BURST * 3 // 4)
        lag = (came or 0) - ended
        figures = (before, peak, vm.memory.now().rss, stats["discarded"]["bytes"])
        said = "before %d, peak %d, at the end %d, discarded %d MiB" % tuple(
            figure >> 20 for figure in figures
        )
        print(f"# {vm.query()['id']}: {said}; back after {lag:.2f} s")

    def test_debians_qemu_is_upgraded(self) -> None:
        after = self.installed()
        self.assertEqual(set(after), set(self.before))
        for name, version in after.items():
            self.assertRegex(version, rf"^{re.escape(self.before[name])}\+freehint[\d.]+$")
        self.assertEqual(self.installed_files(), self.files)
        self.assertNotIn("Inst qemu", self.apt("--simulate", "dist-upgrade"))

    def test_debians_next_qemu_is_an_upgrade(self) -> None:
        """Whichever part of the version grows: an update for stable, or a new version."""
        before, after = self.before["qemu-system-x86"], self.installed()["qemu-system-x86"]
        for number in list(re.finditer(r"\d+", before))[-2:]:
            newer = f"{before[: number.start()]}{int(number[0]) + 1}{before[number.end() :]}"
            self.call("dpkg", "--compare-versions", after, "lt", newer)

    def test_qemu_has_the_device_and_none_for_tests(self) -> None:
        devices = self.inside(INSTALLED_QEMU, "-device", "help")
        for name in "virtio-freehint-pci", "virtio-balloon-pci", "virtio-net-pci":
            self.assertIn(f'"{name}"', devices)
        self.assertNotIn("freehint-testdev", devices)
        self.assertNotIn("discard-testdev", devices)

    def test_qemu_gives_memory_back(self) -> None:
        self.check_memory_comes_back(self.start(KERNEL))

    def test_the_kernel_gives_memory_back(self) -> None:
        kernel = self.installed_kernel()
        vm = self.start(kernel)
        release = vm.check("uname -r").strip()
        self.assertEqual(f"vmlinuz-{release}", kernel.name)
        self.assertIn("+freehint-cloud-", release)
        self.assertTrue((kernel.parent / f"initrd.img-{release}").exists())
        self.assertEqual(vm.check(f"cat {SYSFS}/engine").strip(), "mm")
        self.check_memory_comes_back(vm)


if __name__ == "__main__":
    unittest.main()
