"""What can follow on an HMP line: arguments by the command's own help, option strings, and qemu-io's commands."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

from blockmon.repl.candidates import NameFinder, Wanted
from blockmon.repl.context import Spot
from blockmon.repl.hmp_help import HMPArgument
from blockmon.repl.knowledge import Knowledge
from blockmon.repl.meaning import Meaning, Names, meaning_of, meaning_of_hmp
from blockmon.repl.offers import Candidate, sizes
from blockmon.repl.summaries import OBJECTS

# What qemu-io does, by the words of its own help: flags, then arguments.
_IO_COMMANDS: Mapping[str, tuple[str, str]] = {
    "read": ("-C -l -p -P -q -s -v", "offset length"),
    "write": ("-c -C -f -n -p -P -q -s -u -z", "offset length"),
    "aio_read": ("-C -P -i -q -v", "offset length"),
    "aio_write": ("-C -f -i -P -q -u -z", "offset length"),
    "readv": ("-C -P -q -v", "offset length [length]…"),
    "writev": ("-C -f -P -q", "offset length [length]…"),
    "aio_flush": ("", "wait for the aio requests"),
    "flush": ("", "write back the caches"),
    "discard": ("-C -q", "offset length"),
    "map": ("", "what is allocated where"),
    "alloc": ("", "offset [length]"),
    "length": ("", "of the node in bytes"),
    "truncate": ("-m", "length"),
    "info": ("", "about the format"),
    "reopen": ("-r -w -c -o", "change the open flags"),
    "break": ("", "event tag: hold requests, with blkdebug"),
    "resume": ("", "tag: let held requests go on"),
    "remove_break": ("", "tag: hold no more requests"),
    "wait_break": ("", "tag: wait for a held request"),
    "help": ("", "what there is"),
}
_IO_FLAGS = {
    "-c": "write compressed, or the cache mode",
    "-C": "report in one line for machines",
    "-f": "force unit access",
    "-i": "count as invalid",
    "-l": "pattern's length",
    "-m": "preallocation mode",
    "-n": "with -z: only where it is fast",
    "-o": "options",
    "-p": "pattern begins there",
    "-P": "byte to write, or to expect",
    "-q": "print nothing",
    "-r": "read-only",
    "-s": "pattern's start, or its file",
    "-u": "with -z: may unmap",
    "-v": "dump what was read",
    "-w": "for writing",
    "-z": "write zeros",
}
_SIZED = frozenset({"read", "write", "aio_read", "aio_write", "readv", "writev", "discard", "alloc", "truncate"})

_DRIVE_OPTIONS = {
    "file": "image to open",
    "if": "interface, none on the monitor",
    "id": "name of the drive",
    "format": "driver of the image",
    "media": "disk or cdrom",
    "cache": "host cache mode",
    "aio": "how requests reach the host",
    "discard": "what discards do",
    "detect-zeroes": "find writes of zeros",
    "readonly": "on or off",
    "snapshot": "write to a temporary overlay",
    "copy-on-read": "copy up what is read",
    "werror": "what a failed write does",
    "rerror": "what a failed read does",
    "throttling.bps-total": "limit in bytes a second",
    "throttling.iops-total": "limit in requests a second",
}
_DRIVE_VALUES = {
    "if": "none ide scsi floppy virtio",
    "media": "disk cdrom",
    "cache": "none writeback writethrough directsync unsafe",
    "aio": "threads native io_uring",
    "discard": "ignore unmap",
    "detect-zeroes": "off on unmap",
    "readonly": "on off",
    "snapshot": "on off",
    "copy-on-read": "on off",
    "werror": "enospc ignore report stop",
    "rerror": "ignore report stop",
}
DEVICE_OPTIONS = {
    "drive": "the drive, or node, behind it",
    "id": "name of the device",
    "bus": "where it plugs in",
    "serial": "serial number",
    "bootindex": "place in the boot order",
    "share-rw": "others may write too",
    "logical_block_size": "bytes",
    "physical_block_size": "bytes",
    "write-cache": "auto, on or off",
    "werror": "what a failed write does",
    "rerror": "what a failed read does",
    "iothread": "thread that does its I/O",
}
_DEVICE_VALUES = {
    "share-rw": "on off",
    "write-cache": "auto on off",
    "werror": "auto enospc ignore report stop",
    "rerror": "auto ignore report stop",
}


class HMPCompletion:
    """Finds what can stand at a spot of kind HMP."""

    def __init__(self, knowledge: Knowledge, finder: NameFinder) -> None:
        self._knowledge = knowledge
        self._finder = finder

    def add(self, spot: Spot, wanted: Wanted) -> Spot:
        """Add what can stand at *spot*; returns the spot of the part of a word that is completed."""
        words = spot.words or (spot.command,)
        command, given = self._knowledge.hmp.lookup(words)
        if command is None:
            return spot
        flags = {flag.name for flag in command.flags}
        position = sum(word not in flags for word in given)
        positional = command.positional
        if position < len(positional) and not (spot.word.startswith("-") and not spot.quote):
            argument = positional[position]
            if argument.options:
                spot = self._options(command.name, spot, wanted)
            elif command.name == "qemu-io" and argument.name == "command":
                spot = _io(spot, wanted)
            else:
                self._argument(self._name_of(command.name, words), argument, spot, wanted)
        if not spot.quote and (position == 0 or spot.word.startswith("-")):
            for flag in command.flags:
                if flag.name not in given:
                    wanted.add(Candidate(flag.name, _flag_meta(flag, command.help), last=True))
        return spot

    @staticmethod
    def _name_of(name: str, words: tuple[str, ...]) -> str:
        return f"info {name}" if words[0] == "info" and len(words) > 1 else name

    def _argument(self, command: str, argument: HMPArgument, spot: Spot, wanted: Wanted) -> None:
        # `commit device|all`: a name or a word of its own.
        for name in argument.choices or (argument.name,):
            meaning = meaning_of_hmp(command, name)
            if meaning.names is Names.SIZE:
                for size in sizes(spot.word, name, json=False, unit="M"):
                    wanted.add(size)
            elif meaning.names is not Names.NOTHING:
                last = spot.words[-1] if len(spot.words) > 1 else ""
                scope = {"path" if meaning.names is Names.PROPERTY else "device": last}
                self._finder.add_names(meaning, [scope], wanted)
            elif argument.choices:
                wanted.add(Candidate(name))
            elif name == "read-only-mode":
                for value in ("retain", "read-only", "read-write"):
                    wanted.add(Candidate(value))

    # Option strings --------------------------------------------------------------------------------------------------

    def _options(self, command: str, spot: Spot, wanted: Wanted) -> Spot:
        """Complete the part of ``file=a.img,if=none`` that the cursor is in."""
        head, comma, piece = spot.word.rpartition(",")
        given = dict(pair.partition("=")[::2] for pair in head.split(","))
        key, equals, value = piece.partition("=")
        start = spot.start + len(head) + len(comma) + len(key) + len(equals)
        if equals:
            wanted.word = value
            self._option_value(command, key, given, wanted)
            return replace(spot, word=value, start=start)
        wanted.word = piece
        first = not comma
        if first and command == "object_add":
            for name in self._object_types():
                wanted.add(Candidate(f"{name},id=", OBJECTS.get(name, "object type"), shown=name, literal=True))
        elif first and command == "device_add":
            self._finder.add_names(Meaning(Names.MODEL), [{}], wanted)
        else:
            for name, meta in self._option_names(command, head.split(",")[0]):
                if name not in given:
                    wanted.add(Candidate(f"{name}=", meta, literal=True))
        return replace(spot, word=piece, start=spot.start + len(head) + len(comma))

    def _object_types(self) -> list[str]:
        infos = self._knowledge.schema.infos_at("object-add", ("qom-type",), {})
        return [value for info in infos for value in info.values]

    def _option_names(self, command: str, first: str) -> Iterator[tuple[str, str]]:
        if command == "object_add":
            kind = first.removeprefix("qom-type=")
            for info in self._knowledge.schema.members_at("object-add", (), {"qom-type": kind}):
                if info.name != "qom-type":
                    yield info.name, "" if info.optional else "required"
        else:
            yield from (DEVICE_OPTIONS if command == "device_add" else _DRIVE_OPTIONS).items()

    def _option_value(self, command: str, key: str, given: Mapping[str, str], wanted: Wanted) -> None:
        listed = (_DEVICE_VALUES if command == "device_add" else _DRIVE_VALUES).get(key, "").split()
        for value in listed:
            wanted.add(Candidate(value))
        if command == "drive_add" and key in ("file", "format"):
            self._finder.add_names(Meaning(Names.FILE if key == "file" else Names.FORMAT), [given], wanted)
        elif command == "device_add" and key in ("drive", "iothread"):
            meaning = Meaning(Names.DEVICE) if key == "drive" else Meaning(Names.OBJECT, of="iothread")
            self._finder.add_names(meaning, [{}], wanted)
        elif command == "object_add":
            if key == "qom-type":
                for name in self._object_types():
                    wanted.add(Candidate(name, OBJECTS.get(name, "")))
                return
            kind = next((k for k, value in given.items() if not value), given.get("qom-type", ""))
            values = {"qom-type": kind}
            for info in self._knowledge.schema.infos_at("object-add", (key,), values):
                for value in info.values if info.kind == "enum" else ("on", "off") if info.kind == "bool" else ():
                    wanted.add(Candidate(value))
                if info.kind == "str":
                    self._finder.add_names(meaning_of("object-add", (key,), info, values), [values], wanted)


def io_usage(typed: str) -> str:
    """The usage of qemu-io's command that *typed* begins with; empty when it is none, or not typed in full."""
    name, blank, _ = typed.lstrip().partition(" ")
    if not blank or name not in _IO_COMMANDS:
        return ""
    flags, usage = _IO_COMMANDS[name]
    shown = " ".join(f"[{flag} pattern]" if flag == "-P" else f"[{flag}]" for flag in flags.split())
    return f"{shown} {usage}".strip()


