# SPDX-License-Identifier: GPL-2.0-or-later
"""scripts/demo: what it refuses before it builds anything."""

import subprocess
import tempfile
import unittest
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]


class RefusalTest(unittest.TestCase):
    def setUp(self) -> None:
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))

    def refused(self, *options: str | Path) -> str:
        command: list[str | Path] = [PROJECT / "scripts" / "demo", "--no-deps", *options]
        env = {"PATH": "/usr/bin:/bin", "FREEHINT_BUILD": str(self.folder / "build")}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        self.assertEqual((done.returncode, done.stdout), (1, ""), done.stderr)
        return done.stderr

    def file(self, content: bytes) -> Path:
        path = self.folder / "image"
        path.write_bytes(content)
        return path

    def test_a_file_that_is_not_there(self) -> None:
        for options in ["--image", "/nowhere"], ["--image=/nowhere"], ["--image"]:
            self.assertIn("there is none", self.refused(*options))

    def test_a_file_that_is_no_disk(self) -> None:
        for content in b"", b"text", bytes(512):
            said = self.refused("--image", self.file(content))
            self.assertIn("is neither a qcow2 image nor a raw disk that boots", said)

    def test_a_comparison(self) -> None:
        said = self.refused("--compare", "--image", self.file(b"QFI\xfb"))
        self.assertIn("--compare takes our own guest", said)


if __name__ == "__main__":
    unittest.main()
