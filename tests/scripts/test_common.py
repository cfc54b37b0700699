# SPDX-License-Identifier: GPL-2.0-or-later
"""scripts/lib/common.sh, which the scripts share."""

import subprocess
import tempfile
import unittest
from pathlib import Path

COMMON = Path(__file__).resolve().parents[2] / "scripts" / "lib" / "common.sh"


class LongStepTest(unittest.TestCase):
    def step(self, body: str) -> tuple[int, str]:
        """The status and the log of a script with one step."""
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "step.log"
            script = (
                f"set -euo pipefail; . {COMMON}\n"
                f"step() {{ {body}; }}\n"
                f"long_step 'one step' {log} step\n"
                "echo went on"
            )
            done = subprocess.run(
                ["bash", "-c", script], capture_output=True, text=True, timeout=60
            )
            self.assertEqual("went on" in done.stdout, done.returncode == 0)
            return done.returncode, log.read_text()

    def test_a_step_that_succeeds(self) -> None:
        self.assertEqual(self.step("echo said"), (0, "said\n"))

    def test_a_step_ends_at_its_first_error(self) -> None:
        status, log = self.step("echo before; false; echo after")
        self.assertNotEqual(status, 0)
        self.assertEqual(log, "before\n")


if __name__ == "__main__":
    unittest.main()
