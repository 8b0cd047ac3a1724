"""Images as text: what qemu-img info, info block -v and qemu-io's info print of query results."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from engine.qapi.member_order import in_member_order

_SUFFIXES = ("", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei")


def size_text(size: int) -> str:
    """A size with three digits that count, as ``1.15 GiB``."""
    index = 0
    # The next unit begins at 1000 of the one before, so that there are never four digits.
    while index < len(_SUFFIXES) - 1 and size >= 1000 << (10 * index):
        index += 1
    return f"{size / (1 << (10 * index)):.3g} {_SUFFIXES[index]}B"


def image_text(info: Mapping[str, Any]) -> Iterator[str]:
    """Lines about one image, by its ImageInfo."""
    actual = info.get("actual-size")
    yield f"image: {info['filename']}\n"
    yield f"file format: {info['format']}\n"
    yield f"virtual size: {size_text(info['virtual-size'])} ({info['virtual-size']} bytes)\n"
    yield f"disk size: {'unavailable' if actual is None else size_text(actual)}\n"
    if info.get("encrypted"):
        yield "encrypted: yes\n"
    if "cluster-size" in info:
        yield f"cluster_size: {info['cluster-size']}\n"
    if info.get("dirty-flag"):
        yield "cleanly shut down: no\n"
    if "backing-filename" in info:
        yield from _backing_text(info)
    if info.get("snapshots"):
        yield from snapshots_text(info["snapshots"])
    if "format-specific" in info:
        yield "Format specific information:\n"
        yield from specific_text(info["format-specific"]["data"])


def _backing_text(info: Mapping[str, Any]) -> Iterator[str]:
    name = info["backing-filename"]
    full = info.get("full-backing-filename")
    if full is None:
        yield f"backing file: {name} (cannot determine actual path)\n"
    elif full != name:
        yield f"backing file: {name} (actual path: {full})\n"
    else:
        yield f"backing file: {name}\n"
    if "backing-filename-format" in info:
        yield f"backing file format: {info['backing-filename-format']}\n"


def snapshots_text(snapshots: list[dict[str, Any]]) -> Iterator[str]:
    """A table of internal snapshots, with its title."""
    yield "Snapshot list:\n"
    yield from snapshot_table(snapshots)


def snapshot_table(snapshots: list[dict[str, Any]]) -> Iterator[str]:
    """A table of internal snapshots by their SnapshotInfo."""
    yield f"{'ID':<10}{'TAG':<17}{'VM SIZE':>8}{'DATE':>20}{'VM CLOCK':>13}{'ICOUNT':>11}\n"
    for entry in snapshots:
        date = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(entry["date-sec"]))
        minutes, seconds = divmod(entry["vm-clock-sec"], 60)
        hours, minutes = divmod(minutes, 60)
        clock = f"{hours:02d}:{minutes:02d}:{seconds:02d}.{entry['vm-clock-nsec'] // 1_000_000:03d}"
        count = entry.get("icount", "")
        size = size_text(entry["vm-state-size"])
        yield f"{entry['id']:<9} {entry['name']:<16} {size:>8}{date:>20}{clock:>13}{count:>11}\n"


def specific_text(data: Mapping[str, Any]) -> Iterator[str]:
    """What a format tells of its own (the data of ImageInfoSpecific), below its heading."""
    yield from _members_text(data, 1)


def _members_text(members: Mapping[str, Any], depth: int) -> Iterator[str]:
    for name in in_member_order(members):
        yield from _value_text(name.replace("-", " "), members[name], depth)


def _value_text(name: str, value: Any, depth: int) -> Iterator[str]:
    indent = "    " * depth
    if isinstance(value, (dict, list)):
        yield f"{indent}{name}:\n"
        if isinstance(value, dict):
            yield from _members_text(value, depth + 1)
        else:
            for index, item in enumerate(value):
                yield from _value_text(f"[{index}]", item, depth + 1)
    else:
        text = str(value).lower() if isinstance(value, bool) else str(value)
        yield f"{indent}{name}: {text}\n"
