# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest that boots a user's own disk image, which is never written to.

Its second disk is a folder of the host's and a seed for cloud-init. It has our agent, which
cloud-init starts, the driver's package, and a program that uses memory.
"""

import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT / "tests" / "functional"))

from freehint_vm import BUILD, FreehintVM, GuestError  # noqa: E402
from qemu.machine.machine import VMLaunchFailure  # noqa: E402

QEMU = BUILD / "qemu-demo" / "qemu-system-x86_64"
LABEL = "cidata"
BY_HAND = f"mount -L {LABEL} /mnt && sh /mnt/start"
# Building a module takes a minute without KVM, and apt may have to fetch a compiler.
DRIVER_S = 1800
# How often to report progress, in seconds.
TICK_S = 15


def make_seed(folder: Path) -> None:
    for file in (PROJECT / "scripts" / "lib" / "seed").iterdir():
        shutil.copy(file, folder)
    # cloud-init does nothing for an instance that it has seen before.
    (folder / "meta-data").write_text(f"instance-id: freehint-{time.time_ns()}\n")
    packages = (BUILD / "packages").glob("virtio-freehint-dkms_*.deb")
    shutil.copy(max(packages, key=lambda file: file.stat().st_mtime), folder)
    for name in ("agent", "toucher"):
        source = str(PROJECT / "tests" / "guest" / f"{name}.c")
        command = ["gcc", "-std=gnu11", "-O2", "-static", "-o", str(folder / name)]
        subprocess.run([*command, source], check=True)


def last_line(log: Path) -> str:
    """The last line of a console, without colours."""
    text = re.sub(r"\x1b\S*?[A-Za-z]", "", log.read_text(errors="replace"))
    return "".join(text.strip().splitlines()[-1:])[:70]


class ImageVM(FreehintVM):
    """Waits `patience` seconds for the guest's agent; a context manager, too."""

    def __init__(
        self, image: Path, form: str, *, memory_mib: int, accel: str, patience: float
    ) -> None:
        path = str(image.resolve()).replace(",", ",,")
        self._disk = f"format={form},snapshot=on,file={path}"
        self._patience = patience
        self._folder = tempfile.TemporaryDirectory(prefix="freehint-")
        self._seed = Path(self._folder.name) / "seed"
        self.terminal = Path(self._folder.name) / "console"
        # TCG would keep 600 MiB of translated code for a guest that boots and compiles.
        accel = {"tcg": "tcg,tb-size=128"}.get(accel, accel)
        super().__init__(accel=accel, memory_mib=memory_mib, qemu=QEMU)

    def _boot_args(self, kernel: Path, initramfs: Path, append: str) -> tuple[str, ...]:
        self._seed.mkdir()
        make_seed(self._seed)
        seed = f"file.driver=vvfat,file.label={LABEL},file.dir={self._seed}"
        console = f"path={self.terminal},server=on,wait=off,logfile={self.console}"
        return (
            *("-cpu", "max", "-display", "none"),
            *("-drive", f"if=none,id=disk,{self._disk}"),
            *("-device", "virtio-blk-pci,drive=disk,bootindex=0"),
            *("-drive", f"if=none,id=seed,format=raw,read-only=on,{seed}"),
            *("-device", "virtio-blk-pci,drive=seed"),
            *("-nic", "user,model=virtio-net-pci"),
            *("-device", "virtio-rng-pci"),
            *("-chardev", f"socket,id=console,{console}", "-serial", "chardev:console"),
        )

    def __enter__(self) -> "ImageVM":
        try:
            super().__enter__()
        except VMLaunchFailure as error:
            said = (error.output or str(error.__cause__)).strip().splitlines()
            raise GuestError(f"QEMU does not start: {said[-1]}") from None
        return self

    def _wait_up(self, timeout: float) -> None:
        del timeout
        start = time.monotonic()
        while not self.agent.wait_up(min(TICK_S, self._patience)):
            waited = time.monotonic() - start
            if not self.machine.is_running():
                raise GuestError("QEMU has ended")
            if waited > self._patience:
                raise GuestError(
                    f"no answer from the guest within {self._patience:.0f} s; "
                    f"what its console has said is in {self.console}"
                )
            print(f"  {waited:3.0f} s  {last_line(self.console)}", flush=True)

    def splats(self) -> list[str]:
        """None: we do not judge the complaints of a kernel that is not ours."""
        return []

    def load_driver(self) -> None:
        """Load the driver, from the package if necessary, and wait until it is active."""
        running = self.start("sh /mnt/driver")
        while not running.done.wait(TICK_S):
            waited = time.monotonic() - running.started
            if waited > DRIVER_S or not self.machine.is_running():
                raise GuestError(f"no driver in the guest after {waited:.0f} s")
            said = "".join(running.lines[-1:])[:70]
            print(f"  {waited:3.0f} s  {said}", flush=True)
        result = self.finish(running)
        if result.status:
            raise GuestError(f"no driver in the guest:\n{result.output[-2000:]}")
        deadline = time.monotonic() + 60
        while self.query()["driver-status"] != "active":
            if time.monotonic() > deadline:
                raise GuestError(f"the driver is {self.query()['driver-status']}")
            time.sleep(0.1)
