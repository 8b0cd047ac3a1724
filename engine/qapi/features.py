"""What annotations may say of a member besides its type: features, and another name on the wire."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias


class Feature:
    """A feature flag of a command, event, type, member or enum value: ``Feature("deprecated")``."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Feature) and other.name == self.name

    def __hash__(self) -> int:
        return hash(self.name)

    def __repr__(self) -> str:
        return f"Feature({self.name!r})"


Features: TypeAlias = Iterable[Feature | str]


def feature_list(features: Features) -> tuple[Feature, ...]:
    """Return *features* (names or ``Feature`` objects) as a tuple of ``Feature``."""
    return tuple(Feature(f) if isinstance(f, str) else f for f in features)


class Wire:
    """Gives a member another name on the wire: ``x_y: Annotated[int, Wire("x_y")]``."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name
