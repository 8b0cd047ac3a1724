"""From options and file names to open nodes: option layers, probing, inheritance, children, the backing chain.

Rules as in QEMU's bdrv_open_inherit; the strongest layer wins: options of the call, options in a ``json:`` name,
options a protocol file name stands for, options inherited from the parent, defaults.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from engine.errors import GenericError, os_error_text
from engine.graph import filenames
from engine.graph.change import Transaction, attach, refresh_permissions
from engine.graph.driver import Driver, drivers
from engine.graph.edge import Edge
from engine.graph.graph import Graph
from engine.graph.node import Node
from engine.graph.options import GENERIC_OPTIONS
from engine.graph.permissions import Perm, Role
from engine.graph.policy import OpenPolicy
from engine.graph.probing import probe_format
from engine.graph.requests import MAX_LENGTH
from engine.graph.typed_options import typed_options

Naming = Callable[[str, str, str], str | None]
"""(file name, driver, child name) → node name to use for a node the user did not name, or None."""


@dataclass
class Context:
    """What stays the same while one chain is opened."""

    graph: Graph
    policy: OpenPolicy
    naming: Naming | None = None
    depth: int = 0
    identities: tuple[tuple[int, int], ...] = ()
    """(st_dev, st_ino) of the images above, to recognise a chain that bites its tail."""
    no_backing: bool = False
    """No backing images are opened."""
    for_check: bool = False
    """The image is to be checked, and may need it (Opening.for_check)."""


@dataclass
class Inherited:
    """Options a child gets from its parent where it has none of its own."""

    options: dict[str, Any] = field(default_factory=dict)
    parent: Node | None = None
    protocol_level: bool = False
    """A missing driver means a protocol driver, not a probed format."""


def lookup_driver(name: str) -> type[Driver]:
    """The driver class called *name*. Errors: GenericError."""
    try:
        return drivers[name]
    except KeyError:
        raise GenericError(f"Unknown driver '{name}'") from None


def open_node(
    graph: Graph,
    options: Mapping[str, Any] | str,
    *,
    filename: str | None = None,
    policy: OpenPolicy | None = None,
    naming: Naming | None = None,
    no_backing: bool = False,
    for_check: bool = False,
) -> Node:
    """Open a node by options (wire names, nested) and/or file name, or find the one named by a string.

    no_backing: leave the backing image out, whatever the format. for_check: open it to be checked, though it may not
    have been closed properly. The node comes back pinned: attach it or make the
    monitor own it, then ``graph.unpin(node)``. Errors: GenericError.
    """
    context = Context(graph, policy or graph.policy, naming, no_backing=no_backing, for_check=for_check)
    return _open(context, options, filename, Inherited())


def _open(context: Context, options: Mapping[str, Any] | str, filename: str | None, inherited: Inherited) -> Node:
    graph = context.graph
    if isinstance(options, str):
        node = _existing(graph, options)
        node.pins += 1
        return node
    given = filenames.nested(options)
    if filename is not None and filename.startswith("json:"):
        for key, value in filenames.parse_json_filename(filename).items():
            given.setdefault(key, value)
        filename = None
    explicit = dict(given)
    effective = {**inherited.options, **given}

    file_edge_node: Node | None = None
    probed_raw = False
    name = effective.get("driver")
    if name is not None and not isinstance(name, str):
        raise GenericError("Invalid parameter type for 'driver', expected: string")
    if name is None and inherited.protocol_level:
        # Only a name given as such may have a prefix; in the option "filename" it is a part of the file's name.
        cls = filenames.find_protocol(_protocol_filename(effective, filename), parse=filename is not None)
    elif name is None:
        file_edge_node, cls = _open_and_probe(context, effective, filename, inherited)
        probed_raw = cls.name == "raw"
        filename = None
    else:
        cls = lookup_driver(name)
    effective["driver"] = cls.name

    try:
        shown = filename or (file_edge_node.filename if file_edge_node is not None else None)
        node = _prepare_node(context, cls, effective, explicit, shown, inherited)
    except BaseException:
        if file_edge_node is not None:
            graph.unpin(file_edge_node)
        raise
    node.probed_raw = probed_raw
    opener = _Opener(context, node, effective, filename, file_edge_node)
    try:
        opener.run()
    except OSError as exc:
        shown = opener.shown_name()
        _abandon(node)
        raise GenericError(f"Could not open '{shown}': {os_error_text(exc)}") from exc
    except BaseException:
        _abandon(node)
        raise
    finally:
        if file_edge_node is not None:
            graph.unpin(file_edge_node)
    graph.changed()
    return node


def _protocol_filename(effective: dict[str, Any], filename: str | None) -> str:
    if filename == "":
        raise GenericError("The 'file' block driver requires a file name")
    name = filename if filename is not None else effective.get("filename")
    if not isinstance(name, str) or not name:
        raise GenericError("Must specify either driver or file")
    return name


def _open_and_probe(
    context: Context, effective: dict[str, Any], filename: str | None, inherited: Inherited
) -> tuple[Node, type[Driver]]:
    """Open what is to be the file child, look at its first bytes, and tell which driver they mean."""
    child_options = effective.pop("file", {})
    if child_options == {} and filename is None:
        raise GenericError("Must specify either driver or file")
    if filename is not None:
        _check_named_child(child_options)
    parent = Inherited(
        options={k: v for k, v in effective.items() if k in ("read-only", "auto-read-only", "cache", "force-share")}
        | {"discard": "unmap"},
        protocol_level=True,
    )
    node = _open(context, child_options, filename, parent)
    try:
        return node, probe_format(node, node.filename)
    except OSError as exc:
        context.graph.unpin(node)
        raise GenericError(f"Could not read image for determining its format: {os_error_text(exc)}") from exc
    except BaseException:
        context.graph.unpin(node)
        raise


def _prepare_node(
    context: Context,
    cls: type[Driver],
    effective: dict[str, Any],
    explicit: dict[str, Any],
    filename: str | None,
    inherited: Inherited,
) -> Node:
    """A named node with its generic options set, not opened yet. Errors: GenericError."""
    graph = context.graph
    node = Node(graph, "", cls)
    node.pins = 1
    node.inherits_from = inherited.parent
    cache = effective.get("cache") or {}
    if not isinstance(cache, dict):
        raise GenericError("Invalid parameter type for 'cache', expected: object")
    node.cache_direct = _flag(cache, "direct", "cache.")
    node.cache_no_flush = _flag(cache, "no-flush", "cache.")
    node.read_only = _flag(effective, "read-only")
    node.auto_read_only = _flag(effective, "auto-read-only")
    node.force_share = _flag(effective, "force-share")
    if node.force_share and not node.read_only:
        raise GenericError("force-share=on can only be used with read-only images")
    discard = effective.get("discard", "ignore")
    if discard not in ("ignore", "unmap", "on", "off"):
        raise GenericError("Invalid discard option")
    node.discard_unmap = discard in ("unmap", "on")
    node.detect_zeroes = str(effective.get("detect-zeroes") or "off")
    if node.detect_zeroes == "unmap" and not node.discard_unmap:
        raise GenericError("setting detect-zeroes to unmap is not allowed without setting discard operation to unmap")
    node.explicit_options = explicit
    node_name = effective.get("node-name")
    if isinstance(node_name, int | float):
        raise GenericError(f"Invalid node-name: '{node_name}'")
    if node_name is None and context.naming is not None:
        node_name = context.naming(filename or "", cls.name, "")
        graph.name_node(node, node_name)
        node.auto_name = True
    else:
        graph.name_node(node, node_name)
    return node


def _existing(graph: Graph, name: str) -> Node:
    """The node of that name, or of the device. Errors: GenericError, also where it is just being opened: what is below
    it can't be on top of it.
    """
    node = graph.find_either(name)
    if not node.opened and not node.parents:
        raise GenericError(f"Node '{name}' would be a child of itself")
    return node


def _names_image(options: Mapping[str, Any]) -> bool:
    """Whether options of a backing child tell which image it is, so that the header's name isn't needed."""
    file = options.get("file")
    if not isinstance(file, Mapping):
        return file is not None or "filename" in options
    cls = drivers.get(str(file.get("driver", "file")))
    takes_name = cls is not None and any(member.name == "filename" for member in cls.Options.qapi_members())
    return "filename" in file or not takes_name


def _check_named_child(options: Any) -> None:
    """Refuse *options* of a format's file child that do not go with the file name that its parent got."""
    if isinstance(options, str):
        raise GenericError("Cannot reference an existing block device with additional options or a new filename")
    if "filename" in (options or {}):
        raise GenericError("Can't specify 'file' and 'filename' options at the same time")


