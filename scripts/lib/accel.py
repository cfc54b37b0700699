# SPDX-License-Identifier: GPL-2.0-or-later
"""Choose the accelerator for guests: KVM if our kernel really boots under it, else TCG.

It is not enough that /dev/kvm can be opened: if the host is a guest itself, a kernel may
take minutes to boot, or hang.
"""

import functools
import os
import subprocess
import sys
from pathlib import Path

DEVICE = Path("/dev/kvm")
# The last message of a kernel that has no init to start.
END = b"Kernel panic - not syncing: VFS"
PATIENCE_S = 5


def why_not(accel: str, build: Path, qemu: str = "qemu") -> str:
    """What is wrong with an accelerator; empty if the guest's kernel boots.

    `qemu` is the folder of the QEMU in `build`.
    """
    if accel == "kvm" and not os.access(DEVICE, os.R_OK | os.W_OK):
        return f"{DEVICE} cannot be opened"
    command = [
        *(str(build / qemu / "qemu-system-x86_64"), "-accel", accel, "-m", "256"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-serial", "stdio", "-machine", "q35"),
        *("-kernel", str(build / "linux" / "arch" / "x86" / "boot" / "bzImage")),
        *("-append", "console=ttyS0 panic=-1 no_timer_check"),
    ]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=PATIENCE_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"the guest's kernel does not boot within {PATIENCE_S} s"
    if END in done.stdout:
        return ""
    lines = done.stdout.decode(errors="replace").split("\n")
    return f"QEMU has ended early: {''.join(lines[-2:-1]).strip()}"


@functools.cache
def chosen(build: Path, qemu: str = "qemu") -> str:
    """FREEHINT_ACCEL, or the choice for "auto", which is printed once."""
    wanted = os.environ.get("FREEHINT_ACCEL") or "tcg"
    if wanted != "auto":
        return wanted
    problem = why_not("kvm", build, qemu)
    accel = "tcg" if problem else "kvm"
    reason = f", not kvm: {problem}" if problem else ""
    print(f"# guests run under {accel}{reason}", file=sys.stderr, flush=True)
    return accel
