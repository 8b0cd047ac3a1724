"""Our own command that tells with what options a node works, and where each of them comes from."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from engine.commands.query import visible_nodes
from engine.errors import GenericError
from engine.graph.node import Node
from engine.qapi import Enum, Struct, command
from engine.qapi.keyval import flatten

if TYPE_CHECKING:
    from engine.engine import Engine


class XBlockmonOptionSource(Enum):
    """Who chose an option: the user, the node that this one was opened for (or its file name), or nobody."""

    EXPLICIT = "explicit"
    INHERITED = "inherited"
    DEFAULT = "default"


class XBlockmonNodeOption(Struct):
    """An option of a node. name: as a flat key. value: what is in force; absent where the driver decides as it goes."""

    name: str
    value: Any = None
    source: XBlockmonOptionSource


def _qcow2(node: Node) -> dict[str, Any]:
    image = getattr(node.driver, "image", None)
    settings = getattr(image, "settings", None)
    if settings is None:
        return {}
    return {
        "lazy-refcounts": settings.lazy_refcounts,
        "pass-discard-request": settings.discard_request,
        "pass-discard-snapshot": settings.discard_snapshot,
        "pass-discard-other": settings.discard_other,
        "overlap-check": "cached",
        "cache-clean-interval": settings.clean_interval,
    }


_FILE: Final = {"locking": "auto", "aio": "threads", "aio-max-batch": 0, "drop-cache": True}
_NULL: Final = {"size": 1 << 30, "latency-ns": 0, "read-zeroes": False}
_DEFAULTS: Final[dict[str, Callable[[Node], dict[str, Any]]]] = {
    "qcow2": _qcow2,
    "raw": lambda node: {"offset": 0, "size": node.driver.length},
    "file": lambda node: {**_FILE, "x-check-cache-dropped": False},
    "host_device": lambda node: {**_FILE, "x-check-cache-dropped": False},
    "null-co": lambda node: dict(_NULL),
    "null-aio": lambda node: dict(_NULL),
    "quorum": lambda node: {"blkverify": False, "rewrite-corrupted": False, "read-pattern": "quorum"},
}
"""What the options of a driver are where nobody gave them (QAPI documentation of BlockdevOptions…)."""


def _in_force(node: Node) -> dict[str, Any]:
    """The options of every node, whoever chose them."""
    return {
        "driver": node.driver.name,
        "node-name": node.name,
        "read-only": node.read_only,
        "auto-read-only": node.auto_read_only,
        "force-share": node.force_share,
        "discard": "unmap" if node.discard_unmap else "ignore",
        "detect-zeroes": node.detect_zeroes,
        "cache.direct": node.cache_direct,
        "cache.no-flush": node.cache_no_flush,
    }


@command(name="x-blockmon-query-node-options", features=("unstable",))
def x_blockmon_query_node_options(engine: Engine, *, node_name: str) -> list[XBlockmonNodeOption]:
    """Show the options of a node, those that every node has first, and whether they were given, inherited or neither.

    node_name: the node
    """
    node = next((found for found in visible_nodes(engine.graph) if found.name == node_name), None)
    if node is None:
        raise GenericError(f"Failed to find node with node-name='{node_name}'")
    driver = node.driver
    children = {edge.name: edge.child.name for edge in node.children.values()}
    explicit = flatten({k: v for k, v in node.explicit_options.items() if k not in driver.child_options})
    given = {key.split(".", 1)[0] for key in node.explicit_options}
    effective = flatten({k: v for k, v in node.options.items() if k not in driver.child_options})
    known = _DEFAULTS.get(driver.name)
    defaults = known(node) if known is not None else {}
    in_force = _in_force(node)
    values = {**in_force, **{name: value for name, value in effective.items() if name not in in_force}}
    for member in driver.Options.qapi_members():
        if member.name not in driver.child_options and not any(name.split(".", 1)[0] == member.name for name in values):
            values[member.name] = defaults.get(member.name)
    found: list[XBlockmonNodeOption] = []
    for name, value in values.items():
        if name in explicit:
            source = XBlockmonOptionSource.EXPLICIT
        elif _is_inherited(node, name, value, name in effective):
            source = XBlockmonOptionSource.INHERITED
        else:
            source = XBlockmonOptionSource.DEFAULT
        found.append(XBlockmonNodeOption(name=name, value=value, source=source))
    for name, child in children.items():
        source = XBlockmonOptionSource.EXPLICIT if name.split(".", 1)[0] in given else XBlockmonOptionSource.DEFAULT
        found.append(XBlockmonNodeOption(name=name, value=child, source=source))
    return found


_OFF: Final = (False, "ignore", "off")


def _is_inherited(node: Node, name: str, value: Any, effective: bool) -> bool:
    """
    Whether an option that nobody gave for this node comes from the one it was opened for.

    Children inherit the cache mode and read-only as they are in force there, and discard; the file name may be part of
    what their parent was given.
    """
    if node.inherits_from is None or not effective or name in ("driver", "node-name"):
        return False
    return name in ("read-only", "auto-read-only", "discard", "filename") or value not in _OFF
