"""Throttling of block back ends: membership in a group, by limits."""

from __future__ import annotations

from engine.graph.backend import BlockBackend
from engine.throttle.group import ThrottleGroups, ThrottleMember
from engine.throttle.limits import ThrottleConfig


def set_limits(
    groups: ThrottleGroups, backend: BlockBackend, config: ThrottleConfig, group: str | None, default: str
) -> None:
    """Throttle *backend* by a checked *config*, which becomes that of its whole group; nothing limited: not any more.

    group: the group to be in. default: the group if there is none yet.
    """
    member = backend.limiter if isinstance(backend.limiter, ThrottleMember) else None
    if not config.enabled:
        backend.set_limiter(None)
        return
    name = group if group is not None else member.group.name if member is not None else default
    found = groups.find_or_create(name)
    if member is None or member.group is not found:
        backend.set_limiter(ThrottleMember(found))
    found.configure(config)
