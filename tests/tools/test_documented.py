# SPDX-License-Identifier: GPL-2.0-or-later
"""Man pages, alert rules and dashboard match the programs."""

import re
import tempfile
import unittest
from pathlib import Path

from programs import EXPORTER, TOOLS, TOP, run

WORD = re.compile(r"\bfreehint_\w+")


def exported() -> dict[str, str]:
    """All metrics, with their help texts."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "metrics"
        texts = []
        for option in ("/nowhere", "--guest"):
            run(EXPORTER, f"--textfile={file}", option)
            texts.append(file.read_text())
    return dict(re.findall("^# HELP (\\w+) (.*)", "\n".join(texts), re.M))


class DocumentedTest(unittest.TestCase):
    def test_each_option_is_in_the_man_page(self) -> None:
        for program in (TOP, EXPORTER):
            with self.subTest(program.name):
                page = (TOOLS / f"{program.name}.1").read_text()
                entries = re.findall(r"^\.TP\n\.BR? (.*)", page, re.M)
                said = run(program, "--help").stdout
                options = {
                    (short, long)
                    for short, long in re.findall(r"^ +(?:-(\S), )?--([\w-]+)", said, re.M)
                }
                self.assertGreater(len(options), 5)
                documented = {
                    (short, long.replace("\\", ""))
                    for entry in entries
                    for short, long in re.findall(
                        r'^(?:\\-(\w) ", " )?\\-\\-([\w\\-]+)', entry
                    )
                }
                self.assertEqual(documented, options)

    def test_man_has_no_complaint(self) -> None:
        for program in (TOP, EXPORTER):
            page = TOOLS / f"{program.name}.1"
            done = run("man", "--warnings", "-Tutf8", "-l", page)
            self.assertEqual(done.stderr, "")
            self.assertGreater(len(done.stdout), 1000)

    def test_each_metric_is_in_the_man_page(self) -> None:
        page = (TOOLS / "freehint-exporter.1").read_text()
        entries = re.findall(r"^\.TP\n\.B (freehint_\w+)\n(.+?)(?=\n\.)", page, re.M | re.S)
        told = {name: " ".join(text.split()) for name, text in entries}
        told = {name: text.partition(" Label: ")[0] for name, text in told.items()}
        self.assertEqual(told, exported())

    def test_metrics_have_units(self) -> None:
        for name in exported():
            with self.subTest(name):
                unit = "(bytes|seconds)(_total)?$|_total$"
                # These are 0 or 1.
                words = "problem|state|driver_status|last_flush|obstacle|monitor_up|works"
                self.assertRegex(name, f"{unit}|^freehint_({words})$")

    def test_rules_and_dashboard_ask_for_what_there_is(self) -> None:
        for name in ("alerts.yml", "dashboard.json"):
            with self.subTest(name):
                asked = set(WORD.findall((TOOLS / name).read_text()))
                self.assertGreater(len(asked), 5)
                self.assertLessEqual(asked, set(exported()))

    def test_problems_are_in_the_man_page(self) -> None:
        header = (TOOLS / "monitor.h").read_text()
        words = re.findall(r"^ {5}\*   ([a-z-]+) ", header, re.M)
        code = (TOOLS / "monitor.c").read_text()
        pattern = r'(?:set_problem\([^;"]*|G_IO_ERROR_\w+, )"([a-z-]+)"'
        set_here = set(re.findall(pattern, code))
        page = (TOOLS / "freehint-top.1").read_text()
        self.assertGreater(len(words), 5)
        self.assertEqual(set_here, set(words))
        for word in words:
            self.assertIn(f"\n.B {word}\n", page)


if __name__ == "__main__":
    unittest.main()
