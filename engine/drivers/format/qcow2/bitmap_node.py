"""The persistent dirty bitmaps of a qcow2 node: when they are loaded, marked in use, stored and removed.

While the image is open for writing they are in memory and marked in use on disk, where they are out of date; whoever
opens it after a crash finds them inconsistent. Closing the image, or making it read-only, stores them. Of a read-only
image they are loaded too, and may not change.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from engine.bitmaps.dirty import DirtyBitmap, Refuse, bitmaps_of, find_bitmap
from engine.errors import GenericError, os_error_text

if TYPE_CHECKING:
    from engine.drivers.format.qcow2.bitmaps import BitmapEntry
    from engine.drivers.format.qcow2.image import Image
    from engine.graph.node import Node

log = logging.getLogger("engine")


class NodeBitmaps:
    """Belongs to one node; the image is given with each call, as reopening changes it. Control plane."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def _persistent(self) -> list[DirtyBitmap]:
        return [bitmap for bitmap in bitmaps_of(self._node) if bitmap.persistent]

    # -- opening ---------------------------------------------------------------------------------------------

    def load(self, image: Image) -> None:
        """Attach what the image holds. Errors: GenericError."""
        if image.header.stale_bitmaps:
            log.warning(
                "node '%s': a program lacking bitmap support modified this file, so all bitmaps are now considered "
                "inconsistent; some clusters may be leaked",
                self._node.name,
            )
        if image.header.bitmaps is None:
            return
        from engine.drivers.format.qcow2 import bitmap_store

        for entry in bitmap_store.read(image):
            self._attach(image, entry)

    def _attach(self, image: Image, entry: BitmapEntry) -> None:
        from engine.drivers.format.qcow2 import bitmaps

        if find_bitmap(self._node, entry.name) is not None:
            raise GenericError(f"Bitmap already exists: {entry.name}")
        bitmap = DirtyBitmap(self._node, entry.granularity, entry.name)
        if not entry.in_use:
            bitmap.replace_bits(bitmaps.read_bits(image, entry, bitmap.length))
        bitmap.inconsistent = entry.in_use or not bitmaps.is_whole(image, entry)
        bitmap.enabled = bool(entry.flags & bitmaps.AUTO) and not bitmap.inconsistent
        bitmap.persistent = True
        bitmap.readonly = not image.writable
        bitmap.attach()

    def take(self, image: Image) -> None:
        """The image is open for writing: say so on disk. Errors: GenericError."""
        header = image.header
        if header.stale_bitmaps:
            from engine.drivers.format.qcow2 import bitmap_header

            try:
                with image.flush_lock, image.lock:
                    bitmap_header.set_extension(image, None)
            except OSError as exc:
                raise GenericError(f"Could not update qcow2 header: {os_error_text(exc)}") from exc
        elif header.bitmaps is not None:
            from engine.drivers.format.qcow2 import bitmap_store

            bitmap_store.mark_in_use(image)

    # -- closing ---------------------------------------------------------------------------------------------

    def store_last(self, image: Image) -> None:
        """The image is being closed: store. What can't be stored is lost, and the log says so."""
        try:
            self._store(image)
        except GenericError as exc:
            log.error("Lost persistent bitmaps during inactivation of node '%s': %s", self._node.name, exc.desc)

    def _store(self, image: Image) -> list[DirtyBitmap]:
        """Store all persistent bitmaps that may have changed, and return them. Errors: GenericError."""
        changed = [
            bitmap for bitmap in self._persistent() if not (bitmap.inconsistent or bitmap.readonly or bitmap.skip_store)
        ]
        if not changed:
            return []
        if not image.writable or image.dead:
            raise GenericError("No write access")
        from engine.drivers.format.qcow2 import bitmap_store

        items = []
        for bitmap in changed:
            bits = bitmap.copy_bits()
            if bitmap.successor is not None:
                # Frozen for a job: what was written meanwhile is in the successor.
                bits.merge(bitmap.successor.copy_bits())
            items.append(bitmap_store.Bits(bitmap.name or "", bitmap.recording, bits))
        bitmap_store.store(image, items)
        return changed

    # -- reopening -------------------------------------------------------------------------------------------

    def become_read_only(self, image: Image) -> None:
        """Store, for the image may not be written after this. Errors: GenericError."""
        self._store(image)
        for bitmap in self._persistent():
            bitmap.readonly = True

    def stay_writable(self, image: Image) -> None:
        """Undo become_read_only(), because the image remains open for writing."""
        if any(bitmap.readonly for bitmap in self._persistent()):
            self._take_again(image)

    def become_writable(self, image: Image) -> None:
        """The image, read-only until now, may be written. What another program did to the bitmaps counts.

        Failing that, writes are refused: bitmaps that miss them would lie.
        """
        from engine.drivers.format.qcow2 import bitmap_store, bitmaps

        try:
            entries = {entry.name: entry for entry in bitmap_store.read(image)}
            for bitmap in self._persistent():
                entry = entries.pop(bitmap.name or "", None)
                if not bitmap.readonly or bitmap.busy:
                    continue
                if entry is None or entry.in_use or entry.granularity != bitmap.granularity:
                    bitmap.inconsistent, bitmap.enabled = True, False
                elif not bitmap.inconsistent:
                    bitmap.replace_bits(bitmaps.read_bits(image, entry, bitmap.length))
            for entry in entries.values():
                self._attach(image, entry)
        except GenericError as exc:
            self._refuse_writes(image, exc)
            return
        self._take_again(image)

    def _take_again(self, image: Image) -> None:
        try:
            self.take(image)
        except GenericError as exc:
            self._refuse_writes(image, exc)
            return
        for bitmap in self._persistent():
            bitmap.readonly = False

    def _refuse_writes(self, image: Image, reason: GenericError) -> None:
        image.bitmaps_stuck = True
        log.error("%s: Failed to make dirty bitmaps writable: %s", self._node.name, reason.desc)

    # -- changes ---------------------------------------------------------------------------------------------

    def check_storable(self, image: Image, name: str, granularity: int) -> None:
        """Whether a new bitmap could be stored, as far as that is known now. Errors: GenericError."""
        from engine.drivers.format.qcow2 import bitmaps
        from engine.drivers.format.qcow2.header import MAX_BITMAP_DIRECTORY, MAX_BITMAPS

        try:
            if image.header.version < 3:
                raise GenericError("Cannot store dirty bitmaps in qcow2 v2 files")
            bitmaps.check_constraints(image, name, granularity, image.size)
            names = [bitmap.name or "" for bitmap in self._persistent() if not bitmap.skip_store]
            if len(names) + 1 > MAX_BITMAPS:
                raise GenericError("Maximum number of persistent bitmaps is already reached")
            if sum(map(bitmaps.entry_size, [*names, name])) > MAX_BITMAP_DIRECTORY:
                raise GenericError("Not enough space in the bitmap directory")
        except GenericError as exc:
            where = self._node.device_or_node_name
            raise GenericError(f"Can't make bitmap '{name}' persistent in '{where}': {exc.desc}") from exc

    def remove(self, image: Image, name: str) -> None:
        """Remove a bitmap from the image, if it is stored there. Errors: GenericError."""
        if image.header.bitmaps is not None:
            from engine.drivers.format.qcow2 import bitmap_store

            bitmap_store.remove(image, name)

    def check_resizable(self, image: Image) -> None:
        """Whether the bitmaps allow a change of size: all are in memory and can follow it. Errors: GenericError."""
        if image.header.bitmaps is None:
            return
        from engine.drivers.format.qcow2 import bitmap_store

        for entry in bitmap_store.read(image):
            bitmap = find_bitmap(self._node, entry.name)
            if bitmap is None:
                raise GenericError("Cannot resize qcow2 with persistent bitmaps that were not loaded into memory")
            bitmap.check(Refuse.TO_CHANGE)
