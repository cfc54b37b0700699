# SPDX-License-Identifier: GPL-2.0-or-later
"""The messages of a kernel in which something is wrong."""

import re

_SPLAT = re.compile(
    r"WARNING:|BUG:|BUG |INFO: (task|rcu|trying|possible|suspicious)|ODEBUG:|"
    r"general protection|Oops|bad page|list_(add|del) corruption"
)


def complaints(log: str) -> list[str]:
    """The lines of a kernel's log from its first complaint on."""
    lines = log.splitlines()
    first = next((i for i, line in enumerate(lines) if _SPLAT.search(line)), len(lines))
    return lines[first:]
