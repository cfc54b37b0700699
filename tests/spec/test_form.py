#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The chapter can become part of the virtio specification as it stands."""

import re
import unittest

import chapter

# What the specification defines, and other device types use. Anything else would have to be
# added to it.
ENVIRONMENTS = {"description", "itemize", "longtable", "lstlisting", "note"}
MACROS = {
    *("section", "subsection", "subsubsection", "paragraph", "label", "ref"),
    *("devicenormative", "drivernormative", "field", "item", "begin", "end"),
    *("emph", "hline", "conformance"),
}
CLAUSES = {
    side: chapter.TEXT.with_name(f"{side}-conformance.tex") for side in ("device", "driver")
}
MAX_WORDS = 4500


class Form(unittest.TestCase):
    def test_no_environment_is_private(self) -> None:
        used = set(re.findall(r"\\begin\{(\w+)\}", chapter.text()))
        self.assertEqual(used - ENVIRONMENTS, set())

    def test_no_macro_is_private(self) -> None:
        for path in (chapter.TEXT, *CLAUSES.values()):
            used = set(re.findall(r"\\([A-Za-z]+)", path.read_text()))
            self.assertEqual(used - MACROS, set(), path.name)

    def test_it_is_short(self) -> None:
        self.assertLess(len(chapter.text().split()), MAX_WORDS)

    def test_references_lead_somewhere(self) -> None:
        labels = re.findall(r"\\label\{([^}]*)\}", chapter.text())
        self.assertEqual(len(labels), len(set(labels)))
        sections = chapter.normative_sections()
        known = {*labels, *sections["device"], *sections["driver"]}
        for path in (chapter.TEXT, *CLAUSES.values()):
            used = set(re.findall(r"\\ref\{([^}]*)\}", path.read_text()))
            self.assertEqual(used - known, set(), path.name)

    def test_clauses_name_all_normative_sections(self) -> None:
        for side, sections in chapter.normative_sections().items():
            clause = re.findall(r"\\item \\ref\{([^}]*)\}", CLAUSES[side].read_text())
            self.assertGreater(len(sections), 5)
            self.assertEqual(clause, sections, f"{side}: other sections, or another order")


if __name__ == "__main__":
    unittest.main()
