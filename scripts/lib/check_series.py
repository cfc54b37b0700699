# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a tree builds, boots and passes its tests after each patch of a series."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import overlay
import registered
from overlay import OverlayError, Tree

sys.path.insert(0, str(overlay.PROJECT / "tests" / "kunit"))

import run_kunit  # noqa: E402

CONFIGS = overlay.PROJECT / "guest-driver" / "kernel" / "configs"


def apply(patch: Path, root: Path) -> None:
    command = ["patch", "-p1", "--batch", "--fuzz=0", "--silent", "-d", str(root)]
    with patch.open("rb") as text:
        subprocess.run(command, stdin=text, check=True)


def build(command: list[str], log: Path) -> None:
    with log.open("ab") as output:
        done = subprocess.run(command, stdout=output, stderr=output, check=False)
    if done.returncode:
        said = log.read_text(errors="replace").splitlines()
        raise OverlayError("\n".join(["does not build:", *said[-20:], f"({log})"]))


class Linux:
    """The kernel of the KUnit tests; a new symbol may be asked for at each patch."""

    def __init__(self, work: Path, qemu: Path) -> None:
        self.source, self.out, self.qemu = work / "src/linux", work / "linux", qemu
        self.log = work / "linux.log"
        compiler = "ccache gcc" if shutil.which("ccache") else "gcc"
        self.make = ["make", "-C", str(self.source), f"O={self.out}", "ARCH=x86"]
        self.make += [f"CC={compiler}", f"HOSTCC={compiler}", f"-j{os.cpu_count()}"]
        os.environ |= {
            "CCACHE_BASEDIR": str(overlay.PROJECT),
            "CCACHE_NOHASHDIR": "1",
            "KBUILD_BUILD_USER": "virtio-freehint",
            "KBUILD_BUILD_HOST": "virtio-freehint",
            "KBUILD_BUILD_TIMESTAMP": "1970-01-01",
        }

    def check(self) -> str:
        self.out.mkdir(exist_ok=True)
        build([*self.make, "tinyconfig"], self.log)
        with (self.out / ".config").open("a") as config:
            for name in ("freehint.config", "freehint_kunit.config"):
                config.write((CONFIGS / name).read_text())
        build([*self.make, "olddefconfig"], self.log)
        build([*self.make, "bzImage"], self.log)

        there = registered.kunit_cases(self.source, ("mm/freehint", "drivers/virtio"))
        kernel = self.out / "arch/x86/boot/bzImage"
        console = run_kunit.boot(self.qemu, kernel, os.environ.get("FREEHINT_ACCEL", "tcg"))
        passed = len(re.findall(r"^ {4}ok \d+ ", console, re.M))
        failed = len(re.findall(r"^\s*not ok ", console, re.M))
        # Without a case there is nothing that says so but that it has got there.
        ended = re.search(r"^KTAP version 1\s*$", console, re.M)
        if failed or passed != there.total() or not ended:
            said = "\n".join(console.splitlines()[-20:])
            raise OverlayError(f"{passed} of {there.total()} cases pass:\n{said}")
        return f"builds, boots, {passed} KUnit cases pass"


def check(tree: Tree, patches: Iterable[Path], work: Path, qemu: Path) -> None:
    """Raise OverlayError at the first patch after which something is wrong."""
    kernel = Linux(work, qemu)
    print("copying the tree", flush=True)
    # What was built after another series is newer than the source that is copied now.
    shutil.rmtree(work, ignore_errors=True)
    overlay.copy_source(tree.root, kernel.source)
    overlay.undo(Tree(kernel.source))
    for patch in patches:
        apply(patch, kernel.source)
        try:
            print(f"{patch.name}: {kernel.check()}", flush=True)
        except OverlayError as error:
            raise OverlayError(f"after {patch.name}: {error}") from error
