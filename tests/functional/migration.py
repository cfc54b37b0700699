# SPDX-License-Identifier: GPL-2.0-or-later
"""Move a guest from one QEMU to another on this host, or to a file and back."""

import contextlib
import ctypes
import os
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from freehint_vm import FreehintVM, GuestError

SYS_USERFAULTFD = 323
# What a destination, or a writer to a file, has to be finished within.
TIMEOUT = 120

ENDED = ("completed", "failed", "cancelled")


def has_userfaultfd() -> bool:
    """Whether postcopy and background snapshots can work here."""
    fd: int = ctypes.CDLL(None).syscall(SYS_USERFAULTFD, os.O_CLOEXEC)
    if fd >= 0:
        os.close(fd)
    return fd >= 0


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
    """0 for as fast as it can."""
    vm.machine.cmd("migrate-set-parameters", max_bandwidth=bytes_per_s)


def start(source: FreehintVM, target: FreehintVM, uri: str) -> None:
    target.machine.cmd("migrate-incoming", uri=uri)
    source.machine.cmd("migrate", uri=uri)


def info(vm: FreehintVM) -> dict[str, Any]:
    answer: Any = vm.machine.cmd("query-migrate")
    found: dict[str, Any] = answer
    return found


def wait_for(vm: FreehintVM, *statuses: str) -> dict[str, Any]:
    """query-migrate's answer when the migration has one of these statuses."""
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
    """Migrate to the end; what query-migrate says of it on the source."""
    with socket_uri() as uri:
        start(source, target, uri)
        answer = wait_for(source, "completed")
    wait_running(target)
    return answer
