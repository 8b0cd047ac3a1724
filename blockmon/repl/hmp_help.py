"""The HMP commands a server has, read from the text of its own `help`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

_LINE = re.compile(r"(?P<names>[\w?-][\w?|-]*)(?: (?P<arguments>.*?))?\s*-- (?P<help>.*)", re.DOTALL)
_NEW_ENTRY = re.compile(r"[\w?][\w?|-]*(?: [^\n]*)?")
_PIECE = re.compile(r"\[|\]|\"[^\"]*\"|[^\s\[\]\"]+")


# Where the help shows an option string's parts, its words are no arguments.
_ARGUMENTS = {
    "drive_add": "[-n] address file=F,if=T,…",
    "device_add": "driver,prop=value,…",
    "object_add": "type,id=ID,prop=value,…",
}


@dataclass(frozen=True, slots=True)
class HMPArgument:
    """One argument as the help writes it: a flag (``-n``) or a word, which may be `choices` (``on|off``)."""

    name: str
    optional: bool = False
    flag: bool = False
    choices: tuple[str, ...] = ()
    options: bool = False
    """Whether it is an option string, ``key=value,key=value``."""


@dataclass(frozen=True, slots=True)
class HMPCommand:
    """An HMP command: its name, its aliases, its arguments in order, and the help's one line."""

    name: str
    aliases: tuple[str, ...] = ()
    usage: str = ""
    help: str = ""
    arguments: tuple[HMPArgument, ...] = ()

    @property
    def flags(self) -> tuple[HMPArgument, ...]:
        """The arguments that are flags; they may stand in any order in front of the others."""
        return tuple(a for a in self.arguments if a.flag)

    @property
    def positional(self) -> tuple[HMPArgument, ...]:
        """The arguments that are told by their position."""
        return tuple(a for a in self.arguments if not a.flag)


@dataclass(frozen=True, slots=True)
class HMPHelp:
    """All HMP commands by name and by alias, and the subcommands of ``info``."""

    commands: dict[str, HMPCommand] = field(default_factory=dict)
    info: dict[str, HMPCommand] = field(default_factory=dict)

    @classmethod
    def from_text(cls, commands: str, info: str = "") -> HMPHelp:
        """Read the answers of ``help`` and of ``help info``."""
        found: dict[str, HMPCommand] = {}
        for command in parse_help(commands):
            for name in (command.name, *command.aliases):
                found.setdefault(name, command)
        subcommands = {}
        # `help info` writes each subcommand behind the word info.
        for command in parse_help(re.sub(r"^info (?=[\w-])", "", info, flags=re.MULTILINE)):
            subcommands[command.name] = command
        return cls(found, subcommands)

    def lookup(self, words: tuple[str, ...]) -> tuple[HMPCommand | None, tuple[str, ...]]:
        """The command that *words* begin with, and the words behind its name."""
        if words[:1] == ("info",) and len(words) > 1 and words[1] in self.info:
            return self.info[words[1]], words[2:]
        return self.commands.get(words[0]) if words else None, words[1:]


def parse_help(text: str) -> Iterator[HMPCommand]:
    """Read help lines ``name|alias arguments -- what it does``; either part may go on over further lines."""
    entry = ""
    for line in text.replace("\r\n", "\n").split("\n"):
        # Continuation lines begin with blanks or, within the arguments, with a bracket.
        if entry and (not _NEW_ENTRY.match(line) or (" -- " not in entry and not entry.rstrip().endswith(" --"))):
            entry += "\n" + line
            continue
        yield from _entry(entry)
        entry = line
    yield from _entry(entry)


def _entry(text: str) -> Iterator[HMPCommand]:
    match = _LINE.fullmatch(text)
    if match is None:
        return
    first, *aliases = match["names"].split("|")
    # Some commands repeat their own name in front of their arguments.
    usage = " ".join([*(match["arguments"] or "").split(), ""]).removeprefix(f"{first} ").strip()
    yield HMPCommand(first, tuple(aliases), usage, " ".join(match["help"].split()), tuple(_arguments(first, usage)))


def _arguments(command: str, usage: str) -> Iterator[HMPArgument]:
    depth = 0
    for piece in _PIECE.findall(_ARGUMENTS.get(command, usage)):
        if piece == "[":
            depth += 1
        elif piece == "]":
            depth -= 1
        elif piece.startswith("-"):
            for flag in piece.split("|"):
                yield HMPArgument(flag, True, flag=True)
        elif piece != "|":
            name = piece.strip('"[]')
            if name.endswith(",…"):
                yield HMPArgument(name, depth > 0, options=True)
                continue
            choices = tuple(word for word in name.split("|") if word)
            if choices:
                yield HMPArgument(name, depth > 0, choices=choices if len(choices) > 1 else ())
