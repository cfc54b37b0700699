# SPDX-License-Identifier: GPL-2.0-or-later
"""The test cases that the sources register, by the names under which they run.

Counting the cases that have run is not enough: a test file that a build, or a list, has
lost does not report itself.
"""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]


def _sources(folder: Path, pattern: str) -> Iterator[str]:
    for path in sorted(folder.rglob(pattern)):
        yield path.read_text()


def qtests(project: Path = PROJECT, pattern: str = "*.c") -> set[str]:
    """Names as given to libqos or to qtest, which put a path of their own before them.

    Names that are made in a loop are not included.
    """
    call = re.compile(r"\b(?:qos_add_test|qtest_add_(?:data_)?func)\(\s*\"([^\"]+)\"")
    sources = _sources(project / "tests/qtest", pattern)
    return {name for text in sources for name in call.findall(text)}


def qtest_name(path: str) -> str:
    """The registered name of a case that runs under a path.

    libqos puts the nodes of its graph before the name, the last of which is
    INTERFACE-tests; qtest puts the name of QEMU's target before it.
    """
    return re.sub(r"^.*/[\w-]+-tests/|^/[^/]+/", "", path)


def kunit_cases(
    project: Path = PROJECT, folders: tuple[str, ...] = ("guest-driver",)
) -> Counter[str]:
    """Names of cases, each with the number of suites that have such a case."""
    call = re.compile(r"\bKUNIT_CASE\w*\((\w+)")
    found: Counter[str] = Counter()
    for folder in folders:
        for text in _sources(project / folder, "*.c"):
            found.update(call.findall(text))
    return found


def functional_tests(project: Path = PROJECT) -> set[str]:
    """MODULE.CLASS.METHOD of each functional test."""
    found = set()
    for path in (project / "tests/functional").glob("test_*.py"):
        current = ""
        for kind, name in re.findall(r"^(class| {4}def) (\w+)", path.read_text(), re.M):
            if kind == "class":
                current = name
            elif name.startswith("test_"):
                found.add(f"{path.stem}.{current}.{name}")
    return found


def names() -> set[str]:
    """All of these, as lists of tests such as tests/spec/coverage.toml name them."""
    found = {f"qtest/{name}" for name in qtests()}
    found |= {f"kunit/{name}" for name in kunit_cases()}
    return found | {f"functional/{name}" for name in functional_tests()}
