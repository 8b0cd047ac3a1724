"""throttle: the node's requests keep to the limits of a throttle group, which other nodes and devices may share."""

from __future__ import annotations

from engine.graph.driver import FilterDriver, Opening, ReopenState, register
from engine.graph.options import BlockdevOptionsGenericFormat
from engine.graph.permissions import Role
from engine.throttle.group import ThrottleGroup, ThrottleMember


class BlockdevOptionsThrottle(BlockdevOptionsGenericFormat):
    """throttle_group: name of the group, which has to exist."""

    throttle_group: str


@register
class ThrottleDriver(FilterDriver):
    """The throttle filter. Reads, writes, zero writes and discards wait; flushes and questions don't."""

    name = "throttle"
    Options = BlockdevOptionsThrottle
    strong_options = ("throttle-group",)
    mutable_options = frozenset({"throttle-group"})
    supports_fua = True
    supports_compressed_writes = True

    throttle: ThrottleMember | None = None

    def open(self, opening: Opening) -> None:
        options: BlockdevOptionsThrottle = opening.options
        opening.open_child("file", Role.FILTERED | Role.PRIMARY)
        self._join(self.node.graph.objects.throttle_groups.find(options.throttle_group))

    def close(self) -> None:
        if self.throttle is not None:
            self.throttle.leave()

    def _join(self, group: ThrottleGroup) -> None:
        self.throttle = ThrottleMember(group)
        if self.node.quiesce_count:
            self.throttle.set_free()

    def drained_begin(self) -> None:
        if self.throttle is not None:
            self.throttle.set_free()

    def drained_end(self) -> None:
        if self.throttle is not None:
            self.throttle.unset_free()

    # -- reopen ----------------------------------------------------------------------------------------------

    def reopen_prepare(self, state: ReopenState) -> None:
        super().reopen_prepare(state)
        if state.options is not None:
            options: BlockdevOptionsThrottle = state.options
            state.prepared = self.node.graph.objects.throttle_groups.find(options.throttle_group)

    def reopen_commit(self, state: ReopenState) -> None:
        super().reopen_commit(state)
        old = self.throttle
        if state.prepared is not None and old is not None and state.prepared is not old.group:
            # Reopening drains the node, so nothing waits in the old group.
            self._join(state.prepared)
            old.leave()

    # -- data plane ------------------------------------------------------------------------------------------

    def _wait(self, writing: bool, size: int) -> None:
        member = self.throttle
        if member is not None:
            member.admit(writing, size)

    def read(self, offset: int, buffer: memoryview) -> None:
        self._wait(False, len(buffer))
        self.filtered.read(offset, buffer)

    def write(self, offset: int, data: memoryview, flags: int = 0) -> None:
        self._wait(True, len(data))
        self.filtered.write(offset, data, flags)

    def write_zeroes(self, offset: int, length: int, flags: int = 0) -> None:
        self._wait(True, length)
        self.filtered.write_zeroes(offset, length, flags)

    def discard(self, offset: int, length: int) -> None:
        self._wait(True, length)
        self.filtered.discard(offset, length)
