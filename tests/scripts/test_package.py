# SPDX-License-Identifier: GPL-2.0-or-later
"""scripts/package: the packages have the right content, and it can be built."""

import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("FREEHINT_BUILD", PROJECT / "build"))
sys.path.insert(0, str(PROJECT / "tests" / "tools"))

from fake_qmp import FakeVM, recorded  # noqa: E402
from programs import EXPORTER, TOP  # noqa: E402

KINDS = ("dkms", "tools")
# The driver for the oldest of Debian's kernels that it supports.
MODULE = BUILD / "stock-6.1/drivers/virtio/freehint/virtio_freehint.ko"


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise AssertionError(f"{command}: {done.stdout}{done.stderr}")
    return done.stdout


class PackageTest(unittest.TestCase):
    """A base for tests of one package."""

    kind = ""

    def package(self, kind: str = "") -> Path:
        name = f"virtio-freehint-{kind or self.kind}_*.deb"
        (found,) = (BUILD / "packages").glob(name)
        return found

    def unpack(self, kind: str = "") -> Path:
        folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        run("dpkg-deb", "--raw-extract", self.package(kind), folder)
        return folder


class EachTest(PackageTest):
    def test_it_is_of_the_projects_version(self) -> None:
        text = (PROJECT / "meson.build").read_text()
        (version,) = re.findall(r"^ +version: '(.+)',$", text, re.M)
        for kind in KINDS:
            with self.subTest(kind):
                said = run("dpkg-deb", "--field", self.package(kind), "Version")
                self.assertEqual(said.strip(), version)
                control = (self.unpack(kind) / "DEBIAN/control").read_text()
                self.assertNotRegex(control, "@[A-Z]+@")

    def test_its_checksums_are_right(self) -> None:
        for kind in KINDS:
            root = self.unpack(kind)
            files = [path for path in (root / "usr").rglob("*") if path.is_file()]
            lines = (root / "DEBIAN/md5sums").read_text().splitlines()
            self.assertEqual(len(lines), len(files))
            for line in lines:
                digest, name = line.split("  ")
                content = (root / name).read_bytes()
                self.assertEqual(hashlib.md5(content).hexdigest(), digest, name)

    def test_the_same_inputs_give_the_same_bytes(self) -> None:
        for kind in KINDS:
            with tempfile.TemporaryDirectory() as folder:
                tools = Path(folder) / "tools"
                tools.mkdir()
                for program in EXPORTER, TOP:
                    shutil.copy(program, tools)
                # With --stamp, it compiles nothing.
                stamp = ("--stamp", f"{folder}/stamp")
                run(PROJECT / "scripts/package", kind, *stamp, folder)
                again = Path(folder) / "packages" / self.package(kind).name
                self.assertEqual(again.read_bytes(), self.package(kind).read_bytes())


class DkmsTest(PackageTest):
    kind = "dkms"

    def test_its_scripts_know_its_version(self) -> None:
        version = run("dpkg-deb", "--field", self.package(), "Version").strip()
        root = self.unpack()
        (source,) = (root / "usr/src").iterdir()
        self.assertEqual(source.name, f"virtio-freehint-{version}")
        for file in "DEBIAN/postinst", "DEBIAN/prerm", f"{source}/dkms.conf":
            text = (root / file).read_text()
            self.assertIn(version, text)
            self.assertNotIn("@", text)

    def test_it_has_all_that_is_built(self) -> None:
        root = self.unpack()
        (source,) = (root / "usr/src").iterdir()
        objects = re.findall(r" (\w+)\.o\b", (source / "Kbuild").read_text())
        files = {path.stem for path in source.glob("*.c")}
        self.assertEqual(set(objects) - {"virtio_freehint"}, files)
        for name in ("loop.c", "vfh.h"):
            ours = PROJECT / "guest-driver/drivers/virtio/freehint" / name
            self.assertEqual((source / name).read_bytes(), ours.read_bytes())

    def test_it_has_the_man_page(self) -> None:
        page = self.unpack() / "usr/share/man/man4/virtio_freehint.4.gz"
        ours = PROJECT / "docs/man/virtio_freehint.4"
        self.assertEqual(gzip.decompress(page.read_bytes()), ours.read_bytes())

    @unittest.skipUnless(MODULE.exists(), "no kernel of Debian's to build it for")
    def test_a_kernel_of_debian_takes_the_module(self) -> None:
        """Its alias is the one that udev looks for, and the kernel has all its symbols."""
        module = MODULE.read_bytes()
        self.assertIn(b"\0vermagic=6.1.", module)
        self.assertIn(b"\0alias=virtio:d0000003Fv*\0", module)
        log = (BUILD / "logs/stock-6.1-build.log").read_text()
        self.assertNotIn("undefined", log)
        self.assertNotIn("warning:", log)


class ToolsTest(PackageTest):
    kind = "tools"

    def install(self) -> Path:
        """Install it in a root of its own, which has the system's libraries."""
        root = Path(self.enterContext(tempfile.TemporaryDirectory()))
        database = root / "var/lib/dpkg"
        for folder in "info", "updates":
            (database / folder).mkdir(parents=True)
        for file in "available", "status":
            (database / file).touch()
        force = "--force-not-root,depends"
        # dpkg needs these folders, which are not in the path of an ordinary user.
        path = os.environ["PATH"] + ":/usr/sbin:/sbin"
        env = ("env", f"PATH={path}")
        run(*env, "dpkg", f"--root={root}", "--log=/dev/null", force, "-i", self.package())
        return root

    def test_its_programs_run_from_where_it_was_installed(self) -> None:
        root = self.install()
        with FakeVM(root, "vm", recorded("active")) as vm:
            said = run(root / "usr/bin/freehint-top", "--once", "--json", vm.path)
            (seen,) = json.loads(said)["vms"]
            self.assertEqual((seen["vm"], seen["works"]), ("vm", 1))
            metrics = root / "metrics"
            exporter = root / "usr/bin/freehint-exporter"
            run(exporter, f"--textfile={metrics}", vm.path)
            self.assertIn('freehint_works{vm="vm",device="fh0"} 1', metrics.read_text())

    def test_it_needs_the_libraries_that_it_is_linked_with(self) -> None:
        needed = run("dpkg-deb", "--field", self.package(), "Depends")
        for library in "libc6", "libglib2.0-0", "libjson-glib-1.0-0", "libncursesw6":
            self.assertIn(library, needed)

    def test_it_has_all_that_is_for_an_operator(self) -> None:
        root = self.install()
        pages = root / "usr/share/man"
        for page in "freehint-top.1", "freehint-exporter.1", "virtio-freehint.7":
            said = run("man", "--warnings", pages / f"man{page[-1]}" / f"{page}.gz")
            self.assertRegex(said, rf"{page[:-2]} +- ")
        folder = root / "usr/share/doc/virtio-freehint-tools/examples"
        for name in "alerts.yml", "dashboard.json":
            ours = PROJECT / "tools" / name
            self.assertEqual((folder / name).read_bytes(), ours.read_bytes())

    @unittest.skipUnless(shutil.which("systemd-analyze"), "systemd is not installed")
    def test_systemd_has_no_complaint_about_the_service(self) -> None:
        root = self.install()
        (unit,) = (root / "usr/lib/systemd/system").iterdir()
        text = unit.read_text()
        unit.write_text(text.replace("/usr/bin/", f"{root}/usr/bin/"))
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", unit],
            capture_output=True,
            text=True,
            check=False,
        )
        self.assertEqual((done.returncode, done.stderr), (0, ""))


if __name__ == "__main__":
    unittest.main()
