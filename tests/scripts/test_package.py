# SPDX-License-Identifier: GPL-2.0-or-later
"""scripts/package: what is in the packages, and that it can be built."""

import gzip
import hashlib
import os
import re
import subprocess
import tempfile
import unittest
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("FREEHINT_BUILD", PROJECT / "build"))
# The oldest kernel of Debian's that the driver is for.
MODULE = BUILD / "stock-6.1/drivers/virtio/freehint/virtio_freehint.ko"


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise AssertionError(f"{command}: {done.stdout}{done.stderr}")
    return done.stdout


class DkmsTest(unittest.TestCase):
    def setUp(self) -> None:
        (self.package,) = (BUILD / "packages").glob("virtio-freehint-dkms_*.deb")

    def field(self, name: str) -> str:
        return run("dpkg-deb", "--field", self.package, name).strip()

    def unpack(self) -> Path:
        folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        run("dpkg-deb", "--raw-extract", self.package, folder)
        return folder

    def test_it_is_of_the_projects_version(self) -> None:
        text = (PROJECT / "meson.build").read_text()
        version = re.findall(r"^ +version: '(.+)',$", text, re.M)
        self.assertEqual([self.field("Version")], version)
        root = self.unpack()
        (source,) = (root / "usr/src").iterdir()
        self.assertEqual(source.name, f"virtio-freehint-{version[0]}")
        for file in "DEBIAN/postinst", "DEBIAN/prerm", f"{source}/dkms.conf":
            text = (root / file).read_text()
            self.assertIn(version[0], text)
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

    def test_its_checksums_are_right(self) -> None:
        root = self.unpack()
        lines = (root / "DEBIAN/md5sums").read_text().splitlines()
        self.assertGreater(len(lines), 10)
        for line in lines:
            digest, name = line.split("  ")
            content = (root / name).read_bytes()
            self.assertEqual(hashlib.md5(content).hexdigest(), digest, name)

    def test_the_same_inputs_give_the_same_bytes(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            run(PROJECT / "scripts/package", "dkms", folder)
            again = Path(folder) / "packages" / self.package.name
            self.assertEqual(again.read_bytes(), self.package.read_bytes())

    @unittest.skipUnless(MODULE.exists(), "no kernel of Debian's to build it for")
    def test_a_kernel_of_debian_takes_the_module(self) -> None:
        """It is what udev looks for, and needs nothing that this kernel lacks."""
        module = MODULE.read_bytes()
        self.assertIn(b"\0vermagic=6.1.", module)
        self.assertIn(b"\0alias=virtio:d0000003Fv*\0", module)
        log = (BUILD / "logs/stock-6.1-build.log").read_text()
        self.assertNotIn("undefined", log)
        self.assertNotIn("warning:", log)


if __name__ == "__main__":
    unittest.main()
