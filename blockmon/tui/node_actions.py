"""What can be done to a node: each action is one row here, offered only where the node's state allows it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from blockmon.model.graph import EdgeInfo, NodeInfo
from blockmon.model.refresher import ScreenState
from blockmon.tui.choice import Choice, NodeAction, unused_name, value

_BACKING_REASON = "node is used as backing hd of "
_BITMAPS_LISTED = 8
QUERY_OPTIONS = "x-blockmon-query-node-options"
_TAKE_BACKING = frozenset({"qcow2", "qed", "qcow", "vmdk"})
"""Formats whose images can lie over another."""


def backing_of(state: ScreenState, node: NodeInfo) -> str | None:
    """The node below: the backing one, or what a filter filters."""
    edge: EdgeInfo | None = state.graph.backing(node.name)
    return edge.child if edge is not None else None


def held(node: NodeInfo) -> bool:
    """True while something keeps jobs away from the node; that it backs another one does not."""
    return any(not reason.startswith(_BACKING_REASON) for reason in node.busy)


def _unused(state: ScreenState, node: NodeInfo) -> bool:
    return all(edge.parent_kind in ("monitor", "user") for edge in state.graph.parents_of(node.name))


def _unused_nodes(state: ScreenState) -> Iterator[NodeInfo]:
    # Found out once for each graph: with thousands of nodes it takes longer than the rest of a menu.
    return (state.graph.nodes[name] for name in state.graph.unused)


def _targets(state: ScreenState, node: NodeInfo) -> list[str]:
    """Nodes that a copy of this one could go to: writable, as long, and used by nobody."""
    return [
        other.name
        for other in _unused_nodes(state)
        if other.name != node.name and not other.read_only and other.size == node.size
        if not held(other) and not other.filter
    ]


def _only(names: list[str]) -> str:
    """The name, where there is no choice; otherwise the prompt's completion offers them."""
    return value(names[0]) if len(names) == 1 else ""


def _stream(state: ScreenState, node: NodeInfo) -> str | None:
    if node.filter or held(node) or backing_of(state, node) is None:
        return None
    return f"job-id={state.jobs.unused_id('stream')} device={value(node.name)}"


def _commit(state: ScreenState, node: NodeInfo) -> str | None:
    base = backing_of(state, node)
    if node.filter or held(node) or base is None:
        return None
    active = state.graph.active_layer(node.name)
    middle = "" if active == node.name else f" top-node={value(node.name)}"
    return f"job-id={state.jobs.unused_id('commit')} device={value(active)}{middle} base-node={value(base)}"


def _takes_overlay(state: ScreenState, node: NodeInfo) -> bool:
    # The overlay takes the node's place with those who use it. With none it would be closed again at once, and the
    # server refuses to put it between a format node and what that is made of.
    users = [edge for edge in state.graph.parents_of(node.name) if edge.parent_kind not in ("monitor", "job")]
    above = [state.graph.nodes.get(edge.parent) for edge in users if edge.parent_kind == "node"]
    return bool(users) and all(parent is not None and parent.filter for parent in above) and not held(node)


def _overlay_path(node: NodeInfo, name: str) -> str:
    folder = node.filename.rpartition("/")[0]
    return f"{folder}/{name}.qcow2" if folder and not node.filename.startswith("json:") else f"{name}.qcow2"


def _snapshot(state: ScreenState, node: NodeInfo) -> str | None:
    if not _takes_overlay(state, node):
        return None
    name = unused_name(state.graph, f"{node.name.lstrip('#')}-snap")
    path = _overlay_path(node, name)
    return f"node-name={value(node.name)} snapshot-node-name={value(name)} format=qcow2 snapshot-file={value(path)}"


def _overlays(state: ScreenState, node: NodeInfo) -> list[str]:
    """Nodes that could be put on top: of a format that takes a backing image, without one, and used by nobody."""
    return [
        other.name
        for other in _unused_nodes(state)
        if other.name != node.name and other.driver in _TAKE_BACKING
        if state.graph.child(other.name, "backing") is None and not other.read_only
    ]


