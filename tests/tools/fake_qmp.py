# SPDX-License-Identifier: GPL-2.0-or-later
"""QMP sockets without QEMU, to play any number of VMs in any state."""

import copy
import ctypes
import json
import mmap
import os
import socket
import threading
from pathlib import Path
from typing import Any

RECORDED = Path(__file__).resolve().parent / "recorded"
MIB = 1 << 20


def recorded(name: str) -> list[dict[str, Any]]:
    """A recorded answer of query-freehint; the first line of the file is the licence."""
    text = (RECORDED / f"{name}.json").read_text()
    answer: list[dict[str, Any]] = json.loads(text.partition("\n")[2])
    return answer


class FakeVM:
    """Serves one client at a time, as QEMU does. A context manager.

    Between two queries it discards `step` bytes. If it is `mute` it accepts clients and
    does not answer. `ram` stands for its guest's memory.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        answer: list[dict[str, Any]] | None,
        *,
        memory: int = 512 * MIB,
        step: int = 0,
        mute: bool = False,
        ram: mmap.mmap | None = None,
    ) -> None:
        self.path = folder / f"{name}.sock"
        self.name = name
        self.answer = copy.deepcopy(answer)
        self.memory = memory
        self.step = step
        self.mute = mute
        self.ram = ram
        self.clients = 0
        self.asked = 0
        self._listener = socket.socket(socket.AF_UNIX)
        self._client: socket.socket | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "FakeVM":
        self._listener.bind(str(self.path))
        self._listener.listen(1)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        if self._client:
            try:
                self._client.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        self._thread.join(timeout=10)
        self._listener.close()
        os.unlink(self.path)

    def _run(self) -> None:
        while True:
            try:
                self._client, _ = self._listener.accept()
            except OSError:
                return
            self.clients += 1
            try:
                with self._client, self._client.makefile("rwb") as stream:
                    self._converse(stream)
            except OSError:
                pass

    def _converse(self, stream: Any) -> None:
        def say(message: dict[str, Any]) -> None:
            stream.write(json.dumps(message).encode() + b"\r\n")
            stream.flush()

        if not self.mute:
            say({"QMP": {"version": {}, "capabilities": ["oob"]}})
        for line in stream:
            if self.mute:
                continue
            request = json.loads(line)
            # An event can come at any time.
            say({"event": "RTC_CHANGE", "data": {"offset": 0}})
            say(self._reply(request["execute"]) | {"id": request["id"]})

    def _blocks(self) -> str:
        """The answer of x-query-ramblock, with a block that is not guest memory."""
        lines = ["Block Name PSize Offset Used Total HVA RO"]
        lines.append("pc.bios 256 KiB 0x0 0x40000 0x40000 0x0 ro")
        if self.ram:
            address = ctypes.addressof(ctypes.c_char.from_buffer(self.ram))
            size = len(self.ram)
            lines.append(f"/objects/ram 4 KiB 0x0 {size:#x} {size:#x} {address:#x} rw")
        return "\n".join(lines)

    def _reply(self, command: str) -> dict[str, Any]:
        if command == "query-freehint" and self.answer is None:
            error = {"class": "CommandNotFound", "desc": "there is no such command"}
            return {"error": error}
        self.asked += command == "query-freehint"
        if command == "query-freehint" and self.answer and self.step:
            self.answer[0]["stats"]["discarded"]["bytes"] += self.step
        return {
            "return": {
                "qmp_capabilities": {},
                "query-name": {"name": self.name},
                "query-memory-size-summary": {
                    "base-memory": self.memory,
                    "plugged-memory": 0,
                },
                "query-freehint": self.answer,
                "query-memdev": [{"id": "ram"}],
                "x-query-ramblock": {"human-readable-text": self._blocks()},
            }[command]
        }


class QmpClient:
    """Another client of a monitor."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(30)
        self._socket.connect(str(path))
        self._stream = self._socket.makefile("rwb")
        self.greeting = json.loads(self._stream.readline())

    def __enter__(self) -> "QmpClient":
        self.cmd("qmp_capabilities")
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        self._socket.close()

    def cmd(self, command: str) -> Any:
        self._stream.write(json.dumps({"execute": command, "id": command}).encode())
        self._stream.write(b"\n")
        self._stream.flush()
        while True:
            message = json.loads(self._stream.readline())
            if message.get("id") == command:
                return message["return"]
