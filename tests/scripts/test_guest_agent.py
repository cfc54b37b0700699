# SPDX-License-Identifier: GPL-2.0-or-later
"""tests/functional/freehint_vm.py: the host's end of the guest's agent."""

import socket
import sys
import unittest
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT / "tests" / "functional"))

from freehint_vm import GuestAgent  # noqa: E402


class GuestAgentTest(unittest.TestCase):
    def agent(self, origin: GuestAgent | None = None) -> tuple[GuestAgent, socket.socket]:
        host_end, guest_end = socket.socketpair()
        agent = GuestAgent(host_end, origin)
        self.addCleanup(agent.close)
        self.addCleanup(guest_end.close)
        return agent, guest_end

    def test_a_command_whose_end_is_the_first_that_comes(self) -> None:
        """As when it ends right after the guest has moved."""
        there, _ = self.agent()
        command = there.start("stress")
        here, guest = self.agent(there)
        guest.sendall(b"1 out pattern\n1 end 3 123456\n")
        result = here.finish(command, 10)
        self.assertEqual((result.status, result.output), (3, "pattern"))
        self.assertGreaterEqual(result.ended, result.started)


if __name__ == "__main__":
    unittest.main()
