"""Serving a mounted file: threads take the kernel's requests one by one and answer them by plain blocking calls."""

from __future__ import annotations

import errno
import logging
import os
import select
import stat
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from engine.drivers.protocol.hostfile import KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE
from engine.errors import GenericError
from engine.exports.fuse import wire
from engine.graph.driver import Prealloc, Status
from engine.graph.status import status_above

if TYPE_CHECKING:
    from engine.graph.backend import BlockBackend

log = logging.getLogger("engine.fuse")

MAX_WRITE: Final = 1 << 20
"""Longest read or write, in bytes."""
_PAGE: Final = 4096
_SECTOR: Final = 512
_THREADS: Final = 4
_ROOT: Final = 1
_VALID: Final = 1
"""Seconds that the kernel may keep size and times."""
_DATA, _ZERO = int(Status.DATA), int(Status.ZERO)
_IN, _OUT = wire.IN.size, wire.OUT.size
_PUNCH, _PUNCH_ZERO = PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE | KEEP_SIZE
_SILENT: Final = frozenset({wire.FORGET, wire.BATCH_FORGET, wire.INTERRUPT})
"""Requests that get no answer."""


class Session:
    """Serves *fd* until stop(), or until somebody unmounts the file; ended is called then, in the last thread.

    growable: writes beyond the end make the disk longer. writable: the disk can be written and resized.
    """

    def __init__(
        self,
        fd: int,
        backend: BlockBackend,
        *,
        writable: bool,
        growable: bool,
        allow_other: bool,
        ended: Callable[[], None],
    ) -> None:
        self._fd = fd
        self._backend = backend
        self._writable = writable
        self._growable = growable
        self._allow_other = allow_other
        self._ended = ended
        self._mode = stat.S_IFREG | stat.S_IRUSR | (stat.S_IWUSR if writable else 0)
        self._uid, self._gid = os.getuid(), os.getgid()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._lock = threading.Lock()
        self._resizing = threading.Lock()
        self._running = 0
        self._stopped = False
        os.set_blocking(fd, False)
        self._handlers: dict[int, Callable[[memoryview], bytes | memoryview]] = {
            wire.INIT: self._init,
            wire.GETATTR: lambda body: self._attributes(),
            wire.SETATTR: self._set_attributes,
            wire.OPEN: self._open,
            wire.READ: self._read,
            wire.WRITE: self._write,
            wire.STATFS: self._statfs,
            wire.RELEASE: lambda body: b"",
            wire.FLUSH: self._flush,
            wire.FSYNC: self._flush,
            wire.FALLOCATE: self._fallocate,
            wire.LSEEK: self._lseek,
            wire.DESTROY: lambda body: b"",
        }

    # -- threads ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to serve. Errors: RuntimeError (no more threads)."""
        self._running = _THREADS
        for number in range(_THREADS):
            try:
                threading.Thread(target=self._run, name="fuse", daemon=True).start()
            except RuntimeError:
                with self._lock:
                    self._running = number
                if not number:
                    raise
                return

    def stop(self) -> None:
        """Make the threads end as soon as what they are at has ended; never waits."""
        with self._lock:
            if not self._stopped:
                self._stopped = True
                os.eventfd_write(self._wake, 1)

    def _run(self) -> None:
        try:
            self._serve()
        except OSError as exc:
            if exc.errno != errno.ENODEV:  # that is how an unmount shows
                log.error("FUSE export: %s", exc)
        except Exception:
            log.exception("FUSE export")
        with self._lock:
            self._running -= 1
            last = not self._running
            if not self._stopped:
                # The others see the end for themselves, or are woken.
                self._stopped = True
                os.eventfd_write(self._wake, 1)
        if last:
            os.close(self._fd)
            os.close(self._wake)
            self._ended()

    def _serve(self) -> None:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        buffer = memoryview(bytearray(_IN + MAX_WRITE + _PAGE))
        while not self._stopped:
            try:
                size = os.readv(self._fd, [buffer])
            except BlockingIOError:
                poll.poll()
                continue
            except OSError as exc:
                if exc.errno in (errno.ENOENT, errno.EINTR):  # the request was taken back
                    continue
                raise
            self._answer(buffer[:size])

    def _answer(self, message: memoryview) -> None:
        _, opcode, unique, node, *_ = wire.IN.unpack_from(message)
        if opcode in _SILENT:
            return
        handler = self._handlers.get(opcode)
        code, data = 0, b""
        try:
            if handler is None:
                code = errno.ENOTDIR if opcode == wire.LOOKUP else errno.ENOSYS
            elif node not in (_ROOT, 0):
                code = errno.ENOENT
            else:
                data = handler(message[_IN:])  # type: ignore[assignment]
        except OSError as exc:
            code = exc.errno or errno.EIO
        except GenericError as exc:
            log.warning("FUSE export: %s", exc.desc)
            code = errno.EIO
        except Exception:
            log.exception("FUSE export: request %d", opcode)
            code = errno.EIO
        head = wire.OUT.pack(_OUT + len(data), -code, unique)
        try:
            os.writev(self._fd, [head, data])
        except OSError as exc:
            if exc.errno not in (errno.ENOENT, errno.EINTR):  # the asker has gone
                raise

    # -- what the file is ------------------------------------------------------------------------------------

    def _init(self, body: memoryview) -> bytes:
        major, minor, ahead, flags = wire.INIT_IN.unpack_from(body)
        if major != wire.VERSION[0] or minor < wire.VERSION[1]:
            raise OSError(errno.EPROTO, f"FUSE protocol {major}.{minor}")
        more = wire.INIT_MORE.unpack_from(body, wire.INIT_IN.size)[0] if flags & wire.INIT_EXT else 0
        # An open with O_TRUNC comes as it is, and not as a resize before it.
        wanted = wire.ASYNC_READ | wire.ATOMIC_O_TRUNC | wire.BIG_WRITES | wire.ASYNC_DIO | wire.MAX_PAGES
        wanted |= wire.INIT_EXT
        pages = MAX_WRITE // _PAGE
        more &= wire.DIRECT_IO_ALLOW_MMAP
        return wire.INIT_OUT.pack(*wire.VERSION, ahead, flags & wanted, 64, 48, MAX_WRITE, 1, pages, 0, more)

    @property
    def _size(self) -> int:
        """Of the file, in bytes: a disk consists of sectors."""
        return -(-self._backend.node.length // _SECTOR) * _SECTOR

    def _attributes(self) -> bytes:
        node = self._backend.node
        allocated = node.driver.allocated_size()
        size = self._size
        now = int(time.time())
        return wire.ATTR_OUT.pack(
            *(_VALID, 0, 0),
            *(_ROOT, size, -(-(size if allocated is None else allocated) // 512), now, now, now, 0, 0, 0),
            *(self._mode, 1, self._uid, self._gid, 0, max(node.limits.request_alignment, 512), 0),
        )

    def _set_attributes(self, body: memoryview) -> bytes:
        which, _, _, size, *_, mode, _, uid, gid, _ = wire.SETATTR_IN.unpack_from(body)
        # Where only its owner can see the file, there is nobody to give it to. A new size brings a time along.
        given = 0 if self._allow_other else wire.SET_UID | wire.SET_GID
        if which & given or (which & wire.SET_TIMES and not which & wire.SET_SIZE):
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
        if which & wire.SET_MODE and not self._allow_other and mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        if which & wire.SET_MODE and not self._writable and mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        if which & wire.SET_SIZE:
            if not self._writable:
                raise OSError(errno.EACCES, os.strerror(errno.EACCES))
            self._resize(size)
        if which & wire.SET_MODE:
            self._mode = stat.S_IFREG | stat.S_IMODE(mode)
        if which & wire.SET_UID:
            self._uid = uid
        if which & wire.SET_GID:
            self._gid = gid
        return self._attributes()

    def _open(self, body: memoryview) -> bytes:
        (flags, _) = wire.OPEN_IN.unpack_from(body)
        if not self._writable and flags & os.O_ACCMODE != os.O_RDONLY:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        # O_TRUNC is nothing to a disk, as to a block device: who copies an image to it does not want another size.
        # Not through the page cache: guests and jobs change the disk, and a reader has to see that.
        return wire.OPEN_OUT.pack(0, wire.OPEN_DIRECT_IO | wire.OPEN_PARALLEL_DIRECT_WRITES, 0)

    def _statfs(self, body: memoryview) -> bytes:
        blocks = self._size // 512
        return wire.STATFS_OUT.pack(blocks, 0, 0, 1, 0, 512, 255, 512, 0)

    # -- data ------------------------------------------------------------------------------------------------

    def _read(self, body: memoryview) -> memoryview:
        _, offset, size, *_ = wire.READ_IN.unpack_from(body)
        size = max(min(size, MAX_WRITE, self._size - offset), 0)
        buffer = memoryview(bytearray(size))
        if size:
            self._backend.read(offset, buffer)
        return buffer

    def _write(self, body: memoryview) -> bytes:
        _, offset, size, *_ = wire.READ_IN.unpack_from(body)
        data = body[wire.READ_IN.size :][:size]
        if not self._writable:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        if offset + size > self._size:
            if self._growable:
                self._grow(offset + size)
            else:
                data = data[: max(self._size - offset, 0)]
                if not data:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
        self._backend.write(offset, data)
        return wire.WRITE_OUT.pack(len(data), 0)

    def _flush(self, body: memoryview) -> bytes:
        self._backend.flush()
        return b""

    def _resize(self, size: int, prealloc: Prealloc = Prealloc.OFF) -> None:
        with self._resizing:
            self._backend.truncate(size, exact=True, prealloc=prealloc)

    def _grow(self, size: int, prealloc: Prealloc = Prealloc.OFF) -> None:
        """Make the disk at least *size* bytes long; disks consist of sectors."""
        size = -(-size // _SECTOR) * _SECTOR
        with self._resizing:
            if size > self._backend.node.length:
                self._backend.truncate(size, exact=True, prealloc=prealloc)

    def _fallocate(self, body: memoryview) -> bytes:
        _, offset, length, mode, _ = wire.FALLOCATE_IN.unpack_from(body)
        if not self._writable:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        end, size = offset + length, self._size
        if mode == _PUNCH:
            inside = min(end, size) - offset
            if inside > 0:
                self._backend.discard(offset, inside)
        elif mode in (ZERO_RANGE, _PUNCH_ZERO):
            if mode == ZERO_RANGE and end > size:
                self._grow(end)
            inside = min(end, self._size) - offset
            if inside > 0:
                self._backend.write_zeroes(offset, inside)
        elif not mode and offset >= size:
            # Space at the end can be had together with the length. What there is already can't get any.
            self._grow(offset)
            self._grow(end, Prealloc.FALLOC)
        else:
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
        return b""

    def _lseek(self, body: memoryview) -> bytes:
        _, start, whence, _ = wire.LSEEK_IN.unpack_from(body)
        if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        with self._backend.door:
            node, offset = self._backend.node, start
            size = node.length
            while offset < size:
                extent, _ = status_above(node, None, offset, size - offset)
                data = not extent.flags & _ZERO and bool(extent.flags & _DATA)
                if data == (whence == os.SEEK_DATA):
                    return wire.LSEEK_OUT.pack(offset)
                offset += extent.length
        if whence == os.SEEK_DATA or start > self._size:
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
        return wire.LSEEK_OUT.pack(max(start, size))
