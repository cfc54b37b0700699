# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs that we did not write, on a disk of their own: how a guest gets to them."""

from arms import BenchGuest
from freehint_vm import BUILD, Finished

IMAGE = BUILD / "bench" / "programs.img"
PACKAGES = IMAGE.with_suffix(".img.packages")
ROOT = "/root"
MOUNT = " && ".join(
    (
        f"mount -t ext2 /dev/vda {ROOT}",
        f"mount -t devtmpfs dev {ROOT}/dev",
        f"mkdir -p {ROOT}/dev/shm",
        f"mount -t tmpfs shm {ROOT}/dev/shm",
        f"mount -t proc proc {ROOT}/proc",
        "ifconfig lo 127.0.0.1 up",
    )
)
# The longest that any command takes, with room for a busy host.
TIMEOUT = 900.0


def unavailable() -> str:
    if IMAGE.exists():
        return ""
    return f"there is no {IMAGE.name}: run tests/bench/build-programs-image"


def disk() -> tuple[str, ...]:
    """QEMU's options. It removes the temporary file that is written to."""
    drive = f"if=none,id=disk0,format=raw,snapshot=on,file={IMAGE}"
    return ("-drive", drive, "-device", "virtio-blk-pci,drive=disk0")


def inside(command: str) -> str:
    """A command of the guest for a shell command of the system on the disk.

    With a path, as busybox takes a name for one of its own programs.
    """
    path = "PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C"
    return f"{path} chroot {ROOT} /bin/sh -c '{command}'"


def check(vm: BenchGuest, command: str) -> Finished:
    result = vm.run(command, timeout=TIMEOUT)
    if result.status:
        raise RuntimeError(f"'{command}' has failed: {result.output[-500:]}")
    return result


def versions(*names: str) -> str:
    """What the packages of the image are, for the report."""
    lines = PACKAGES.read_text().replace(":amd64", "").splitlines()
    installed = dict(line.split("\t") for line in lines)
    return ", ".join(f"{name} {installed[name]}" for name in names)
