# SPDX-License-Identifier: GPL-2.0-or-later
"""Check that a tree builds, starts and passes its tests after each patch of a series."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import overlay
import registered
import summary
from overlay import OverlayError, Tree

TESTS = overlay.PROJECT / "tests"
sys.path[:0] = [str(TESTS / "kunit"), str(TESTS / "ports")]

import run_kunit  # noqa: E402
import test_ports  # noqa: E402

CONFIGS = overlay.PROJECT / "guest-driver" / "kernel" / "configs"

# Quick tests: QEMU's generic ones without "-m slow", and ours, which take a minute or two
# at the end of the series, and one migration. The longest come first.
QTESTS: dict[str, tuple[str, ...]] = {
    "qos-test": ("-m", "slow"),
    "qom-test": (),
    "device-introspect-test": (),
    "test-hmp": (),
    "qmp-cmd-test": (),
    "migration-test": ("-p", "/x86_64/migration/precopy/unix/plain"),
}
# One of its cases switches KSM on, which affects others, so it runs alone.
ALONE: dict[str, tuple[str, ...]] = {"virtio-freehint-memory-test": ()}
QTEST_SECONDS = 900


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
    """The kernel of the KUnit tests; each patch may add a Kconfig symbol."""

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
        # If there is no case, all that the console shows is that KUnit has started.
        ended = re.search(r"^KTAP version 1\s*$", console, re.M)
        if failed or passed != there.total() or not ended:
            said = "\n".join(console.splitlines()[-20:])
            raise OverlayError(f"{passed} of {there.total()} cases pass:\n{said}")
        return f"builds, boots, {passed} KUnit cases pass"


def tap_cases(output: str) -> dict[str, str]:
    """The cases that a program has passed, and the reason for each that it has skipped.

    OverlayError if any other case is there.
    """
    results = re.findall(r"^(ok|not ok) \d+ (\S+)(?: # SKIP (.*))?", output, re.M)
    plan = re.findall(r"^1\.\.(\d+)", output, re.M)
    if plan != [str(len(results))]:
        raise OverlayError(f"{len(results)} cases, planned: {' '.join(plan) or 'none'}")
    bad = [name for verdict, name, _ in results if verdict != "ok"]
    if bad:
        raise OverlayError(f"failed: {' '.join(bad)}")
    return {name: reason for _, name, reason in results}


class Qemu:
    """QEMU as scripts/build-qemu builds it, with as much of the device as is there yet."""

    def __init__(self, work: Path) -> None:
        self.work, self.source, self.out = work, work / "src/qemu", work / "qemu"
        self.log = work / "qemu.log"
        # When each program was linked, and the cases that it passed.
        self.linked: dict[Path, int] = {}
        self.passed: list[str] = []
        self.skips = summary.Skips(summary.SKIPS)

    def check(self) -> str:
        build_qemu = str(overlay.PROJECT / "scripts" / "build-qemu")
        build([build_qemu, "--as-is", str(self.work)], self.log)
        device = self.start()
        folder = self.out / "tests/qtest"
        beside, alone = (
            {n: o for n, o in tests.items() if (folder / n).exists()}
            for tests in (QTESTS, ALONE)
        )
        programs = beside | alone
        files = [self.out / "qemu-system-x86_64", *(folder / n for n in programs)]
        linked = {file: file.stat().st_mtime_ns for file in files}
        done = "builds nothing new" if linked == self.linked else "builds"
        if linked != self.linked:
            with ThreadPoolExecutor(os.cpu_count()) as threads:
                done_beside = list(threads.map(self.qtest, beside, beside.values()))
            done_alone = [self.qtest(*item) for item in alone.items()]
            self.passed = [case for cases in done_beside + done_alone for case in cases]
            self.linked = linked
        there = registered.qtests(self.source, "virtio-freehint*.c")
        ours = there.intersection(map(registered.qtest_name, self.passed))
        if there != ours:
            raise OverlayError(f"did not run: {' '.join(sorted(there - ours))}")
        return (
            f"{done}, starts {device}, {len(self.passed)} qtests pass in "
            f"{len(programs)} programs, with {len(ours)} of ours"
        )

    def start(self) -> str:
        """Start it: it must have the command and the device exactly if the source has them."""
        has_qapi = (self.source / "qapi/freehint.json").exists()
        has_pci = (self.source / "hw/virtio/virtio-freehint-pci.c").exists()
        folder = str(self.out)
        query = {"execute": "query-commands"}
        answer = test_ports.ask(folder, "x86_64", command=query)["return"]
        if ({"name": "query-freehint"} in answer) != has_qapi:
            raise OverlayError("query-freehint comes too early, or is missing")
        said = test_ports.start(folder, "x86_64", "-device", "help").stdout
        if ('name "virtio-freehint-pci"' in said) != has_pci:
            raise OverlayError("virtio-freehint-pci comes too early, or is missing")
        if not has_pci:
            return "without the device"
        query = {"execute": "query-freehint"}
        answer = test_ports.ask(folder, "x86_64", *test_ports.DEVICE, command=query)
        if [device["state"] for device in answer["return"]] != ["active"]:
            raise OverlayError(f"query-freehint: {answer}")
        return "with the device"

    def may_skip(self, program: str, case: str, reason: str) -> bool:
        """Whether the list of skips allows it, in the suite with this version of QEMU."""
        is_port = (self.source / "VERSION").read_text().startswith("10.2.")
        named = summary.Case(f"{'10.2-' * is_port}{program}", case, "skipped")
        return not self.skips.complaint(named, reason)

    def qtest(self, name: str, options: tuple[str, ...]) -> list[str]:
        """Run a program; return the cases that pass, or that may be skipped."""
        done = subprocess.run(
            [self.out / "tests/qtest" / name, "--tap", "-k", *options],
            cwd=self.out,
            env=os.environ | {"QTEST_QEMU_BINARY": "./qemu-system-x86_64"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=QTEST_SECONDS,
            check=False,
        )
        try:
            passed = [
                case
                for case, reason in tap_cases(done.stdout).items()
                if not reason or self.may_skip(name, case, reason)
            ]
            if done.returncode or not passed:
                raise OverlayError(f"status {done.returncode}, {len(passed)} cases")
        except OverlayError as error:
            said = "\n".join((done.stdout + done.stderr).splitlines()[-20:])
            raise OverlayError(f"{name}: {error}\n{said}") from error
        return passed


def check(tree: Tree, patches: Iterable[Path], work: Path, qemu: Path) -> None:
    """Raise OverlayError at the first patch after which something is wrong."""
    is_qemu = tree.series.startswith("qemu")
    built: Qemu | Linux = Qemu(work) if is_qemu else Linux(work, qemu)
    print("copying the tree", flush=True)
    # An old build is newer than the source that is copied now, so it would not be rebuilt.
    shutil.rmtree(work, ignore_errors=True)
    overlay.copy_source(tree.root, built.source)
    overlay.undo(Tree(built.source))
    for patch in patches:
        apply(patch, built.source)
        try:
            print(f"{patch.name}: {built.check()}", flush=True)
        except (OverlayError, AssertionError, subprocess.TimeoutExpired) as error:
            raise OverlayError(f"after {patch.name}: {error}") from error
