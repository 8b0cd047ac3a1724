"""How a mirror whose copy is good ends: the target gets its backing image, and users move to it.

All on the control plane, with source and target drained.
"""

from __future__ import annotations

import errno
import logging
import os

from engine.errors import GenericError
from engine.graph.change import Transaction, refresh_permissions, replace_node
from engine.graph.drain import drained
from engine.graph.node import Node
from engine.graph.opening import open_backing_file
from engine.graph.reopen import set_read_only
from engine.graph.status import skip_filters
from engine.jobs.chain import refresh_filenames_above, refresh_limits_above, set_backing
from engine.jobs.mirror_settings import MirrorSettings, TargetBacking
from engine.jobs.replacing import can_replace

log = logging.getLogger("engine.jobs")


def _failed(job_id: str, exc: GenericError, number: int) -> OSError:
    """What the job ends with, as clients see it; the reason goes to the log (so it is in QEMU)."""
    log.error("job %s: %s", job_id, exc.desc)
    return OSError(number, os.strerror(number))


def give_backing(job_id: str, source: Node, target: Node, settings: MirrorSettings) -> None:
    """Attach the backing image that *settings* mean to *target*.

    Errors: OSError. Users must not be moved then, although QEMU does: they would read something else from then on.
    """
    image = skip_filters(target)
    edge = image.backing
    if settings.backing is TargetBacking.SOURCE_CHAIN:
        backing = source if settings.only_new else settings.base
        if (edge.child if edge is not None else None) is backing:
            return
        try:
            set_backing(image, backing)
        except GenericError as exc:
            raise _failed(job_id, exc, errno.EPERM) from exc
    elif settings.backing is TargetBacking.OPEN_CHAIN and edge is None:
        try:
            open_backing_file(image)
        except GenericError as exc:
            raise _failed(job_id, exc, errno.EINVAL) from exc
    else:
        return
    refresh_filenames_above(image)


def switch_over(job_id: str, source: Node, old: Node, target: Node) -> None:
    """Move the users of *old*, the *source* or what may be replaced by its copy, to *target*. Errors: OSError."""
    try:
        set_read_only(target, old.read_only)
    except GenericError as exc:
        log.warning("job %s: %s", job_id, exc.desc)  # if that matters, permissions will say so
    try:
        if not can_replace(source, old):
            raise GenericError(
                f"Can no longer replace '{old.name}' by '{target.name}', because it can no longer be guaranteed that "
                "doing so would not lead to an abrupt change of visible data"
            )
        with drained([old]), Transaction() as txn:
            replace_node(txn, old, target)
            refresh_permissions(txn, [old, target])
    except GenericError as exc:
        raise _failed(job_id, exc, errno.EPERM) from exc
    refresh_limits_above(target)
    refresh_filenames_above(target)
