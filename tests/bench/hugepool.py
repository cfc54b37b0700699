# SPDX-License-Identifier: GPL-2.0-or-later
"""Huge pages of the host's pool, reserved while a guest needs them."""

import contextlib
from pathlib import Path
from types import TracebackType

MIB = 1 << 20
SIZE_MIB = 2
POOL = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")


class HugePoolError(RuntimeError):
    """The host cannot reserve the huge pages."""


class HugePool:
    """Adds pages to the pool, and removes as many again; a context manager."""

    def __init__(self, mib: int) -> None:
        self._pages = mib // SIZE_MIB
        self._added = 0

    def __enter__(self) -> "HugePool":
        if not self._pages:
            return self
        before = self._count()
        try:
            POOL.write_text(str(before + self._pages))
        except OSError as error:
            raise HugePoolError(f"{POOL} cannot be written: {error}") from error
        self._added = self._count() - before
        if self._added < self._pages:
            self._remove()
            raise HugePoolError(
                f"the host has only {self._added} of {self._pages} huge pages: "
                "free some memory, or use another backing"
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._added:
            self._remove()

    def _remove(self) -> None:
        with contextlib.suppress(OSError):
            POOL.write_text(str(max(self._count() - self._added, 0)))

    @staticmethod
    def _count() -> int:
        return int(POOL.read_text())
