#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""build-spec adds the chapter to a virtio specification in the right places."""

import re
import sys
import tempfile
import unittest
from pathlib import Path

import chapter

sys.path.insert(0, str(chapter.ROOT / "scripts" / "lib"))

import virtio_spec  # noqa: E402

# The parts of the virtio specification that change.
CONTENT = r"""
\begin{longtable}{ |l|c| }
\end{longtable}
\chapter{Device Types}\label{sec:Device Types}
\begin{longtable} { |l|c| }
\hline
49         &   USB controller \\
\hline
\end{longtable}
\input{device-types/net/description.tex}
\input{device-types/rtc/description.tex}

\chapter{Reserved Feature Bits}
\begin{longtable}{ |l|c| }
\end{longtable}
"""
TARGETS = r"""
\ref{sec:Conformance / SIDE Conformance / PCI SIDE Conformance} or
\ref{sec:Conformance / SIDE Conformance / Channel I/O SIDE Conformance}.
\ref{sec:Conformance / SIDE Conformance / Media SIDE Conformance} or
\ref{sec:Conformance / SIDE Conformance / RTC SIDE Conformance}.
"""
CLAUSES = r"""
\input{device-types/rtc/SIDE-conformance.tex}
"""
CONFORMANCE = "".join(
    TARGETS.replace("SIDE", side) + CLAUSES.replace("SIDE", side.lower())
    for side in ("Driver", "Device")
)


class Tree(unittest.TestCase):
    def setUp(self) -> None:
        self.tree = Path(self.enterContext(tempfile.TemporaryDirectory()))
        (self.tree / "content.tex").write_text(CONTENT)
        (self.tree / "conformance.tex").write_text(CONFORMANCE)

    def added(self, name: str, before: str) -> list[str]:
        lines = before.splitlines()
        return [x for x in (self.tree / name).read_text().splitlines() if x not in lines]

    def test_the_id_is_in_the_table(self) -> None:
        virtio_spec.step_id(self.tree)
        text = (self.tree / "content.tex").read_text()
        row = f"{chapter.device_id()}         &   free memory hint device"
        self.assertRegex(text, rf"USB controller \\\\\n\\hline\n{row} \\\\\n\\hline\n\\end")
        self.assertEqual(len(self.added("content.tex", CONTENT)), 1)

    def test_the_chapter_is_the_last_device_type(self) -> None:
        virtio_spec.step_chapter(self.tree)
        text = (self.tree / "content.tex").read_text()
        self.assertIn(r"rtc/description.tex}" "\n" r"\input{device-types/freehint/", text)
        for name in virtio_spec.FILES:
            copy = (self.tree / virtio_spec.FOLDER / name).read_text()
            self.assertNotRegex(copy, re.compile("^%", re.M), "a label or a licence")
            self.assertIn("Free Memory Hint", copy)

    def test_the_clauses_are_among_those_to_choose(self) -> None:
        virtio_spec.step_chapter(self.tree)
        text = (self.tree / "conformance.tex").read_text()
        for side in ("Driver", "Device"):
            where = rf"\ref{{sec:Conformance / {side} Conformance"
            self.assertIn(
                f"{where} / Media {side} Conformance}},\n"
                f"{where} / RTC {side} Conformance}} or\n"
                f"{where} / Free Memory Hint {side} Conformance}}.\n",
                text,
            )
            self.assertIn(f"/PCI {side} Conformance}} or\n".replace("/", "/ "), text)
            self.assertIn(f"freehint/{side.lower()}-conformance.tex", text)

    def test_another_tree_is_refused(self) -> None:
        for name in ("content.tex", "conformance.tex"):
            (self.tree / name).write_text("")
        for step in (virtio_spec.step_id, virtio_spec.step_chapter):
            with self.assertRaises(virtio_spec.TreeError):
                step(self.tree)


if __name__ == "__main__":
    unittest.main()
