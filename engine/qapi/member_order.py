"""The order in which QEMU walks the members of an object that it did not get from a schema.

Texts made from such objects (format specific information) and the choice among several faults of one request follow
it. The rule: 512 buckets by a hash of the name, in a bucket the latest first.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

_BUCKETS = 512
_MASK = 0xFFFFFFFF


@functools.lru_cache(4096)
def _bucket(name: str) -> int:
    data = name.encode()
    value = 0x238F13AF * len(data)
    for index, byte in enumerate(data):
        value += byte << (index * 5 % 24)
    return (1103515243 * (value & _MASK) + 12345 & _MASK) % _BUCKETS


def in_member_order(names: Iterable[str]) -> list[str]:
    """Return *names*, given in the order they were put in, in the order QEMU walks them."""
    latest_first = list(names)[::-1]
    return sorted(latest_first, key=_bucket)


def as_walked(value: Any) -> Any:
    """A JSON value with the members of its objects in the order QEMU walks them."""
    if isinstance(value, dict):
        return {name: as_walked(value[name]) for name in in_member_order(value)}
    return [as_walked(item) for item in value] if isinstance(value, list) else value
