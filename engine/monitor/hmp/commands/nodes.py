"""Commands that change an image in use: block_resize, snapshot_blkdev."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.errors import GenericError
from engine.graph.graph import NODE_NAME_MAX, Graph
from engine.monitor.hmp.registry import hmp

if TYPE_CHECKING:
    from engine.monitor.hmp.interpreter import Monitor


def means_node(graph: Graph, name: str) -> bool:
    """Whether *name* is that of a node and of no device. (QEMU's HMP often knows devices only.)"""
    return graph.find_backend(name) is None and name in graph.nodes


@hmp("block_resize", args="device:B,size:o", params="device size", help="resize a block image")
async def _block_resize(monitor: Monitor, args: dict[str, Any]) -> None:
    name = args["device"]
    if means_node(monitor.engine.graph, name):
        await monitor.qmp("block_resize", node_name=name, size=args["size"])
    else:
        await monitor.qmp("block_resize", device=name, size=args["size"])


@hmp(
    "snapshot_blkdev",
    args="reuse:-n,device:B,snapshot-file:s?,format:s?",
    params="[-n] device [new-image-file] [format]",
    help="initiates a live snapshot\n"
    "\t\t\tof device. If a new image file is specified, the\n"
    "\t\t\tnew image file will become the new root image.\n"
    "\t\t\tIf format is specified, the snapshot file will\n"
    "\t\t\tbe created in that format.\n"
    "\t\t\tThe default format is qcow2.  The -n flag requests QEMU\n"
    "\t\t\tto reuse the image found in new-image-file, instead of\n"
    "\t\t\trecreating it from scratch.",
)
async def _snapshot_blkdev(monitor: Monitor, args: dict[str, Any]) -> None:
    name = args["device"]
    if "snapshot-file" not in args:
        raise GenericError("Parameter 'snapshot-file' is missing")
    where: dict[str, Any] = {"device": name}
    if means_node(monitor.engine.graph, name):
        where = {"node_name": name, "snapshot_node_name": _overlay_name(monitor.engine.graph, name)}
    await monitor.qmp(
        "blockdev-snapshot-sync",
        **where,
        snapshot_file=args["snapshot-file"],
        format=args.get("format"),
        mode="existing" if args.get("reuse") else "absolute-paths",
    )


def _overlay_name(graph: Graph, name: str) -> str:
    """A name for the overlay of the node *name*; QMP asks for one where a node is given."""
    number = 1
    while True:
        suffix = f"-snap{number}"
        # A generated name begins with a character that no name of one's own may have.
        overlay = name.lstrip("#")[: NODE_NAME_MAX - len(suffix)] + suffix
        if overlay not in graph.nodes and graph.find_backend(overlay) is None:
            return overlay
        number += 1
