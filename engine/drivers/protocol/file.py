"""file and host_device: a regular file or a block device of the host."""

from __future__ import annotations

import errno
import mmap
import os
import stat
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Final

from engine.descriptors.fdsets import PREFIX as FDSET
from engine.drivers.protocol import attributes, hostfile
from engine.drivers.protocol.data_map import DataMap
from engine.drivers.protocol.locks import ImageLock, ofd_locks_work
from engine.drivers.protocol.resizing import resize_file
from engine.drivers.protocol.writeback import FileWriteback
from engine.errors import GenericError, os_error_text
from engine.graph.driver import (
    CreateContext,
    Driver,
    DriverInfo,
    Extent,
    Limits,
    Opening,
    Prealloc,
    ReopenState,
    Status,
    WriteFlag,
    WritePlan,
    register,
)
from engine.graph.options import OnOffAuto, PreallocMode
from engine.graph.permissions import Perm
from engine.graph.runs import DATA, ZERO
from engine.qapi import Enum, Feature, Int, Size, Struct, UInt64

if TYPE_CHECKING:
    from engine.graph.node import Node

_DATA_HERE = int(Status.DATA | Status.OFFSET_VALID)
_ZERO_HERE = int(Status.ZERO | Status.OFFSET_VALID)
_FUA, _MAY_UNMAP = int(WriteFlag.FUA), int(WriteFlag.MAY_UNMAP)
_DIRECT_ALIGNMENT = 4096
_SECTOR = 512


class BlockdevAioOptions(Enum):
    """How requests reach the host. All are served by positional system calls in the caller's thread here.

    threads: a pool of threads
    native: Linux AIO; needs cache.direct=on
    io_uring: Linux io_uring
    """

    THREADS = "threads"
    NATIVE = "native"
    IO_URING = "io_uring"


class BlockdevOptionsFile(Struct, features=("dynamic-auto-read-only",)):
    """filename: path on the host. locking: image locks; auto takes them where they work."""

    filename: str
    pr_manager: str | None = None
    locking: OnOffAuto | None = None
    aio: BlockdevAioOptions | None = None
    aio_max_batch: Int | None = None
    drop_cache: bool | None = None
    x_check_cache_dropped: Annotated[bool | None, Feature("unstable")] = None


class BlockdevCreateOptionsFile(Struct):
    """filename: path to make. size: bytes. nocow: no copy-on-write on btrfs. extent_size_hint: for XFS, bytes."""

    filename: str
    size: Size
    preallocation: PreallocMode | None = None
    nocow: bool | None = None
    extent_size_hint: Size | None = None


class BlockStatsSpecificFile(Struct):
    """Discards that reached the host and those that did not."""

    discard_nb_ok: UInt64
    discard_nb_failed: UInt64
    discard_bytes_ok: UInt64