def _put_on_top(state: ScreenState, node: NodeInfo) -> str | None:
    found = _overlays(state, node)
    if not found or not _takes_overlay(state, node):
        return None
    return f"node={value(node.name)} overlay={_only(found)}"


def _create_overlay(state: ScreenState, node: NodeInfo) -> str | None:
    # The image is made in a node that is there already: an empty file that nobody uses.
    if node.filter or not node.size or not node.filename or node.filename.startswith("json:"):
        return None
    files = [
        other.name
        for other in _unused_nodes(state)
        if other.driver == "file" and not other.read_only and other.name != node.name
    ]
    return (
        f"job-id={state.jobs.unused_id('create')} options.driver=qcow2 options.file={_only(files)}"
        f" options.size={node.size} options.backing-file={value(node.filename)}"
        f" options.backing-fmt={value(node.driver)}"
    )


def _mirror(state: ScreenState, node: NodeInfo) -> str | None:
    # QEMU's op blockers keep a mirror away from a node that backs another one.
    if node.busy:
        return None
    target = _only(_targets(state, node))
    return f"job-id={state.jobs.unused_id('mirror')} device={value(node.name)} sync=full target={target}"


def _backup(state: ScreenState, node: NodeInfo) -> str | None:
    if held(node):
        return None
    target = _only(_targets(state, node))
    return f"job-id={state.jobs.unused_id('backup')} device={value(node.name)} sync=full target={target}"


def _resize(state: ScreenState, node: NodeInfo) -> str | None:
    above = [edge for edge in state.graph.parents_of(node.name) if edge.parent_kind == "node"]
    known = state.graph.permissions_known
    refused = node.read_only or held(node) or (known and any("resize" not in edge.shared for edge in above))
    return None if refused else f"node-name={value(node.name)} size={node.size}"


def _change_backing(state: ScreenState, node: NodeInfo) -> str | None:
    if node.filter or (node.backing_file is None and backing_of(state, node) is None):
        return None
    active = state.graph.active_layer(node.name)
    return f"device={value(active)} image-node-name={value(node.name)} backing-file={value(node.backing_file or '')}"


def _export(state: ScreenState, node: NodeInfo) -> str | None:
    return f"type=nbd id=exp-{node.name.lstrip('#')} node-name={value(node.name)}"


def _delete(state: ScreenState, node: NodeInfo) -> str | None:
    return f"node-name={value(node.name)}" if node.monitor_owned and _unused(state, node) else None


def _reopened(state: ScreenState, node: NodeInfo, **changes: str) -> str:
    """The arguments that open a node anew as it is, with other children or access; files go by their names."""
    words = {"driver": node.driver, "node-name": node.name}
    for edge in state.graph.children(node.name):
        if edge.child is not None and not edge.name.startswith("children."):
            words[edge.name] = edge.child
    if node.backing_file is not None and "backing" not in words:
        words["backing"] = "null"  # To leave it out would ask for the one that the image names.
    if not state.graph.children(node.name) and node.filename:
        words["filename"] = node.filename
    words.update({key.replace("_", "-"): text for key, text in changes.items()})
    return " ".join(f"options.0.{key}={value(text)}" for key, text in words.items())


def _reopen_access(state: ScreenState, node: NodeInfo) -> str | None:
    if not node.monitor_owned or held(node):
        return None
    if node.read_only:
        # Everything below a writable node has to be writable too, but for what only backs it.
        edges = [edge for edge in state.graph.children(node.name) if "cow" not in edge.roles]
        below = [state.graph.nodes.get(edge.child or "") for edge in edges]
        if any(child is not None and child.read_only for child in below):
            return None
        return _reopened(state, node, read_only="off")
    written = any("write" in edge.perm for edge in state.graph.parents_of(node.name))
    return None if written else _reopened(state, node, read_only="on")


