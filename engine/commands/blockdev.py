"""Commands that add, remove, resize and relabel block nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.errors import GenericError, os_error_text
from engine.graph.backend import BlockBackend
from engine.graph.blockers import Op
from engine.graph.drain import drained
from engine.graph.opening import open_node
from engine.graph.options import BlockdevOptions
from engine.graph.permissions import Perm
from engine.graph.reopen import ReopenQueue, set_read_only
from engine.graph.status import in_chain, skip_filters
from engine.jobs.chain import root_node, write_backing_string
from engine.qapi import Int, command, to_wire

if TYPE_CHECKING:
    from engine.engine import Engine


def _without_options_wrapper(arguments: dict[str, Any]) -> dict[str, Any]:
    """Accept the form of QEMU 2.8 and older, where all options were members of ``options``."""
    if set(arguments) == {"options"} and isinstance(arguments["options"], dict):
        return dict(arguments["options"])
    return arguments


@command(since="2.9", boxed=True, allow_preconfig=True, rewrite=_without_options_wrapper)
def blockdev_add(engine: Engine, options: BlockdevOptions) -> None:
    """Create a block node and keep it until blockdev-del."""
    if options.node_name is None:
        raise GenericError("'node-name' must be specified for the root node")
    node = open_node(engine.graph, to_wire(options))
    node.monitor_owned = True
    engine.graph.unpin(node)


@command(since="6.1", allow_preconfig=True)
def blockdev_reopen(engine: Engine, *, options: list[BlockdevOptions]) -> None:
    """Give nodes other options, all of them in one step or none.

    Options that are not given return to their default. A node in the place of ``file`` or ``backing`` replaces the
    child; null takes the backing node away.

    options: all options of each node, as in blockdev-add
    """
    queue = ReopenQueue()
    for item in options:
        if item.node_name is None:
            raise GenericError("node-name not specified")
        queue.add(engine.graph.node(item.node_name), to_wire(item))
    queue.run()


def _as_list_of_options(arguments: dict[str, Any]) -> dict[str, Any]:
    """Accept the form of QEMU 5.2 and older, which reopened one node."""
    if set(arguments) == {"options"} and isinstance(arguments["options"], list):
        return arguments
    return {"options": [_without_options_wrapper(arguments)]}


@command(name="x-blockdev-reopen", since="4.0", features=("deprecated",), rewrite=_as_list_of_options)
def x_blockdev_reopen(engine: Engine, *, options: list[BlockdevOptions]) -> None:
    """Older name of blockdev-reopen. It takes a list too, or the options of one node as they are.

    options: all options of each node, as in blockdev-add
    """
    blockdev_reopen(engine, options=options)


@command(since="2.9", allow_preconfig=True)
def blockdev_del(engine: Engine, *, node_name: str) -> None:
    """Remove a node that blockdev-add made and nobody uses.

    node_name: the node
    """
    graph = engine.graph
    node = graph.node(node_name)
    if any(isinstance(edge.parent, BlockBackend) for edge in node.parents):
        raise GenericError(f"Node {node_name} is in use")
    node.blockers.check(Op.DRIVE_DEL, node.device_or_node_name)
    if not node.monitor_owned:
        raise GenericError(f"Node {node_name} is not owned by the monitor")
    if node.parents or node.pins:
        raise GenericError(f"Block device {node_name} is in use")
    node.monitor_owned = False
    graph.release_if_unused(node)


@command(name="block_resize", since="0.14", allow_preconfig=True)
def block_resize(engine: Engine, *, device: str | None = None, node_name: str | None = None, size: Int) -> None:
    """Change the size of an image while it is in use.

    device: the device whose image it is
    node_name: the node, instead of a device
    size: new length, bytes
    """
    graph = engine.graph
    node = graph.find(device, node_name)
    if size < 0:
        raise GenericError("Parameter 'size' expects a >0 size")
    if node.blockers.reason(Op.RESIZE) is not None:
        raise GenericError(f"Device '{device or node.name}' is in use")
    backend = graph.add_backend("user", "", node, Perm.RESIZE, Perm.ALL)
    try:
        with drained([node]):
            # Not through the back end: its door is closed now.
            node.truncate(size, exact=False)
    except OSError as exc:
        raise GenericError(exc.strerror or os_error_text(exc)) from exc
    finally:
        graph.remove_backend(backend)


@command(since="2.1", allow_preconfig=True)
def change_backing_file(engine: Engine, *, device: str, image_node_name: str, backing_file: str) -> None:
    """Write another backing file name into an image; the graph stays as it is.

    device: device or root node of the chain
    image_node_name: the node whose image is changed
    backing_file: the name to write, unchecked; '' for none
    """
    graph = engine.graph
    root = root_node(graph, device)
    image = graph.find(None, image_node_name)
    backing = image.backing
    if backing is None:
        raise GenericError("not allowing backing file change on an image without a backing file")
    root.blockers.check(Op.CHANGE, root.device_or_node_name)
    if not in_chain(root, image):
        raise GenericError(f"'{device}' and image file are not in the same chain")
    # QEMU 7.2 writes the format of the image itself here, after which a raw backing file can't be opened any more.
    backing_format = skip_filters(backing.child).driver.name
    was_read_only = image.read_only
    if was_read_only:
        set_read_only(image, False)
    try:
        write_backing_string(image, backing_file or None, backing_format if backing_file else None)
    except OSError as exc:
        raise GenericError(f"Could not change backing file to '{backing_file}': {os_error_text(exc)}") from exc
    finally:
        if was_read_only:
            set_read_only(image, True)


@command(name="block_passwd", since="0.14", features=("deprecated",), allow_preconfig=True)
def block_passwd(engine: Engine, *, device: str | None = None, node_name: str | None = None, password: str) -> None:
    """Answer, as QEMU did from 2.7 until it dropped the command in 5.2, that passwords are not set this way any more.

    device: the device whose image it is
    node_name: the node, instead of a device
    password: ignored; keys are given by a secret object and the key-secret option when the node is opened
    """
    raise GenericError("Setting block passwords directly is no longer supported")
