"""commit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.errors import os_error_text
from engine.graph.node import Node
from engine.monitor.hmp.commit_image import commit_image
from engine.monitor.hmp.registry import hmp

if TYPE_CHECKING:
    from engine.monitor.hmp.interpreter import Monitor


@hmp(
    "commit",
    args="device:B",
    params="device|all",
    help="commit changes to the disk images (if -snapshot is used) or backing files",
)
async def _commit(monitor: Monitor, args: dict[str, Any]) -> None:
    name = args["device"]
    graph = monitor.engine.graph
    nodes: list[Node] = []
    if name == "all":
        roots = [backend.root for backend in graph.backends if backend.kind == "device"]
        nodes += [root.child for root in roots if root is not None and root.child.backing is not None]
    else:
        backend = graph.find_backend(name)
        if backend is None and name not in graph.nodes:
            monitor.print(f"Device '{name}' not found\n")
            return
        if backend is None:
            nodes.append(graph.nodes[name])
        elif backend.root is None:
            monitor.print(f"Device '{name}' has no medium\n")
            return
        else:
            nodes.append(backend.root.child)
    for node in nodes:
        try:
            await commit_image(graph, node)
        except OSError as exc:
            monitor.print(f"'commit' error for '{name}': {os_error_text(exc)}\n")
            return
