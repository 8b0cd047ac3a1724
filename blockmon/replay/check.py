"""Whether a command fits the server's schema, told without running it, with the place of what does not."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from blockmon.lang import ArgInfo, Form, Members, ParsedQMP, ParseError, Schema
from blockmon.lang.shell_line import split_pairs
from blockmon.replay.variables import UNKNOWN, similar

Keys = tuple[str | int, ...]

_EXPECTED = {"int": "integer", "number": "number", "bool": "boolean", "str": "string", "null": "null", "enum": "string"}
_TOKEN = re.compile(r""""(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|[\[\]{},:]|[^\s\[\]{},:"']+""")


@dataclass(frozen=True, slots=True)
class Problem:
    """What does not fit: the argument at `keys` (an empty path is the command). `at_key`: its name, not its value."""

    message: str
    keys: Keys
    at_key: bool = True


def check(schema: Schema, parsed: ParsedQMP) -> Iterator[Problem]:
    """What is wrong with a command by *schema*."""
    if parsed.command not in schema.commands:
        hint = similar(parsed.command, schema.commands)
        yield Problem(f"The command {parsed.command} has not been found{hint}", ())
        return
    yield from _object(parsed.arguments, schema.arguments_of(parsed.command), ())


def _name(keys: Keys) -> str:
    return ".".join(map(str, keys))


def _object(given: Mapping[str, Any], members: Members, keys: Keys) -> Iterator[Problem]:
    narrowed = members.narrow(given)
    for name, value in given.items():
        info = narrowed.get(name)
        if info is None:
            hint = similar(name, [other for other in narrowed if other not in given])
            yield Problem(f"Parameter '{_name((*keys, name))}' is unexpected{hint}", (*keys, name))
        else:
            yield from _value(value, info, (*keys, name))
    for name, info in narrowed.items():
        if not info.optional and name not in given:
            yield Problem(f"Parameter '{_name((*keys, name))}' is missing", keys)


def _value(value: Any, info: ArgInfo, keys: Keys) -> Iterator[Problem]:
    if isinstance(value, str) and UNKNOWN in value:
        return
    match info.kind:
        case "any":
            return
        case "object":
            if isinstance(value, dict):
                yield from _object(value, info.members, keys)
                return
            expected = "object"
        case "array":
            if isinstance(value, list):
                element = info.element
                for index, item in enumerate(value):
                    if element is not None:
                        yield from _value(item, element, (*keys, index))
                return
            expected = "array"
        case "alternate":
            choice = _choice(value, info)
            if choice is not None:
                yield from _value(value, choice, keys)
                return
            expected = " or ".join(dict.fromkeys(_EXPECTED.get(c.kind, c.kind) for c in info.choices))
        case "enum" if isinstance(value, str):
            if value not in info.values:
                text = f"Parameter '{_name(keys)}' does not accept value '{value}'{similar(value, info.values)}"
                yield Problem(text, keys, at_key=False)
            return
        case kind:
            if _is(value, kind):
                return
            expected = _EXPECTED.get(kind, kind)
    yield Problem(f"Invalid parameter type for '{_name(keys)}', expected: {expected}", keys, at_key=False)


def _is(value: Any, kind: str) -> bool:
    match kind:
        case "int":
            return isinstance(value, int) and not isinstance(value, bool)
        case "number":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case "bool":
            return isinstance(value, bool)
        case "null":
            return value is None
    return isinstance(value, str)


def _choice(value: Any, info: ArgInfo) -> ArgInfo | None:
    """The branch of an alternate that a value of this JSON type belongs to."""
    kinds = {"object": dict, "array": list}
    for choice in info.choices:
        if choice.kind in kinds:
            if isinstance(value, kinds[choice.kind]):
                return choice
        elif choice.kind == "alternate":
            if _choice(value, choice) is not None:
                return choice
        elif _is(value, choice.kind):
            return choice
    return None


# Places -------------------------------------------------------------------------------------------------------------


def place(text: str, parsed: ParsedQMP, problem: Problem) -> int:
    """The offset in the command's *text* that *problem* is about; its beginning when there is nothing closer."""
    start = len(text) - len(text.lstrip())
    if text.startswith("qmp ", start):
        start += 4 + len(text[start + 4 :]) - len(text[start + 4 :].lstrip())
    if parsed.form is Form.JSON:
        places = _json_places(text, start)
        if not problem.keys:
            return places.get(("execute",), (start, start))[1] if "found" in problem.message else start
        found = places.get(("arguments", *problem.keys), (start, start))
        return found[0 if problem.at_key else 1]
    return _shell_place(text, start, problem)


def _shell_place(text: str, start: int, problem: Problem) -> int:
    name_end = next((i for i in range(start, len(text)) if text[i].isspace()), len(text))
    try:
        pairs = list(split_pairs(text, name_end))
    except ParseError:
        return start
    wanted = [str(key) for key in problem.keys]
    for pair in pairs:
        path = pair.key.split(".")
        if wanted and path[: len(wanted)] == wanted:
            exact = path == wanted and not problem.at_key
            return pair.value_start if exact else pair.start
        if path == wanted[: len(path)] and pair.value[:1] in ("{", "["):
            rest: Keys = problem.keys[len(path) :]
            found = _json_places(text, pair.value_start).get(rest)
            return found[0 if problem.at_key else 1] if found else pair.value_start
    return start


def _json_places(text: str, start: int) -> dict[Keys, tuple[int, int]]:
    """Where the name and the value of each member and element of the JSON at *start* begin."""
    places: dict[Keys, tuple[int, int]] = {}
    tokens = [(match[0], match.start()) for match in _TOKEN.finditer(text, start)]

    def value(index: int, keys: Keys) -> int:
        """Note what is inside the value at *index*; returns the index behind it."""
        token = tokens[index][0]
        if token not in "{[":
            return index + 1
        index += 1
        number = 0
        while tokens[index][0] not in "}]":
            if tokens[index][0] == ",":
                index += 1
                continue
            at_key = tokens[index][1]
            if token == "{":
                inside: Keys = (*keys, _string(tokens[index][0]))
                index += 2
            else:
                inside = (*keys, number)
                number += 1
            places.setdefault(inside, (at_key, tokens[index][1]))
            index = value(index, inside)
        return index + 1

    try:
        value(0, ())
    except (IndexError, RecursionError):
        pass  # not as JSON has it (a Python literal, nested without end): what was noted is still right
    return places


def _string(token: str) -> str:
    if token[:1] == "'":
        return token[1:-1]
    try:
        return str(json.loads(token))
    except ValueError:
        return token
