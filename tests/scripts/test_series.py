# SPDX-License-Identifier: GPL-2.0-or-later
"""scripts/export-series: `git am` of its patches gives the tree that overlay installs."""

import os
import re
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("FREEHINT_BUILD", PROJECT / "build"))
sys.path.insert(0, str(PROJECT / "scripts" / "lib"))

import check_series  # noqa: E402
import overlay  # noqa: E402

# A user's git settings must not matter.
ENVIRONMENT = os.environ | {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_SYSTEM": "/dev/null",
    "GIT_COMMITTER_NAME": "Test",
    "GIT_COMMITTER_EMAIL": "test@localhost",
    "GIT_AUTHOR_NAME": "Test",
    "GIT_AUTHOR_EMAIL": "test@localhost",
}


def run(*command: str, cwd: Path) -> str:
    done = subprocess.run(
        command, cwd=cwd, env=ENVIRONMENT, text=True, capture_output=True, check=False
    )
    if done.returncode:
        raise AssertionError(f"{command}: {done.stdout}{done.stderr}")
    return done.stdout


class SeriesTest(unittest.TestCase):
    """Uses copies of the build's trees, without the overlay."""

    def check_tree(self, name: str) -> None:
        built = overlay.Tree(BUILD / "src" / name)
        touched = overlay.patched_paths(built.patches) | set(built.files)
        with tempfile.TemporaryDirectory() as folder:
            root, series = Path(folder) / "tree", Path(folder) / "series"
            # Copy only what the patches touch and what identifies the tree: git am
            # looks at nothing else.
            kind = ["VERSION", "Makefile", "mm/page_alloc.c", overlay.STATE_DIR]
            kind.append("include/standard-headers/linux/types.h")
            names = [n for n in [*touched, *kind] if (built.root / n).exists()]
            root.mkdir()
            run("cp", "-a", "--parents", *names, str(root), cwd=built.root)

            overlay.install(overlay.Tree(root))
            installed = self.content(root)
            overlay.undo(overlay.Tree(root))
            run("git", "init", "--quiet", cwd=root)
            run("git", "add", "--all", cwd=root)
            run("git", "commit", "--quiet", "-m", "pristine", cwd=root)

            export = str(PROJECT / "scripts" / "export-series")
            run(sys.executable, export, str(root), str(series), cwd=PROJECT)
            patches = sorted(map(str, series.glob("*.patch")))
            for patch in patches:
                run("git", "am", "--quiet", patch, cwd=root)
                self.check_makefiles(root)
                self.check_meson(root, built)
            unsent = [path for path in installed if path.startswith("configs/")]
            self.assertEqual(bool(unsent), name == "qemu")
            for path in unsent:
                del installed[path]
            self.assertEqual(self.content(root), installed)
            subjects = run("git", "log", "--format=%s", cwd=root).splitlines()
            self.assertEqual(len(subjects), len(patches) + 1)

    def check_makefiles(self, root: Path) -> None:
        """After each patch, our makefiles name only files that are there."""
        for makefile in root.glob("*/**/freehint/**/Makefile"):
            text = makefile.read_text()
            for built in re.findall(r"\b(?!CFLAGS_)([\w/]+)\.o\b", text):
                composite = f"{built}-y" in text
                source = (makefile.parent / f"{built}.c").exists()
                self.assertTrue(composite or source, f"{makefile}: {built}")

    def check_meson(self, root: Path, built: overlay.Tree) -> None:
        """After each patch, meson.build names only files of ours that are there."""
        for folder in {Path(name).parent for name in built.files}:
            makefile = root / folder / "meson.build"
            if not makefile.exists():
                continue
            named = set(re.findall(r"'([\w-]+\.c)'", makefile.read_text()))
            for name in built.files:
                if Path(name).parent == folder and Path(name).name in named:
                    self.assertTrue((root / name).exists(), f"{makefile}: {name}")

    def content(self, root: Path) -> dict[str, bytes]:
        return {
            str(path.relative_to(root)): path.read_bytes()
            for path in root.rglob("*")
            if path.is_file() and not {".git", overlay.STATE_DIR} & set(path.parts)
        }

    def test_qemu(self) -> None:
        self.check_tree("qemu")

    def test_linux(self) -> None:
        self.check_tree("linux")


class TapTest(unittest.TestCase):
    """The output that counts as passed after a patch."""

    def test_cases_that_pass(self) -> None:
        output = "# Start\nok 1 /x/a\nok 2 /x/b # SKIP no KVM\n# End\n1..2\n"
        self.assertEqual(check_series.tap_cases(output), {"/x/a": "", "/x/b": "no KVM"})

    def test_whatever_else_is_an_error(self) -> None:
        for output, message in (
            ("ok 1 /x/a\nnot ok 2 /x/b\n1..2\n", "failed: /x/b"),
            ("ok 1 /x/a\n1..2\n", "1 cases, planned: 2"),
            ("ok 1 /x/a\n", "1 cases, planned: none"),
            ("", "0 cases, planned: none"),
        ):
            with self.subTest(output):
                with self.assertRaisesRegex(overlay.OverlayError, message):
                    check_series.tap_cases(output)


if __name__ == "__main__":
    unittest.main()