class HostFileDriver(Driver):
    """What file and host_device have in common."""

    Options = BlockdevOptionsFile
    SpecificStats = BlockStatsSpecificFile
    is_protocol = True
    strong_options = ("filename",)
    mutable_options = frozenset({"x-check-cache-dropped", "drop-cache"})

    def open(self, opening: Opening) -> None:
        options: BlockdevOptionsFile = opening.options
        if not options.filename:
            raise GenericError(f"The '{self.name}' block driver requires a file name")
        if options.pr_manager is not None:
            raise GenericError(f"No persistent reservation manager with id '{options.pr_manager}'")
        if options.aio is BlockdevAioOptions.NATIVE and not self.node.cache_direct:
            raise GenericError("aio=native was specified, but it requires cache.direct=on, which was not specified.")
        if options.aio_max_batch is not None and options.aio_max_batch < 0:
            raise GenericError("Parameter 'aio-max-batch' expects a non-negative value")
        self.filename = options.filename
        self.fd = -1
        self._next_fd: int | None = None
        self._next_read_only = False
        self.fd_read_only = True
        self._direct = self._next_direct = self.node.cache_direct
        self._aio = options.aio
        self.discards = [0, 0, 0]
        self._zero_support = True
        self._discard_support = True
        self._truncate_lock = threading.Lock()
        self._writeback = FileWriteback()
        self._map = DataMap()
        read_only = self.node.read_only or self.node.auto_read_only
        try:
            self.fd = self._open_fd(read_only)
        except OSError as exc:
            raise GenericError(f"Could not open '{self.filename}': {os_error_text(exc)}") from exc
        self.fd_read_only = read_only
        try:
            self._check_type(os.fstat(self.fd))
            self.length = self._file_length()
            self._probe_alignment()
        except BaseException:
            self._close_fd(self.fd)
            self.fd = -1
            raise
        locking = options.locking or OnOffAuto.AUTO
        self.lock: ImageLock | None = None
        if locking is not OnOffAuto.OFF:
            if ofd_locks_work(self.fd):
                self.lock = ImageLock(self.fd)
            elif locking is OnOffAuto.ON:
                raise GenericError(f"Locking is not supported by the file system of '{self.filename}'")

    def _open_fd(self, read_only: bool) -> int:
        flags = os.O_CLOEXEC | os.O_NONBLOCK | (os.O_RDONLY if read_only else os.O_RDWR)
        if self._next_direct:
            flags |= os.O_DIRECT
        # A FIFO or a tape must not make the opening wait; for files and disks O_NONBLOCK has no meaning.
        if self.filename.startswith(FDSET):
            return self.node.graph.fdsets.open(self.filename, flags)
        fd = os.open(self.filename, flags)
        os.set_blocking(fd, True)
        return fd

    def _close_fd(self, fd: int) -> None:
        if self.filename.startswith(FDSET):
            self.node.graph.fdsets.close_fd(fd)
        else:
            os.close(fd)

    def _check_type(self, info: os.stat_result) -> None:
        raise AssertionError

    def _file_length(self) -> int:
        return os.lseek(self.fd, 0, os.SEEK_END)

    def _probe_alignment(self) -> None:
        self._memory_alignment = 1
        self.limits = Limits()
        if self._direct:
            alignment = _DIRECT_ALIGNMENT
            probe = mmap.mmap(-1, _DIRECT_ALIGNMENT)
            for candidate in (512, 1024, 2048, 4096):
                try:
                    os.preadv(self.fd, [memoryview(probe)[:candidate]], 0)
                except OSError:
                    continue
                alignment = candidate
                break
            self._memory_alignment = _DIRECT_ALIGNMENT
            self.limits = Limits(request_alignment=alignment)

    def close(self) -> None:
        self._writeback.settle()
        for fd in (self._next_fd, self.fd):
            if fd is not None and fd >= 0:
                self._close_fd(fd)
        self.fd = -1
        self._next_fd = None

    # -- permissions and reopen ------------------------------------------------------------------------------

    def check_permissions(self, perm: Perm, shared: Perm, *, writable: bool) -> None:
        wants_write = bool(perm & (Perm.WRITE | Perm.WRITE_UNCHANGED | Perm.RESIZE))
        read_only = not writable or (self.node.auto_read_only and not wants_write)
        if self._next_fd is None and (read_only, self._next_direct) != (self.fd_read_only, self._direct):
            try:
                self._next_fd = self._open_fd(read_only)
            except OSError as exc:
                raise GenericError(f"Could not reopen file: {os_error_text(exc)}") from exc
            self._next_read_only = read_only
        if self.lock is not None:
            with _asking_who_uses(self.filename):
                self.lock.prepare(perm, shared)

    def set_permissions(self, perm: Perm, shared: Perm) -> None:
        if self._next_fd is not None:
            old, self.fd, self._next_fd = self.fd, self._next_fd, None
            self.fd_read_only = self._next_read_only
            if self.lock is not None:
                self.lock.move_to(self.fd)
            self._writeback.settle()
            self._close_fd(old)
            if self._direct != self._next_direct:
                self._direct = self._next_direct
                self._probe_alignment()
        if self.lock is not None:
            self.lock.commit(perm, shared)

    def abort_permissions(self) -> None:
        if self._next_fd is not None:
            self._close_fd(self._next_fd)
            self._next_fd = None
        if self.lock is not None and self.fd >= 0:
            taken, shared = self.node.cumulative_permissions()
            self.lock.commit(taken, shared)

    def reopen_prepare(self, state: ReopenState) -> None:
        if self._aio is BlockdevAioOptions.NATIVE and not state.cache_direct:
            raise GenericError("aio=native was specified, but it requires cache.direct=on, which was not specified.")
        # The new descriptor is opened with the new permissions, which follow.
        self._next_direct = state.cache_direct

    def reopen_abort(self, state: ReopenState) -> None:
        self._next_direct = self._direct

    def refresh_length(self) -> None:
        """Learn the length anew: another program may have changed the file while it was shared. Errors: OSError."""
        self.length = self._file_length()

    # -- data plane ------------------------------------------------------------------------------------------

    def read(self, offset: int, buffer: memoryview) -> None:
        size = len(buffer)
        if self._memory_alignment > 1:
            self._read_direct(offset, buffer)
            return
        got = os.preadv(self.fd, (buffer,), offset)
        while got < size:
            more = os.preadv(self.fd, (buffer[got:],), offset + got)
            if more == 0:
                # The file is shorter than its length at open, or ends inside the last sector: zeros follow.
                buffer[got:] = bytes(size - got)
                return
            got += more

    def _read_direct(self, offset: int, buffer: memoryview) -> None:
        bounce = memoryview(mmap.mmap(-1, max(len(buffer), 1)))
        got = os.preadv(self.fd, (bounce[: len(buffer)],), offset)
        bounce[got : len(buffer)] = bytes(len(buffer) - got)
        buffer[:] = bounce[: len(buffer)]

    def write(self, offset: int, data: memoryview, flags: int = 0) -> None:
        size = len(data)
        if self._memory_alignment > 1:
            bounce = memoryview(mmap.mmap(-1, max(size, 1)))
            bounce[:size] = data
            data = bounce[:size]
        done = os.pwritev(self.fd, (data,), offset)
        while done < size:
            done += os.pwritev(self.fd, (data[done:],), offset + done)
        self._grown_to(offset + size)
        if flags & _FUA:
            self.flush()

    supports_fua = True

    def _grown_to(self, end: int) -> None:
        if end > self.length:
            with self._truncate_lock:
                self.length = max(self.length, end)

    def write_zeroes(self, offset: int, length: int, flags: int = 0) -> None:
        if not self._zero_support:
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
        try:
            self._host_zero(offset, length, bool(flags & _MAY_UNMAP))
        except OSError as exc:
            if exc.errno == errno.ENOTSUP:
                self._zero_support = False
            raise
        self._map.forget(offset, length)
        self._grown_to(offset + length)
        if flags & _FUA:
            self.flush()

    def _host_zero(self, offset: int, length: int, unmap: bool) -> None:
        end = offset + length
        if unmap:
            try:
                hostfile.fallocate(self.fd, hostfile.PUNCH_HOLE | hostfile.KEEP_SIZE, offset, length)
            except OSError as exc:
                if exc.errno != errno.ENOTSUP:
                    raise
            else:
                if end > self.length:
                    os.ftruncate(self.fd, end)
                return
        hostfile.fallocate(self.fd, hostfile.ZERO_RANGE, offset, length)

    def discard(self, offset: int, length: int) -> None:
        length = min(length, self.length - offset)
        if length <= 0:
            return
        try:
            if not self._discard_support:
                raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
            hostfile.fallocate(self.fd, hostfile.PUNCH_HOLE | hostfile.KEEP_SIZE, offset, length)
        except OSError as exc:
            self.discards[1] += 1
            if exc.errno == errno.ENOTSUP:
                self._discard_support = False
            raise
        self._map.forget(offset, length)
        self.discards[0] += 1
        self.discards[2] += length

    def flush(self) -> None:
        if not self.node.cache_no_flush:
            os.fdatasync(self.fd)

    def start_writeback(self) -> None:
        if not self.node.cache_no_flush:
            self._writeback.start(self.fd)

    def block_status(self, offset: int, length: int, want_zero: bool = True) -> Extent:
        if not want_zero:
            return Extent(length, _DATA_HERE, self.node, offset)
        data, run = self._map.run(self.fd, offset, length)
        return Extent(run, _DATA_HERE if data else _ZERO_HERE, self.node, offset)

    def block_map(self, offset: int, length: int) -> list[tuple[int, int, Node | None, int]]:
        return [
            (run, _DATA_HERE if data else _ZERO_HERE, self.node, at)
            for data, run, at in self._map.runs(self.fd, offset, length)
        ]

    def truncate(self, length: int, *, exact: bool = True, prealloc: Prealloc = Prealloc.OFF) -> None:
        with self._truncate_lock:
            old = self.length
            try:
                resize_file(self.fd, old, length, prealloc)
            except OSError as exc:
                raise GenericError(f"Could not resize file: {os_error_text(exc)}") from exc
            self._map.forget(min(old, length), max(old, length))
            self.length = length

    def begin_write(self, offset: int, length: int) -> WritePlan | None:
        if self._memory_alignment > 1:
            return None
        return WritePlan([(self.node, offset, length)], lambda: self._grown_to(offset + length), lambda: None)

    def begin_writes(self, offset: int, runs: Sequence[tuple[int, int]], settle: bool) -> WritePlan | None:
        length = sum(run for run, _ in runs)
        # What is a hole has its zeros already.
        if self._memory_alignment > 1 or offset + length > self.length:
            return None
        empty = self._map.run(self.fd, offset, length) == (False, length)
        extents = []
        for run, kind in runs:
            if kind == DATA:
                extents.append((self.node, offset, run))
            elif kind == ZERO and not empty and self._map.run(self.fd, offset, run) != (False, run):
                return None
            offset += run
        return WritePlan(extents, lambda: None, lambda: None)

    def allocated_size(self) -> int | None:
        return os.fstat(self.fd).st_blocks * 512

    def host_fd(self) -> int | None:
        return self.fd if self._memory_alignment == 1 else None

    def exact_filename(self) -> str | None:
        return self.filename

    def info(self) -> DriverInfo | None:
        return DriverInfo(is_dirty=False)

    def specific_stats(self) -> Struct | None:
        ok, failed, size = self.discards
        return BlockStatsSpecificFile(discard_nb_ok=ok, discard_nb_failed=failed, discard_bytes_ok=size)