def _throttle(state: ScreenState, node: NodeInfo) -> str | None:
    if node.driver == "throttle" or held(node):
        return None
    name = unused_name(state.graph, f"{node.name.lstrip('#')}-throttle")
    return f"driver=throttle node-name={value(name)} file={value(node.name)} throttle-group="


def _insert_filter(state: ScreenState, node: NodeInfo) -> str | None:
    """Under the one node that has as a child what this filter filters, which nobody uses yet."""
    below = backing_of(state, node)
    if not node.filter or below is None or not _unused(state, node):
        return None
    above = [edge for edge in state.graph.parents_of(below) if edge.parent_kind == "node" and edge.parent != node.name]
    parent = state.graph.nodes.get(above[0].parent) if len(above) == 1 else None
    if parent is None or not parent.monitor_owned or parent.filter or above[0].frozen:
        return None
    return _reopened(state, parent, **{above[0].name.replace("-", "_"): node.name})


def _remove_filter(state: ScreenState, node: NodeInfo) -> str | None:
    """From under its parent node, which then has as its child what the filter filters."""
    below = backing_of(state, node)
    users = [edge for edge in state.graph.parents_of(node.name) if edge.parent_kind not in ("monitor", "user")]
    if not node.filter or node.implicit or below is None or len(users) != 1 or users[0].parent_kind != "node":
        return None
    parent = state.graph.nodes.get(users[0].parent)
    if parent is None or not parent.monitor_owned or users[0].frozen:
        return None
    return _reopened(state, parent, **{users[0].name.replace("-", "_"): below})


def _internal_snapshot(state: ScreenState, node: NodeInfo) -> str | None:
    # Internal snapshots are taken of what a device uses.
    on_device = any(edge.parent_kind == "device" for edge in state.graph.parents_of(node.name))
    if node.driver != "qcow2" or node.read_only or held(node) or not on_device:
        return None
    return f"device={value(node.name)} name="


def _threshold(state: ScreenState, node: NodeInfo) -> str | None:
    return None if node.read_only else f"node-name={value(node.name)} write-threshold={node.size * 9 // 10}"


def _add_bitmap(state: ScreenState, node: NodeInfo) -> str | None:
    if node.filter or node.implicit:
        return None
    known = {bitmap.name for bitmap in state.bitmaps.get(node.name, ())}
    number = 0
    while f"bitmap{number}" in known:
        number += 1
    lasting = " persistent=on" if node.driver == "qcow2" and not node.read_only else ""
    return f"node={value(node.name)} name=bitmap{number}{lasting}"


def _add_child(state: ScreenState, node: NodeInfo) -> str | None:
    return f"parent={value(node.name)} node=" if node.driver == "quorum" else None


NODE_ACTIONS: tuple[NodeAction, ...] = (
    NodeAction("s", "stream: copy in what the backing chain holds", "block-stream", _stream),
    NodeAction("c", "commit: write its data down into its backing node", "block-commit", _commit),
    NodeAction("n", "snapshot: put a new overlay on top", "blockdev-snapshot-sync", _snapshot),
    NodeAction("m", "mirror to another node", "blockdev-mirror", _mirror),
    NodeAction("b", "backup to another node", "blockdev-backup", _backup),
    NodeAction("e", "export over NBD", "block-export-add", _export),
    NodeAction("r", "resize", "block_resize", _resize),
    NodeAction("f", "write another backing file name into the image", "change-backing-file", _change_backing),
    NodeAction("d", "delete the node", "blockdev-del", _delete),
)
"""With keys of their own in the tree."""

