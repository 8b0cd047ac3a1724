"""Options as getopt(3) reads them: letters in any order and place, alone or together, some with an argument."""

from __future__ import annotations

from engine.monitor.qemu_io.text import UsageError


class Options:
    """The options and operands of a command."""

    def __init__(self, given: dict[str, str], operands: list[str]) -> None:
        self._given = given
        self.operands = operands

    def __contains__(self, letter: str) -> bool:
        return letter in self._given

    def argument(self, letter: str) -> str | None:
        """The argument of the option *letter*, the last one given; None when it was not."""
        return self._given.get(letter)


def read_options(command: str, letters: str, words: list[str], usage: str) -> Options:
    """Read *words* by *letters* (getopt's optstring). Errors: UsageError with getopt's text and *usage*."""
    given: dict[str, str] = {}
    operands: list[str] = []
    rest = iter(words)
    for word in rest:
        if word == "--":
            operands += rest
        elif not word.startswith("-") or word == "-":
            operands.append(word)
        else:
            at = 1
            while at < len(word):
                letter = word[at]
                at += 1
                place = letters.find(letter)
                if place < 0 or letter == ":":
                    raise UsageError(f"{command}: invalid option -- '{letter}'\n{usage}")
                if letters[place + 1 : place + 2] != ":":
                    given[letter] = ""
                    continue
                argument = word[at:] or next(rest, None)
                if argument is None:
                    raise UsageError(f"{command}: option requires an argument -- '{letter}'\n{usage}")
                given[letter] = argument
                break
    return Options(given, operands)
