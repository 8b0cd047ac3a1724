"""Answers expected of a command: the lines behind `----`.

A line that ends in ` (re)` is a regular expression for a whole line, one that ends in ` (glob)` has `*`, `?` and `[…]`
as in file names, a line `...` stands for any lines, none too. Any other is the line itself. Blanks at the end of a
line do not count.
"""

import fnmatch
import re
from collections.abc import Callable, Sequence
from functools import partial

from blockmon.lang import ParseError
from blockmon.lang.patterns import PatternError, compile_pattern
from blockmon.replay.statements import is_directive

ANY = "..."

Matcher = Callable[[str], bool]


class Expected:
    """An answer expected, line by line. Raises ParseError, placed within *lines*, for a bad regular expression."""

    def __init__(self, lines: Sequence[str]) -> None:
        self.lines = [line.rstrip() for line in lines]
        self._matchers = [self._matcher(line, number) for number, line in enumerate(self.lines, 1)]

    @staticmethod
    def _matcher(line: str, number: int) -> Matcher | None:
        if line == ANY:
            return None
        if line.endswith(" (glob)"):
            pattern = compile_pattern(fnmatch.translate(line.removesuffix(" (glob)")))
        elif line.endswith(" (re)"):
            try:
                pattern = compile_pattern(line.removesuffix(" (re)"))
            except PatternError as error:
                raise ParseError(str(error), number, error.offset + 1) from None
        else:
            return partial(str.__eq__, line)
        return lambda text: pattern.fullmatch(text) is not None

    def matches(self, actual: Sequence[str]) -> bool:
        """Whether the lines of an answer are those expected."""
        reached = {0}
        for matcher in self._matchers:
            if matcher is None:
                reached = set(range(min(reached), len(actual) + 1))
            else:
                reached = {place + 1 for place in reached if place < len(actual) and matcher(actual[place])}
            if not reached:
                return False
        return len(actual) in reached

    def _pairs(self, actual: Sequence[str]) -> dict[int, int]:
        """The longest way to see expected lines (`...` left out) in *actual* in their order: index by index."""
        wanted = [index for index, matcher in enumerate(self._matchers) if matcher is not None]
        fits = [[(m := self._matchers[index]) is not None and m(line) for line in actual] for index in wanted]
        best = [[0] * (len(actual) + 1) for _ in range(len(wanted) + 1)]
        for i in reversed(range(len(wanted))):
            for j in reversed(range(len(actual))):
                best[i][j] = best[i + 1][j + 1] + 1 if fits[i][j] else max(best[i + 1][j], best[i][j + 1])
        pairs: dict[int, int] = {}
        i = j = 0
        while i < len(wanted) and j < len(actual):
            if fits[i][j]:
                pairs[wanted[i]] = j
                i, j = i + 1, j + 1
            elif best[i + 1][j] >= best[i][j + 1]:
                i += 1
            else:
                j += 1
        return pairs

    def _aligned(self, actual: Sequence[str]) -> list[tuple[int | None, int | None]]:
        """Expected beside actual lines by their indexes: both when they match, else one. `...` takes what stands
        between two lines that match."""
        pairs = self._pairs(actual) if len(self.lines) * len(actual) <= 1_000_000 else {}
        rows: list[tuple[int | None, int | None]] = []
        done = 0
        for index, matcher in enumerate(self._matchers):
            if matcher is not None:
                if index in pairs:
                    rows += [(None, j) for j in range(done, pairs[index])]
                    rows.append((index, pairs[index]))
                    done = pairs[index] + 1
                else:
                    rows.append((index, None))
                continue
            before = index == 0 or index - 1 in pairs
            after = index + 1 == len(self.lines) or index + 1 in pairs
            if not (before and after):
                rows.append((index, None))
                continue
            end = pairs.get(index + 1, len(actual))
            rows.append((index, -1))
            done = end
        return [*rows, *((None, j) for j in range(done, len(actual)))]

    def difference(self, actual: Sequence[str], most: int = 40) -> str:
        """What to show for an answer that is not the expected one: lines of a diff, at most *most*."""
        shown: list[str] = []
        for index, place in self._aligned(actual):
            if index is None:
                shown.append(f"    +{actual[place or 0]}")
            else:
                # `...` is never what is wrong: it stands for no lines, too.
                missing = place is None and self._matchers[index] is not None
                shown.append(f"    {'-' if missing else ' '}{self.lines[index]}")
        left_out = len(shown) - most
        if left_out > 0:
            first = next((n for n, line in enumerate(shown) if line[4] != " "), 0)
            start = max(0, min(first - 3, len(shown) - most))
            shown = shown[start : start + most] + [f"    ({left_out} lines more)"]
        return "\n".join(shown)

    def updated(self, actual: Sequence[str]) -> list[int | str]:
        """The lines that expect *actual*: an index for a line that stays as it is written, a text for a new one."""
        rows = self._aligned(actual)
        result: list[int | str] = []
        for index, place in rows:
            if index is not None and place is not None:
                result.append(index)
            elif index is None and place is not None:
                result.append(literal(actual[place]))
        return result


def literal(line: str) -> str:
    """*line* of an answer as a line that expects just it."""
    if not line:
        return " (re)"
    if line == ANY or line.endswith((" (re)", " (glob)")) or is_directive(line):
        return re.escape(line).replace("\\ ", " ") + " (re)"
    return line


def lines_of(printed: str) -> list[str]:
    """The lines of an answer, as they are compared. "" has none."""
    return [line.rstrip() for line in printed.split("\n")] if printed else []