MORE_NODE_ACTIONS: tuple[NodeAction, ...] = (
    NodeAction("N", "put an open node on top as its overlay", "blockdev-snapshot", _put_on_top),
    NodeAction("o", "create an image that lies over it, in a file node", "blockdev-create", _create_overlay),
    NodeAction("I", "take a snapshot inside the image", "blockdev-snapshot-internal-sync", _internal_snapshot),
    NodeAction("D", "delete a snapshot inside the image", "blockdev-snapshot-delete-internal-sync", _internal_snapshot),
    NodeAction("w", "reopen it read-only or writable", "blockdev-reopen", _reopen_access),
    NodeAction("t", "throttle: make a filter that limits it", "blockdev-add", _throttle),
    NodeAction("i", "insert this filter under the node above", "blockdev-reopen", _insert_filter),
    NodeAction("x", "take this filter out from under the node above", "blockdev-reopen", _remove_filter),
    NodeAction("+", "add a child to the quorum", "x-blockdev-change", _add_child),
    NodeAction("h", "tell when a write goes beyond an offset", "block-set-write-threshold", _threshold),
    NodeAction("B", "add a dirty bitmap", "block-dirty-bitmap-add", _add_bitmap),
)
"""In the menu of actions alone."""


def _bitmap_choices(state: ScreenState, name: str) -> Iterator[Choice]:
    """What can be done to the bitmaps of a node; one that a job or an export uses stays as it is."""
    for bitmap in state.bitmaps.get(name, ())[:_BITMAPS_LISTED]:
        verbs = [] if bitmap.busy else ["remove"]
        if not bitmap.busy and not bitmap.inconsistent:
            verbs = ["clear", "remove", "disable" if bitmap.recording else "enable"]
        for verb in verbs:
            command = f"block-dirty-bitmap-{verb}"
            if command in state.commands:
                written = f"{command} node={value(name)} name={value(bitmap.name)}"
                yield Choice("", f"{verb} bitmap {bitmap.name}", written)


def node_choices(state: ScreenState, name: str) -> Iterator[Choice]:
    """What can be done to a node, one after the other: whether there is anything shows at the first."""
    node = state.graph.nodes.get(name)
    if node is None:
        return
    for action in (*NODE_ACTIONS, *MORE_NODE_ACTIONS):
        if action.command in state.commands:
            arguments = action.write(state, node)
            if arguments is not None:
                yield Choice(action.key, _name(state, action, node), f"{action.command} {arguments}")
    yield from _bitmap_choices(state, name)
    if node.driver == "quorum" and "x-blockdev-change" in state.commands:
        for edge in state.graph.children(name):
            if edge.child is not None and edge.name.startswith("children."):
                written = f"x-blockdev-change parent={value(name)} child={value(edge.name)}"
                yield Choice("", f"take {edge.child} out of the quorum", written)


def _name(state: ScreenState, action: NodeAction, node: NodeInfo) -> str:
    name = action.name
    if action.write is _reopen_access:
        name = f"reopen it {'writable' if node.read_only else 'read-only'}"
    if action.command == "blockdev-reopen" and QUERY_OPTIONS not in state.commands:
        # They cannot be asked for, and what is left out of a reopen is not as it was.
        name += "; other options go back to their defaults"
    return name


def with_options(command: str, given: Mapping[str, Any], options: Sequence[Mapping[str, Any]]) -> str:
    """
    A ``blockdev-reopen`` as an action writes it, with what the node was opened with besides.

    *given* is the options that the command has, *options* the answer to ``x-blockmon-query-node-options``.
    """
    words = [command]
    for item in options:
        name, wanted = str(item["name"]), item.get("value")
        if item["source"] == "explicit" and wanted is not None and not _has(given, name):
            words += [f"options.0.{key}={_word(text)}" for key, text in _flattened(name, wanted)]
    return " ".join(words)


def _has(given: Mapping[str, Any], name: str) -> bool:
    """Whether a dotted name, or all of what it is a part of, is given."""
    first, _, rest = name.partition(".")
    found = given.get(name, given.get(first))
    return _has(found, rest) if rest and isinstance(found, Mapping) else found is not None


def _flattened(key: str, wanted: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(wanted, (Mapping, list)):
        items = wanted.items() if isinstance(wanted, Mapping) else enumerate(wanted)
        for name, below in items:
            yield from _flattened(f"{key}.{name}", below)
    else:
        yield key, wanted


def _word(wanted: Any) -> str:
    return ("on" if wanted else "off") if isinstance(wanted, bool) else value(str(wanted))