def _flag(options: Mapping[str, Any], key: str, prefix: str = "") -> bool:
    value = options.get(key)
    if value in (None, False, "off"):
        return False
    if value in (True, "on"):
        return True
    raise GenericError(f"Parameter '{prefix}{key}' expects 'on' or 'off'")


def _abandon(node: Node) -> None:
    """Take back a node whose opening failed; the driver has cleaned up after itself as far as it got."""
    node.pins = 0
    node.monitor_owned = False
    node.graph.release_if_unused(node)


class _Opener:
    """Opens one prepared node: the driver's view of it (``Opening``) and the steps around it."""

    def __init__(
        self, context: Context, node: Node, effective: dict[str, Any], filename: str | None, file_node: Node | None
    ) -> None:
        self.context = context
        self.node = node
        self.effective = effective
        self.filename = filename or ""
        self.file_node = file_node
        self.options: Any = None
        self._child_names: dict[str, str] = {}
        """File names of children that the node's own file name has told."""

    @property
    def read_only(self) -> bool:
        return self.node.read_only

    @property
    def for_check(self) -> bool:
        return self.context.for_check

    def shown_name(self) -> str:
        name = self.effective.get("filename") or self.filename
        if not name and self.file_node is not None:
            name = self.file_node.filename
        file = self.node.file
        if not name and file is not None:
            name = file.child.filename
        return str(name)

    def fall_back_to_read_only(self, message: str) -> None:
        if self.node.read_only:
            return
        if not self.node.auto_read_only:
            raise GenericError(message)
        self.node.read_only = True

    def run(self) -> None:
        node, driver = self.node, self.node.driver
        own = {key: value for key, value in self.effective.items() if key not in GENERIC_OPTIONS}
        if driver.is_protocol and self.filename:
            for key, value in driver.parse_filename(self.filename).items():
                if key in driver.child_options:
                    self._child_names[key] = value["filename"]
                    value = {}
                own.setdefault(key, value)
        elif not driver.is_protocol and self.file_node is not None and "file" not in own:
            own["file"] = self.file_node.name
        elif not driver.is_protocol and self.filename:
            _check_named_child(own.get("file"))
            self._child_names["file"] = self.filename
            own.setdefault("file", {})
        known = {member.name for member in (driver.OpenOptions or driver.Options).qapi_members()}
        backing = own.pop("backing", _ABSENT) if driver.supports_backing else _ABSENT
        for key in own:
            if key not in known:
                kind = "protocol" if driver.is_protocol else "format"
                verb = "doesn't" if driver.is_protocol else "does not"
                raise GenericError(f"Block {kind} '{driver.name}' {verb} support the option '{key}'")
        self.own = own
        self.options = typed_options(driver, own)
        node.options = {k: v for k, v in self.effective.items() if k in GENERIC_OPTIONS} | {
            k: v for k, v in own.items() if k not in driver.child_options
        }
        # In force though not given: children that are reopened with this node inherit them.
        node.options["cache"] = {"direct": node.cache_direct, "no-flush": node.cache_no_flush}
        node.options.setdefault("read-only", node.read_only)
        node.options.setdefault("auto-read-only", node.auto_read_only)
        driver.open(self)
        node.opened = True
        if driver.length > MAX_LENGTH:
            raise GenericError(f"Could not refresh total sector count: {os.strerror(errno.EFBIG)}")
        driver.refresh_limits()
        if driver.supports_backing:
            self._open_backing(backing)
        filenames.refresh_filename(node, opened=True)

    # -- children --------------------------------------------------------------------------------------------

    def open_child(
        self,
        name: str,
        role: Role,
        *,
        filename: str | None = None,
        required: bool = True,
        parse_filename: bool = True,
        probe: bool = False,
    ) -> Edge | None:
        value = self._child_value(name)
        if not isinstance(value, str):
            # A number, as a json: name can have it, refers to nothing.
            value = value if isinstance(value, Mapping) else None
            filename = self._child_names.get(name) if filename is None else filename
        if value is None and filename is None:
            if required:
                raise GenericError(f'A block device must be specified for "{name}"')
            return None
        if isinstance(value, str):
            child = _existing(self.context.graph, value)
            child.pins += 1
            if child is self.file_node:
                # Opened for this node, only earlier, so that its format could be probed.
                child.inherits_from = self.node
        else:
            options = dict(value or {})
            if filename is not None and "filename" not in options:
                if parse_filename:
                    child_filename: str | None = filename
                else:
                    child_filename = None
                    self.context.policy.check(self.node.name, name, filename, self.context.depth)
                    options.setdefault("driver", filenames.find_protocol(filename, parse=False).name)
                    options["filename"] = filename
            else:
                child_filename = None
            inherited = Inherited(self._inherit(cow=False), self.node, protocol_level=not probe)
            child = _open(self.context, options, child_filename, inherited)
            if name == "file" and not self.node.driver.is_protocol:
                # QEMU opens this child before it names the parent, which shows in the order of query results.
                self.context.graph.list_last(self.node)
        try:
            return self._attach(child, name, role)
        finally:
            self.context.graph.unpin(child)

    def child_count(self, name: str) -> int:
        children = self.own.get(name, [])
        if not isinstance(children, list):
            raise GenericError(f"Option {name} is not a valid array")
        return len(children)

    def _child_value(self, name: str) -> Any:
        head, dot, number = name.rpartition(".")
        if not dot:
            return self.own.get(name)
        # A list that the options don't have is one that the driver makes up (the extents a vmdk image names).
        return self.own[head][int(number)] if head in self.own else None

    def _inherit(self, *, cow: bool) -> dict[str, Any]:
        node = self.node
        options: dict[str, Any] = {}
        cache = {}
        if node.cache_direct:
            cache["direct"] = True
        if node.cache_no_flush:
            cache["no-flush"] = True
        if cache:
            options["cache"] = cache
        options["read-only"] = True if cow else node.read_only
        options["auto-read-only"] = False if cow else node.auto_read_only
        if node.force_share:
            options["force-share"] = True
        options["discard"] = "unmap"
        return options

    def _attach(self, child: Node, name: str, role: Role) -> Edge:
        node = self.node
        with Transaction() as txn:
            edge = attach(txn, node, child, name, role)
            taken, shared = node.cumulative_permissions()
            edge.perm, edge.shared = node.driver.child_permissions(edge, taken, shared, writable=node.writable)
            if node.force_share:
                edge.shared = Perm.ALL
            refresh_permissions(txn, [child])
        return edge

    # -- backing ---------------------------------------------------------------------------------------------

    def _open_backing(self, given: Any) -> None:
        node = self.node
        if given is None or self.context.no_backing:
            node.no_backing = True
            return
        try:
            child = self._backing_child(given)
        except GenericError as exc:
            if not self.context.policy.tolerate_broken:
                raise GenericError(f"Could not open backing file: {exc.desc}", exc.hint) from exc
            child = self._placeholder()
            node.broken_links["backing"] = (child.filename, exc.desc)
        if child is None:
            return
        try:
            self._attach(child, "backing", Role.COW)
        finally:
            self.context.graph.unpin(child)

    def _backing_child(self, given: Any) -> Node | None:
        node = self.node
        if isinstance(given, str):
            return _open(self.context, given, None, Inherited())
        options = dict(given) if isinstance(given, Mapping) else {}
        filename: str | None = None
        context = self.context
        identity = _identity(node)
        context = replace(
            context, depth=context.depth + 1, identities=context.identities + ((identity,) if identity else ())
        )
        followed = bool(node.auto_backing_file) and not _names_image(options)
        if followed:
            filename = filenames.full_backing_name(node)
            context.policy.check(node.name, "backing file", filename, context.depth)
            _refuse_loop(filename, context.identities)
            if "driver" not in options and node.auto_backing_format:
                options["driver"] = node.auto_backing_format
        elif given is _ABSENT:
            return None
        child = _open(context, options, filename, Inherited(self._inherit(cow=True), node))
        if filename is not None:
            node.followed_backing = (node.auto_backing_file, child.filename)
        return child

    def _placeholder(self) -> Node:
        from engine.graph.broken import BrokenDriver

        node = Node(self.context.graph, "", BrokenDriver)
        node.pins = 1
        node.read_only = True
        self.context.graph.name_node(node, None)
        node.driver.length = self.node.length
        try:
            node.filename = filenames.full_backing_name(self.node)
        except GenericError:
            node.filename = self.node.auto_backing_file
        self.node.followed_backing = (self.node.auto_backing_file, node.filename)
        return node


_ABSENT = object()


def open_backing_file(node: Node) -> None:
    """Open the backing image that the header of *node* names and attach it; nothing where it names none.

    For nodes opened without their backing image (QEMU's bdrv_open_backing_file). Errors: GenericError, also where the
    policy tolerates broken chains.
    """
    policy = replace(node.graph.policy, tolerate_broken=False)
    _Opener(Context(node.graph, policy), node, dict(node.options), None, None)._open_backing(_ABSENT)
    node.no_backing = False


def _identity(node: Node) -> tuple[int, int] | None:
    """(st_dev, st_ino) of the file that holds *node*'s metadata."""
    current = node
    while (edge := current.primary) is not None:
        current = edge.child
    fd = current.driver.host_fd()
    if fd is None:
        return None
    info = os.fstat(fd)
    return info.st_dev, info.st_ino


def _refuse_loop(filename: str, identities: tuple[tuple[int, int], ...]) -> None:
    try:
        info = os.stat(filename.removeprefix("file:"))
    except (OSError, ValueError):
        return
    if (info.st_dev, info.st_ino) in identities:
        raise GenericError(f"Backing file '{filename}' is already part of the chain: the chain loops")
