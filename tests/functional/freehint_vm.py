# SPDX-License-Identifier: GPL-2.0-or-later
"""Our guest in our QEMU: boot it, run commands in it, watch its memory.

The demo and the functional tests are built on this. All times, those of the guest's events
included, are the host's time.monotonic() in seconds; sizes are bytes.
"""

import base64
import bisect
import contextlib
import dataclasses
import itertools
import os
import re
import shlex
import socket
import sys
import threading
import time
import unittest
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("FREEHINT_BUILD", PROJECT / "build"))
sys.path.insert(0, str(BUILD / "src" / "qemu" / "python"))
sys.path.insert(0, str(PROJECT / "scripts" / "lib"))

import accel as accelerator  # noqa: E402
from qemu.machine import QEMUMachine  # noqa: E402
from splats import complaints  # noqa: E402

MIB = 1 << 20
DEVICE_ID = "fh0"
# A variant of the kernel has its own directory, "linux-debug" for instance.
KERNEL = BUILD / os.environ.get("FREEHINT_KERNEL", "linux") / "arch/x86/boot/bzImage"
QEMU = BUILD / "qemu" / "qemu-system-x86_64"
# A kernel that needs modules to boot has its own image.
INITRAMFS = KERNEL.parents[3] / "initramfs.cpio.gz"
if not INITRAMFS.exists():
    INITRAMFS = BUILD / "guest" / "initramfs.cpio.gz"
# If the driver is not built into the kernel, the last disk has it, by this name.
MODULE = KERNEL.parents[3] / "drivers/virtio/freehint/virtio_freehint.ko"
MODULE_DISK = "freehint-module"
# For debugging: additional arguments for QEMU and for the guest's kernel.
MORE_ARGS = tuple(shlex.split(os.environ.get("FREEHINT_QEMU_ARGS", "")))
MORE_APPEND = os.environ.get("FREEHINT_APPEND", "")
# Folder for the counts of gcov, if the guest's kernel has it; see scripts/coverage.
COVERAGE = os.environ.get("FREEHINT_COVERAGE", "")
SYSFS = "/sys/bus/virtio/drivers/virtio_freehint/virtio*/freehint"
COUNTERS = "/sys/kernel/debug/virtio_freehint/virtio*"
TRACING = "/sys/kernel/tracing"

# On a busy host, the timer may not tick while the kernel checks that it does, and a guest
# that boots may get no processor for as long as RCU waits before it complains.
COMMAND_LINE = (
    "console=ttyS0 quiet panic=-1 no_timer_check"
    " rcupdate.rcu_cpu_stall_suppress_at_boot=1"
)

# A guest that moves pages when it idles is never at rest, and nothing could be counted.
NO_COMPACTION = "virtio_freehint.compact=N"

# An instruction takes a nanosecond, and the kernel does not doubt the clock that says so.
ICOUNT = ("-icount", "shift=0")
STEADY_CLOCK = "tsc=reliable"

# A silent port is sent something this often, in seconds.
NUDGE = 5

# What reports free memory: nothing, our device, the test device, which can be made slow or
# wrong, or the balloon.
REPORTERS: dict[str, list[str]] = {
    "none": [],
    "freehint": ["-device", f"virtio-freehint-pci,id={DEVICE_ID}"],
    "testdev": ["-device", f"virtio-freehint-testdev-pci,id={DEVICE_ID}"],
    "balloon": ["-device", "virtio-balloon-pci,id=balloon0,free-page-reporting=on"],
}

# The driver accepts a packed ring if the device offers one.
PACKED_RING = ("-global", "virtio-freehint-device.packed=on")

# A port for one device that is plugged and unplugged, through the guest's PCIe hotplug.
PORT = "port1"
HOTPLUG_PORT = (
    *("-device", f"pcie-root-port,id={PORT},chassis=1,slot=1"),
    *("-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off"),
)


class GuestError(Exception):
    """The guest did not do what it was told."""


class GuestTimeout(GuestError):
    """A command in the guest did not end in time."""


@dataclasses.dataclass(frozen=True)
class Finished:
    """A command that has ended in the guest."""

    command: str
    status: int
    output: str
    started: float
    ended: float


