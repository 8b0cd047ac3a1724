"""A graph whose control plane is the test itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import engine.drivers  # noqa: F401
from engine.graph.graph import Graph
from engine.graph.node import Node
from engine.graph.opening import open_node


class Here:
    """Runs what is posted to the control plane at once."""

    def post(self, function: Callable[[], None]) -> None:
        function()


class Bench:
    """A graph and short ways to fill it."""

    def __init__(self, folder: Path) -> None:
        self.graph = Graph(Here())
        self.folder = folder

    def file(self, name: str, content: bytes) -> str:
        path = self.folder / name
        path.write_bytes(content)
        return str(path)

    def add(self, **options: Any) -> Node:
        """blockdev-add without the monitor: keyword names with _ for -."""
        return self.named(None, **options)

    def named(self, name: str | None, /, **options: Any) -> Node:
        """The same with a file name, as -drive has it."""
        wire = {key.replace("_", "-"): value for key, value in options.items()}
        node = open_node(self.graph, wire, filename=name)
        node.monitor_owned = True
        self.graph.unpin(node)
        return node

    def raw(self, name: str, content: bytes = bytes(65536), **options: Any) -> Node:
        """A raw node over a new file."""
        path = self.file(f"{name}.raw", content)
        return self.add(driver="raw", node_name=name, file={"driver": "file", "filename": path}, **options)
