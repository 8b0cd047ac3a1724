"""Which files an image may make us open."""

from __future__ import annotations

from dataclasses import dataclass

from engine.errors import GenericError

MAX_CHAIN_DEPTH = 200
"""Longest backing chain that is followed; QEMU has no limit and ends by running out of stack or descriptors."""


@dataclass(frozen=True, slots=True)
class OpenPolicy:
    """The one place that decides on names found inside images (backing file, data file).

    follow: whether such files are opened at all. tolerate_broken: whether a backing file that can't be opened leaves a
    marked gap, instead of making the opening of the whole chain fail.
    """

    follow: bool = True
    tolerate_broken: bool = False
    max_depth: int = MAX_CHAIN_DEPTH

    def check(self, owner: str, kind: str, filename: str, depth: int) -> None:
        """Raise GenericError unless *filename*, named as *kind* by the image *owner*, may be opened."""
        if not self.follow:
            raise GenericError(f"Not opening {kind} '{filename}' named by image '{owner}'")
        if depth > self.max_depth:
            raise GenericError(f"Backing chain is longer than {self.max_depth} images")
