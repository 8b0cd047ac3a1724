"""Votes: who says the same, and which opinion most hold."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class Votes(Generic[T]):
    """Opinions of voters, who are numbers. Of equally strong ones the one voiced last counts, as in QEMU's quorum."""

    def __init__(self) -> None:
        self._voters: dict[T, list[int]] = {}

    def add(self, opinion: T, voter: int) -> None:
        self._voters.setdefault(opinion, []).append(voter)

    def winner(self) -> tuple[T, list[int]]:
        """The opinion held by most, and its voters in the order they voted. There must be a vote."""
        return max(reversed(self._voters.items()), key=lambda version: len(version[1]))

    def losers(self, winner: T) -> Iterator[int]:
        """Everybody of another opinion than *winner*: newest opinion first, its newest voter first."""
        for opinion, voters in reversed(self._voters.items()):
            if opinion != winner:
                yield from reversed(voters)
