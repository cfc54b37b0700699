# SPDX-License-Identifier: GPL-2.0-or-later
"""Our files and wiring patches, and the source trees that they go into.

An overlay has two parts: files of our own, which are copied to the same path in the tree,
and wiring patches for the tree's version, which are applied in order. The tree itself
records what was installed (`STATE_DIR`): the hash of every file, and a copy of every patch,
as undoing has to reverse that copy, not the project's present patch.
"""

import dataclasses
import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
HEADER = PROJECT / "spec" / "virtio_freehint.h"
STATE_DIR = ".freehint-overlay"

# The first of our tests for qos-test. The memory test is a separate program.
FIRST_QOS_TEST = "tests/qtest/virtio-freehint-test.c"
QOS_TEST = re.compile(r"tests/qtest/virtio-freehint-(?!memory)\w+-test\.c")

# Files in a checkout that are not source, as patterns of rsync: a tree with build products
# in it cannot be built from another folder.
BUILD_PRODUCTS = (
    "/.git",
    "/build*",
    "/.config",
    "/include/config",
    "/include/generated",
    "/arch/*/include/generated",
    "*.o",
    ".*.cmd",
)


class OverlayError(Exception):
    """Says what went wrong and what to do about it."""


@dataclasses.dataclass(frozen=True)
class Patch:
    name: str
    text: bytes

    def paths(self) -> set[str]:
        """The files that the patch touches, relative to the tree."""
        names = re.findall(rb"^\+\+\+ b/(\S+)", self.text, re.M)
        return {name.decode() for name in names}


@dataclasses.dataclass(frozen=True)
class Overlay:
    """What belongs in a tree: content by path, and patches in order."""

    series: str
    files: dict[str, bytes]
    patches: list[Patch]


# --- what belongs in a tree -------------------------------------------------


def tree_series(tree: Path) -> str:
    """Kind and series of a source tree, e.g. "qemu-10.0" or "linux-6.12"."""
    version = tree / "VERSION"
    if version.is_file() and (tree / "include" / "standard-headers").is_dir():
        numbers = re.match(r"(\d+)\.(\d+)", version.read_text())
        if numbers:
            return f"qemu-{numbers[1]}.{numbers[2]}"
    makefile = tree / "Makefile"
    if makefile.is_file() and (tree / "mm" / "page_alloc.c").is_file():
        text = makefile.read_text()
        major = re.search(r"^VERSION = (\d+)$", text, re.M)
        minor = re.search(r"^PATCHLEVEL = (\d+)$", text, re.M)
        if major and minor:
            return f"linux-{major[1]}.{minor[1]}"
    raise OverlayError(f"{tree} is neither a QEMU nor a Linux source tree")


def overlay_for(series: str) -> Overlay:
    """The project's present overlay for trees of that series."""
    if series.startswith("qemu-"):
        files = qemu_files()
        patches = patches_for("qemu-device", series)
        return Overlay(series, files, [list_tests(patch, files) for patch in patches])
    return Overlay(series, linux_files(), patches_for("guest-driver", series))


def patches_for(folder: str, series: str) -> list[Patch]:
    base = PROJECT / folder / "patches"
    if not (base / series).is_dir():
        known = ", ".join(sorted(p.name for p in base.glob("*"))) or "none"
        raise OverlayError(f"no wiring patches for {series} (there are: {known})")
    found = sorted((base / series).glob("*.patch"))
    return [Patch(path.name, path.read_bytes()) for path in found]


def list_tests(patch: Patch, files: Iterable[str]) -> Patch:
    """If a patch lists the first of our tests for qos-test, make it list all of them."""
    first = f"+  '{Path(FIRST_QOS_TEST).name}',\n".encode()
    before, _, after = patch.text.partition(first)
    if not after:
        return patch
    names = [Path(name).name for name in sorted(files) if QOS_TEST.fullmatch(name)]
    lines = b"".join(f"+  '{name}',\n".encode() for name in names)
    start = before.rindex(b"\n@@ ")
    hunk = re.sub(
        rb"(\+\d+),(\d+)",
        lambda match: b"%b,%d" % (match[1], int(match[2]) + len(names)),
        before[start:],
        count=1,
    )
    return Patch(patch.name, before[:start] + hunk + lines + first + after)


def qemu_files() -> dict[str, bytes]:
    files = folder_files(PROJECT / "qemu-device", "")
    files |= folder_files(PROJECT / "tests" / "qtest", "tests/qtest/")
    if HEADER.exists():
        files["include/standard-headers/linux/virtio_freehint.h"] = qemu_header()
    return files


