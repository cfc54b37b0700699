# SPDX-License-Identifier: GPL-2.0-or-later
"""freehint-top in a terminal (tmux). Every wait is for something on the screen."""

import mmap
import os
import re
import subprocess
import tempfile
import unittest
from pathlib import Path

from fake_qmp import MIB, FakeVM, QmpClient, recorded
from programs import TOP, wait_for

KEYS = " q quit "


class Terminal:
    """A program in a terminal of the given size. A context manager."""

    def __init__(self, folder: Path, columns: int, rows: int, command: str) -> None:
        self._tmux = ("tmux", "-S", str(folder / "tmux"), "-f", "/dev/null", "-u")
        self._size = ("-x", str(columns), "-y", str(rows))
        self._command = command

    def __enter__(self) -> "Terminal":
        self.tmux("new-session", "-d", "-s", "top", *self._size, self._command)
        return self

    def __exit__(self, *_: object) -> None:
        self.tmux("kill-server", check=False)

    def tmux(self, *arguments: str, check: bool = True) -> str:
        done = subprocess.run(
            [*self._tmux, *arguments],
            env=os.environ | {"LC_ALL": "C.UTF-8", "TERM": "xterm-256color"},
            capture_output=True,
            text=True,
            check=check,
        )
        return done.stdout

    def lines(self, *options: str) -> list[str]:
        return self.tmux("capture-pane", "-p", *options).splitlines()

    def wait(self, pattern: str) -> list[str]:
        """Wait until the pattern is on the screen, and return the screen."""

        def shown() -> list[str]:
            lines = self.lines()
            return lines if re.search(pattern, "\n".join(lines), re.M) else []

        try:
            found: list[str] = wait_for(pattern, shown)
        except AssertionError as error:
            raise AssertionError("\n".join([str(error), *self.lines()])) from error
        return found

    def press(self, *keys: str) -> None:
        self.tmux("send-keys", "-t", "top", *keys)

    def resize(self, columns: int, rows: int) -> None:
        self.tmux("resize-window", "-t", "top", "-x", str(columns), "-y", str(rows))

    def has_ended(self) -> bool:
        return not self.tmux("list-sessions", check=False)


