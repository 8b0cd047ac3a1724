"""copy-on-read: what is read from the backing chain is written into the layer below, for the next read to find."""

from __future__ import annotations

from engine.errors import GenericError
from engine.graph.change import freeze_chain, thaw
from engine.graph.drain import drained
from engine.graph.driver import FilterDriver, Opening, register
from engine.graph.edge import Edge
from engine.graph.node import Node
from engine.graph.options import BlockdevOptionsGenericFormat
from engine.graph.permissions import Perm, Role
from engine.graph.populate import populate
from engine.graph.status import allocated_above, in_chain, is_allocated, skip_filters


class BlockdevOptionsCor(BlockdevOptionsGenericFormat):
    """bottom: name of the lowest non-filter node that data is copied from; without it the whole chain is."""

    bottom: str | None = None


@register
class CopyOnReadDriver(FilterDriver):
    """The copy-on-read filter. It populates the first non-filter node below it."""

    name = "copy-on-read"
    Options = BlockdevOptionsCor
    supports_compressed_writes = True
    sees_no_data = True

    file: Edge
    _active = False

    def open(self, opening: Opening) -> None:
        options: BlockdevOptionsCor = opening.options
        self._active = True
        self._frozen: list[Edge] = []
        self._layer: Node | None = None
        self.bottom: Node | None = None
        file = opening.open_child("file", Role.FILTERED | Role.PRIMARY)
        assert file is not None
        self.file = file
        if options.bottom is not None:
            self.bottom = self._find_bottom(options.bottom, file.child)
            self._frozen = freeze_chain(self.node, self.bottom)
        self._serialise()

    def _find_bottom(self, name: str, top: Node) -> Node:
        bottom = self.node.graph.nodes.get(name)
        if bottom is None:
            raise GenericError(f"Bottom node '{name}' not found")
        if bottom.driver.is_filter:
            raise GenericError(f"Bottom node '{name}' is a filter")
        if not in_chain(top, bottom):
            raise GenericError(f"Bottom node '{name}' is not in the backing chain of '{top.name}'")
        return bottom

    def close(self) -> None:
        self.deactivate()

    def deactivate(self) -> None:
        """Copy no more and let the chain go, before the filter is taken out of the graph. Control plane.

        The filter's permissions stay until then: image locks given up for a moment could be another process's after it.
        """
        if self._active:
            self._active = False
            thaw(self._frozen)
            self._frozen = []
            self._stop_serialising()

    def child_permissions(self, edge: Edge, perm: Perm, shared: Perm, *, writable: bool) -> tuple[Perm, Perm]:
        if not self._active:
            return Perm.NONE, Perm.ALL
        return perm | Perm.WRITE_UNCHANGED, shared | Perm.WRITE_UNCHANGED

    # -- the layer that is populated -------------------------------------------------------------------------

    def _serialise(self) -> None:
        """Have writes to the layer take turns with copies into it. Control plane."""
        layer = skip_filters(self.file.child)
        if not layer.driver.supports_backing:
            return
        with drained([layer]):
            layer.start_serialising()
        self._layer = layer

    def _stop_serialising(self) -> None:
        layer, self._layer = self._layer, None
        if layer is not None:
            with drained([layer]):
                layer.stop_serialising()

    def _follow(self) -> None:
        if self._active:
            self._stop_serialising()
            self._serialise()

    # -- data plane ------------------------------------------------------------------------------------------

    def read(self, offset: int, buffer: memoryview) -> None:
        child = self.file.child
        layer = self._layer
        if layer is None:
            child.read(offset, buffer)
            return
        if layer is not skip_filters(child):
            # Something was put between: the new layer's writers don't know of us yet, so only read until they do.
            child.read(offset, buffer)
            self.node.graph.control.post(self._follow)
            return
        end = offset + len(buffer)
        at = offset
        while at < end:
            here, run = is_allocated(layer, at, end - at)
            wanted = False
            if not here and self.bottom is not None:
                depth, run = allocated_above(layer, self.bottom, True, at, run)
                wanted = depth > 1
            elif not here:
                wanted = layer.backing is not None
            part = buffer[at - offset : at - offset + run]
            if wanted:
                populate(layer, at, run, seen_by=child)
            child.read(at, part)
            at += run
