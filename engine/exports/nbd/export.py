"""An NBD export: a node under the name that clients ask for."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from engine.bitmaps.dirty import DirtyBitmap, Refuse, find_bitmap
from engine.errors import GenericError
from engine.exports.export import Export, export_type
from engine.exports.nbd.contexts import (
    ALLOCATION_DEPTH,
    BASE_ALLOCATION,
    DIRTY_BITMAP,
    Context,
    allocation_depth,
    base_allocation,
    dirty_bitmap,
)
from engine.exports.options import BlockDirtyBitmapAt, BlockExportOptionsNbd, BlockExportType
from engine.graph.permissions import Perm
from engine.graph.status import chain
from engine.nbd import protocol as nbd

if TYPE_CHECKING:
    from engine.exports.manager import Exports
    from engine.exports.nbd.connection import Connection
    from engine.exports.nbd.server import NBDServer
    from engine.exports.options import BlockExportOptions
    from engine.graph.backend import BlockBackend
    from engine.graph.node import Node

_SECTOR = 512


@export_type
class NBDExport(Export):
    """A node as NBD clients see it. join() and leave() belong to connections' threads, the rest to the control plane.

    name, description: as on the wire. size: bytes, fixed while it is exported. flags: without those that depend on
    the client.
    """

    type = BlockExportType.NBD

    def __init__(self, exports: Exports, options: BlockExportOptions, backend: BlockBackend) -> None:
        super().__init__(exports, options, backend)
        branch = options.branch
        assert isinstance(branch, BlockExportOptionsNbd)
        self._own = branch
        self.name = branch.name if branch.name is not None else options.node_name
        self.description = branch.description or ""
        self.size = 0
        self.flags = 0
        self.contexts: list[Context] = []
        self._bitmaps: list[DirtyBitmap] = []
        self._lock = threading.Lock()
        self._clients: set[Connection] = set()
        self._closed = False

    def start(self) -> None:
        server = self.exports.nbd_server
        if server is None:
            raise GenericError("NBD server not running")
        if len(self.name.encode()) > nbd.MAX_STRING:
            raise GenericError(f"export name '{self.name}' too long")
        if len(self.description.encode()) > nbd.MAX_STRING:
            raise GenericError(f"description '{self.description}' too long")
        if server.find(self.name) is not None:
            raise GenericError(f"NBD server already has export named '{self.name}'")
        # Clients learn the size once.
        self.backend.take(self.backend.perm, Perm.ALL & ~Perm.RESIZE)
        node = self.backend.node
        self.size = -(-node.length // _SECTOR) * _SECTOR
        self.flags = self._flags(server)
        self._bitmaps = self._find_bitmaps(node)
        for bitmap in self._bitmaps:
            bitmap.busy = True
        self.contexts = self._contexts()
        server.publish(self)
        self._server = server

    def _flags(self, server: NBDServer) -> int:
        flags = nbd.HAS_FLAGS | nbd.SEND_FLUSH | nbd.SEND_FUA | nbd.SEND_CACHE
        if server.max_connections != 1:
            flags |= nbd.CAN_MULTI_CONN
        if not self.writable:
            return flags | nbd.READ_ONLY
        return flags | nbd.SEND_TRIM | nbd.SEND_WRITE_ZEROES | nbd.SEND_FAST_ZERO

    def _find_bitmaps(self, node: Node) -> list[DirtyBitmap]:
        found = []
        for wanted in self._own.bitmaps or []:
            bitmap = self._find_local(node, wanted) if isinstance(wanted, str) else self._find_named(wanted)
            bitmap.check(Refuse.TO_READ)
            found.append(bitmap)
        return found

    def _find_local(self, node: Node, name: str) -> DirtyBitmap:
        """The bitmap of that name in the chain below *node*. Errors: GenericError."""
        for each in chain(node):
            bitmap = find_bitmap(each, name)
            if bitmap is not None:
                if not self.writable and each.writable and bitmap.enabled:
                    raise GenericError(f"Enabled bitmap '{name}' incompatible with readonly export")
                return bitmap
        raise GenericError(f"Bitmap '{name}' is not found")

    def _find_named(self, wanted: BlockDirtyBitmapAt) -> DirtyBitmap:
        """The bitmap of a node that may be any; whoever names one knows who writes there. Errors: GenericError."""
        graph = self.exports.engine.graph
        try:
            where = graph.find_either(wanted.node)
        except GenericError:
            raise GenericError(f"Node '{wanted.node}' not found") from None
        bitmap = find_bitmap(where, wanted.name)
        if bitmap is None:
            raise GenericError(f"Dirty bitmap '{wanted.name}' not found")
        return bitmap

    def _contexts(self) -> list[Context]:
        contexts = [Context(0, BASE_ALLOCATION, base_allocation(self.backend))]
        if self._own.allocation_depth:
            contexts.append(Context(1, ALLOCATION_DEPTH, allocation_depth(self.backend)))
        for number, bitmap in enumerate(self._bitmaps):
            contexts.append(Context(2 + number, f"{DIRTY_BITMAP}{bitmap.name}", dirty_bitmap(bitmap)))
        return contexts

    @property
    def alignment(self) -> int:
        """What offsets and lengths should be multiples of. Any thread."""
        return self.backend.node.driver.own_alignment

    @property
    def max_transfer(self) -> int:
        """Longest read or write, in bytes. Any thread."""
        return min(self.backend.node.limits.max_transfer or nbd.MAX_PAYLOAD, nbd.MAX_PAYLOAD)

    # -- clients ---------------------------------------------------------------------------------------------

    def join(self, client: Connection) -> bool:
        """Count *client* as one of the export; false when the export is going."""
        with self._lock:
            if self._closed:
                return False
            self._clients.add(client)
            return True

    def leave(self, client: Connection) -> None:
        """Undo join(). The last one to leave an export that is going lets it go."""
        with self._lock:
            self._clients.discard(client)
            last = self._closed and not self._clients
        if last:
            self.exports.engine.control.post(lambda: self.exports.gone(self))

    @property
    def in_use(self) -> bool:
        return bool(self._clients)

    def shut_down(self) -> None:
        self._server.withdraw(self)
        with self._lock:
            self._closed = True
            clients = list(self._clients)
        for client in clients:
            client.cut_off()
        if not clients:
            self.exports.gone(self)

    def clean_up(self) -> None:
        for bitmap in self._bitmaps:
            bitmap.busy = False
