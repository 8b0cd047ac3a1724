"""A split virtqueue (virtio 1.1, 2.6), seen from the device."""

from __future__ import annotations

import struct
from typing import NamedTuple

from engine.exports.vhost_user import wire
from engine.exports.vhost_user.memory import BadAddress, GuestMemory

_U16 = struct.Struct("<H")
_MAX_LENGTH = 1 << 32


class Element(NamedTuple):
    """A request of the driver: what the device reads, and what it is to write."""

    head: int
    readable: list[memoryview]
    writable: list[memoryview]


class Virtqueue:
    """One queue on memory that is shared. Used by one thread at a time.

    size: descriptors, a power of two. desc, avail, used: addresses in the other process. base: where to begin.
    event_index: whether both sides say from when on they want to be woken. Errors: BadAddress, from all methods.
    """

    def __init__(
        self, memory: GuestMemory, size: int, desc: int, avail: int, used: int, base: int, event_index: bool
    ) -> None:
        if not 0 < size <= 1 << 15 or size & (size - 1):
            raise BadAddress(f"a queue of {size} descriptors")
        self._memory = memory
        self._size = size
        self._desc = memory.at_user(desc, wire.DESC.size * size)
        self._avail = memory.at_user(avail, 4 + 2 * size + 2)
        self._used = memory.at_user(used, 4 + 8 * size + 2)
        self._event_index = event_index
        self.next = base & 0xFFFF
        """Index of the next request to take."""
        (self._used_index,) = _U16.unpack_from(self._used, 2)
        self._told = self._used_index

    def pop(self) -> Element | None:
        """Take the next request, if there is one."""
        (index,) = _U16.unpack_from(self._avail, 2)
        waiting = (index - self.next) & 0xFFFF
        if not waiting:
            return None
        if waiting > self._size:
            raise BadAddress("more requests than the queue holds")
        (head,) = _U16.unpack_from(self._avail, 4 + 2 * (self.next % self._size))
        self.next = (self.next + 1) & 0xFFFF
        return self._element(head)

    def ask_for_kicks(self) -> bool:
        """Have the driver kick when there is more; true if there is more already."""
        if self._event_index:
            _U16.pack_into(self._used, 4 + 8 * self._size, self.next)
        (index,) = _U16.unpack_from(self._avail, 2)
        return bool(index != self.next)

    def push(self, element: Element, written: int) -> None:
        """Give a request back; the device wrote so many bytes."""
        wire.USED.pack_into(self._used, 4 + 8 * (self._used_index % self._size), element.head, written)
        self._used_index = (self._used_index + 1) & 0xFFFF
        _U16.pack_into(self._used, 2, self._used_index)

    def wants_call(self) -> bool:
        """Whether the driver wants to be told of what was given back since it was asked last."""
        new, old, self._told = self._used_index, self._told, self._used_index
        if new == old:
            return False
        if not self._event_index:
            (flags,) = _U16.unpack_from(self._avail, 0)
            return not flags & wire.NO_INTERRUPT
        (event,) = _U16.unpack_from(self._avail, 4 + 2 * self._size)
        return bool((new - event - 1) & 0xFFFF < (new - old) & 0xFFFF)

    # -- descriptors -----------------------------------------------------------------------------------------

    def _element(self, head: int) -> Element:
        element = Element(head, [], [])
        table, count, index = self._desc, self._size, head
        left, total = self._size, 0
        indirect = False
        while True:
            if index >= count or not left:
                raise BadAddress("a chain of descriptors that does not end")
            left -= 1
            address, length, flags, follows = wire.DESC.unpack_from(table, index * wire.DESC.size)
            if flags & wire.DESC_INDIRECT:
                if indirect or length % wire.DESC.size or not length:
                    raise BadAddress("a table of descriptors that is none")
                indirect = True
                table, count, index = self._memory.at(address, length), length // wire.DESC.size, 0
                left = count
                continue
            if element.writable and not flags & wire.DESC_WRITE:
                raise BadAddress("something to read behind what is to be written")
            total += length
            if total >= _MAX_LENGTH:
                raise BadAddress("a request of 4 GiB or more")
            if length:
                (element.writable if flags & wire.DESC_WRITE else element.readable).append(
                    self._memory.at(address, length)
                )
            if not flags & wire.DESC_NEXT:
                return element
            index = follows
