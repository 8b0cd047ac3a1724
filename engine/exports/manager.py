"""Exports: all block exports of an engine, from their making to BLOCK_EXPORT_DELETED. Control plane."""

from __future__ import annotations

import asyncio
from importlib import import_module
from typing import TYPE_CHECKING

from engine.errors import GenericError
from engine.exports.export import Export, export_types
from engine.exports.options import BlockExportDeleted, BlockExportOptions, BlockExportRemoveMode, BlockExportType
from engine.graph.iothreads import set_iothread
from engine.graph.permissions import Perm
from engine.names import id_wellformed
from engine.objects.iothread import find_iothread

if TYPE_CHECKING:
    from engine.engine import Engine
    from engine.exports.nbd.server import NBDServer
    from engine.graph.node import Node

_MODULES = {
    BlockExportType.NBD: "engine.exports.nbd.export",
    BlockExportType.FUSE: "engine.exports.fuse.export",
    BlockExportType.VHOST_USER_BLK: "engine.exports.vhost_user.export",
}
"""What registers the types there are; loaded when one is asked for."""


class Exports:
    """The exports by id, oldest first, and the NBD server."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._exports: dict[str, Export] = {}
        self._changed = asyncio.Event()
        self.nbd_server: NBDServer | None = None

    def all(self) -> list[Export]:
        """Every export, oldest first; those on their way out too."""
        return list(self._exports.values())

    def find(self, id: str) -> Export | None:
        """The export called *id*."""
        return self._exports.get(id)

    # -- making ----------------------------------------------------------------------------------------------

    def add(self, options: BlockExportOptions) -> Export:
        """Make an export. Errors: GenericError."""
        module = _MODULES.get(options.type)
        if module is not None:
            import_module(module)
        graph = self.engine.graph
        if not id_wellformed(options.id):
            raise GenericError("Invalid block export id")
        if options.id in self._exports:
            raise GenericError(f"Block export id '{options.id}' is already in use")
        cls = export_types.get(options.type)
        if cls is None:
            raise GenericError(f"Exports of type '{options.type}' are not available in this version")
        node = graph.find(None, options.node_name)
        if node.read_only and options.writable:
            raise GenericError("Cannot export read-only node as writable")
        self._move(node, options)
        perm = Perm.CONSISTENT_READ | (Perm.WRITE if options.writable else Perm.NONE)
        backend = graph.add_backend("export", "", node, perm, Perm.ALL)
        backend.model, backend.served = str(options.type), options.id
        try:
            backend.fixed_iothread = bool(options.fixed_iothread)
            backend.write_cache = not options.writethrough
            export = cls(self, options, backend)
            export.start()
        except BaseException:
            graph.remove_backend(backend)
            raise
        self._exports[export.id] = export
        return export

    def _move(self, node: Node, options: BlockExportOptions) -> None:
        if options.iothread is None:
            return
        iothread = find_iothread(self.engine.objects, options.iothread)
        try:
            set_iothread(node, iothread)
        except GenericError:
            # Only a wish, unless it is said to be fixed.
            if options.fixed_iothread:
                raise

    # -- removing --------------------------------------------------------------------------------------------

    def delete(self, id: str, mode: BlockExportRemoveMode | None) -> None:
        """Begin to remove an export; gone() is called when nobody uses it any more. Errors: GenericError."""
        export = self._exports.get(id)
        if export is None:
            raise GenericError(f"Export '{id}' is not found")
        if export.shutting_down:
            raise GenericError(f"Export '{id}' is already shutting down")
        if mode is not BlockExportRemoveMode.HARD and export.in_use:
            raise GenericError(f"export '{id}' still in use", "Use mode='hard' to force client disconnect")
        self.shut_down(export)

    def shut_down(self, export: Export) -> None:
        """Begin to remove *export*, whoever uses it."""
        if not export.shutting_down:
            export.shutting_down = True
            export.shut_down()

    def gone(self, export: Export) -> None:
        """The last user of an export that is shutting down has left: forget it."""
        if self._exports.get(export.id) is not export:
            return
        export.clean_up()
        del self._exports[export.id]
        self.engine.graph.remove_backend(export.backend)
        self.engine.emit(BlockExportDeleted(id=export.id))
        self._changed.set()

    async def close_all(self, type: BlockExportType | None = None) -> None:
        """Remove every export, of one type or all, oldest first, and wait until they have gone."""
        for export in self.all():
            if type is None or export.type is type:
                self.shut_down(export)
                while self._exports.get(export.id) is export:
                    self._changed.clear()
                    await self._changed.wait()

    # -- the NBD server --------------------------------------------------------------------------------------

    async def start_nbd_server(self, server: NBDServer) -> None:
        """Begin to listen. Errors: GenericError."""
        if self.nbd_server is not None:
            raise GenericError("NBD server already running")
        self.nbd_server = server
        try:
            await server.start()
        except BaseException:
            self.nbd_server = None
            raise

    async def stop_nbd_server(self) -> None:
        """Disconnect every client and remove all NBD exports. Errors: GenericError."""
        server = self.nbd_server
        if server is None:
            raise GenericError("NBD server not running")
        self.nbd_server = None
        server.stop()
        await self.close_all(BlockExportType.NBD)
        await server.wait()

    async def close(self) -> None:
        """Remove every export and stop serving."""
        if self.nbd_server is not None:
            await self.stop_nbd_server()
        await self.close_all()
