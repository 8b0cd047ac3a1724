"""Compressed clusters: compression and bounded decompression (zlib, zstd), and a small cache of what was decompressed
last.
"""

from __future__ import annotations

import errno
import threading
import zlib
from typing import Any, Final

from engine.drivers.format.qcow2.header import ZSTD
from engine.drivers.format.qcow2.storage import error, io_error
from engine.errors import GenericError

WINDOW_BITS: Final = -12
"""Raw deflate with the small window that qcow2 prescribes (any stream with a larger one is refused by zlib)."""
CACHE_BYTES: Final = 1 << 20
_ZSTD_LEVEL: Final = 3
_NO_ZSTD: Final = "Compression type 'zstd' needs the Python package zstandard (pip install 'blockmon[zstd]')"


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError:
        return None
    return zstandard


def require(compression_type: int) -> None:
    """Errors: GenericError when the library for *compression_type* is missing."""
    if compression_type == ZSTD and _zstandard() is None:
        raise GenericError(_NO_ZSTD)


def compress(data: bytes | memoryview, compression_type: int) -> bytes:
    """One cluster compressed; the result may be longer than *data*. Errors: OSError ENOTSUP without the library."""
    if compression_type == ZSTD:
        zstandard = _zstandard()
        if zstandard is None:
            raise error(errno.ENOTSUP, _NO_ZSTD)
        packed: bytes = zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(data)
        return packed
    machine = zlib.compressobj(zlib.Z_DEFAULT_COMPRESSION, zlib.DEFLATED, WINDOW_BITS, 9, zlib.Z_DEFAULT_STRATEGY)
    return machine.compress(data) + machine.flush()


def decompress(data: bytes | bytearray | memoryview, cluster_size: int, compression_type: int) -> bytes:
    """Exactly one cluster out of *data*, which may be followed by anything; never more is produced. Errors: OSError
    EIO.
    """
    if compression_type == ZSTD:
        return _decompress_zstd(data, cluster_size)
    machine = zlib.decompressobj(WINDOW_BITS)
    try:
        out = machine.decompress(data, cluster_size)
    except zlib.error as exc:
        raise error(errno.EIO, f"Compressed cluster is broken: {exc}") from exc
    if len(out) != cluster_size:
        raise io_error()
    return out


def _decompress_zstd(data: bytes | bytearray | memoryview, cluster_size: int) -> bytes:
    zstandard = _zstandard()
    if zstandard is None:
        raise error(errno.ENOTSUP, _NO_ZSTD)
    # The window is bounded too: a frame header may ask for gigabytes.
    machine = zstandard.ZstdDecompressor(max_window_size=max(cluster_size, 1 << 23))
    try:
        with machine.stream_reader(bytes(data), read_across_frames=True) as reader:
            out: bytes = reader.read(cluster_size)
            while len(out) < cluster_size:
                more = reader.read(cluster_size - len(out))
                if not more:
                    break
                out += more
    except zstandard.ZstdError as exc:
        raise error(errno.EIO, f"Compressed cluster is broken: {exc}") from exc
    if len(out) != cluster_size:
        raise io_error()
    return out


class ClusterCache:
    """The clusters decompressed last, by their L2 entry. Has a lock of its own, held for dictionary work only."""

    def __init__(self, cluster_size: int, compression_type: int) -> None:
        self.cluster_size = cluster_size
        self.compression_type = compression_type
        self._capacity = max(CACHE_BYTES // cluster_size, 1)
        self._lock = threading.Lock()
        self._clusters: dict[int, bytes] = {}
        self._version = 0

    @property
    def version(self) -> int:
        """Changes when host clusters were freed."""
        return self._version

    def get(self, entry: int) -> bytes | None:
        """The contents of the cluster that L2 entry *entry* describes, if cached."""
        return self._clusters.get(entry)

    def put(self, entry: int, data: bytes, version: int) -> None:
        """Keep *data*, unless clusters were freed since *version* was read."""
        with self._lock:
            if version != self._version:
                return
            while len(self._clusters) >= self._capacity:
                del self._clusters[next(iter(self._clusters))]
            self._clusters[entry] = data

    def clear(self) -> None:
        """Host clusters are being freed."""
        with self._lock:
            self._version += 1
            self._clusters.clear()
