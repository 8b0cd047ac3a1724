"""A vhost-user-blk export: listens on a Unix socket, and serves one virtual machine at a time."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import threading
from typing import TYPE_CHECKING, Final

from engine.errors import GenericError
from engine.exports.export import Export, export_type
from engine.exports.options import BlockExportOptionsVhostUserBlk, BlockExportType
from engine.exports.vhost_user.disk import Disk
from engine.exports.vhost_user.session import Session
from engine.sockets.addresses import UnixSocketAddress, address_of
from engine.sockets.streams import listen_unix

if TYPE_CHECKING:
    from engine.exports.manager import Exports
    from engine.exports.options import BlockExportOptions
    from engine.graph.backend import BlockBackend
    from engine.sockets.streams import Listening

log = logging.getLogger("engine.vhost-user")

_SMALLEST_BLOCK: Final = 512
_LARGEST_BLOCK: Final = 2 << 20


@export_type
class VhostUserBlkExport(Export):
    """A node as a virtio disk. Who comes while somebody is served waits."""

    type = BlockExportType.VHOST_USER_BLK

    def __init__(self, exports: Exports, options: BlockExportOptions, backend: BlockBackend) -> None:
        super().__init__(exports, options, backend)
        branch = options.branch
        assert isinstance(branch, BlockExportOptionsVhostUserBlk)
        self._own = branch
        self._listening: Listening | None = None
        self._listener: threading.Thread | None = None
        self._wake = -1
        self._lock = threading.Lock()
        self._session: Session | None = None
        self._free = threading.Condition(self._lock)
        self._closed = False

    def start(self) -> None:
        block = self._own.logical_block_size if self._own.logical_block_size is not None else _SMALLEST_BLOCK
        if not _SMALLEST_BLOCK <= block <= _LARGEST_BLOCK:
            raise GenericError(
                f"Property {self.id}.logical-block-size doesn't take value {block - (block >> 63 << 64)} "
                f"(minimum: {_SMALLEST_BLOCK}, maximum: {_LARGEST_BLOCK})"
            )
        if block & (block - 1):
            raise GenericError(
                f"Property {self.id}.logical-block-size doesn't take value '{block}', it's not a power of 2"
            )
        queues = 1 if self._own.num_queues is None else self._own.num_queues
        if not queues:
            raise GenericError("num-queues must be greater than 0")
        address = address_of(self._own.addr)
        if not isinstance(address, UnixSocketAddress):
            if self._own.addr.type == "fd":
                raise GenericError("only QEMU supports file descriptor passing")
            raise GenericError("Only socket address types 'unix' and 'fd' are supported")
        self._disk = Disk(self.backend, writable=self.writable, block=block, queues=queues)
        self._queues = queues
        self._listening = listen_unix(address)
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._listener = threading.Thread(target=self._listen, name="vhost-user listener", daemon=True)
        self._listener.start()

    # -- connections -----------------------------------------------------------------------------------------

    def _listen(self) -> None:
        assert self._listening is not None
        poll = select.poll()
        poll.register(self._listening.sock, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        while True:
            with self._lock:
                while self._session is not None and not self._closed:
                    self._free.wait()
                if self._closed:
                    return
            poll.poll()
            try:
                sock, _ = self._listening.sock.accept()
            except OSError:
                continue  # woken, or the client has gone again
            self._take(sock)

    def _take(self, sock: socket.socket) -> None:
        sock.setblocking(True)
        session = Session(sock, self._disk, self._queues, self._over)
        with self._lock:
            if self._closed:
                sock.close()
                return
            self._session = session
        try:
            session.start()
        except RuntimeError as exc:  # no more threads
            log.warning("vhost-user-blk export can't serve: %s", exc)
            sock.close()
            self._over(session)

    def _over(self, session: Session) -> None:
        """The thread of *session* ends. In that thread."""
        with self._lock:
            self._session = None
            self._free.notify_all()
            closed = self._closed
        if closed:
            self.exports.engine.control.post(lambda: self.exports.gone(self))

    @property
    def in_use(self) -> bool:
        return self._session is not None

    def shut_down(self) -> None:
        assert self._listening is not None
        assert self._listener is not None
        with self._lock:
            self._closed = True
            session = self._session
            self._free.notify_all()
        os.eventfd_write(self._wake, 1)
        self._listener.join()
        os.close(self._wake)
        with contextlib.suppress(OSError):
            self._listening.remove_file()
        self._listening.sock.close()
        if session is None:
            self.exports.gone(self)
        else:
            session.stop()
