"""File names: protocol prefixes, relative backing names, ``json:`` names, and the name a node shows.

Rules as in QEMU's bdrv_refresh_filename and path_combine.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from typing import Any

from engine.errors import GenericError
from engine.graph.driver import Driver, drivers
from engine.graph.node import Node
from engine.qapi import keyval
from engine.qapi.member_order import as_walked

FILENAME_MAX = 4096
"""Size of QEMU's file name buffers in bytes; longer generated names are cut and end in '...'."""


def protocol_of(filename: str) -> str | None:
    """The part before a ':' that comes before any '/'; None when there is none."""
    colon = filename.find(":")
    slash = filename.find("/")
    if colon <= 0 or (slash != -1 and slash < colon):
        return None
    return filename[:colon]


def find_protocol(filename: str, *, parse: bool = True) -> type[Driver]:
    """The protocol driver a file name means. *parse*: whether prefixes are honoured. Errors: GenericError."""
    try:
        mode = os.stat(filename).st_mode
    except (OSError, ValueError):
        mode = 0
    if (stat.S_ISBLK(mode) or stat.S_ISCHR(mode)) and "host_device" in drivers:
        return drivers["host_device"]
    prefix = protocol_of(filename) if parse else None
    if prefix is None:
        return drivers["file"]
    driver = drivers.by_prefix(prefix)
    if driver is None:
        raise GenericError(f"Unknown protocol '{prefix}'")
    return driver


def parse_json_filename(filename: str) -> dict[str, Any]:
    """Options in a ``json:`` name, dotted keys nested. Errors: GenericError."""
    return nested(keyval.parse_json_filename(filename))


def nested(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with dotted keys turned into nested ones, wherever they stand. Errors: GenericError."""
    return keyval.crumple(keyval.flatten(options))


def combine(base: str, name: str) -> str:
    """*name* as seen from the image called *base*: absolute and protocol names stay as they are."""
    if not name or name.startswith("/") or protocol_of(name) is not None:
        return name
    head = base
    prefix = ""
    if protocol_of(base) is not None:
        scheme, _, rest = base.partition(":")
        prefix, head = scheme + ":", rest
    return prefix + head[: head.rfind("/") + 1] + name


def dirname_of(node: Node) -> str:
    """Directory of a node for relative names in it, '' or ending in '/'. Errors: GenericError."""
    own = node.driver.dirname()
    if own is not None:
        return own
    primary = node.primary
    if primary is not None:
        return dirname_of(primary.child)
    name = node.exact_filename
    if not name:
        raise GenericError(f"Cannot generate a base directory for {node.driver.name} nodes")
    return combine(name, "x")[:-1]


def full_backing_name(node: Node, backing: str | None = None) -> str:
    """The header's backing file name (or *backing*) as it is opened, '' for none. Errors: GenericError."""
    name = node.auto_backing_file if backing is None else backing
    if not name or name.startswith("/") or protocol_of(name) is not None:
        return name
    return dirname_of(node) + name


def refresh_filename(node: Node, *, opened: bool = False) -> None:
    """Recompute ``exact_filename``, ``full_options`` and ``filename`` of *node* and of everything below it.

    opened: it has just been opened, and children opened for it have theirs already.
    """
    for edge in node.children.values():
        if not opened or edge.child.inherits_from is not node:
            refresh_filename(edge.child)
    driver = node.driver
    if node.implicit:
        child = node.filter_or_cow
        if child is not None:
            below = child.child
            node.exact_filename, node.filename, node.full_options = (
                below.exact_filename,
                below.filename,
                below.full_options,
            )
            return
    backing = node.backing
    if driver.supports_backing:
        if backing is not None:
            node.backing_overridden = not _is_backing_of_header(node, backing.child)
        else:
            node.backing_overridden = bool(node.auto_backing_file)
    strong = _strong_options(node)
    options: dict[str, Any] = {"driver": driver.name, **strong}
    listed = driver.children_options()
    if listed is not None:
        options |= listed
    else:
        for edge in node.children.values():
            if edge is backing and not node.backing_overridden:
                continue
            options[edge.name] = edge.child.full_options
    if driver.supports_backing and backing is None and node.backing_overridden:
        options["backing"] = None
    node.full_options = options

    exact = driver.exact_filename()
    if exact is None:
        exact = ""
        primary = node.primary
        if (
            primary is not None
            and primary.child.exact_filename
            and driver.shows_plain_name
            and primary.child.driver.is_protocol
            and not strong
            and not node.backing_overridden
        ):
            exact = primary.child.exact_filename
    node.exact_filename = exact
    if exact:
        node.filename = exact
    else:
        text = "json:" + json.dumps(as_walked(options))
        node.filename = text if len(text) < FILENAME_MAX else text[: FILENAME_MAX - 4] + "..."


def _is_backing_of_header(node: Node, backing: Node) -> bool:
    # As QEMU: a name counts only as the header has it, or as the node opened for the header was called.
    if not node.auto_backing_file:
        return False
    return backing.filename == node.auto_backing_file or node.followed_backing == (
        node.auto_backing_file,
        backing.filename,
    )


def _strong_options(node: Node) -> dict[str, Any]:
    strong: dict[str, Any] = {}
    for key, value in node.options.items():
        for name in node.driver.strong_options:
            if key == name:
                strong[key] = value
            elif name == key + ".":
                # What is nested stays flat here, as the options of a node are in QEMU.
                strong |= keyval.flatten({key: value})
    return strong