class _Command:
    """A command that runs in the guest, filled in by the agent's reader."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.started = time.monotonic()
        self.lines: list[str] = []
        self.result: Finished | None = None
        self.done = threading.Event()


class GuestAgent:
    """The host's end of tests/guest/agent.c, which documents the protocol.

    A guest that moves to another QEMU takes along the commands that `origin` has started,
    and does not say hello again.
    """

    def __init__(
        self, sock: socket.socket, origin: "GuestAgent | None" = None
    ) -> None:
        self._socket = sock
        self._commands: dict[str, _Command] = origin._commands if origin else {}
        self._ids: Iterator[int] = origin._ids if origin else itertools.count(1)
        self._up = threading.Event()
        self._closed = threading.Event()
        # Host time minus guest time of the latest messages. Each is the true difference
        # plus the time the message took, so the smallest is the most accurate.
        self._offsets: deque[float] = deque(maxlen=50)
        self.free: int | None = None
        # How many kernels have said hello in this guest.
        self.boots = 0
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_up(self, timeout: float) -> bool:
        return self._up.wait(timeout)

    def host_time(self, guest_ms: float) -> float:
        """Convert a time of the guest's CLOCK_MONOTONIC, in ms."""
        return guest_ms / 1000 + min(self._offsets)

    def start(self, command: str) -> _Command:
        number = next(self._ids)
        entry = self._commands[str(number)] = _Command(command)
        self._socket.sendall(f"{number} {command}\n".encode())
        return entry

    def finish(self, entry: _Command, timeout: float) -> Finished:
        """Wait for its end.

        After a guest has woken up, Linux may hold back output to a port until input comes
        from there. So we send an empty line now and then.
        """
        deadline = time.monotonic() + timeout
        nudge = time.monotonic() + NUDGE
        while not entry.done.wait(0.2):
            if self._closed.is_set():
                raise GuestError(f"the guest went away during '{entry.text}'")
            if time.monotonic() > deadline:
                raise GuestTimeout(f"'{entry.text}' took more than {timeout:.0f} s")
            if time.monotonic() > nudge:
                nudge += NUDGE
                with contextlib.suppress(OSError):
                    self._socket.sendall(b"\n")
        assert entry.result is not None
        return entry.result

    def close(self) -> None:
        self._socket.close()
        self._reader.join(timeout=5)

    # -- the reader's thread --

    def _read(self) -> None:
        try:
            # A carriage return is part of a line.
            with self._socket.makefile("r", errors="replace", newline="\n") as stream:
                for line in stream:
                    self._handle(line.rstrip("\n"))
        except OSError:
            # We closed it, or QEMU is gone; `_closed` says so in either case.
            pass
        self._closed.set()

    def _handle(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        if word == "hello":
            self.boots += 1
            self._note_time(int(rest))
            self._up.set()
        elif word == "mem":
            now, free_kib = rest.split()
            self._note_time(int(now))
            self.free = int(free_kib) * 1024
            self._up.set()
        else:
            self._handle_command(self._commands[word], rest)

    def _handle_command(self, entry: _Command, rest: str) -> None:
        kind, _, rest = rest.partition(" ")
        if kind == "out":
            entry.lines.append(rest)
            return
        status, now = rest.split()
        # It may be the first message from a guest that has moved.
        self._note_time(int(now))
        entry.result = Finished(
            command=entry.text,
            status=int(status),
            output="\n".join(entry.lines),
            started=entry.started,
            ended=self.host_time(int(now)),
        )
        entry.done.set()

    def _note_time(self, guest_ms: int) -> None:
        self._offsets.append(time.monotonic() - guest_ms / 1000)


@dataclasses.dataclass(frozen=True)
class Sample:
    """Memory at a moment; `free` is guest-reported and may be 0.1 s old."""

    when: float
    rss: int
    free: int | None


class MemoryWatch:
    """Keeps sampling QEMU's resident memory and the guest's free memory."""

    INTERVAL = 0.02

    def __init__(self, pid: int, agent: GuestAgent) -> None:
        self._statm = Path(f"/proc/{pid}/statm")
        self._agent = agent
        self._stop = threading.Event()
        self.samples: list[Sample] = []
        self._take()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def now(self) -> Sample:
        return self.samples[-1]

    def at(self, when: float) -> Sample:
        """The last sample taken at or before a moment."""
        index = bisect.bisect_right(self.samples, when, key=lambda s: s.when)
        return self.samples[max(index - 1, 0)]

    def since(self, when: float) -> list[Sample]:
        index = bisect.bisect_left(self.samples, when, key=lambda s: s.when)
        return self.samples[index:]

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self.INTERVAL):
            try:
                self._take()
            except (FileNotFoundError, ProcessLookupError):
                return

    def _take(self) -> None:
        pages = int(self._statm.read_text().split()[1])
        rss = pages * os.sysconf("SC_PAGESIZE")
        self.samples.append(Sample(time.monotonic(), rss, self._agent.free))


