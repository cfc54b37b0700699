# SPDX-License-Identifier: GPL-2.0-or-later
"""Our guest in our QEMU in a guest that plays the host.

The outer guest gets what a host needs and this machine may lack, such as an IOMMU with a
device behind it. It runs the same build of QEMU, and inside that the same guest, each a
level deeper.
"""

import dataclasses
import os
import socket
import time
from types import TracebackType
from typing import Any

from freehint_vm import BUILD, DEVICE_ID, FreehintVM, GuestAgent, GuestError

from qemu.qmp.legacy import QEMUMonitorProtocol  # found by freehint_vm

OUTER_KERNEL = BUILD / "linux-vfio" / "arch" / "x86" / "boot" / "bzImage"
OUTER_INITRAMFS = BUILD / "nested" / "initramfs.img"
INNER_MIB = 384

# A PCI device that can do DMA, needs no driver, and is in every test build.
PCI_ID = "0x1234:0x11e8"
# Numbers of the ports through which we reach the inner QEMU and its guest.
QMP_PORT, AGENT_PORT = 2, 3
EVENTS = "/tmp/events"


@dataclasses.dataclass(frozen=True)
class Port:
    """A virtio-serial port of the outer guest; we have the other end."""

    number: int
    ours: socket.socket
    theirs: socket.socket

    def args(self) -> tuple[str, ...]:
        name = f"port{self.number}"
        return (
            *("-chardev", f"socket,id={name},fd={self.theirs.fileno()}"),
            *("-device", f"virtserialport,chardev={name},nr={self.number}"),
        )


def make_port(number: int) -> Port:
    ours, theirs = socket.socketpair()
    theirs.set_inheritable(True)
    return Port(number, ours, theirs)


class NestedVM:
    """The outer guest; `launch` starts the inner one. A context manager."""

    def __init__(self) -> None:
        self._ports = [make_port(QMP_PORT), make_port(AGENT_PORT)]
        self.qmp = QEMUMonitorProtocol(self._ports[0].ours)
        self.qmp.settimeout(60)
        self.outer = FreehintVM(
            "none",
            memory_mib=1536,
            kernel=OUTER_KERNEL,
            initramfs=OUTER_INITRAMFS,
            append="intel_iommu=on",
            extra_args=(
                *("-device", "intel-iommu,intremap=on,caching-mode=on"),
                *("-device", "edu"),
                *self._ports[0].args(),
                *self._ports[1].args(),
            ),
        )

    def __enter__(self) -> "NestedVM":
        self.outer.__enter__()
        for port in self._ports:
            port.theirs.close()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.qmp.close()
        self.outer.__exit__(kind, value, trace)
        for port in self._ports:
            port.ours.close()

    def bind_vfio(self) -> str:
        """Bind the device to vfio-pci; return its address, for vfio-pci's "host"."""
        vendor, device = PCI_ID.split(":")
        return self.outer.check(
            "cd /sys/bus/pci/devices; for d in *; do"
            f" if [ $(cat $d/vendor):$(cat $d/device) = {vendor}:{device} ]; then"
            " echo vfio-pci > $d/driver_override;"
            " echo $d > /sys/bus/pci/drivers_probe;"
            " [ -e /sys/bus/pci/drivers/vfio-pci/$d ] && echo $d;"
            " fi; done | grep ."
        )

    def launch(self, *extra_args: str, prepare: str = ":", timeout: float = 600) -> None:
        """Start the inner QEMU, and wait until its guest is up.

        The shell that starts it runs `prepare` first.
        """
        command = " ".join(
            (
                f"{prepare};",
                "exec qemu-system-x86_64 -M pc -nodefaults -no-user-config -accel tcg",
                f"-m {INNER_MIB} -L /nested -kernel /nested/bzImage",
                "-initrd /nested/initramfs.cpio.gz",
                "-append 'console=ttyS0 quiet panic=-1' -serial file:/tmp/console",
                f"-chardev pipe,id=qmp,path=/dev/vport0p{QMP_PORT}",
                "-mon chardev=qmp,mode=control",
                "-device virtio-serial-pci",
                f"-chardev pipe,id=agent,path=/dev/vport0p{AGENT_PORT}",
                "-device virtserialport,chardev=agent,name=freehint.agent",
                f"-D {EVENTS}",
                *extra_args,
            )
        )
        self._qemu = self.outer.start(command)
        self.agent = GuestAgent(self._ports[1].ours)
        deadline = time.monotonic() + timeout
        while not self.agent.wait_up(0.5):
            if self._qemu.done.is_set():
                output = self.outer.finish(self._qemu).output
                raise GuestError(f"the inner QEMU has ended: {output}")
            if time.monotonic() > deadline:
                console = self.outer.check("tail -n 20 /tmp/console")
                raise GuestError(f"the inner guest is not up: {console}")
        self.qmp.connect()

    def check(self, command: str, timeout: float = 300) -> str:
        """Run a shell command in the inner guest, which has to succeed."""
        result = self.agent.finish(self.agent.start(command), timeout)
        if result.status:
            raise GuestError(
                f"'{command}' has status {result.status}: {result.output}"
            )
        return result.output

    def query(self) -> dict[str, Any]:
        """query-freehint's entry for the inner guest's device."""
        entries: Any = self.qmp.cmd("query-freehint")
        found: dict[str, Any] = next(e for e in entries if e.get("id") == DEVICE_ID)
        return found

    def rss(self) -> int:
        """Memory of the outer guest that the inner QEMU uses, in bytes."""
        statm = self.outer.check("cat /proc/$(pidof qemu-system-x86_64)/statm")
        return int(statm.split()[1]) * os.sysconf("SC_PAGESIZE")

    def unplug(self, device: str, timeout: float = 120) -> None:
        """Unplug a device, and wait until the guest has released it."""
        self.qmp.clear_events()
        self.qmp.cmd("device_del", id=device)
        deadline = time.monotonic() + timeout
        while True:
            event: Any = self.qmp.pull_event(wait=deadline - time.monotonic())
            if event["event"] == "DEVICE_DELETED":
                if event["data"].get("device") == device:
                    return

    def events(self) -> list[str]:
        """The trace events that the inner QEMU has logged so far."""
        return self.outer.check(f"cat {EVENTS}").splitlines()
