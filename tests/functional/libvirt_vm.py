# SPDX-License-Identifier: GPL-2.0-or-later
"""Our guest in domains of libvirt's, whose daemons run as if on hosts of their own.

Each is a session daemon of the user nobody, in name spaces of its own: libvirt does not
migrate to a host of the same name. That takes root. What domains share with tests is
in the daemon's folder, which nobody owns.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import unittest
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any, cast

from freehint_vm import (
    BUILD,
    COMMAND_LINE,
    DEVICE_ID,
    INITRAMFS,
    KERNEL,
    QEMU,
    FreehintVM,
    GuestAgent,
    GuestError,
    MemoryWatch,
)
from guest_driver import wait_for

from qemu.machine import QEMUMachine  # found by freehint_vm

NOBODY = 65534
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
# A slot that libvirt does not use in the domains below.
DEVICE = f"virtio-freehint-pci,id={DEVICE_ID},bus=pcie.0,addr=0x10"

# $0 is the host's name, $1 a folder for huge pages or nothing; the rest is a command.
ENTER_HOST = f"""
hostname "$0"
[ -z "$1" ] || mount -t hugetlbfs -o uid={NOBODY},gid={NOBODY},pagesize=2M none "$1"
shift
exec setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups "$@"
"""

DOMAIN = """
<domain type='qemu'>
  <name>{name}</name>
  <memory unit='MiB'>{memory_mib}</memory>
  <memoryBacking>{backing}</memoryBacking>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{kernel}</kernel>
    <initrd>{initramfs}</initrd>
    <cmdline>{command_line}</cmdline>
  </os>
  <features><acpi/></features>
  <devices>
    <emulator>{emulator}</emulator>
    <controller type='usb' model='none'/>
    <serial type='file'><source path='{folder}/console'/></serial>
    <channel type='unix'>
      <source mode='connect' path='{folder}/agent'/>
      <target type='virtio' name='freehint.agent'/>
    </channel>
    {devices}
  </devices>
</domain>
"""
NO_BALLOON = "<memballoon model='none'/>"


def with_arguments(xml: str, *arguments: str) -> str:
    """A domain that has these for QEMU, too."""
    space = "http://libvirt.org/schemas/domain/qemu/1.0"
    elements = "".join(f"<qemu:arg value='{argument}'/>" for argument in arguments)
    more = f"<qemu:commandline xmlns:qemu='{space}'>{elements}</qemu:commandline>"
    return xml.replace("</domain>", f"{more}</domain>")


class Host:
    """A session daemon; a context manager. `huge` is for domains with huge pages."""

    def __init__(self, name: str, *, huge: bool = False) -> None:
        self.name = name
        self._huge = huge

    def __enter__(self) -> "Host":
        self._temporary = tempfile.TemporaryDirectory(prefix="freehint-")
        self.folder = Path(self._temporary.name)
        self._socket = self.folder / "run/libvirt/libvirt-sock"
        self.uri = f"qemu:///session?socket={self._socket}"
        self._write_settings()
        self._log = (self.folder / "log").open("w")
        self._daemon = subprocess.Popen(
            self._command(),
            env={
                "HOME": str(self.folder),
                "PATH": PATH,
                "XDG_CACHE_HOME": str(self.folder / "cache"),
                "XDG_CONFIG_HOME": str(self.folder / "config"),
                "XDG_DATA_HOME": str(self.folder / "data"),
                "XDG_RUNTIME_DIR": str(self.folder / "run"),
            },
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )
        try:
            wait_for("libvirtd listens", self._listens)
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def _write_settings(self) -> None:
        settings = self.folder / "config/libvirt"
        for folder in settings, self.folder / "run", self.folder / "huge":
            folder.mkdir(parents=True)
        # For libvirt two hosts with the same identity are the same host.
        (settings / "libvirtd.conf").write_text(f'host_uuid = "{uuid.uuid4()}"\n')
        lines = ['stdio_handler = "file"']
        if self._huge:
            lines.append(f'hugetlbfs_mount = "{self.folder}/huge"')
        (settings / "qemu.conf").write_text("\n".join(lines) + "\n")
        for path in self.folder, *self.folder.rglob("*"):
            os.chown(path, NOBODY, NOBODY)

    def _command(self) -> list[str]:
        program = shutil.which("libvirtd", path=PATH)
        if not program:
            raise GuestError("no libvirtd: run scripts/install-deps --libvirt")
        huge = f"{self.folder}/huge" if self._huge else ""
        enter = ("unshare", "--uts", "--mount", "sh", "-ec", ENTER_HOST)
        return [*enter, self.name, huge, program]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._daemon.terminate()
        self._daemon.wait(timeout=60)
        self._log.close()
        self._temporary.cleanup()

    def _listens(self) -> bool:
        if self._daemon.poll() is not None:
            raise GuestError(f"libvirtd has ended: {(self.folder / 'log').read_text()}")
        return self._socket.exists()

    def virsh(self, *arguments: str) -> str:
        """Run virsh, which has to succeed; return its output."""
        done = subprocess.run(
            ["virsh", "-q", "-c", self.uri, *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        if done.returncode:
            raise GuestError(f"virsh {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout.strip()


class Monitor:
    """A domain's monitor, with those methods of a QEMUMachine that a guest needs."""

    def __init__(self, host: Host, name: str) -> None:
        self._host = host
        self._name = name

    def cmd(self, command: str, **arguments: Any) -> Any:
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        request = json.dumps({"execute": command, "arguments": named})
        answer = json.loads(self._host.virsh("qemu-monitor-command", self._name, request))
        if "error" in answer:
            raise GuestError(f"{command}: {answer['error']}")
        return answer["return"]

    def is_running(self) -> bool:
        return self._host.virsh("domstate", self._name) in ("running", "paused")

    def get_pid(self) -> int:
        folder = self._host.folder / "run/libvirt/qemu/run"
        return int((folder / f"{self._name}.pid").read_text())

    def get_log(self) -> str:
        folder = self._host.folder / "cache/libvirt/qemu/log"
        return (folder / f"{self._name}.log").read_text()


