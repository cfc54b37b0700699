# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU for other machines with the device, and for all of them without it."""

import json
import os
import subprocess
import unittest
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("FREEHINT_BUILD", PROJECT / "build"))

MACHINES = {
    "x86_64": ("q35",),
    "aarch64": ("virt",),
    # It does not start without firmware. Any small file will do, as it is not run.
    "s390x": ("s390-ccw-virtio", "-bios", str(BUILD / "versions.qemu")),
}
# The transports of the device on each machine.
TRANSPORTS = (("aarch64", "pci"), ("s390x", "pci"), ("s390x", "ccw"))
DEVICE = ("-device", "virtio-freehint-pci,id=fh0")


def start(folder: str, target: str, *args: str, commands: str = "") -> Any:
    """Start a machine that is not run, and send it QMP commands."""
    options = ("-nodefaults", "-display", "none", "-S", "-qmp", "stdio")
    return subprocess.run(
        [f"./qemu-system-{target}", "-M", *MACHINES[target], *options, *args],
        cwd=BUILD / folder,
        input=commands,
        text=True,
        capture_output=True,
        timeout=120,
        check=False,
    )


def ask(folder: str, target: str, *args: str, command: dict[str, Any]) -> dict[str, Any]:
    """The answer to one command."""
    commands = [{"execute": "qmp_capabilities"}, command, {"execute": "quit"}]
    done = start(
        folder, target, *args, commands="\n".join(json.dumps(c) for c in commands)
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    answers = [a for a in answers if "return" in a or "error" in a]
    if len(answers) < 2:
        raise AssertionError(f"{target}: {done.stdout}{done.stderr}")
    answer: dict[str, Any] = answers[1]
    return answer


class PortsTest(unittest.TestCase):
    def test_the_device_starts(self) -> None:
        query = {"execute": "query-freehint"}
        for target, transport in TRANSPORTS:
            with self.subTest(target, transport=transport):
                args = ("-device", f"virtio-freehint-{transport},id=fh0")
                answer = ask("qemu-ports", target, *args, command=query)
                (device,) = answer["return"]
                self.assertEqual((device["id"], device["state"]), ("fh0", "active"))
                self.assertGreaterEqual(device["granule"], os.sysconf("SC_PAGESIZE"))


class OffTest(unittest.TestCase):
    """What a management tool that knows the device sees in a QEMU without it."""

    def test_there_is_no_device(self) -> None:
        for target in MACHINES:
            with self.subTest(target):
                refused = start("qemu-off", target, *DEVICE)
                self.assertEqual(refused.returncode, 1)
                self.assertIn("not a valid device model name", refused.stderr)

    def test_none_is_found(self) -> None:
        for target in MACHINES:
            with self.subTest(target):
                query = {"execute": "query-freehint"}
                self.assertEqual(ask("qemu-off", target, command=query)["return"], [])
                info = {
                    "execute": "human-monitor-command",
                    "arguments": {"command-line": "info freehint"},
                }
                answer = ask("qemu-off", target, command=info)["return"]
                self.assertIn("there is no virtio-freehint device", answer)

    def test_commands_say_so(self) -> None:
        commands: list[tuple[str, dict[str, Any]]] = [
            ("freehint-set", {"id": "fh0", "enabled": False}),
            ("freehint-flush", {"id": "fh0"}),
        ]
        for target in MACHINES:
            for name, arguments in commands:
                with self.subTest(target, command=name):
                    command = {"execute": name, "arguments": arguments}
                    error = ask("qemu-off", target, command=command)["error"]
                    self.assertEqual(error["class"], "GenericError")
                    self.assertIn("no virtio-freehint device 'fh0'", error["desc"])


if __name__ == "__main__":
    unittest.main()
