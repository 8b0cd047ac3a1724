"""Storing dirty bitmaps in an image: marking them in use, writing them, removing them.

In the order of ordering.py: new clusters hold bits, tables and a new directory, and are counted, before the header
points to that directory (bitmap_header.py), and so does all that guests have written; the clusters of the old one are
freed after that is on disk. Marking in
use changes flags in the directory where it is: a power cut may leave some marked and others not, which is the truth
still, for the first write of a guest comes after.

Methods take the image's locks. The image is writable, and nothing else changes its bitmaps meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from engine.bitmaps.hbitmap import HBitmap
from engine.drivers.format.qcow2 import bitmap_header, bitmaps
from engine.drivers.format.qcow2.bitmap_header import SECTOR
from engine.drivers.format.qcow2.bitmaps import AUTO, IN_USE, BitmapEntry
from engine.drivers.format.qcow2.header import MAX_BITMAP_DIRECTORY, MAX_BITMAPS, BitmapsExtension
from engine.drivers.format.qcow2.overlap import Area
from engine.drivers.format.qcow2.tables import to_disk
from engine.errors import GenericError, os_error_text

if TYPE_CHECKING:
    from array import array

    from engine.drivers.format.qcow2.image import Image


@dataclass(frozen=True, slots=True)
class Bits:
    """A bitmap to be stored. enabled: it goes on recording when the image is opened again."""

    name: str
    enabled: bool
    bits: HBitmap


def mark_in_use(image: Image) -> None:
    """Mark all bitmaps in use on disk: from now on what is stored of them is out of date. Errors: GenericError."""
    entries = read(image)
    if all(entry.in_use for entry in entries):
        return
    extension = image.header.bitmaps
    assert extension is not None
    data = bitmaps.encode_directory(replace(entry, flags=entry.flags | IN_USE) for entry in entries)
    if len(data) != extension.directory_size:
        raise GenericError("Can't update bitmap directory")
    try:
        with image.flush_lock, image.lock:
            image.write_metadata(extension.directory_offset, data, Area.BITMAP_DIRECTORY)
            image.sync()
    except OSError as exc:
        raise GenericError(f"Can't update bitmap directory: {os_error_text(exc)}") from exc


def read(image: Image) -> list[BitmapEntry]:
    """The directory. Errors: GenericError."""
    try:
        return bitmaps.read_directory(image.file, image.header)
    except OSError as exc:
        raise GenericError(f"Failed to read bitmap directory: {os_error_text(exc)}") from exc


def store(image: Image, wanted: Iterable[Bits]) -> None:
    """Write bitmaps into the image, in place of those of the same name marked in use there. Others stay.

    Errors: GenericError; nothing has changed then, save that the validity of all may be lost.
    """
    items = {item.name: item for item in wanted}
    if not items:
        return
    entries = read(image)
    known = {entry.name: entry for entry in entries}
    for item in items.values():
        try:
            bitmaps.check_constraints(image, item.name, item.bits.granularity, image.size)
        except GenericError as exc:
            raise GenericError(f"Bitmap '{item.name}' doesn't satisfy the constraints: {exc.desc}") from exc
        if item.name in known and not known[item.name].in_use:
            raise GenericError(f"Bitmap '{item.name}' already exists in the image")
    added = [name for name in items if name not in known]
    if len(entries) + len(added) > MAX_BITMAPS:
        raise GenericError("Too many persistent bitmaps")
    if sum(map(bitmaps.entry_size, known.keys() | items.keys())) > MAX_BITMAP_DIRECTORY:
        raise GenericError("Bitmap directory is too large")
    replaced = [entry for entry in entries if entry.name in items]
    try:
        image.prepare_modify()
        with image.flush_lock, image.lock:
            image.wait_all()
            # A write that a bitmap takes for granted must not be lost when the bitmap is not.
            image.ordering.write_back_locked()
            writer = _Writer(image)
            try:
                new = {name: writer.write(item) for name, item in items.items()}
                directory = [new.get(entry.name, entry) for entry in entries] + [new[name] for name in added]
                extension = writer.write_directory(directory)
                writer.sync()
            except BaseException:
                writer.undo()
                raise
            _switch(image, extension, replaced)
    except OSError as exc:
        raise GenericError(f"Failed to write bitmaps to the image: {os_error_text(exc)}") from exc


def remove(image: Image, name: str) -> None:
    """Remove a bitmap from the image; none of that name is fine. Errors: GenericError."""
    entries = read(image)
    gone = [entry for entry in entries if entry.name == name]
    if not gone:
        return
    left = [entry for entry in entries if entry.name != name]
    try:
        image.prepare_modify()
        with image.flush_lock, image.lock:
            image.wait_all()
            writer = _Writer(image)
            try:
                extension = writer.write_directory(left) if left else None
                writer.sync()
            except BaseException:
                writer.undo()
                raise
            _switch(image, extension, gone)
    except OSError as exc:
        raise GenericError(f"Failed to update bitmap extension: {os_error_text(exc)}") from exc


def _switch(image: Image, extension: BitmapsExtension | None, gone: list[BitmapEntry]) -> None:
    """Let the header point to another directory, then free the old one and the clusters of bitmaps that are gone."""
    old = image.header.bitmaps
    unused = [run for entry in gone for run in bitmaps.clusters_of(image, entry)]
    if old is not None:
        unused.append((old.directory_offset >> image.cluster_bits, -(-old.directory_size // image.cluster_size)))
    # After an error here it is not known which directory counts: the clusters of both stay.
    bitmap_header.set_extension(image, extension)
    for cluster, count in unused:
        image.defer_free(cluster, count)
    try:
        image.ordering.write_back_locked()
    except OSError:
        # The header points to the new ones. What remains to be freed is tried again with the next write-back.
        return


class _Writer:
    """Writes into new clusters, which it can give back (both locks held). Errors: OSError."""

    def __init__(self, image: Image) -> None:
        self._image = image
        self._taken: list[tuple[int, int]] = []

    def _take(self, count: int, what: str) -> int:
        first, _ = self._image.refcounts.allocate(count, what, exact=True)
        self._taken.append((first, count))
        return first << self._image.cluster_bits

    def _put(self, data: bytes, what: str, unit: int = SECTOR) -> int:
        """Write *data*, filled up to a multiple of *unit* bytes, into clusters of its own; the host offset."""
        image = self._image
        offset = self._take(max(-(-len(data) // image.cluster_size), 1), what)
        image.write_metadata(offset, data + bytes(-len(data) % unit), Area(0))
        return offset

    def write(self, item: Bits) -> BitmapEntry:
        """Write the bits of a bitmap and its table."""
        table = self._write_bits(item.bits)
        offset = self._put(to_disk(table), "bitmap table")
        return BitmapEntry(item.name, offset, len(table), AUTO if item.enabled else 0, item.bits.granularity)

    def _write_bits(self, bits: HBitmap) -> array[int]:
        from array import array

        image = self._image
        step = bitmaps.bits_per_cluster(image, bits.granularity)
        table = array("Q", bytes(8 * -(-bits.length // step)))
        at = 0
        while (dirty := bits.next_dirty(at)) is not None:
            index = dirty // step
            start, stop = index * step, min((index + 1) * step, bits.length)
            if bits.next_zero(start, stop) is None:
                table[index] = bitmaps.ALL_ONES
            else:
                table[index] = self._put(bits.serialise(start, stop - start), "bitmap data", image.cluster_size)
            at = stop
        return table

    def write_directory(self, entries: list[BitmapEntry]) -> BitmapsExtension:
        """Write a directory."""
        data = bitmaps.encode_directory(entries)
        return BitmapsExtension(len(entries), len(data), self._put(data, "bitmap directory"))

    def sync(self) -> None:
        """All that was written, and the refcounts, are on disk afterwards."""
        image = self._image
        if not image.lazy:
            image.refcounts.write_blocks()
            image.refcounts.write_table()
        image.sync()

    def undo(self) -> None:
        """Nothing points to the new clusters: give them back."""
        for cluster, count in self._taken:
            self._image.undo_allocation(cluster, count)