@contextmanager
def _asking_who_uses(filename: str) -> Iterator[None]:
    """Give the refusal of a lock the hint that people know."""
    try:
        yield
    except GenericError as exc:
        exc.hint = f"Is another process using the image [{filename}]?"
        raise


_LENGTH_MAX: Final = (1 << 63) - 1
"""The longest file there can be, bytes."""


@register
class FileDriver(HostFileDriver):
    """Regular files."""

    name = "file"
    protocol_prefixes = ("file",)
    CreateOptions = BlockdevCreateOptionsFile

    @classmethod
    def parse_filename(cls, filename: str) -> dict[str, Any]:
        return {"filename": filename.removeprefix("file:")}

    def _check_type(self, info: os.stat_result) -> None:
        if stat.S_ISDIR(info.st_mode):
            raise GenericError(f"Could not open '{self.filename}': {os.strerror(errno.EISDIR)}")
        if not stat.S_ISREG(info.st_mode) and not stat.S_ISBLK(info.st_mode):
            raise GenericError(f"'{self.name}' driver requires '{self.filename}' to be a regular file")

    def exact_filename(self) -> str | None:
        # QEMU puts ./ before a plain name that would be taken for a protocol's.
        from engine.graph.filenames import protocol_of

        return f"./{self.filename}" if protocol_of(self.filename) is not None else self.filename

    def has_zero_init(self) -> bool:
        return True

    def unmaps_zeroes(self) -> bool:
        return True

    @classmethod
    def create(cls, options: BlockdevCreateOptionsFile, context: CreateContext) -> None:
        mode = options.preallocation or PreallocMode.OFF
        flags, passed = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, options.filename.startswith(FDSET)
        try:
            fd = context.open_fdset(options.filename, flags) if passed else os.open(options.filename, flags, 0o644)
        except OSError as exc:
            raise GenericError(f"Could not create '{options.filename}': {os_error_text(exc)}") from exc
        try:
            lock = ImageLock(fd) if ofd_locks_work(fd) else None
            if lock is not None:
                # Only the locks of the length are needed, and only while it changes: nobody may be using the file.
                with _asking_who_uses(options.filename):
                    lock.prepare(Perm.WRITE | Perm.RESIZE, Perm.ALL & ~Perm.RESIZE)
            try:
                os.ftruncate(fd, 0)
                if options.nocow:
                    attributes.set_no_copy_on_write(fd)
                if options.extent_size_hint:
                    attributes.set_extent_size_hint(fd, options.extent_size_hint)
                if mode == PreallocMode.METADATA:
                    raise GenericError("Unsupported preallocation mode: metadata")
                if options.size > _LENGTH_MAX:
                    raise GenericError("Could not resize file: Invalid argument")
                resize_file(fd, 0, options.size, mode)
            except OSError as exc:
                raise GenericError(f"Could not resize file: {os_error_text(exc)}") from exc
        finally:
            if passed:
                context.close_fdset(fd)
            else:
                os.close(fd)


@register
class HostDeviceDriver(HostFileDriver):
    """Block and character devices."""

    name = "host_device"
    protocol_prefixes = ("host_device",)

    @classmethod
    def parse_filename(cls, filename: str) -> dict[str, Any]:
        return {"filename": filename.removeprefix("host_device:")}

    def _check_type(self, info: os.stat_result) -> None:
        if not (stat.S_ISCHR(info.st_mode) or stat.S_ISBLK(info.st_mode)):
            raise GenericError(
                f"'{self.name}' driver requires '{self.filename}' to be either a character or block device"
            )

    def _grown_to(self, end: int) -> None:
        """A device does not grow by writing."""

    def write(self, offset: int, data: memoryview, flags: int = 0) -> None:
        if offset + len(data) > self.length:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().write(offset, data, flags)

    def truncate(self, length: int, *, exact: bool = True, prealloc: Prealloc = Prealloc.OFF) -> None:
        if prealloc is not Prealloc.OFF:
            raise GenericError(f"Preallocation mode '{prealloc.value}' unsupported for this device")
        current = self._file_length()
        if exact and length != current:
            raise GenericError("Cannot resize device files")
        if length > current:
            raise GenericError("Cannot grow device files")
