"""Reading the arguments of an HMP command by the types it declares, with QEMU's texts for what is wrong.

A declaration is QEMU's args_type, ``name:type`` separated by commas. Types: ``B`` block device or node, ``s`` string,
``F`` file name, ``S`` the rest of the line, ``o`` size with suffix (MiB by default), ``l`` integer, ``-x`` flag. A
question mark behind makes the argument optional.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from engine.qapi import scalars

MIB: Final = 1 << 20
_SPACE: Final = " \t\n\v\f\r"
_INT64_MAX: Final = (1 << 63) - 1
_EXPECTED: Final = {"B": "block device name expected", "F": "filename expected", "s": "string expected"}
_ESCAPES: Final = {"n": "\n", "r": "\r", "\\": "\\", "'": "'", '"': '"'}


class ArgumentError(Exception):
    """The arguments are wrong; the text is what the person is told."""


@dataclass(frozen=True, slots=True)
class Argument:
    """One declared argument. type: its letter. flag: the letter of an option, or ''."""

    name: str
    type: str
    flag: str = ""
    optional: bool = False


def declare(args_type: str) -> tuple[Argument, ...]:
    """Read a declaration such as ``force:-f,device:B,speed:o?``."""
    arguments = []
    for part in filter(None, args_type.split(",")):
        name, _, kind = part.partition(":")
        if kind.startswith("-"):
            arguments.append(Argument(name, "-", flag=kind[1], optional=True))
        else:
            arguments.append(Argument(name, kind[0], optional=kind.endswith("?")))
    return tuple(arguments)


class Scanner:
    """Walks through the text of a command line."""

    def __init__(self, text: str, at: int = 0) -> None:
        self.text = text
        self.at = at

    def skip_space(self) -> None:
        while self.at < len(self.text) and self.text[self.at] in _SPACE:
            self.at += 1

    @property
    def done(self) -> bool:
        return self.at >= len(self.text)

    def word(self) -> str | None:
        """Take a word or a string in quotes; None at the end. Errors: ArgumentError."""
        self.skip_space()
        if self.done:
            return None
        if self.text[self.at] == '"':
            return self._quoted()
        start = self.at
        while not self.done and self.text[self.at] not in _SPACE:
            self.at += 1
        return self.text[start : self.at]

    def _quoted(self) -> str:
        found: list[str] = []
        self.at += 1
        while not self.done and self.text[self.at] != '"':
            character = self.text[self.at]
            self.at += 1
            if character == "\\":
                escaped = self.text[self.at : self.at + 1]
                self.at += 1
                if escaped not in _ESCAPES:
                    raise ArgumentError(f"unsupported escape code: '\\{escaped}'")
                character = _ESCAPES[escaped]
            found.append(character)
        if self.done:
            raise ArgumentError("unterminated string")
        self.at += 1
        return "".join(found)


def parse(command: str, arguments: tuple[Argument, ...], text: str) -> dict[str, Any]:
    """Read *text* by the declared *arguments* of *command*. Errors: ArgumentError."""
    scanner = Scanner(text)
    values: dict[str, Any] = {}
    flags = [argument.flag for argument in arguments if argument.flag]
    for index, argument in enumerate(arguments):
        scanner.skip_space()
        if argument.type == "-":
            _flag(command, argument, flags[index:], scanner, values)
        elif not (argument.optional and scanner.done):
            values[argument.name] = _value(command, argument, scanner)
    scanner.skip_space()
    if not scanner.done:
        raise ArgumentError(f"{command}: extraneous characters at the end of line")
    return values


def _flag(command: str, argument: Argument, later: list[str], scanner: Scanner, values: dict[str, Any]) -> None:
    text = scanner.text[scanner.at : scanner.at + 2]
    if not text.startswith("-"):
        return
    if text[1:] == argument.flag:
        scanner.at += 2
        values[argument.name] = True
    elif text[1:] not in later:
        raise ArgumentError(f"{command}: unsupported option {text}")


def _value(command: str, argument: Argument, scanner: Scanner) -> Any:
    if argument.type in _EXPECTED:
        try:
            word = scanner.word()
        except ArgumentError as exc:
            raise ArgumentError(f"{exc}\n{command}: {_EXPECTED[argument.type]}") from None
        if word is None:
            raise ArgumentError(f"{command}: {_EXPECTED[argument.type]}")
        return word
    if argument.type == "S":
        rest = scanner.text[scanner.at :]
        if not rest:
            raise ArgumentError(f"{command}: string expected")
        scanner.at = len(scanner.text)
        return rest
    if argument.type == "o":
        return _size(scanner)
    return _integer(scanner)


def _size(scanner: Scanner) -> int:
    """A size at the start of what is left, as long as it can be; what follows it is somebody else's."""
    for end in range(_number_end(scanner), scanner.at, -1):
        text = scanner.text[scanner.at : end]
        size = size_in_mib(text)
        if size is not None:
            if size > _INT64_MAX:
                break
            scanner.at = end
            return size
    raise ArgumentError("invalid size")


def _number_end(scanner: Scanner) -> int:
    at = scanner.at
    while at < len(scanner.text) and (scanner.text[at].isalnum() or scanner.text[at] in "+."):
        at += 1
    return min(at, scanner.at + 64)


def size_in_mib(text: str) -> int | None:
    """A size with a suffix, MiB where there is none; None for anything else."""
    if text[-1:].isdigit() or text[-1:] == "." or text[:2].lower() == "0x":
        text += "M"
    return scalars.read_size(text)


def _integer(scanner: Scanner) -> int:
    start = scanner.at
    word = scanner.word()
    if word is None:
        raise ArgumentError("unexpected end of expression")
    value = scalars.parse_int64(word)
    if value is None:
        scanner.at = start
        raise ArgumentError(f"invalid char '{word[0]}' in expression")
    return value
