"""Permissions, child roles, and the rule that gives a parent's children their permissions.

Source of the rules: QEMU's block layer (BLK_PERM_*, BDRV_CHILD_*, bdrv_default_perms).
"""

from __future__ import annotations

import enum


class Perm(enum.IntFlag):
    """What the parent of an edge may do to the child, or lets others do to it."""

    NONE = 0
    CONSISTENT_READ = 0x1
    WRITE = 0x2
    WRITE_UNCHANGED = 0x4
    RESIZE = 0x8
    ALL = 0xF


PERM_NAMES: tuple[tuple[Perm, str, str], ...] = (
    (Perm.CONSISTENT_READ, "consistent-read", "consistent read"),
    (Perm.WRITE, "write", "write"),
    (Perm.WRITE_UNCHANGED, "write-unchanged", "write unchanged"),
    (Perm.RESIZE, "resize", "resize"),
)
"""(bit, name on the wire, name in error texts), in the order of the bits."""


def wire_names(perm: Perm) -> list[str]:
    """Names of the bits of *perm* as the schema's BlockPermission has them."""
    return [wire for bit, wire, _ in PERM_NAMES if perm & bit]


def error_names(perm: Perm) -> str:
    """Names of the bits of *perm* as error texts print them, comma separated."""
    return ", ".join(text for bit, _, text in PERM_NAMES if perm & bit)


class Role(enum.IntFlag):
    """What a child is to its parent (QEMU's BdrvChildRole)."""

    NONE = 0
    DATA = 0x1
    METADATA = 0x2
    FILTERED = 0x4
    COW = 0x8
    PRIMARY = 0x10
    IMAGE = DATA | METADATA | PRIMARY


def role_names(role: Role) -> list[str]:
    """Names of the single bits of *role*, lower case."""
    return [str(r.name).lower() for r in (Role.DATA, Role.METADATA, Role.FILTERED, Role.COW, Role.PRIMARY) if role & r]


def default_child_permissions(
    role: Role, perm: Perm, shared: Perm, *, writable: bool, no_io: bool = False
) -> tuple[Perm, Perm]:
    """Permissions a node takes and shares on a child of *role*, from what its own parents take and share.

    *writable*: whether the parent node is (or will be, after a pending reopen) writable.
    """
    if role & Role.FILTERED:
        return perm, shared
    if role & Role.COW:
        taken = perm & Perm.CONSISTENT_READ
        given = Perm.CONSISTENT_READ | Perm.WRITE_UNCHANGED
        if shared & Perm.WRITE:
            given |= Perm.WRITE | Perm.RESIZE
        return taken, given
    if role & Role.METADATA:
        if writable:
            perm |= Perm.WRITE | Perm.RESIZE
        if not no_io:
            perm |= Perm.CONSISTENT_READ
        shared &= ~(Perm.WRITE | Perm.RESIZE)
    if role & Role.DATA:
        shared &= ~Perm.RESIZE
        if perm & Perm.WRITE_UNCHANGED:
            perm |= Perm.WRITE
        if perm & Perm.WRITE:
            perm |= Perm.RESIZE
    return Perm(perm), Perm(shared)
