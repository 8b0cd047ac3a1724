"""What every kind of character device has."""

from __future__ import annotations

import abc
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from engine.errors import GenericError
from engine.monitor.session import SessionFactory

log = logging.getLogger("engine.monitor")

if TYPE_CHECKING:
    from engine.monitor.chardev.options import ChardevOptions


class Chardev(abc.ABC):
    """A character device. Control plane only.

    label: its id. announce: takes a sentence for the person at the terminal. Connections that come before something is
    attached wait for that.
    """

    kind: ClassVar[str]

    def __init__(self, label: str) -> None:
        self.label = label
        self.announce: Callable[[str], None] = log.info
        self._factory: SessionFactory | None = None

    @property
    def in_use(self) -> bool:
        """Whether something is attached."""
        return self._factory is not None

    @property
    @abc.abstractmethod
    def filename(self) -> str:
        """What it is, as query-chardev tells."""

    @abc.abstractmethod
    async def open(self) -> None:
        """Connect, or begin to listen (and wait for the first client if so asked). Errors: GenericError."""

    def attach(self, factory: SessionFactory) -> None:
        """Serve every connection with a protocol that *factory* makes. Errors: GenericError."""
        if self._factory is not None:
            raise GenericError(f"Device '{self.label}' is in use")
        self._factory = factory

    @abc.abstractmethod
    async def close(self) -> None:
        """Stop listening, remove what others would connect to. Connections are closed by whoever serves them."""


_C = TypeVar("_C", bound=type[Chardev])
_kinds: dict[str, type[Chardev]] = {}


def chardev_kind(cls: _C) -> _C:
    """Class decorator: make a kind of character device known. Its __init__ takes (label, options of the kind)."""
    _kinds[cls.kind] = cls
    return cls


def backend_names() -> list[str]:
    """The kinds there are."""
    return list(_kinds)


def make_chardev(options: ChardevOptions) -> Chardev:
    """A character device that is not open yet. Errors: GenericError."""
    backend: Any = options.backend
    cls: Any = _kinds[backend.type]
    found: Chardev = cls(options.id, backend.branch.data)
    return found