class Domain(FreehintVM):
    """A domain that runs our guest, with the device on QEMU's command line.

    It can be saved, restored and migrated; `host` is where it is.
    """

    def __init__(
        self,
        host: Host,
        *,
        memory_mib: int = 512,
        backing: str = "",
        devices: str = NO_BALLOON,
        device: str = DEVICE,
        args: tuple[str, ...] = (),
        emulator: Path = QEMU,
    ) -> None:
        self.host = host
        self.name = "freehint"
        self.console = host.folder / "console"
        self._listeners: dict[Host, socket.socket] = {}
        xml = DOMAIN.lstrip().format(
            name=self.name,
            memory_mib=memory_mib,
            backing=backing,
            devices=devices,
            kernel=KERNEL,
            initramfs=INITRAMFS,
            command_line=COMMAND_LINE,
            emulator=emulator,
            folder=host.folder,
        )
        device_args = ("-device", device) if device else ()
        self._xml = with_arguments(xml, *device_args, *args)

    def __enter__(self) -> "Domain":
        self._listen(self.host)
        try:
            self.host.virsh("define", self._write(self.host, self._xml))
            self.host.virsh("start", self.name)
            self._meet()
            self._wait_up(300)
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        in_order = kind is None or issubclass(kind, unittest.SkipTest)
        try:
            splats = self.splats() if in_order else []
        finally:
            self._part()
            for host, listener in self._listeners.items():
                for command in "destroy", "undefine":
                    subprocess.run(
                        ["virsh", "-q", "-c", host.uri, command, self.name],
                        stderr=subprocess.DEVNULL,
                        check=False,
                    )
                listener.close()
            if not in_order and self.console.exists():
                shutil.copy(self.console, BUILD / "logs" / f"guest-{os.getpid()}.log")
        if splats:
            raise GuestError("the kernel complains:\n" + "\n".join(splats))

    def _write(self, host: Host, xml: str) -> str:
        path = host.folder / "domain.xml"
        path.write_text(xml)
        return str(path)

    def _listen(self, host: Host) -> None:
        """Listen before QEMU starts, so the guest's port always has its host."""
        path = host.folder / "agent"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        os.chown(path, NOBODY, NOBODY)
        listener.listen()
        listener.settimeout(60)
        self._listeners[host] = listener

    def _meet(self) -> None:
        """Connect to the guest where it runs now."""
        origin = getattr(self, "agent", None)
        connection, _ = self._listeners[self.host].accept()
        connection.settimeout(None)
        self.agent = GuestAgent(connection, origin)
        monitor = Monitor(self.host, self.name)
        self.machine = cast(QEMUMachine, monitor)
        self.memory = MemoryWatch(monitor.get_pid(), self.agent)

    def _part(self) -> None:
        if hasattr(self, "memory"):
            self.memory.stop()
            self.agent.close()

    def flush(self, timeout_ms: int = 10000, compact: bool = False) -> dict[str, Any]:
        """As for any guest, but polls for the end, because virsh reports events only."""
        started: Any = self.machine.cmd(
            "freehint-flush", id=DEVICE_ID, timeout_ms=timeout_ms, compact=compact
        )
        outcome: dict[str, Any] = {}

        def has_ended() -> bool:
            outcome.update(self.query()["flush"].get("last", {}))
            return bool(outcome.get("flush-id") == started["flush-id"])

        wait_for("the flush has ended", has_ended, timeout_ms / 1000 + 30)
        return outcome

    def save_and_restore(self) -> None:
        path = str(self.host.folder / "saved")
        self.host.virsh("save", self.name, path)
        self._part()
        self.host.virsh("restore", path)
        self._meet()

    def migrate(self, target: Host, *arguments: str) -> None:
        """Migrate live through a socket, to a QEMU with additional arguments."""
        self._listen(target)
        xml = self.host.virsh("dumpxml", "--migratable", self.name)
        xml = xml.replace(str(self.host.folder), str(target.folder))
        if arguments:
            xml = with_arguments(xml, *arguments)
        self.host.virsh(
            *("migrate", "--live", "--xml", self._write(target, xml), self.name),
            *(target.uri, f"unix://{target.folder}/migration"),
        )
        self._part()
        self.host = target
        self._meet()