def linux_files() -> dict[str, bytes]:
    files = folder_files(PROJECT / "guest-driver", "")
    files["include/uapi/linux/virtio_freehint.h"] = HEADER.read_bytes()
    return files


def folder_files(folder: Path, prefix: str) -> dict[str, bytes]:
    """Everything in a folder except its patches: content by path in the tree."""
    return {
        prefix + str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and not path.is_relative_to(folder / "patches")
        and not path.name.endswith((".orig", ".rej", "~"))
    }


def qemu_header() -> bytes:
    """The protocol header as QEMU's scripts/update-linux-headers.sh imports it."""
    text = HEADER.read_text()
    text = re.sub(r"\b__(?:le|u)(8|16|32|64)\b", r"uint\1_t", text)
    text = re.sub(r"<linux/([^>]*)>", r'"standard-headers/linux/\1"', text)
    return text.encode()


def patched_paths(patches: Iterable[Patch]) -> set[str]:
    return set().union(*(patch.paths() for patch in patches))


# --- what is in a tree ------------------------------------------------------


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Tree:
    """A source tree, and the record of what we put into it."""

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise OverlayError(f"{root} is not a directory")
        self.root = root
        self.series = tree_series(root)
        self.state = root / STATE_DIR
        self.files: dict[str, str] = {}
        self.patches: list[Patch] = []
        if self.state.is_dir():
            self._load()

    def installed(self) -> bool:
        return bool(self.files or self.patches)

    def _load(self) -> None:
        record = json.loads((self.state / "manifest.json").read_text())
        self.files = record["files"]
        self.patches = [
            Patch(name, (self.state / name).read_bytes()) for name in record["patches"]
        ]

    def _save(self) -> None:
        """Write the record; in a git checkout it hides itself."""
        if not self.installed():
            shutil.rmtree(self.state, ignore_errors=True)
            return
        self.state.mkdir(exist_ok=True)
        (self.state / ".gitignore").write_text("*\n")
        for patch in self.patches:
            (self.state / patch.name).write_bytes(patch.text)
        record = {"files": self.files, "patches": [p.name for p in self.patches]}
        (self.state / "manifest.json").write_text(json.dumps(record, indent=2))

    # -- files --

    def refuse_to_lose_edits(self, overlay: Overlay | None) -> None:
        """Raise if somebody has edited a file that is to be written or removed."""
        wanted = overlay.files if overlay else {}
        for name in sorted(set(self.files) | set(wanted)):
            path = self.root / name
            if not path.exists():
                continue
            content = path.read_bytes()
            if content == wanted.get(name) or digest(content) == self.files.get(name):
                continue
            if name in self.files:
                raise OverlayError(
                    f"{path} was edited in the tree: bring the change into the "
                    "project's own file, then remove this one"
                )
            raise OverlayError(
                f"{path} is in the tree already and not from us: is another "
                "version of the device or driver merged there?"
            )

    def write_files(self, wanted: dict[str, bytes]) -> list[str]:
        """Write what differs, remove what is no longer ours; return the changed paths."""
        changed = []
        for name in sorted(set(self.files) - set(wanted)):
            self._remove(name)
            changed.append(name)
        for name, content in wanted.items():
            path = self.root / name
            if not path.exists() or path.read_bytes() != content:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
                changed.append(name)
            self.files[name] = digest(content)
        self._save()
        return changed

    def _remove(self, name: str) -> None:
        path = self.root / name
        path.unlink(missing_ok=True)
        for parent in path.relative_to(self.root).parents[:-1]:
            folder = self.root / parent
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        del self.files[name]

    # -- patches --

    def write_patches(self, wanted: list[Patch]) -> list[str]:
        """Replace the applied patches by those wanted; return the names of changed ones."""
        keep = 0
        while self.patches[keep : keep + 1] == wanted[keep : keep + 1] != []:
            keep += 1
        changed = self.patches[keep:] + wanted[keep:]
        touched = Snapshot(self.root, patched_paths(changed))
        for patch in reversed(self.patches[keep:]):
            self._reverse(patch)
        for patch in wanted[keep:]:
            try:
                self._apply(patch)
            except OverlayError:
                for done in reversed(self.patches[keep:]):
                    self._reverse(done)
                raise
        touched.keep_times()
        return list(dict.fromkeys(patch.name for patch in changed))

    def _apply(self, patch: Patch) -> None:
        if error := self._patch(patch, "--forward"):
            raise OverlayError(
                f"{patch.name} does not apply to {self.root} ({error}): the tree "
                f"differs from the {self.series} that the patch was made for"
            )
        self.patches.append(patch)
        self._save()

    def _reverse(self, patch: Patch) -> None:
        if error := self._patch(patch, "--reverse"):
            raise OverlayError(
                f"{patch.name} cannot be taken out of {self.root} ({error}): the "
                "lines that it added were changed there; put them back, or start "
                "from a fresh tree"
            )
        self.patches.remove(patch)
        (self.state / patch.name).unlink(missing_ok=True)
        self._save()

    def _patch(self, patch: Patch, direction: str) -> str | None:
        """Run patch, first as a dry run; return its complaint if it has one."""
        base = ["patch", "-p1", "--batch", "--fuzz=0", direction, "-d", str(self.root)]
        final = ["--no-backup-if-mismatch", "--reject-file=-", "--silent"]
        for extra in (["--dry-run"], final):
            done = subprocess.run(
                base + extra, input=patch.text, capture_output=True, check=False
            )
            if done.returncode:
                lines = done.stdout.decode(errors="replace").splitlines()
                bad = [line for line in lines if re.search("FAIL|find|Revers", line)]
                return (bad or lines or ["no message"])[0].strip()
        return None


