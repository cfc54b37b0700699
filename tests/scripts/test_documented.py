# SPDX-License-Identifier: GPL-2.0-or-later
"""Tables and lists in the documentation say what the code says."""

import re
import unittest
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
GUEST = PROJECT / "guest-driver"
DEVICE = PROJECT / "qemu-device"
GUIDE = PROJECT / "docs/operator-guide.md"
OPTIONS = DEVICE / "docs/system/devices/virtio-freehint.rst"


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


def qapi(kind: str, name: str) -> list[str]:
    """Values of an enumeration, or members of a structure."""
    text = (DEVICE / "qapi/freehint.json").read_text()
    found = re.search(rf"{{ '{kind}': '{name}',\s*'data': ([\[{{].*?[\]}}]) }}", text, re.S)
    assert found, f"QAPI has no {kind} {name}"
    return re.findall(r"'\*?([\w-]+)'(?=:)" if kind == "struct" else r"'([\w-]+)'", found[1])


def section(path: Path, title: str) -> str:
    """What is below a heading of a Markdown file, up to the next one of that level."""
    _, _, rest = path.read_text().partition(f"\n## {title}\n")
    assert rest, f"{path} has no section '{title}'"
    return re.split(r"^## ", rest, flags=re.M)[0]


def quoted(text: str) -> set[str]:
    return set(re.findall(r"`([^`\n]+)`", text))


def sources(folder: Path) -> str:
    files = [*folder.rglob("*.[ch]"), *folder.rglob("*.patch")]
    return "\n".join(path.read_text() for path in files)


class DocumentedTest(unittest.TestCase):
    def test_the_life_of_a_granule(self) -> None:
        code = life_in_code()
        self.assertGreater(len(code), 10)
        self.assertEqual(life_in_words(), code)

    def test_the_guide_knows_each_obstacle(self) -> None:
        """What names it, and in which tables an operator looks it up."""
        words = quoted(section(GUIDE, "What blocks it"))
        words |= quoted(section(GUIDE, "Why did this VM not shrink?"))
        self.assertLessEqual(set(qapi("enum", "FreehintReason")), words)

    def test_the_guide_knows_why_a_guest_does_not_hint(self) -> None:
        statuses = qapi("enum", "FreehintDriverStatus")
        idle = statuses[statuses.index("waiting") + 1 : statuses.index("unknown")]
        self.assertIn("failed", idle)
        words = quoted(section(GUIDE, "Why did this VM not shrink?"))
        self.assertLessEqual(set(idle), words)

    def test_the_guide_names_what_the_device_shows(self) -> None:
        """The first column of the table: what somebody sees who looks for it."""
        members = set(qapi("enum", "FreehintReason"))
        for name in "Info", "Gauges", "Stats", "Rejected":
            members |= set(qapi("struct", f"Freehint{name}"))
        members |= {"query-freehint", "[]", "lazy-..."}
        rows = re.findall(
            r"^\| (.*?) \|", section(GUIDE, "Why did this VM not shrink?"), re.M
        )[2:]
        self.assertGreater(len(rows), 10)
        for row in rows:
            self.assertTrue(quoted(row), row)
            self.assertLessEqual(quoted(row), members, row)

    def test_obstacles_are_listed_in_order(self) -> None:
        _, _, text = OPTIONS.read_text().partition("in ``obstacles``, in this order:")
        table = text.split("\n=====")[1]
        rows = re.findall(r"^``([\w-]+)`` ", table, re.M)
        self.assertEqual(rows, qapi("enum", "FreehintReason"))

    def test_each_setting_is_an_option(self) -> None:
        options = re.findall(r"^``([\w-]+)=", OPTIONS.read_text(), re.M)
        settings = qapi("struct", "FreehintSettings")
        self.assertEqual(set(options[: len(settings) - 1]), set(settings) - {"id"})

    def check_functions(self, text: str, folder: Path, prefix: str = "") -> None:
        code = sources(folder)
        names = re.findall(rf"`({prefix}\w+)\(\)`", text)
        self.assertGreater(len(names), 10)
        gone = [name for name in names if not re.search(rf"\b{name}\(", code)]
        self.assertEqual(gone, [])

    def test_the_way_of_one_address_through_the_guest(self) -> None:
        title = "The way of one address through the guest"
        self.check_functions(section(PROJECT / "docs/design.md", title), GUEST)

    def test_the_way_of_a_hint_through_the_device(self) -> None:
        text = (DEVICE / "docs/devel/virtio-freehint.rst").read_text()
        self.check_functions(text, DEVICE, "freehint_")


if __name__ == "__main__":
    unittest.main()
