"""One vhost-user connection: a thread for its messages, and one for each queue that is started."""

from __future__ import annotations

import array
import contextlib
import logging
import os
import select
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from struct import error as _struct_error
from typing import Final

from engine.exports.vhost_user import wire
from engine.exports.vhost_user.disk import Disk
from engine.exports.vhost_user.memory import BadAddress, GuestMemory
from engine.exports.vhost_user.virtqueue import Element, Virtqueue

log = logging.getLogger("engine.vhost-user")

_PROTOCOL: Final = 1 << wire.PROTOCOL_MQ | 1 << wire.PROTOCOL_REPLY_ACK | 1 << wire.PROTOCOL_CONFIG
_RING: Final = (
    1 << wire.RING_INDIRECT_DESC | 1 << wire.RING_EVENT_IDX | 1 << wire.PROTOCOL_FEATURES | 1 << wire.VERSION_1
)


class Gone(Exception):
    """The other side has left, or broken the protocol."""


@dataclass
class _Queue:
    """What the other side has told of a queue."""

    size: int = 0
    base: int = 0
    addresses: tuple[int, int, int] | None = None
    kick: int = -1
    call: int = -1
    enabled: bool = False
    thread: threading.Thread | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    wake: int = -1


class Session:
    """Serves a connected socket until the other side leaves, or stop(). The disk has the requests.

    ended: called by the thread as its last act.
    """

    def __init__(self, sock: socket.socket, disk: Disk, queues: int, ended: Callable[[Session], None]) -> None:
        self._sock = sock
        self._disk = disk
        self._queues = [_Queue() for _ in range(queues)]
        self._ended = ended
        self._memory = GuestMemory()
        self._features = 0
        self._reply_ack = False

    def start(self) -> None:
        """Begin. Errors: RuntimeError (no more threads)."""
        threading.Thread(target=self._run, name="vhost-user", daemon=True).start()

    def stop(self) -> None:
        """Make the threads end as soon as what they are at has ended; never waits."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def _run(self) -> None:
        try:
            while True:
                self._message()
        except (Gone, OSError) as exc:
            log.debug("vhost-user connection is gone: %s", exc)
        except BadAddress as exc:
            log.error("vhost-user connection is given up: %s", exc)
        except Exception:
            log.exception("vhost-user")
        finally:
            for queue in self._queues:
                self._halt(queue)
                for fd in (queue.kick, queue.call):
                    if fd >= 0:
                        os.close(fd)
            self._memory.close()
            self._sock.close()
            self._ended(self)

    # -- messages --------------------------------------------------------------------------------------------

    def _receive(self, size: int, fds: list[int] | None = None) -> bytes:
        data = b""
        while len(data) < size:
            if fds is not None:
                more, ancillary, _, _ = self._sock.recvmsg(size - len(data), socket.CMSG_SPACE(4 * wire.MAX_REGIONS))
                for level, kind, content in ancillary:
                    if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                        fds += array.array("i", content[: len(content) // 4 * 4])
            else:
                more = self._sock.recv(size - len(data))
            if not more:
                raise Gone("closed")
            data += more
        return data

    def _message(self) -> None:
        fds: list[int] = []
        try:
            request, flags, size = wire.HEADER.unpack(self._receive(wire.HEADER.size, fds))
            if flags & 3 != wire.VERSION or size > wire.MAX_PAYLOAD:
                raise Gone(f"a message with flags {flags:#x}, {size} bytes")
            payload = self._receive(size) if size else b""
            for fd in fds:
                os.set_inheritable(fd, False)
                # Nobody waits for the other side, whatever it has sent (a pipe that it does not empty).
                os.set_blocking(fd, False)
            answer = self._handle(request, payload, fds)
            if answer is None and flags & wire.FLAG_NEED_REPLY and self._reply_ack:
                answer = wire.U64.pack(0)
            if answer is not None:
                head = wire.HEADER.pack(request, wire.VERSION | wire.FLAG_REPLY, len(answer))
                self._sock.sendall(head + answer)
        except _struct_error as exc:
            raise Gone(f"a message that does not fit: {exc}") from exc
        finally:
            for fd in fds:  # those that nobody has taken
                os.close(fd)

    def _handle(self, request: int, payload: bytes, fds: list[int]) -> bytes | None:
        """Do what a message asks for; what it keeps of *fds* it takes out. Returns the answer, if it needs one."""
        match request:
            case wire.GET_FEATURES:
                return wire.U64.pack(self._disk.features() | _RING)
            case wire.SET_FEATURES:
                (self._features,) = wire.U64.unpack(payload)
                if not self._features & 1 << wire.PROTOCOL_FEATURES:
                    # Without them there is no message that would enable a queue.
                    for number, queue in enumerate(self._queues):
                        queue.enabled = True
                        self._maybe_start(number)
            case wire.GET_PROTOCOL_FEATURES:
                return wire.U64.pack(_PROTOCOL)
            case wire.SET_PROTOCOL_FEATURES:
                self._reply_ack = bool(wire.U64.unpack(payload)[0] & 1 << wire.PROTOCOL_REPLY_ACK)
            case wire.GET_QUEUE_NUM:
                return wire.U64.pack(len(self._queues))
            case wire.SET_OWNER | wire.RESET_OWNER:
                pass
            case wire.SET_MEM_TABLE:
                self._share(payload, fds)
            case wire.GET_CONFIG | wire.SET_CONFIG:
                return self._config(request, payload)
            case wire.SET_VRING_ERR:
                pass  # nobody is told by it
            case _:
                return self._handle_ring(request, payload, fds)
        return None

    def _share(self, payload: bytes, fds: list[int]) -> None:
        count, _ = wire.MEM_TABLE.unpack_from(payload)
        if count > wire.MAX_REGIONS or count != len(fds):
            raise Gone(f"{count} regions with {len(fds)} descriptors")
        for queue in self._queues:
            self._halt(queue)
        self._memory.close()
        self._memory = GuestMemory()
        for number, fd in enumerate(fds):
            guest, size, user, offset = wire.REGION.unpack_from(
                payload, wire.MEM_TABLE.size + number * wire.REGION.size
            )
            self._memory.add(guest, size, user, offset, fd)
        for number in range(len(self._queues)):
            self._maybe_start(number)

    def _config(self, request: int, payload: bytes) -> bytes | None:
        offset, size, _ = wire.CONFIG.unpack_from(payload)
        if request == wire.GET_CONFIG:
            space = self._disk.config().ljust(offset + size, b"\0")
            return payload[: wire.CONFIG.size] + space[offset : offset + size]
        if offset == wire.WCE_OFFSET and size == 1 and len(payload) > wire.CONFIG.size:
            self._disk.set_write_cache(bool(payload[wire.CONFIG.size]))
        return None

    # -- queues ----------------------------------------------------------------------------------------------

    def _queue(self, index: int) -> _Queue:
        if index >= len(self._queues):
            raise Gone(f"queue {index} of {len(self._queues)}")
        return self._queues[index]

    def _handle_ring(self, request: int, payload: bytes, fds: list[int]) -> bytes | None:
        if request in (wire.SET_VRING_KICK, wire.SET_VRING_CALL):
            (word,) = wire.U64.unpack(payload)
            fd = -1 if word & wire.NO_FD or not fds else fds.pop(0)
            self._set_descriptor(request, word & wire.INDEX_MASK, fd)
            return None
        if request == wire.SET_VRING_ADDR:
            index, _, desc, used, avail, _ = wire.VRING_ADDR.unpack(payload)
            self._queue(index).addresses = desc, avail, used
            return None
        if request not in (wire.SET_VRING_NUM, wire.SET_VRING_BASE, wire.GET_VRING_BASE, wire.SET_VRING_ENABLE):
            raise Gone(f"unknown request {request}")
        index, number = wire.VRING_STATE.unpack(payload)
        queue = self._queue(index)
        match request:
            case wire.SET_VRING_NUM:
                queue.size = number
            case wire.SET_VRING_BASE:
                queue.base = number
            case wire.GET_VRING_BASE:
                self._halt(queue)
                if queue.kick >= 0:
                    os.close(queue.kick)
                    queue.kick = -1
                return wire.VRING_STATE.pack(index, queue.base)
            case wire.SET_VRING_ENABLE:
                queue.enabled = bool(number)
                self._halt(queue) if not number else self._maybe_start(index)
        return None

    def _set_descriptor(self, request: int, index: int, fd: int) -> None:
        try:
            queue = self._queue(index)
        except Gone:
            if fd >= 0:
                os.close(fd)
            raise
        self._halt(queue)
        if request == wire.SET_VRING_KICK:
            old, queue.kick = queue.kick, fd
        else:
            old, queue.call = queue.call, fd
        if old >= 0:
            os.close(old)
        self._maybe_start(index)

    def _maybe_start(self, index: int) -> None:
        queue = self._queues[index]
        if queue.thread is not None or not queue.enabled or queue.kick < 0 or queue.addresses is None:
            return
        desc, avail, used = queue.addresses
        event_index = bool(self._features & 1 << wire.RING_EVENT_IDX)
        ring = Virtqueue(self._memory, queue.size, desc, avail, used, queue.base, event_index)
        queue.stop.clear()
        queue.wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        queue.thread = threading.Thread(target=self._serve, args=(queue, ring), name="vhost-user queue", daemon=True)
        queue.thread.start()

    def _halt(self, queue: _Queue) -> None:
        """Stop the queue's thread; ``base`` is then where to go on."""
        thread, queue.thread = queue.thread, None
        if thread is None:
            return
        queue.stop.set()
        os.eventfd_write(queue.wake, 1)
        thread.join()
        os.close(queue.wake)
        queue.wake = -1

    def _serve(self, queue: _Queue, ring: Virtqueue) -> None:
        poll = select.poll()
        poll.register(queue.kick, select.POLLIN)
        poll.register(queue.wake, select.POLLIN)
        try:
            while not queue.stop.is_set():
                element = ring.pop()
                if element is None:
                    if ring.ask_for_kicks():
                        continue
                    poll.poll()
                    with contextlib.suppress(BlockingIOError):
                        os.eventfd_read(queue.kick)
                    continue
                self._serve_all(queue, ring, element)
        except BadAddress as exc:
            log.error("vhost-user-blk: the queue is given up: %s", exc)
            self.stop()
        except Exception:
            log.exception("vhost-user-blk")
            self.stop()
        finally:
            queue.base = ring.next

    def _serve_all(self, queue: _Queue, ring: Virtqueue, first: Element) -> None:
        """Serve *first* and what has come by then, and tell the driver once."""
        element: Element | None = first
        while element is not None:
            ring.push(element, self._disk.serve(element))
            element = None if queue.stop.is_set() else ring.pop()
        if queue.call >= 0 and ring.wants_call():
            with contextlib.suppress(BlockingIOError):
                os.eventfd_write(queue.call, 1)
