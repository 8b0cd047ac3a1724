"""Which ids and names are well formed."""

from __future__ import annotations

import re
from typing import Final

_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9._-]*\Z")
ID_HINT: Final = "Identifiers consist of letters, digits, '-', '.', '_', starting with a letter."


def id_wellformed(name: str) -> bool:
    """Whether *name* may be a node name, an id of a job, an object and the like (QEMU's id_wellformed)."""
    return _NAME.match(name) is not None
