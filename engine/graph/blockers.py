"""Op blockers: the guard above permissions that keeps commands off nodes somebody depends on."""

from __future__ import annotations

import enum
from collections.abc import Collection

from engine.errors import GenericError


class Op(enum.Enum):
    """Classes of operations that can be blocked on a node (QEMU's BlockOpType)."""

    BACKUP_SOURCE = enum.auto()
    BACKUP_TARGET = enum.auto()
    CHANGE = enum.auto()
    COMMIT_SOURCE = enum.auto()
    COMMIT_TARGET = enum.auto()
    DATAPLANE = enum.auto()
    DRIVE_DEL = enum.auto()
    EJECT = enum.auto()
    EXTERNAL_SNAPSHOT = enum.auto()
    INTERNAL_SNAPSHOT = enum.auto()
    INTERNAL_SNAPSHOT_DELETE = enum.auto()
    MIRROR_SOURCE = enum.auto()
    MIRROR_TARGET = enum.auto()
    RESIZE = enum.auto()
    STREAM = enum.auto()
    REPLACE = enum.auto()


BACKING_CHILD_ALLOWS: frozenset[Op] = frozenset({Op.COMMIT_TARGET, Op.STREAM, Op.BACKUP_SOURCE, Op.BACKUP_TARGET})
"""What may still be done to a node that is the backing child of another."""


class OpBlockers:
    """The reasons why classes of operations are blocked on one node, oldest first."""

    def __init__(self) -> None:
        self._reasons: list[tuple[object, str, frozenset[Op]]] = []

    def block(self, owner: object, reason: str, *, allow: Collection[Op] = ()) -> None:
        """Block every class but *allow* for *owner* (any hashable thing that will unblock later)."""
        self._reasons.append((owner, reason, frozenset(Op) - frozenset(allow)))

    def unblock(self, owner: object) -> None:
        """Take back whatever *owner* blocked."""
        self._reasons = [entry for entry in self._reasons if entry[0] is not owner]

    def reason(self, op: Op) -> str | None:
        """Why *op* is blocked, the newest reason as in QEMU; None when it isn't."""
        return next((reason for _, reason, ops in reversed(self._reasons) if op in ops), None)

    def reasons(self) -> list[str]:
        """Every distinct reason, oldest first."""
        return list(dict.fromkeys(reason for _, reason, _ in self._reasons))

    def check(self, op: Op, name: str) -> None:
        """Raise GenericError when *op* is blocked on the node called *name*."""
        reason = self.reason(op)
        if reason is not None:
            raise GenericError(f"Node '{name}' is busy: {reason}")
