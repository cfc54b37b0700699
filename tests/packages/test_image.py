# SPDX-License-Identifier: GPL-2.0-or-later
"""scripts/demo --image, with Debian images such as users have."""

import contextlib
import hashlib
import http.server
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
import unittest
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("FREEHINT_BUILD", PROJECT / "build"))
IMAGES = BUILD / "image"
# Debian boots in one to three minutes, and DKMS builds for as long.
PATIENCE_S = 1200


def digest(image: Path) -> str:
    with image.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def start_demo(image: Path, *options: str) -> subprocess.Popen[str]:
    script = str(PROJECT / "scripts" / "demo")
    command = [script, "--no-deps", "--image", str(image), *options]
    return subprocess.Popen(
        command,
        env=os.environ | {"FREEHINT_BUILD": str(BUILD)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def table(output: str) -> dict[str, int]:
    """The sizes that the demo prints at its end, in MiB."""
    _, _, text = output.partition("QEMU's memory on the host")
    return {name: int(size) for name, size in re.findall(r"^  (\S.*?) +(\d+) MiB$", text, re.M)}


def answer(output: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(output.partition("query-freehint:\n")[2])
    return found


class Console:
    """A guest's console, from its beginning."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
                self._socket.connect(path)
                break
            if time.monotonic() > deadline:
                raise TimeoutError(f"nobody listens at {path}")
            time.sleep(0.1)
        self._socket.settimeout(PATIENCE_S)

    def expect(self, pattern: bytes) -> None:
        seen = b""
        while not re.search(pattern, seen):
            seen += self._socket.recv(4096) or b"\0" * 10000
            if len(seen) > 1 << 20 or seen.endswith(b"\0" * 10000):
                raise EOFError(f"{pattern!r} is not in {seen[-2000:]!r}")

    def type(self, text: str) -> None:
        self._socket.sendall(f"{text}\n".encode())

    def close(self) -> None:
        self._socket.close()


class QemuTest(unittest.TestCase):
    def test_it_has_what_a_vm_needs_and_nothing_for_tests(self) -> None:
        qemu = BUILD / "qemu-demo" / "qemu-system-x86_64"
        devices = subprocess.check_output([qemu, "-device", "help"], text=True)
        for name in "virtio-freehint-pci", "virtio-net-pci", "virtio-blk-pci":
            self.assertIn(f'name "{name}"', devices)
        self.assertNotIn("testdev", devices)


class ImageTest(unittest.TestCase):
    def setUp(self) -> None:
        if not (IMAGES / "debian.qcow2").exists():
            self.skipTest("no image was built: scripts/build-image needs root")

    def start(self, image: Path, *options: str) -> subprocess.Popen[str]:
        """Start the demo, which must not write to the image."""
        before = digest(image)
        self.addCleanup(lambda: self.assertEqual(digest(image), before, "it was written to"))
        demo = start_demo(image, *options)
        self.addCleanup(demo.communicate)
        # Its QEMU ends with it.
        self.addCleanup(demo.send_signal, signal.SIGINT)
        return demo

    def check(self, demo: subprocess.Popen[str]) -> None:
        output, _ = demo.communicate(timeout=2 * PATIENCE_S)
        self.assertEqual(demo.returncode, 0, output)
        sizes = table(output)
        used = sizes["peak"] - sizes["before toucher"]
        self.assertGreater(used, 900, output)
        self.assertLess(sizes["at the end"], sizes["peak"] - 0.9 * used, output)
        device = answer(output)
        self.assertEqual(device["driver-status"], "active", output)
        self.assertGreater(device["stats"]["discarded"]["bytes"], 1 << 30, output)

    def test_memory_comes_back(self) -> None:
        self.check(self.start(IMAGES / "debian.qcow2"))

    def test_a_guest_without_cloud_init_needs_one_command(self) -> None:
        demo = self.start(IMAGES / "no-cloud-init.qcow2")
        assert demo.stdout
        said = ""
        while not (found := re.search(r"unix:(\S+)\):\n\n  (.*)\n", said)):
            said += demo.stdout.readline() or self.fail(said)
        console = Console(found[1])
        self.addCleanup(console.close)
        console.expect(b"login: ")
        console.type("root")
        console.expect(rb"root@debian:.*# ")
        with self.asked() as url:
            console.type("dhclient $(basename $(ls -d /sys/class/net/en*))")
            console.expect(rb"root@debian:.*# ")
            console.type(f"python3 -c 'import urllib.request as u; u.urlopen(\"{url}\")'")
            console.expect(rb"root@debian:.*# ")
        console.type(found[2])
        self.check(demo)

    @contextlib.contextmanager
    def asked(self) -> Any:
        """Serve a page on this host; yield its address for a guest, which must fetch it."""
        paths = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                paths.append(self.path)
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://10.0.2.2:{server.server_port}/page"
        finally:
            server.shutdown()
            server.server_close()
        self.assertEqual(paths, ["/page"], "the guest has no network")

    def test_a_guest_that_does_not_answer(self) -> None:
        demo = self.start(IMAGES / "no-cloud-init.qcow2", "--patience", "3")
        output, _ = demo.communicate(timeout=120)
        self.assertEqual(demo.returncode, 1, output)
        self.assertIn("no answer from the guest within 3 s", output)


if __name__ == "__main__":
    unittest.main()
