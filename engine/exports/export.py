"""Export: one node offered to programs outside, by whatever protocol."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, ClassVar, TypeVar

from engine.exports.options import BlockExportType

if TYPE_CHECKING:
    from engine.exports.manager import Exports
    from engine.exports.options import BlockExportOptions
    from engine.graph.backend import BlockBackend


class Export(abc.ABC):
    """A block export. Control plane, but for what subclasses' clients do in threads of their own.

    A subclass registers itself with @export_type. Its start() is the last step of making the export.
    """

    type: ClassVar[BlockExportType]

    def __init__(self, exports: Exports, options: BlockExportOptions, backend: BlockBackend) -> None:
        self.exports = exports
        self.id = options.id
        self.options = options
        self.backend = backend
        self.writable = bool(options.writable)
        self.shutting_down = False

    @property
    def node_name(self) -> str:
        """Name of the node that is exported now."""
        root = self.backend.root
        return root.child.name if root is not None else ""

    @abc.abstractmethod
    def start(self) -> None:
        """Check the type's own options and begin to serve. Errors: GenericError, nothing is left then."""

    @property
    @abc.abstractmethod
    def in_use(self) -> bool:
        """Whether somebody outside uses the export now."""

    @abc.abstractmethod
    def shut_down(self) -> None:
        """Take no more clients and cut off those there are; never waits. Calls ``exports.gone`` once all have left."""

    def follow(self, device: BlockBackend) -> None:
        """Shut down when the medium of *device* goes."""
        device.on_eject.append(lambda: self.exports.shut_down(self))

    def clean_up(self) -> None:
        """Give back what start() took. Nobody uses the export any more."""


_E = TypeVar("_E", bound=type[Export])
export_types: dict[BlockExportType, type[Export]] = {}
"""The types that can be served."""


def export_type(cls: _E) -> _E:
    """Class decorator: make a type of exports known."""
    export_types[cls.type] = cls
    return cls
