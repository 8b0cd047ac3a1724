"""Block exports and the NBD server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.errors import GenericError
from engine.exports.options import (
    BlockExportInfo,
    BlockExportOptions,
    BlockExportOptionsNbd,
    BlockExportOptionsNbdBase,
    BlockExportRemoveMode,
    BlockExportType,
)
from engine.qapi import Struct, UInt32, command
from engine.sockets.addresses import Address, SocketAddress, SocketAddressLegacy, address_of

if TYPE_CHECKING:
    from engine.engine import Engine


class NbdServerOptions(Struct):
    """The NBD server, as the command line has it; see nbd-server-start."""

    addr: SocketAddress
    tls_creds: str | None = None
    tls_authz: str | None = None
    max_connections: UInt32 | None = None


class NbdServerAddOptions(BlockExportOptionsNbdBase):
    """An NBD export in the old way.

    device: the device or node to export; its name is the export's by default. writable: clients may write, unless the
    node is read-only. bitmap: a dirty bitmap that clients may ask for.
    """

    device: str
    writable: bool | None = None
    bitmap: str | None = None


@command(since="5.2", boxed=True, allow_preconfig=True)
def block_export_add(engine: Engine, options: BlockExportOptions) -> None:
    """Export a node, by NBD for instance."""
    engine.exports.add(options)


@command(since="5.2", allow_preconfig=True)
def block_export_del(engine: Engine, *, id: str, mode: BlockExportRemoveMode | None = None) -> None:
    """Remove an export; BLOCK_EXPORT_DELETED tells when it has gone.

    id: the export
    mode: safe, the default, or hard
    """
    engine.exports.delete(id, mode)


@command(since="5.2", allow_preconfig=True)
def query_block_exports(engine: Engine) -> list[BlockExportInfo]:
    """List the exports, newest first."""
    return [
        BlockExportInfo(id=export.id, type=export.type, node_name=export.node_name, shutting_down=export.shutting_down)
        for export in reversed(engine.exports.all())
    ]


@command(since="1.3", allow_preconfig=True)
async def nbd_server_start(
    engine: Engine,
    *,
    addr: SocketAddressLegacy,
    tls_creds: str | None = None,
    tls_authz: str | None = None,
    max_connections: UInt32 | None = None,
) -> None:
    """Start the NBD server.

    addr: where to listen
    tls_creds: id of TLS credentials; clients must then use TLS
    tls_authz: id of the authorization object that a client's certificate is shown to
    max_connections: clients at a time, 0 for any number; 100 by default
    """
    await start_nbd_server(engine, address_of(addr), tls_creds, tls_authz, max_connections)


async def start_nbd_server(
    engine: Engine,
    address: Address,
    tls_creds: str | None = None,
    tls_authz: str | None = None,
    max_connections: int | None = None,
    *,
    inherited: bool = False,
) -> None:
    """Start the NBD server. inherited: file descriptors may be named by number. Errors: GenericError."""
    from engine.exports.nbd.server import NBDServer

    await engine.exports.start_nbd_server(
        NBDServer(
            engine.control,
            engine.objects,
            address,
            tls_creds=tls_creds,
            tls_authz=tls_authz,
            max_connections=max_connections,
            inherited=inherited,
        )
    )


@command(since="1.3", boxed=True, features=("deprecated",), allow_preconfig=True)
def nbd_server_add(engine: Engine, options: NbdServerAddOptions) -> None:
    """Export a node by NBD, under an id that is the export's name. block-export-add replaces it."""
    graph = engine.graph
    node = graph.find_either(options.device)
    name = options.name if options.name is not None else options.device
    export = engine.exports.add(
        BlockExportOptions(
            type=BlockExportType.NBD,
            id=name,
            node_name=node.name,
            writable=bool(options.writable) and not node.read_only,
            branch=BlockExportOptionsNbd(
                name=name,
                description=options.description,
                bitmaps=[options.bitmap] if options.bitmap is not None else None,
            ),
        )
    )
    device = graph.find_backend(options.device)
    if device is not None:
        # The medium takes its export along.
        export.follow(device)


@command(since="2.12", features=("deprecated",), allow_preconfig=True)
def nbd_server_remove(engine: Engine, *, name: str, mode: BlockExportRemoveMode | None = None) -> None:
    """Remove an NBD export. block-export-del replaces it.

    name: the export's id
    mode: safe, the default, or hard
    """
    export = engine.exports.find(name)
    if export is not None and export.type is not BlockExportType.NBD:
        raise GenericError(f"Block export '{name}' is not an NBD export")
    engine.exports.delete(name, mode)


@command(since="1.3", allow_preconfig=True)
async def nbd_server_stop(engine: Engine) -> None:
    """Stop the NBD server: every client is disconnected, every NBD export removed."""
    await engine.exports.stop_nbd_server()
