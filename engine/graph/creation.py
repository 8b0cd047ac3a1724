"""Making a new image by file name, as blockdev-snapshot-sync and qemu-img do (QEMU's bdrv_img_create)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from typing import Any

from engine.errors import GenericError, os_error_text
from engine.graph.backend import BlockBackend
from engine.graph.driver import CreateContext, Driver, drivers
from engine.graph.filenames import combine, find_protocol, protocol_of
from engine.graph.graph import Graph
from engine.graph.opening import open_node
from engine.graph.options import BlockdevCreateOptions
from engine.graph.permissions import Perm
from engine.qapi import from_wire


class GraphCreateContext:
    """CreateContext over a graph. call: runs a function on the control plane and gives back its result."""

    def __init__(self, graph: Graph, call: Callable[[Callable[[], Any]], Any]) -> None:
        self._graph = graph
        self._call = call

    def open(self, reference: str | Mapping[str, Any], perm: Perm, shared: Perm) -> BlockBackend:
        def run() -> BlockBackend:
            options, name = reference, None
            if not isinstance(reference, str) and "driver" not in reference:
                options = dict(reference)
                name = options.pop("filename", None)
            node = open_node(self._graph, options, filename=name)
            try:
                return self._graph.add_backend("user", "", node, perm, shared)
            finally:
                self._graph.unpin(node)

        backend = self._call(run)
        assert isinstance(backend, BlockBackend)
        return backend

    def close(self, backend: BlockBackend) -> None:
        self._call(lambda: self._graph.remove_backend(backend))

    def node_filename(self, reference: str) -> str:
        return str(self._call(lambda: self._graph.find_either(reference).filename))

    def open_fdset(self, path: str, flags: int) -> int:
        return int(self._call(lambda: self._graph.fdsets.open(path, flags)))

    def close_fdset(self, fd: int) -> None:
        self._call(lambda: self._graph.fdsets.close_fd(fd))


def create_image(
    context: CreateContext,
    filename: str,
    fmt: str,
    size: int,
    *,
    backing_file: str | None = None,
    backing_format: str | None = None,
) -> None:
    """Make the image *filename* of *size* bytes in the format *fmt*; an existing file is overwritten.

    backing_file, backing_format: written into the image as they are; the file isn't looked at. Errors: GenericError.
    """
    cls = drivers.get(fmt)
    if cls is None:
        raise GenericError(f"Unknown file format '{fmt}'")
    protocol = find_protocol(filename)
    if fmt == "raw":
        cls = protocol  # a raw image is the file itself
    if cls.CreateOptions is None:
        raise GenericError(f"Format driver '{fmt}' does not support image creation")
    if protocol.CreateOptions is None:
        raise GenericError(f"Protocol driver '{protocol.name}' does not support image creation")
    options: dict[str, object] = {"size": cls.creatable_size(size)}
    if backing_file is not None:
        known = {member.name for member in cls.CreateOptions.qapi_members()}
        if "backing-file" not in known:
            raise GenericError(f"Backing file not supported for file format '{fmt}'")
        if backing_file == filename:
            raise GenericError("Error: Trying to create an image with the same filename as the backing file")
        options["backing-file"] = backing_file
        if backing_format is not None and "backing-fmt" in known:  # qcow's header has no room for it
            options["backing-fmt"] = backing_format
    place = protocol.parse_filename(filename)
    if cls is protocol:
        _create(cls, {**place, **options}, context)
        return
    _create(protocol, {**place, "size": 0}, context)
    try:
        _create(cls, {"file": {"driver": protocol.name, **place}, **options}, context)
    except GenericError:
        if protocol.name == "file":
            with contextlib.suppress(OSError):
                os.unlink(str(place["filename"]))
        raise


def check_backing(graph: Graph, filename: str, backing_file: str, backing_format: str) -> None:
    """Whether *backing_file*, as the new image *filename* will have it in its header, can be opened. Control plane.

    Errors: GenericError.
    """
    if not backing_file.startswith("/") and protocol_of(backing_file) is None:
        if not filename or filename.startswith("json:"):
            raise GenericError(f"Cannot use relative backing file names for '{filename}'")
        backing_file = combine(filename, backing_file)
    try:
        node = open_node(graph, {"driver": backing_format, "read-only": True}, filename=backing_file)
    except GenericError as exc:
        raise GenericError(exc.desc, hint="Could not open backing image.") from exc
    graph.unpin(node)


def _create(cls: type[Driver], options: dict[str, object], context: CreateContext) -> None:
    typed = from_wire(BlockdevCreateOptions, {"driver": cls.name, **options})
    try:
        cls.create(typed.branch, context)
    except OSError as exc:
        raise GenericError(f"Could not create '{options.get('filename', '')}': {os_error_text(exc)}") from exc
