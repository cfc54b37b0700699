# SPDX-License-Identifier: GPL-2.0-or-later
"""Tables in the documentation say what the code says."""

import re
import unittest
from pathlib import Path

GUEST = Path(__file__).resolve().parents[2] / "guest-driver"


def life_in_code() -> dict[str, str]:
    """Of each event, the state after it, by the state before."""
    code = (GUEST / "mm/freehint/state.c").read_text()
    rows = re.findall(r"\[FH_(\w+)\]\s*= LIFE\((.*?)\)", code)
    names = re.findall(r"^#define (\w) FH_", code, re.M)
    return {"event": "".join(names)} | {
        event.lower(): "".join(re.findall(r"\w+", states)).replace("ERR", "!")
        for event, states in rows
    }


def life_in_words() -> dict[str, str]:
    text = (GUEST / "Documentation/mm/freehint.rst").read_text()
    return dict(re.findall(r"^(\w+) +([UYRDSOLHN!]{9})(?: |$)", text, re.M))


class DocumentedTest(unittest.TestCase):
    def test_the_life_of_a_granule(self) -> None:
        code = life_in_code()
        self.assertGreater(len(code), 10)
        self.assertEqual(life_in_words(), code)


if __name__ == "__main__":
    unittest.main()