def _io(spot: Spot, wanted: Wanted) -> Spot:
    """Complete qemu-io's command, which is one quoted word of the HMP line."""
    *before, word = re.split(r"[ \t]+", spot.word)
    wanted.word = word
    inner = replace(spot, word=word, start=spot.start + len(spot.word) - len(word))
    if not before:
        for name, (_, usage) in _IO_COMMANDS.items():
            more = name in _SIZED or name in ("reopen", "break", "resume", "remove_break", "wait_break")
            end = " " if more else "" if spot.closed else '"'
            wanted.add(Candidate(("" if spot.quote else '"') + name + end, usage, shown=name, literal=True))
        return inner
    flags = _IO_COMMANDS.get(before[0], ("", ""))[0].split()
    numbers = sum(text[:1].isdigit() for text in before)
    if before[0] in _SIZED and not word.startswith("-"):
        for size in sizes(word, "offset", json=False):
            # The length, which ends the command, comes behind the offset.
            wanted.add(replace(size, goes_on=numbers == 0))
    for flag in flags:
        if flag not in before and not numbers:
            wanted.add(Candidate(flag, _IO_FLAGS[flag], last=True, goes_on=True))
    return inner


def _flag_meta(flag: HMPArgument, text: str) -> str:
    """The part of a command's help that speaks of *flag*, as far as it can be told."""
    match = re.search(rf"(?<![\w-]){re.escape(flag.name)}:\s*([^;)]*)", text)
    if match is None:
        match = re.search(rf"(?<![\w-]){re.escape(flag.name)} (?:flag )?([^;).]*)", text)
    return " ".join(match[1].split())[:60] if match is not None and match[1].strip() else "flag"
