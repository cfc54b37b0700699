# SPDX-License-Identifier: GPL-2.0-or-later
"""A debugger that reads memory can populate discarded memory."""

import socket
import tempfile
import unittest
from pathlib import Path

from freehint_vm import FreehintVM
from guest_driver import GuestDriver, wait_for


class Debugger:
    """gdb's remote protocol, as far as reading memory needs it."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self._stream = self._socket.makefile("rwb")
        self.ask("?")

    def ask(self, command: str) -> str:
        text = command.encode()
        self._stream.write(b"+$%s#%02x" % (text, sum(text) % 256))
        self._stream.flush()
        answer = b""
        while not answer.endswith(b"#"):
            read = self._stream.read(1)
            assert read, f"no answer to {command}"
            answer += read
        self._stream.read(2)
        return answer.lstrip(b"+$").rstrip(b"#").decode()

    def leave(self) -> None:
        """Let the guest continue."""
        self.ask("D")
        self._stream.close()
        self._socket.close()


class GdbTest(unittest.TestCase):
    def test_the_epoch_moves_when_memory_was_read(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "gdb"
            server = ("-gdb", f"unix:{path},server=on,wait=off")
            with FreehintVM(memory_mib=256, extra_args=server) as vm:
                driver = GuestDriver(vm)
                driver.settle()
                epoch = vm.query()["rehint-epoch"]
                Debugger(path).leave()
                driver.settle()
                self.assertEqual(vm.query()["rehint-epoch"], epoch)

                debugger = Debugger(path)
                self.assertEqual(debugger.ask("Qqemu.PhyMemMode:1"), "OK")
                self.assertEqual(len(debugger.ask("m100000,10")), 2 * 16)
                hints = vm.query()["stats"]["hinted"]["ranges"]
                debugger.leave()
                wait_for("the epoch moves", lambda: vm.query()["rehint-epoch"] != epoch)
                wait_for(
                    "memory is hinted again",
                    lambda: vm.query()["stats"]["hinted"]["ranges"] > hints,
                )


if __name__ == "__main__":
    unittest.main()
