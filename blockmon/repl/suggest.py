"""What may help after an error: the nearest valid name of a command, argument, value, node, job …"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from blockmon.lang import ArgInfo
from blockmon.model.schema import alternatives, value_at
from blockmon.repl.knowledge import Knowledge
from blockmon.repl.meaning import Names, meaning_of
from blockmon.repl.settings import nearest

# The words of QEMU 7.2's errors that speak of a name.
_UNEXPECTED = re.compile(r"Parameter '(?P<name>[^']+)' is unexpected|Invalid parameter '(?P<name2>[^']+)'")
_REFUSED = re.compile(
    r"Parameter '(?P<name>[^']+)' does not accept value '(?P<value>[^']*)'|Invalid parameter '(?P<value2>[^']+)'"
)
_MISSING = re.compile(r"Parameter '(?P<name>[^']+)' is missing")
_NOT_FOUND = re.compile(
    r"not found|[Cc]annot find|[Ff]ailed to find|[Nn]o such|does not exist|is not found|Unable to find|Unknown driver"
)
_QUOTED = re.compile(r"""['"]([^'"]+)['"]""")

_Step = str | int


def speaks_of_a_name(error: str) -> bool:
    """Whether *error* is about something in the server that is not there, or an HMP command."""
    return _NOT_FOUND.search(error) is not None or error.startswith("unknown command:")


def at_the_prompt(line: str, knowledge: Knowledge) -> list[str]:
    """Hints for an HMP *line* that has failed, when a person at the prompt has most likely meant the prompt itself."""
    first, *more = line.split()
    if first.startswith("@"):
        return [f"that belongs into a command file, which \\source FILE runs; \\help {first} tells about it"]
    if first in ("exit", "bye", "logout"):
        return ["\\quit or Ctrl+D leaves the prompt"]
    if first in ("help", "?") and more and more[0] in knowledge.schema.commands:
        return [f"\\help {more[0]} tells about it"]
    return []


def after_unknown_command(name: str, knowledge: Knowledge) -> list[str]:
    """Hints for a first word that no command of the server's has."""
    known = {*knowledge.schema.commands, *(knowledge.hmp.commands if knowledge.schema.knows_hmp else ())}
    if name in known:
        return []  # the error is about something else
    found = nearest(name, known) or nearest(name.replace("_", "-"), known) or nearest(name.replace("-", "_"), known)
    if found is None:
        return []
    return [f"did you mean '{found}'?"]


def after_error(desc: str, command: str, arguments: Mapping[str, Any], knowledge: Knowledge) -> list[str]:
    """Hints for an error with the text *desc* that the QMP *command* with *arguments* has brought."""
    schema = knowledge.schema
    if command not in schema.commands:
        return after_unknown_command(command, knowledge)
    for find in (_argument, _value, _required, _name):
        hints = list(find(desc, command, arguments, knowledge))
        if hints:
            return hints
    return []


def _argument(desc: str, command: str, arguments: Mapping[str, Any], knowledge: Knowledge) -> Iterator[str]:
    match = _UNEXPECTED.search(desc)
    if match is None:
        return
    path = _steps(match["name"] or match["name2"])
    here = value_at(arguments, path[:-1])
    if not isinstance(here, Mapping) or path[-1] not in here:
        return
    members = knowledge.schema.members_at(command, path[:-1], arguments)
    known = [info.name for info in members if info.name not in here]
    found = nearest(str(path[-1]), known)
    if found is not None:
        yield f"did you mean '{found}='?"
    elif members:
        yield f"it takes {_listed(info.name for info in members)}"


def _value(desc: str, command: str, arguments: Mapping[str, Any], knowledge: Knowledge) -> Iterator[str]:
    match = _REFUSED.search(desc)
    if match is None:
        return
    value = match["value"] if match["value"] is not None else match["value2"]
    for path, given in _strings(arguments):
        if given != value:
            continue
        values = [
            name
            for info in knowledge.schema.infos_at(command, path, arguments)
            if info.kind == "enum"
            for name in info.values
        ]
        if not values:
            continue
        found = nearest(value, values)
        yield f"did you mean '{found}'?" if found is not None else f"it can be {_listed(values)}"
        return


def _required(desc: str, command: str, arguments: Mapping[str, Any], knowledge: Knowledge) -> Iterator[str]:
    match = _MISSING.search(desc)
    if match is None:
        return
    path = _steps(match["name"])[:-1]
    members = knowledge.schema.members_at(command, path, arguments)
    given = value_at(arguments, path)
    given = given if isinstance(given, Mapping) else {}
    known = {info.name for info in members}
    missing = str(_steps(match["name"])[-1])
    for name in given:
        # A name that was mistyped is missing, and the server says that first.
        if name not in known and nearest(str(name), known) == missing:
            yield f"did you mean '{missing}=' where '{name}=' stands?"
            return
    needed = [info.name for info in members if not info.optional and info.name not in given]
    if needed:
        inside = "".join(f"{step}." for step in path)
        yield f"still needed: {' '.join(f'{inside}{name}=' for name in needed)}"


