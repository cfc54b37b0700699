# SPDX-License-Identifier: GPL-2.0-or-later
"""Move a guest from one QEMU to another on this host, or to a file and back."""

import contextlib
import ctypes
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from freehint_vm import DEVICE_ID, MIB, QEMU, FreehintVM, GuestError

MEMORY_MIB = 768
# How much memory the guests use and free.
HOG_MIB = 400

SYS_USERFAULTFD = 323
# Time limit for a destination, or for a writer to a file.
TIMEOUT = 120

ENDED = ("completed", "failed", "cancelled")


def has_userfaultfd() -> bool:
    """Whether postcopy and background snapshots can work here."""
    fd: int = ctypes.CDLL(None).syscall(SYS_USERFAULTFD, os.O_CLOEXEC)
    if fd >= 0:
        os.close(fd)
    return fd >= 0


def device_args(props: str) -> tuple[str, ...]:
    return ("-device", f"virtio-freehint-pci,id={DEVICE_ID},{props}")


def start_vm(
    props: str = "",
    *extra: str,
    origin: FreehintVM | None = None,
    qemu: Path = QEMU,
) -> FreehintVM:
    """A guest whose device comes last, so both sides have it in the same place."""
    args = (*device_args(props), *extra) if props else extra
    return FreehintVM(
        "none" if props else "freehint",
        memory_mib=MEMORY_MIB,
        extra_args=args,
        origin=origin,
        qemu=qemu,
    )


def check_returns(vm: FreehintVM) -> None:
    """All memory that the guest frees comes back."""
    vm.check(f"memhog {HOG_MIB}m")
    base = vm.settle()
    vm.check(f"memhog {HOG_MIB}m")
    limit = base + HOG_MIB * MIB // 4
    if vm.wait_rss_below(limit, timeout=30) is None:
        raise GuestError("what the guest has freed does not come back")


@contextlib.contextmanager
def socket_uri() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="freehint-") as folder:
        yield f"unix:{folder}/migration"


def set_capabilities(vm: FreehintVM, *names: str) -> None:
    vm.machine.cmd(
        "migrate-set-capabilities",
        capabilities=[{"capability": name, "state": True} for name in names],
    )


def set_bandwidth(vm: FreehintVM, bytes_per_s: int) -> None:
    """0 is for no limit."""
    vm.machine.cmd("migrate-set-parameters", max_bandwidth=bytes_per_s)


def start(source: FreehintVM, target: FreehintVM, uri: str) -> None:
    target.machine.cmd("migrate-incoming", uri=uri)
    source.machine.cmd("migrate", uri=uri)


def info(vm: FreehintVM) -> dict[str, Any]:
    answer: Any = vm.machine.cmd("query-migrate")
    found: dict[str, Any] = answer
    return found


def wait_for(vm: FreehintVM, *statuses: str) -> dict[str, Any]:
    """Wait for one of these statuses; return query-migrate's answer."""
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        answer = info(vm)
        if answer["status"] in statuses:
            return answer
        if answer["status"] in ENDED:
            raise GuestError(f"the migration has ended otherwise: {answer}")
        time.sleep(0.02)
    raise GuestError(f"no {statuses} after {TIMEOUT} s: {info(vm)}")


def wait_running(vm: FreehintVM) -> None:
    deadline = time.monotonic() + TIMEOUT
    status: Any = {}
    while status.get("status") != "running":
        status = vm.machine.cmd("query-status")
        if time.monotonic() > deadline:
            raise GuestError(f"the guest does not run after {TIMEOUT} s")
        time.sleep(0.02)


def move(source: FreehintVM, target: FreehintVM) -> dict[str, Any]:
    """Migrate to the end; return the source's query-migrate."""
    with socket_uri() as uri:
        start(source, target, uri)
        answer = wait_for(source, "completed")
    wait_running(target)
    return answer


# -- a state in an image --


def hmp(vm: FreehintVM, line: str) -> str:
    answer = vm.machine.cmd("human-monitor-command", command_line=line)
    return str(answer).strip()


def run_job(vm: FreehintVM, options: dict[str, Any]) -> None:
    """Run blockdev-create to its end."""
    vm.machine.cmd("blockdev-create", job_id="create0", options=options)
    done = {"data": {"id": "create0", "status": "concluded"}}
    if not vm.machine.event_wait("JOB_STATUS_CHANGE", timeout=30.0, match=done):
        raise GuestError(f"blockdev-create has not ended: {options}")
    vm.machine.cmd("job-dismiss", id="create0")


def add_image(vm: FreehintVM, path: Path) -> None:
    """A qcow2 image, which QEMU can save a VM's state in."""
    file = {"driver": "file", "filename": str(path)}
    run_job(vm, {**file, "size": 0})
    run_job(vm, {"driver": "qcow2", "file": file, "size": 64 * MIB})
    vm.machine.cmd("blockdev-add", node_name="disk0", driver="qcow2", file=file)