class Snapshot:
    """Content and time of some files of a tree.

    Most files have their old content after a patch was reversed and applied again. With
    their old time, the next build does not compile what depends on them.
    """

    def __init__(self, root: Path, names: Iterable[str]) -> None:
        paths = [root / name for name in names if (root / name).is_file()]
        self.before = {path: (path.read_bytes(), path.stat()) for path in paths}

    def keep_times(self) -> None:
        for path, (content, stat) in self.before.items():
            if path.is_file() and path.read_bytes() == content:
                os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


# --- the three commands -----------------------------------------------------


def install(tree: Tree) -> list[str]:
    """Bring a tree up to date with the project's overlay; return what changed in it."""
    overlay = overlay_for(tree.series)
    tree.refuse_to_lose_edits(overlay)
    changed = tree.write_patches(overlay.patches)
    return changed + tree.write_files(overlay.files)


def install_copy(origin: Path, root: Path) -> list[str]:
    """Make `root` a copy of the tree `origin`, with the overlay installed.

    Files that do not change keep their time, so running this again causes no compilation.
    """
    tree_series(origin)
    ours = Snapshot(root, [])
    if (root / STATE_DIR).is_dir():
        tree = Tree(root)
        ours = Snapshot(root, patched_paths(tree.patches) | set(tree.files))
        undo(tree)
    copy_source(origin, root)
    changed = install(Tree(root))
    ours.keep_times()
    return changed


def copy_source(origin: Path, root: Path) -> None:
    """Make `root` a copy of `origin`, without build products."""
    root.mkdir(parents=True, exist_ok=True)
    excluded = [f"--exclude={pattern}" for pattern in BUILD_PRODUCTS]
    copy = ["rsync", "-a", "--delete", *excluded, f"{origin}/", f"{root}/"]
    done = subprocess.run(copy, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OverlayError(f"cannot copy {origin}: {done.stderr.strip()}")


def undo(tree: Tree) -> None:
    """Remove everything of ours from a tree."""
    tree.refuse_to_lose_edits(None)
    tree.write_patches([])
    tree.write_files({})


def differences(tree: Tree) -> list[str]:
    """Lines that say what `install` would change; none if the tree is up to date."""
    overlay = overlay_for(tree.series)
    report = []
    for name in sorted(set(overlay.files) | set(tree.files)):
        path = tree.root / name
        if name not in overlay.files:
            report.append(f"no longer ours: {name}")
        elif not path.exists():
            report.append(f"missing: {name}")
        elif path.read_bytes() != overlay.files[name]:
            report.append(f"differs: {name}")
    if tree.patches != overlay.patches:
        applied = {patch.name: patch.text for patch in tree.patches}
        wanted = {patch.name: patch.text for patch in overlay.patches}
        for name in sorted(set(applied) | set(wanted)):
            if name not in wanted:
                report.append(f"no longer ours: {name}")
            elif name not in applied:
                report.append(f"not applied: {name}")
            elif applied[name] != wanted[name]:
                report.append(f"differs: {name}")
    return report
