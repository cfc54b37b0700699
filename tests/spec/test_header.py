#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The shared header says what the specification's text says.

Layouts and values are read from the text and turned into static assertions, with which
the compiler checks the header.
"""

import os
import re
import shlex
import subprocess
import unittest

import chapter


def compile_errors(assertions: list[str]) -> str:
    """The compiler's errors about the assertions; empty if all hold."""
    source = f'#include <stddef.h>\n#include "{chapter.HEADER}"\n'
    source += "".join(f'_Static_assert({a}, "{a}");\n' for a in assertions)
    command = [
        *shlex.split(os.environ.get("CC", "cc")),
        *("-std=gnu11", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-xc", "-"),
    ]
    done = subprocess.run(command, input=source, text=True, capture_output=True)
    return done.stderr


class Header(unittest.TestCase):
    def assert_compiles(self, assertions: list[str]) -> None:
        self.assertTrue(assertions, "the text gives nothing to check")
        self.assertEqual(compile_errors(assertions), "")

    def test_layouts(self) -> None:
        fields = chapter.fields()
        assertions = []
        for field in fields:
            member = f"((struct {field.struct} *)0)->{field.name}"
            offset = f"offsetof(struct {field.struct}, {field.name})"
            assertions.append(f"{offset} == {field.offset}")
            assertions.append(f"sizeof({member}) == {field.size}")
        for struct in {f.struct for f in fields}:
            size = sum(f.size for f in fields if f.struct == struct)
            assertions.append(f"sizeof(struct {struct}) == {size}")
        self.assert_compiles(assertions)

    def test_values(self) -> None:
        values = chapter.constants() | {"VIRTIO_ID_FREEHINT": chapter.device_id()}
        self.assert_compiles([f"{name} == {value}" for name, value in values.items()])

    def test_header_has_nothing_that_the_text_lacks(self) -> None:
        header = chapter.HEADER.read_text()
        named = set(re.findall(r"^\s*(?:#define )?(VIRTIO_FREEHINT_\w+)\s+[=(\d]", header, re.M))
        # The text gives this one by position, not by name.
        named -= {"VIRTIO_FREEHINT_VQ_HINT"}
        self.assertGreater(len(named), 20)
        self.assertEqual(named - set(chapter.constants()), set())

    def test_every_structure_is_in_the_text(self) -> None:
        header = chapter.HEADER.read_text()
        structs = set(re.findall(r"^struct (\w+) \{", header, re.M))
        self.assertEqual(structs, {f.struct for f in chapter.fields()})

    def test_the_compiler_can_fail(self) -> None:
        self.assertIn("static assertion failed", compile_errors(["VIRTIO_ID_FREEHINT == 0"]))


if __name__ == "__main__":
    unittest.main()
