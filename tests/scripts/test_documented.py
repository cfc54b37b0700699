# SPDX-License-Identifier: GPL-2.0-or-later
"""Tables and lists in the documentation say what the code says."""

import re
import subprocess
import sys
import tomllib
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts" / "lib"))

import registered  # noqa: E402

PROJECT = registered.PROJECT
GUEST = PROJECT / "guest-driver"
DEVICE = PROJECT / "qemu-device"
GUIDE = PROJECT / "docs/operator-guide.md"
NOT_SHRINKING = PROJECT / "tests/not-shrinking.toml"
OPTIONS = DEVICE / "docs/system/devices/virtio-freehint.rst"
DRIVER = GUEST / "drivers/virtio/freehint"
MAN = PROJECT / "docs/man"
ADMIN = GUEST / "Documentation/admin-guide/mm/freehint.rst"

# The parts of QAPI that the device's page lists, by heading.
LISTS = {
    "Device": ("struct", "Info"),
    "States": ("enum", "State"),
    "Obstacle": ("struct", "Obstacle"),
    "Memory": ("struct", "Memory"),
    "Obstacles": ("enum", "Reason"),
    "Driver status": ("enum", "DriverStatus"),
    "Guest gauges": ("struct", "Gauges"),
    "Flush": ("struct", "Flush"),
    "Flush outcome": ("struct", "FlushOutcome"),
    "Flush results": ("enum", "FlushResult"),
    "Statistics": ("struct", "Stats"),
    "Declined": ("struct", "Declined"),
    "Rejected": ("struct", "Rejected"),
}


def life_in_code() -> dict[str, str]:
    """For each event, the states after it, in the order of the states before it."""
    code = (GUEST / "mm/freehint/state.c").read_text()
    rows = re.findall(r"\[FH_(\w+)\]\s*= LIFE\((.*?)\)", code)
    names = re.findall(r"^#define (\w) FH_", code, re.M)
    return {"event": "".join(names)} | {
        event.lower(): "".join(re.findall(r"\w+", states)).replace("ERR", "!")
        for event, states in rows
    }


def life_in_words() -> dict[str, str]:
    text = (GUEST / "Documentation/mm/freehint.rst").read_text()
    return dict(re.findall(r"^(\w+) +([UYREDSOLZWHN!]{12})(?: |$)", text, re.M))


def qapi(kind: str, name: str) -> list[str]:
    """Values of an enumeration, or members of a structure."""
    text = (DEVICE / "qapi/freehint.json").read_text()
    found = re.search(rf"{{ '{kind}': '{name}',\s*'data': ([\[{{].*?[\]}}]) }}", text, re.S)
    assert found, f"QAPI has no {kind} {name}"
    return re.findall(r"'\*?([\w-]+)'(?=:)" if kind == "struct" else r"'([\w-]+)'", found[1])


def section(path: Path, title: str) -> str:
    """The text below a heading of a Markdown file, up to the next heading of that level."""
    _, _, rest = path.read_text().partition(f"\n## {title}\n")
    assert rest, f"{path} has no section '{title}'"
    return re.split(r"^## ", rest, flags=re.M)[0]


def quoted(text: str) -> set[str]:
    return set(re.findall(r"`([^`\n]+)`", text))


def not_shrinking() -> list[str]:
    """The rows of the table about VMs that do not shrink, by their first column."""
    text = section(GUIDE, "Why did this VM not shrink?")
    return re.findall(r"^\| (.*?) \|", text, re.M)[2:]


def entries(page: str) -> dict[str, list[str]]:
    """The entries below each heading of a man page."""
    text = (MAN / page).read_text().replace("\\-", "-")
    parts = re.split(r"^\.S[HS] (.*)\n", text, flags=re.M)
    return {
        title: re.findall(r"^\.TP\n\.BR? ([\w/-]+(?: freehint)?)", body, re.M)
        for title, body in zip(parts[1::2], parts[2::2], strict=True)
    }


