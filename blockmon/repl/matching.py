"""How well a name matches what is typed of it: at its beginning, at the beginning of a word in it, or loosely.

Ranks, the best first; those of equal rank keep the order in which they were offered:
PREFIX, FOLDED (the beginning but for case, or HMP's _ for QMP's -), WORD (the beginning of a later word), INSIDE,
LOOSE (the letters in their order, as in ``bsnap`` for block-snapshot; only where nothing else matches).
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate

PREFIX, FOLDED, WORD, INSIDE, LOOSE = 0, 2, 4, 6, 8
_WORDS = r"-./: "
_LONGEST = 24
"""Longer words are not looked for letter by letter: who types that much does not abbreviate."""


def fold(text: str) -> str:
    """*text* with what does not count made the same."""
    return text.replace("_", "-").lower()


def rank(word: str, folded: str, text: str) -> int | None:
    """How well *text* matches *word* (which is *folded* folded): PREFIX to INSIDE; None when not at all."""
    if text.startswith(word):
        return PREFIX
    other = fold(text)
    if other.startswith(folded):
        return FOLDED
    if len(word) < 2:
        return None
    position = other.find(folded)
    inside = position >= 0
    while position >= 0:
        if other[position - 1] in _WORDS:
            return WORD
        position = other.find(folded, position + 1)
    return INSIDE if inside else None


@lru_cache(maxsize=32)
def _loosely(folded: str) -> re.Pattern[str]:
    """A pattern for lines that have the letters of *folded* in this order, beginning where a word begins."""
    first, *others = map(re.escape, folded)
    return re.compile(rf"(?:^|(?<=[{_WORDS}])){first}" + "".join(rf"[^{c}\n]*{c}" for c in others), re.MULTILINE)


def loosely(folded: str, text: str) -> int | None:
    """LOOSE, and one more where the letters do not begin words, if *text* has the letters of *folded* in order."""
    if not 2 <= len(folded) <= _LONGEST:
        return None
    other = fold(text)
    if _loosely(folded).search(other) is None:
        return None
    initials = "".join(match[0] for match in re.finditer(rf"(?:^|(?<=[{_WORDS}]))[^{_WORDS}]", other))
    return LOOSE if initials.startswith(folded) else LOOSE + 1


class NameIndex:
    """Many names, sorted, to be searched within a keystroke."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self._sorted = sorted(self.names)
        self._text: str | None = None
        self._starts: list[int] = []

    def starting(self, prefix: str, most: int) -> list[str]:
        """At most *most* names that begin with *prefix*, in order."""
        first = bisect_left(self._sorted, prefix)
        last = bisect_right(self._sorted, prefix + "\U0010ffff", lo=first)
        return self._sorted[first : min(last, first + most)]

    def matching(self, word: str, most: int) -> list[tuple[int, str]]:
        """At most *most* names that match *word* less well than by its letters at their beginning, with their ranks."""
        if not word or "\n" in word:
            return []
        folded = fold(word)
        start = "^" if len(word) < 2 else ""
        names = self._lines(re.compile(start + re.escape(folded), re.MULTILINE), most)
        ranked = [(rank(word, folded, name), name) for name in names]
        return [(how, name) for how, name in ranked if how]

    def loose(self, word: str, most: int) -> list[tuple[int, str]]:
        """At most *most* names that have the letters of *word* in their order."""
        folded = fold(word)
        if not 2 <= len(folded) <= _LONGEST or "\n" in folded:
            return []
        return [(loosely(folded, name) or LOOSE, name) for name in self._lines(_loosely(folded), most)]

    def _lines(self, pattern: re.Pattern[str], most: int) -> list[str]:
        """The names that *pattern* finds in the text of all of them, each once."""
        if self._text is None:
            # Folding changes no length: lower() is only applied to letters that keep theirs.
            lines = [_fold_keeping(name) for name in self._sorted]
            self._text = "\n".join(lines)
            self._starts = [0, *accumulate(len(line) + 1 for line in lines)]
        found: list[str] = []
        position = 0
        while len(found) < most and (match := pattern.search(self._text, position)) is not None:
            number = bisect_right(self._starts, match.start()) - 1
            found.append(self._sorted[number])
            position = self._starts[number + 1]
            if position > len(self._text):
                break
        return found


def _fold_keeping(name: str) -> str:
    folded = fold(name).replace("\n", " ")
    return folded if len(folded) == len(name) else name.replace("\n", " ")
