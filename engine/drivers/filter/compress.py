"""compress: everything written goes to the format below as compressed data."""

from __future__ import annotations

from dataclasses import replace

from engine.errors import GenericError
from engine.graph.driver import Driver, FilterDriver, Opening, WriteFlag, register
from engine.graph.options import BlockdevOptionsGenericFormat
from engine.graph.permissions import Role

_COMPRESSED = int(WriteFlag.COMPRESSED)


@register
class CompressDriver(FilterDriver):
    """The compress filter. Requests come in whole clusters of the format, which is what can be compressed."""

    name = "compress"
    Options = BlockdevOptionsGenericFormat
    # As in QEMU 7.2 this filter can't be reopened, although others can.
    reopen_prepare = Driver.reopen_prepare

    def open(self, opening: Opening) -> None:
        file = opening.open_child("file", Role.FILTERED | Role.PRIMARY)
        assert file is not None
        below = file.child.driver
        if not below.supports_compressed_writes:
            raise GenericError(f"Compression is not supported for underlying format: {below.name}")

    def refresh_limits(self) -> None:
        super().refresh_limits()
        info = self.info()
        if info is not None and info.cluster_size:
            self.limits = replace(self.limits, request_alignment=info.cluster_size)

    @property
    def own_alignment(self) -> int:
        return self.limits.request_alignment

    def write(self, offset: int, data: memoryview, flags: int = 0) -> None:
        self.filtered.write(offset, data, flags | _COMPRESSED)