class LiveTest(unittest.TestCase):
    def setUp(self) -> None:
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.vms = [
            self.enterContext(
                FakeVM(self.folder, name, recorded(answer), memory=mib * MIB, step=step)
            )
            for name, answer, mib, step in (
                ("ant", "active", 512, 32 * MIB),
                ("bee", "locked", 4096, 0),
                ("cat", "active", 2048, 0),
            )
        ]
        paths = " ".join(str(vm.path) for vm in self.vms)
        command = f"{TOP} --interval=0.2 {paths}"
        self.terminal = self.enterContext(Terminal(self.folder, 80, 24, command))

    @staticmethod
    def order(lines: list[str]) -> str:
        return "".join(line[0] for line in lines if re.match("(ant|bee|cat) ", line))

    def wait_order(self, order: str) -> None:
        wait_for(order, lambda: self.order(self.terminal.lines()) == order)

    def test_rows_and_their_order(self) -> None:
        terminal = self.terminal
        lines = terminal.wait("^cat .* active$")
        self.assertIn("3 VMs: 2 working, 1 not working", lines[0])
        # The VM that does not work comes first and is selected; the last lines say why.
        self.assertEqual(self.order(lines), "bac")
        terminal.wait("^guest memory is locked by -overcommit mem-lock")
        terminal.wait(r"^bee +4.0G .* vetoed: locked$")
        # The rate takes two looks.
        terminal.wait(r"^ant +512M .* [1-9]\d*M  active$")
        for keys, order in (
            ("s", "abc"),  # by name
            ("r", "cba"),
            ("rs", "bca"),  # by size
            ("S", "abc"),
        ):
            terminal.press(*keys)
            self.wait_order(order)

    def test_what_works_is_green(self) -> None:
        self.terminal.wait("^cat .* active$")
        text = "\n".join(self.terminal.lines("-e"))
        # A colour applies until the next one.
        colours = {
            name: re.findall(r"\x1b\[(?:\d+;)*(3\d)[;m]", text[: text.index(name)])[-1]
            for name in ("ant", "bee", "cat")
        }
        self.assertEqual(colours, {"ant": "32", "bee": "31", "cat": "32"})

    def test_a_page_of_one_vm(self) -> None:
        terminal = self.terminal
        terminal.wait("^cat .* active$")
        terminal.press("Down", "Enter")
        terminal.wait(r"^ant, device fh0, pid \d+: active \(working\)")
        terminal.wait(r"^discarded/s +[1-9]\d*M .*█")
        terminal.wait(r"^guest free +439M +[▁▂▃▄▅▆▇█]{3,}$")
        terminal.wait(r"guest_free_bytes +439M")
        terminal.press("Up")
        terminal.wait(r"^bee, .*: vetoed: locked \(not working\)")
        terminal.wait("^locked: guest memory is locked by -overcommit mem-lock")
        terminal.press("Escape")
        terminal.wait("^NAME +MEMORY")

    def test_a_map(self) -> None:
        terminal, ant = self.terminal, self.vms[0]
        terminal.wait("^cat .* active$")
        # Eight granules of this process play the guest's memory.
        ant.ram = mmap.mmap(-1, 16 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        ant.ram.madvise(mmap.MADV_NOHUGEPAGE)
        terminal.press("Down", "Enter", "m")
        terminal.wait("^ant, device fh0")
        terminal.wait("^map: a cell is 1 granule of 2.0M; · not in host memory, █ all of it$")
        terminal.wait("^·{8}$")
        ant.ram[2 * MIB] = 1
        ant.ram[4 * MIB : 6 * MIB] = b"x" * (2 * MIB)
        terminal.wait("^·░█·{5}$")
        # Discarded, as by the device.
        ant.ram.madvise(mmap.MADV_DONTNEED, 4 * MIB, 2 * MIB)
        terminal.wait("^·░·{6}$")
        for columns, rows in ((30, 8), (80, 24)):
            terminal.resize(columns, rows)
            wait_for("its keys", lambda: terminal.lines()[-1].startswith(" q/Esc back"))
        terminal.wait("^·░·{6}$")
        terminal.press("m")
        terminal.wait(r"guest_free_bytes +439M")
        # While the monitor is busy there is no map.
        with QmpClient(ant.path):
            terminal.press("m")
            terminal.wait("^map: QEMU cannot be asked$")

    def test_another_size(self) -> None:
        terminal = self.terminal
        terminal.wait("^cat .* active$")
        for columns, rows in ((140, 40), (30, 8), (80, 24)):
            terminal.resize(columns, rows)

            def fits() -> bool:
                lines = terminal.lines()
                return len(lines) == rows and lines[-1].startswith(KEYS)

            wait_for(f"{columns} columns, {rows} rows", fits)
            wide = terminal.wait("^bee +4.0G")
            self.assertEqual("vetoed: locked" in "\n".join(wide), columns > 70)
            # The page fits, too.
            terminal.press("Enter")
            terminal.wait("^bee, device fh0")
            terminal.press("q")
            terminal.wait("^NAME +MEMORY")

    def test_more_vms_than_rows(self) -> None:
        self.terminal.resize(80, 7)
        wait_for("two rows", lambda: len(self.order(self.terminal.lines())) == 2)
        self.wait_order("ba")
        self.terminal.press("Down", "Down")
        self.wait_order("ac")
        self.terminal.press("Up", "Up")
        self.wait_order("ba")

    def test_a_monitor_that_somebody_uses(self) -> None:
        terminal, ant = self.terminal, self.vms[0]
        terminal.wait("^ant .* active$")
        # A client that connects during a look has to wait for its end.
        with QmpClient(ant.path) as client:
            terminal.wait("^ant .* busy$")
            clients = ant.clients
            looks = self.vms[2].asked
            wait_for("some looks", lambda: self.vms[2].asked > looks + 2)
            self.assertEqual(client.cmd("query-name"), {"name": "ant"})
            self.assertEqual(ant.clients, clients)
        terminal.wait("^ant .* active$")

    def test_a_vm_that_ends(self) -> None:
        self.terminal.wait("^cat .* active$")
        self.vms[2].path.rename(self.folder / "elsewhere")
        self.terminal.wait("^cat .* gone$")
        (self.folder / "elsewhere").rename(self.vms[2].path)
        self.terminal.wait("^cat .* active$")

    def test_it_ends(self) -> None:
        self.terminal.wait("^cat .* active$")
        self.terminal.press("q")
        wait_for("the end", self.terminal.has_ended)


if __name__ == "__main__":
    unittest.main()