class FreehintVM:
    """A running guest; use it as a context manager.

    With `origin` there is no guest yet: it migrates from there, see migration.py. With
    `wakes`, it was hibernated there, and boots here. With `icount`, time in the guest is what
    it executes, so that a busy host does not stretch it.
    """

    _numbers = itertools.count(1)

    def __init__(
        self,
        reporter: str = "freehint",
        *,
        accel: str | None = None,
        memory_mib: int = 1536,
        cpus: int = 1,
        extra_args: tuple[str, ...] = (),
        append: str = "",
        origin: "FreehintVM | None" = None,
        wakes: bool = False,
        kernel: Path = KERNEL,
        initramfs: Path = INITRAMFS,
        qemu: Path = QEMU,
        wrapper: tuple[str, ...] = (),
        machine: str = "q35",
        icount: bool = False,
        compacts: bool = False,
    ) -> None:
        self.reporter = reporter
        self._origin = origin
        self._incoming = origin and not wakes
        self.agent: GuestAgent
        if icount:
            accel, append = "tcg,thread=single", f"{append} {STEADY_CLOCK}"
            extra_args = (*ICOUNT, *extra_args)
        if not compacts:
            append = f"{append} {NO_COMPACTION}"
        accel = accel or accelerator.chosen(BUILD)
        # The kernel's messages stay in a file, to look into failures.
        self.console = BUILD / "logs" / f"guest-{os.getpid()}-{next(self._numbers)}.log"
        self.console.parent.mkdir(parents=True, exist_ok=True)
        host_end, guest_end = socket.socketpair()
        guest_end.set_inheritable(True)
        self._ends = (host_end, guest_end)
        self.machine = QEMUMachine(
            str(qemu),
            wrapper=wrapper,
            name=f"freehint-{os.getpid()}-{id(self):x}",
            qmp_timer=60,
        )
        self.machine.set_machine(machine)
        self.machine.add_args(
            *("-nodefaults", "-no-user-config", "-accel", accel),
            *("-m", str(memory_mib), "-smp", str(cpus)),
            *self._boot_args(kernel, initramfs, append),
            *self._without_pci(machine, "-device", "virtio-serial-pci"),
            *("-chardev", f"socket,id=agent,fd={guest_end.fileno()}"),
            *("-device", "virtserialport,chardev=agent,name=freehint.agent"),
            *self._without_pci(machine, *REPORTERS[reporter]),
            *(("-incoming", "defer") if self._incoming else ()),
            *extra_args,
            *MORE_ARGS,
            *self._module_disk(),
        )

    def _boot_args(self, kernel: Path, initramfs: Path, append: str) -> tuple[str, ...]:
        """QEMU's options for kernel, initramfs and console."""
        return (
            *("-kernel", str(kernel), "-initrd", str(initramfs)),
            *("-append", f"{COMMAND_LINE} {append} {MORE_APPEND}"),
            *("-serial", f"file:{self.console}"),
        )

    @staticmethod
    def _without_pci(machine: str, *args: str) -> list[str]:
        """The same devices, on virtio-mmio if the machine has no PCI."""
        if machine != "microvm":
            return list(args)
        return [re.sub(r"^(virtio-[a-z-]+)-pci\b", r"\1-device", arg) for arg in args]

    @staticmethod
    def _module_disk() -> tuple[str, ...]:
        if not MODULE.exists():
            return ()
        drive = f"if=none,id={MODULE_DISK},file={MODULE},format=raw,read-only=on"
        device = f"virtio-blk-pci,drive={MODULE_DISK},serial={MODULE_DISK}"
        return ("-drive", drive, "-device", device)

    def __enter__(self) -> "FreehintVM":
        host_end, guest_end = self._ends
        try:
            self.machine.launch()
        except BaseException:
            host_end.close()
            raise
        finally:
            guest_end.close()
        self.agent = GuestAgent(
            host_end, self._origin.agent if self._origin else None
        )
        pid = self.machine.get_pid()
        assert pid is not None
        self.memory = MemoryWatch(pid, self.agent)
        if self._incoming:
            return self
        try:
            self._wait_up(300)
            if MODULE.exists():
                self.load_module()
        except BaseException:
            self.__exit__(*sys.exc_info())
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
            if COVERAGE and self._is_up():
                self._save_coverage(Path(COVERAGE) / self.console.stem)
        finally:
            self.memory.stop()
            self.machine.shutdown(hard=True)
            self.agent.close()
        if splats:
            raise GuestError("the kernel complains:\n" + "\n".join(splats))
        if in_order:
            self.console.unlink()

    def _wait_up(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not self.agent.wait_up(0.2):
            if not self.machine.is_running():
                self.machine.shutdown(hard=True)
                raise GuestError(
                    f"QEMU has ended with {self.machine.exitcode()}, see {self.console}:"
                    f" {self.machine.get_log()}"
                )
            if time.monotonic() > deadline:
                registers = self.machine.cmd(
                    "human-monitor-command", command_line="info registers -a"
                )
                raise GuestError(
                    f"the guest is not up after {timeout:.0f} s, see {self.console}"
                    f"; its processors are at\n{registers}"
                )

    # -- the guest --

    def load_module(self) -> None:
        """Load the driver; the device is bound then, if there is one."""
        disk = f"$(dirname $(grep -lx {MODULE_DISK} /sys/block/*/serial))"
        copy = f"head -c {MODULE.stat().st_size} /dev/$(basename {disk})"
        self.check(f"{copy} >/tmp/virtio_freehint.ko")
        self.check("insmod /tmp/virtio_freehint.ko")

    def wait_boots(self, boots: int, timeout: float = 240) -> None:
        """Wait until this many kernels have booted, the first one included."""
        deadline = time.monotonic() + timeout
        while self.agent.boots < boots:
            if not self.machine.is_running() or time.monotonic() > deadline:
                raise GuestError(f"kernel {boots} is not up, see {self.console}")
            time.sleep(0.1)

    def start(self, command: str) -> _Command:
        """Start a shell command in the guest; `finish` waits for it."""
        return self.agent.start(command)

    def finish(self, entry: _Command, timeout: float = 120) -> Finished:
        return self.agent.finish(entry, timeout)

    def run(self, command: str, timeout: float = 120) -> Finished:
        """Run a shell command in the guest to its end, whatever its status."""
        return self.finish(self.start(command), timeout)

    def check(self, command: str, timeout: float = 120) -> str:
        """Run a shell command that has to succeed; return its output."""
        result = self.run(command, timeout)
        if result.status:
            raise GuestError(
                f"'{command}' has status {result.status}: {result.output}"
            )
        return result.output

    def wait_output(self, entry: _Command, line: str, timeout: float = 120) -> None:
        """Wait until a started command has written a line."""
        deadline = time.monotonic() + timeout
        while line not in entry.lines:
            if entry.done.is_set() or time.monotonic() > deadline:
                raise GuestError(f"'{entry.text}' does not say '{line}'")
            time.sleep(0.05)

    def figure(self, name: str) -> int:
        """A number in the driver's sysfs group, or one of its counters."""
        counter = f"awk '$1 == \"{name}\" {{ print $2 }}' {COUNTERS}"
        return int(self.check(f"cat {SYSFS}/{name} 2>/dev/null || {counter}"))

    def trace(self, *events: str) -> None:
        """Have the guest's kernel trace events, given as SYSTEM or SYSTEM/EVENT."""
        self.check(f"echo 4096 > {TRACING}/buffer_size_kb")
        for event in events:
            self.check(f"echo 1 > {TRACING}/events/{event}/enable")

    def traced(self, *words: str) -> list[str]:
        """The traced lines since the last call that have one of the words.

        A trace is long and a terminal in the guest is slow, so all other lines stay there.
        """
        wanted = " ".join(f"-e '{word}'" for word in words)
        command = f"grep -F {wanted} {TRACING}/trace; echo > {TRACING}/trace"
        return [line for line in self.check(command).splitlines() if line]

    def _is_up(self) -> bool:
        """A guest that was stopped, or that moved away, cannot be asked."""
        if not self.machine.is_running():
            return False
        status: Any = self.machine.cmd("query-status")
        return bool(status["running"])

    def splats(self) -> list[str]:
        """All messages of the guest's kernel, from its first complaint on."""
        return complaints(self.check("dmesg")) if self._is_up() else []

    def _save_coverage(self, folder: Path) -> None:
        """Save a file of counts for each object of the kernel that has gcov."""
        folder.mkdir(parents=True, exist_ok=True)
        found = "find /sys/kernel/debug/gcov -name '*.gcda'"
        lines = self.check(f"{found} | while read f; do echo $f; base64 $f; echo -; done")
        for entry in lines.split("\n-")[:-1]:
            path, *data = entry.split()
            (folder / Path(path).name).write_bytes(base64.b64decode("".join(data)))

    # -- devices --

    def wait_unplugged(self, device: str, timeout: float = 60) -> None:
        """Wait until the guest has released a device and QEMU has deleted it."""
        match = {"data": {"device": device}}
        if not self.machine.event_wait("DEVICE_DELETED", timeout=timeout, match=match):
            raise GuestError(f"not within {timeout:.0f} s: {device} is unplugged")

    def unplug(self, device: str) -> None:
        self.machine.cmd("device_del", id=device)
        self.wait_unplugged(device)

    # -- the device --

    def query(self) -> dict[str, Any]:
        """query-freehint's entry for our device."""
        entries: Any = self.machine.cmd("query-freehint")
        found: dict[str, Any] = next(e for e in entries if e.get("id") == DEVICE_ID)
        return found

    def set_enabled(self, enabled: bool) -> None:
        self.machine.cmd("freehint-set", id=DEVICE_ID, enabled=enabled)

    def flush(self, timeout_ms: int = 10000, compact: bool = False) -> dict[str, Any]:
        """Flush, wait for the end, and return the outcome."""
        started: Any = self.machine.cmd(
            "freehint-flush", id=DEVICE_ID, timeout_ms=timeout_ms, compact=compact
        )
        event = self.machine.event_wait(
            "FREEHINT_FLUSH_COMPLETED",
            timeout=timeout_ms / 1000 + 30,
            match={"data": {"flush-id": started["flush-id"]}},
        )
        if event is None:
            raise GuestError("a flush has not ended")
        outcome: dict[str, Any] = event["data"]
        return outcome

    # -- memory --

    def settle(self, quiet: float = 1.0, timeout: float = 60) -> int:
        """Wait until QEMU's memory has been stable, within 1 MiB, for a while."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            time.sleep(0.1)
            recent = [s.rss for s in self.memory.since(time.monotonic() - quiet)]
            covered = self.memory.samples[0].when < time.monotonic() - quiet
            # On a busy host there may be no samples.
            if covered and recent and max(recent) - min(recent) < MIB:
                return recent[-1]
        raise GuestError(f"memory has not settled within {timeout:.0f} s")

    def wait_rss_below(
        self, limit: int, timeout: float, since: float | None = None
    ) -> float | None:
        """When QEMU's memory first was at most `limit`; None if it never was.

        Looks at samples from now on, or at those `since` a time as well.
        """
        start = time.monotonic()
        while time.monotonic() < start + timeout:
            for sample in self.memory.since(start if since is None else since):
                if sample.rss <= limit:
                    return sample.when
            time.sleep(0.02)
        return None
