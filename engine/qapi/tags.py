"""Open enumerations: the tags of unions, whose branches come from modules that are loaded when somebody needs them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from engine.qapi.features import Feature


class TagEnum:
    """The open enumeration of a union's tag: grows as branches are added. Unions may share one by its name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.values: dict[str, tuple[Feature, ...]] = {}
        self.since: dict[str, str] = {}
        self._late: dict[str, Callable[[], object]] = {}

    def announce(self, value: str, load: Callable[[], object]) -> None:
        """Make *value* known whose branches are added by *load*, which is called when somebody needs one of them."""
        self.values.setdefault(value, ())
        self._late[value] = load

    def load(self, value: str | None = None) -> None:
        """Have the branches of *value* added, or those of all values."""
        for name in list(self._late) if value is None else [value]:
            load = self._late.pop(name, None)
            if load is not None:
                load()

    def __contains__(self, value: object) -> bool:
        return value in self.values

    def __iter__(self) -> Iterator[str]:
        return iter(self.values)

    def __repr__(self) -> str:
        return f"TagEnum({self.name!r})"


_tag_enums: dict[str, TagEnum] = {}


def load_all() -> None:
    """Have everything loaded that the tags of unions only announce."""
    for found in list(_tag_enums.values()):
        found.load()


def tag_enum(name: str) -> TagEnum:
    """Return the open enumeration called *name*, made on first use. Also usable as a member's type (Annotated)."""
    found = _tag_enums.get(name)
    if found is None:
        found = _tag_enums[name] = TagEnum(name)
    return found