def defaults(page: str) -> dict[str, str]:
    """The defaults that a man page gives, by entry."""
    text = (MAN / page).read_text().replace("\\-", "-")
    found = {}
    for entry in re.split(r"^\.(?:TP|S[HS].*)\n", text, flags=re.M):
        if default := re.search(r"\(default:\s+([^\s),]+)", entry):
            found[re.split(r"[ \n]", entry)[1]] = default[1]
    return found


def sources(folder: Path) -> str:
    files = [*folder.rglob("*.[ch]"), *folder.rglob("*.patch")]
    return "\n".join(path.read_text() for path in files)


class DocumentedTest(unittest.TestCase):
    def test_the_life_of_a_granule(self) -> None:
        code = life_in_code()
        self.assertGreater(len(code), 10)
        self.assertEqual(life_in_words(), code)

    def test_the_guide_knows_each_obstacle(self) -> None:
        """Each reason is in one of the tables in which an operator looks it up."""
        words = quoted(section(GUIDE, "What blocks it"))
        words |= quoted(section(GUIDE, "Why did this VM not shrink?"))
        self.assertLessEqual(set(qapi("enum", "FreehintReason")), words)

    def test_the_decision_tree_has_each_obstacle(self) -> None:
        picture = (PROJECT / "docs/pictures/not-shrinking.svg").read_text()
        shown = set(re.findall(r"[\w-]+", " ".join(re.findall('class="c"[^>]*>(.*?)<', picture))))
        reasons = {re.sub("^lazy-.*", "lazy-", r) for r in qapi("enum", "FreehintReason")}
        self.assertEqual(reasons, shown)

    def test_the_guide_knows_why_a_guest_does_not_hint(self) -> None:
        statuses = qapi("enum", "FreehintDriverStatus")
        idle = statuses[statuses.index("waiting") + 1 : statuses.index("unknown")]
        self.assertIn("failed", idle)
        words = quoted(section(GUIDE, "Why did this VM not shrink?"))
        self.assertLessEqual(set(idle), words)

    def test_the_guide_names_what_the_device_shows(self) -> None:
        """The first column of the table is about counters and gauges that exist."""
        members = set(qapi("enum", "FreehintReason"))
        for name in "Info", "Gauges", "Stats", "Rejected":
            members |= set(qapi("struct", f"Freehint{name}"))
        members |= {"query-freehint", "[]", "lazy-..."}
        rows = not_shrinking()
        self.assertGreater(len(rows), 10)
        for row in rows:
            self.assertTrue(quoted(row), row)
            self.assertLessEqual(quoted(row), members, row)

    def test_what_the_guide_names_is_brought_about(self) -> None:
        """A test brings about each row of that table; the list has no other row."""
        tests = tomllib.loads(NOT_SHRINKING.read_text())
        self.assertEqual(list(tests), not_shrinking())
        for row, names in tests.items():
            self.assertTrue(names, row)
            self.assertLessEqual(set(names), registered.names(), row)

    def test_obstacles_are_listed_in_order(self) -> None:
        _, _, text = OPTIONS.read_text().partition("in ``obstacles``, in this order:")
        table = text.split("\n=====")[1]
        rows = re.findall(r"^``([\w-]+)`` ", table, re.M)
        self.assertEqual(rows, qapi("enum", "FreehintReason"))

    def test_each_setting_is_an_option(self) -> None:
        options = re.findall(r"^``([\w-]+)=", OPTIONS.read_text(), re.M)
        settings = qapi("struct", "FreehintSettings")
        self.assertEqual(set(options[: len(settings) - 1]), set(settings) - {"id"})

    def test_the_readme_is_short(self) -> None:
        self.assertLessEqual(len((PROJECT / "README.md").read_text().splitlines()), 120)

    def test_the_readme_counts_the_targets_that_are_met(self) -> None:
        report = (PROJECT / "docs" / "benchmarks.md").read_text()
        counts = re.findall(r"(\d+ of \d+) are met", report)
        self.assertEqual(len(counts), 1)
        self.assertIn(f"{counts[0]} targets are met", (PROJECT / "README.md").read_text())

    def test_pictures_can_be_read_on_any_ground(self) -> None:
        """Each has a title, a white ground, and a page that shows it."""
        pages = [PROJECT / "README.md", *(PROJECT / "docs").glob("*.md")]
        text = "\n".join(page.read_text() for page in pages)
        pictures = sorted((PROJECT / "docs").rglob("*.svg"))
        self.assertGreater(len(pictures), 5)
        for picture in pictures:
            with self.subTest(picture.name):
                drawn = picture.read_text()
                self.assertRegex(drawn, "<title[^>]*>(?!Gnuplot).+</title>")
                self.assertRegex(drawn, '<rect [^>]*(fill="#ffffff"|class="paper")')
                self.assertIn(f"/{picture.name})", text)

    def test_documents_name_this_version(self) -> None:
        build = (PROJECT / "meson.build").read_text()
        (version,) = re.findall(r"^ +version: '(.+)',$", build, re.M)
        changes = (PROJECT / "CHANGELOG.md").read_text()
        newest = re.findall(r"^## ([\d.]+), (?:unreleased|\d{4}-\d\d-\d\d)$", changes, re.M)
        self.assertEqual(newest[:1], [version])
        named = re.findall(r"dkms_(.+?)_all\.deb", GUIDE.read_text())
        named += re.findall(r"dkms_(.+?)_all\.deb", (PROJECT / "README.md").read_text())
        self.assertGreater(len(named), 2)
        self.assertEqual(set(named), {version})

    def test_man_has_no_complaint(self) -> None:
        for page in sorted(MAN.iterdir()):
            command = ["man", "--warnings", "-Tutf8", "-l", str(page)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            self.assertEqual(done.stderr, "")
            self.assertGreater(len(done.stdout), 1000)

    def test_the_device_has_a_man_page(self) -> None:
        listed = entries("virtio-freehint.7")
        code = "".join(
            (DEVICE / f"hw/virtio/virtio-freehint{name}.c").read_text()
            for name in ("", "-pci")
        )
        properties = re.findall(r'DEFINE_PROP\w*\("([\w-]+)"', code)
        self.assertEqual(listed["PROPERTIES"], properties)
        settings = set(qapi("struct", "FreehintSettings")) - {"id"}
        self.assertEqual(set(properties[:6]), settings)
        values = re.findall(r'DEFINE_PROP_\w+\("([\w-]+)",[^;{]*?(true|false|\d+)\),', code)
        words = {"true": "on", "false": "off"}
        shown = {name: words.get(value, value) for name, value in values}
        # The default depends on the host.
        del shown["x-granule"]
        self.assertGreater(len(shown), 8)
        self.assertLessEqual(shown.items(), defaults("virtio-freehint.7").items())
        schema = (DEVICE / "qapi/freehint.json").read_text()
        commands = re.findall(r"{ 'command': '(.*?)'", schema)
        self.assertEqual(listed["MONITOR COMMANDS"], ["info freehint", *commands])
        events = re.findall(r"{ 'event': '(.*?)'", schema)
        self.assertEqual(sorted(listed["EVENTS"]), sorted(events))
        for title, (kind, name) in LISTS.items():
            self.assertEqual(listed[title], qapi(kind, f"Freehint{name}"), title)
        wiring = sources(DEVICE / "patches/qemu-10.0")
        traced = re.findall(r"^\+(virtio_freehint_\w+)\(.*\) \"", wiring, re.M)
        self.assertEqual(listed["TRACE EVENTS"], traced)

    def test_qemu_10_2_takes_our_qapi(self) -> None:
        """Its generator refuses longer lines in documentation; that of 10.0 does not."""
        lines = (DEVICE / "qapi/freehint.json").read_text().splitlines()
        documentation = [line for line in lines if line.startswith("#")]
        self.assertEqual([line for line in documentation if len(line) > 70], [])

    def test_the_page_of_the_device_lists_all_of_qapi(self) -> None:
        text = (DEVICE / "qapi/freehint.json").read_text()
        kinds = set(re.findall(r"^{ '(struct|enum)': 'Freehint(\w+)'", text, re.M))
        # The page describes these in sentences: two values, arguments, or members of others.
        words = {"DiscardMode", "LazyProbe", "Count", "Settings"}
        words |= {"FlushStarted", "FlushCompleted"}
        self.assertEqual({name for _, name in kinds} - words, {n for _, n in LISTS.values()})
        page = (MAN / "virtio-freehint.7").read_text().replace("\\-", "-")
        told = qapi("enum", "FreehintLazyProbe") + qapi("enum", "FreehintDiscardMode")
        flush = re.search(r"'freehint-flush',\s*'data': {(.*?)}", text, re.S)
        assert flush
        told += re.findall(r"'\*?([\w-]+)':", flush[1])
        self.assertEqual([word for word in told if not re.search(rf"\b{word}\b", page)], [])

    def test_the_driver_has_a_man_page(self) -> None:
        listed = entries("virtio_freehint.4")
        listed["STATUS"] = listed["Status"]
        self.check_driver(listed, defaults("virtio_freehint.4"))
        traced = []
        for header in GUEST / "include/trace/events/freehint.h", DRIVER / "trace.h":
            text = header.read_text()
            (system,) = re.findall(r"^#define TRACE_SYSTEM (\w+)", text, re.M)
            found = re.findall(r"^(?:TRACE_EVENT\(|DEFINE_EVENT\(\w+, )(\w+)", text, re.M)
            traced += [f"{system}/{name}" for name in found]
        self.assertEqual(sorted(listed["TRACE EVENTS"]), sorted(traced))

    def test_the_driver_has_an_administrators_page(self) -> None:
        text = ADMIN.read_text()
        tables = [
            re.findall(r"^``([\w-]+)``  ", table, re.M)
            for table in re.findall(r"^===+ ===+\n(.*?)^===+ ===+\n", text, re.M | re.S)
        ]
        shown = dict(re.findall(r"^``(\w+)`` \(default: (\w+)\)", text, re.M))
        listed = {"STATUS": tables[0], "SYSFS": tables[1], "PARAMETERS": [*shown]}
        self.check_driver(listed, shown)

    def check_driver(self, listed: dict[str, list[str]], shown: dict[str, str]) -> None:
        """A page lists all parameters, with defaults, and all files of sysfs and their words."""
        parameters = re.findall(r"^module_param\w*\((\w+),", sources(GUEST), re.M)
        self.assertEqual(sorted(listed["PARAMETERS"]), sorted(parameters))
        pattern = r"^static (?:bool|unsigned int) (?:vfh_)?(\w+) = (\w+);"
        values = dict(re.findall(pattern, sources(DRIVER), re.M))
        self.assertEqual(shown, {p: values[p].replace("true", "Y") for p in parameters})
        sysfs = (DRIVER / "sysfs.c").read_text()
        attributes = re.findall(r"&dev_attr_(\w+)\.attr", sysfs)
        self.assertEqual(listed["SYSFS"], attributes)
        names = re.search(r"status_show\(.*?\n}", sysfs, re.S)
        assert names
        words = set(re.findall(r'= "([\w-]+)"', names[0]))
        self.assertEqual(sorted(listed["STATUS"]), sorted(words))

    def check_functions(self, text: str, folder: Path, prefix: str = "") -> None:
        code = sources(folder)
        names = re.findall(rf"`({prefix}\w+)\(\)`", text)
        self.assertGreater(len(names), 10)
        gone = [name for name in names if not re.search(rf"\b{name}\(", code)]
        self.assertEqual(gone, [])

    def test_the_path_of_one_address_through_the_guest(self) -> None:
        title = "The path of one address through the guest"
        self.check_functions(section(PROJECT / "docs/design.md", title), GUEST)

    def test_the_path_of_a_hint_through_the_device(self) -> None:
        text = (DEVICE / "docs/devel/virtio-freehint.rst").read_text()
        self.check_functions(text, DEVICE, "freehint_")


if __name__ == "__main__":
    unittest.main()
