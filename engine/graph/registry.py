"""The drivers there are: those loaded, and those that are only announced by name until somebody needs them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from engine.graph.info import BlockStatsSpecific, ImageInfoSpecific
from engine.graph.options import BlockdevAmendOptions, BlockdevCreateOptions, BlockdevOptions
from engine.qapi import tag_enum

if TYPE_CHECKING:
    from engine.graph.driver import Driver


class Announced(NamedTuple):
    """A driver that is not loaded. module: what to import. probes: it may recognise images by their first bytes.

    magic: (offset, bytes) without which it recognises nothing; None where that is not so simple. prefixes: the parts
    before the colon of the file names it takes.
    """

    module: str
    probes: bool
    magic: tuple[int, bytes] | None
    prefixes: tuple[str, ...]

    def may_be(self, head: bytes) -> bool:
        """Whether it is worth while to ask the driver about an image that begins with *head*."""
        if not self.probes or self.magic is None:
            return self.probes
        offset, magic = self.magic
        return len(head) < offset + len(magic) or head[offset : offset + len(magic)] == magic


class DriverTable(Mapping[str, "type[Driver]"]):
    """All drivers by name. Looking one up loads it; going over the values loads all."""

    def __init__(self) -> None:
        self._loaded: dict[str, type[Driver]] = {}
        self._announced: dict[str, Announced] = {}

    def __getitem__(self, name: str) -> type[Driver]:
        entry = self._announced.get(name)
        if entry is not None:
            import_module(entry.module)
        return self._loaded[name]

    def __contains__(self, name: object) -> bool:
        return name in self._loaded or name in self._announced

    def __iter__(self) -> Iterator[str]:
        return iter([*self._loaded, *self._announced])

    def __len__(self) -> int:
        return len(self._loaded) + len(self._announced)

    def probers(self, head: bytes) -> Iterator[type[Driver]]:
        """The drivers that may recognise an image by its first bytes, those loaded first; the others are loaded."""
        yield from list(self._loaded.values())
        for name in [name for name, entry in self._announced.items() if entry.may_be(head)]:
            yield self[name]

    def by_prefix(self, prefix: str) -> type[Driver] | None:
        """The driver of file names that begin *prefix* and a colon."""
        for driver in self._loaded.values():
            if prefix in driver.protocol_prefixes:
                return driver
        return next((self[name] for name, entry in self._announced.items() if prefix in entry.prefixes), None)

    def announce(
        self,
        name: str,
        module: str,
        *,
        probes: bool = False,
        magic: tuple[int, bytes] | None = None,
        prefixes: tuple[str, ...] = (),
    ) -> None:
        """Make a driver known that *module* registers when it is imported; see Announced."""
        if name not in self._loaded:
            self._announced[name] = Announced(module, probes, magic, prefixes)
            tag_enum("BlockdevDriver").announce(name, lambda: self[name])

    def add(self, cls: type[Driver]) -> None:
        """A driver has been loaded."""
        self._announced.pop(cls.name, None)
        self._loaded[cls.name] = cls


drivers = DriverTable()
"""The drivers of the engine. Ties in probing go to the earlier one."""

_D = TypeVar("_D", bound="type[Driver]")


def register(cls: _D) -> _D:
    """Class decorator: make the driver known to opening and its options known to the schema."""
    drivers.add(cls)
    BlockdevOptions.add_branch(cls.name, cls.Options)
    if cls.CreateOptions is not None:
        BlockdevCreateOptions.add_branch(cls.name, cls.CreateOptions)
    if cls.AmendOptions is not None:
        BlockdevAmendOptions.add_branch(cls.name, cls.AmendOptions)
    if cls.SpecificInfo is not None:
        ImageInfoSpecific.add_branch(cls.name, cls.SpecificInfo, wrap="data")
    if cls.SpecificStats is not None:
        BlockStatsSpecific.add_branch(cls.name, cls.SpecificStats)
    return cls