def _name(desc: str, command: str, arguments: Mapping[str, Any], knowledge: Knowledge) -> Iterator[str]:
    """A name of something in the server that is not there."""
    if not _NOT_FOUND.search(desc):
        return
    quoted = set(_QUOTED.findall(desc))
    for path, value in _strings(arguments):
        # An error that does not say which name it is about ("Job not found") is about any of them.
        if quoted and value not in quoted:
            continue
        if not quoted and len(arguments) > 1 and path[-1] not in ("id", "device", "node-name"):
            continue
        whole = _whole(knowledge, command, path, arguments)
        kind = meaning_of(command, path, whole, arguments).names
        known = set(_known(kind, command, arguments, knowledge))
        if not known or value in known:
            continue
        found = nearest(value, known)
        if found is not None:
            yield f"did you mean '{found}'?"
        else:
            # Those that the server made up are seldom meant.
            own = sorted(name for name in known if not name.startswith("#"))
            if 0 < len(own) <= 8:
                yield f"there {'is only' if len(own) == 1 else 'are'} {_listed(map(repr, own))}"
        return


def _whole(knowledge: Knowledge, command: str, path: tuple[_Step, ...], arguments: Mapping[str, Any]) -> ArgInfo:
    for info in knowledge.schema.members_at(command, path[:-1], arguments):
        if info.name == path[-1]:
            return info
    infos = knowledge.schema.infos_at(command, path, arguments)
    return infos[0] if infos else ArgInfo(str(path[-1]), "str")


def _known(kind: Names, command: str, arguments: Mapping[str, Any], knowledge: Knowledge) -> Iterable[str]:
    names = knowledge.names
    match kind:
        case Names.NODE:
            return names.graph.nodes
        case Names.DEVICE:
            return {*names.graph.nodes, *names.devices}
        case Names.JOB:
            # block-job-cancel and the like know nothing of a job that creates an image.
            of_blocks = command.startswith("block-job-")
            return [name for name, job in names.jobs.items() if job.block_job or not of_blocks]
        case Names.EXPORT:
            return names.exports
        case Names.OBJECT:
            return names.objects
        case Names.BITMAP:
            node = next((str(arguments[key]) for key in ("node", "node-name", "device") if arguments.get(key)), None)
            return {bitmap.name for bitmap in names.bitmaps_of([names.root_of(node) or node] if node else ())}
        case Names.LAYER:
            return {node.filename for node in names.graph.nodes.values() if node.filename}
        case Names.FORMAT:
            infos = knowledge.schema.infos_at("blockdev-add", ("driver",), {})
            return {value for info in infos for choice in alternatives(info) for value in choice.values}
    return ()


def after_hmp_error(line: str, answer: str, knowledge: Knowledge) -> list[str]:
    """Hints for an HMP *line* that has brought the error *answer*."""
    words = line.split()
    if answer.startswith("unknown command:"):
        if words[0] == "info" and len(words) > 1:
            found = nearest(words[1], knowledge.hmp.info)
            return [f"did you mean 'info {found}'?"] if found is not None else []
        return after_unknown_command(words[0], knowledge)
    if not _NOT_FOUND.search(answer):
        return []
    names = knowledge.names
    known = {*names.graph.nodes, *names.devices, *names.jobs, *names.exports}
    quoted = _QUOTED.findall(answer)
    for word in words[1:]:
        if word in known or (quoted and word not in quoted):
            continue
        found = nearest(word, known)
        if found is not None:
            return [f"did you mean '{found}'?"]
    return []


def _steps(name: str) -> tuple[_Step, ...]:
    """A parameter's name as QEMU writes it, `file.locking` or `actions[0].type`, as a path."""
    return tuple(int(step) if step.isdecimal() else step for step in re.split(r"[.\[\]]+", name) if step)


def _strings(value: Any, path: tuple[_Step, ...] = ()) -> Iterator[tuple[tuple[_Step, ...], str]]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _strings(item, (*path, name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _strings(item, (*path, index))
    elif isinstance(value, str) and path:
        yield path, value


def _listed(names: Iterable[str], most: int = 12) -> str:
    known = list(names)
    return ", ".join(known[:most]) + (" …" if len(known) > most else "")
