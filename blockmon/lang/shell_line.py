"""qmp-shell lines: `command key=value …`, with dotted keys, lists, and values typed by the command's schema.

A value is one of
- a JSON object or list (Python's literals too, as qmp-shell allows), blanks inside allowed;
- text in single or double quotes: always a string, with JSON's escapes inside double quotes;
- anything else up to the next blank, read as what the schema wants there: `1M` or `0x200` for an int, `on` for a
  bool, `null` where null is possible. Where the schema does not say, integers and true/false are told by their look,
  as in qmp-shell. What does not fit is sent as a string, so that the server itself says what is wrong.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from blockmon.lang import json_text
from blockmon.lang.errors import ParseError
from blockmon.lang.schema import ArgInfo, Members

if TYPE_CHECKING:
    ArgumentsOf = Callable[[str], Mapping[str, ArgInfo]]

_SIZE = re.compile(r"(?P<number>\d+(?:\.\d*)?|\.\d+)(?P<unit>[bBkKmMgGtTpPeE])")
_INTEGER = re.compile(r"[-+]?(?:0[xX][0-9a-fA-F]+|\d+)")
_UNITS: dict[str, int] = {unit: 1024**power for power, unit in enumerate("bkmgtpe")}
_BOOLS = {"true": True, "on": True, "yes": True, "y": True, "false": False, "off": False, "no": False, "n": False}


SECOND_COMMAND = "a second command; a line that goes on ends with \\"


class StillOpen(Exception):
    """The text ends inside an object or a list, which another line can close."""


class Pair(NamedTuple):
    """One `key=value` as written: `key` begins at offset `start`, `value` at `value_start`, and both end at `end`."""

    key: str
    value: str
    start: int
    value_start: int
    end: int


def parse_size(text: str) -> int | None:
    """Read an integer (decimal or 0x…) or a size (`64k`, `1.5G`; powers of 1024) in bytes; None if it is neither."""
    if _INTEGER.fullmatch(text):
        return int(text, base=16 if "x" in text.lower() else 10)
    match = _SIZE.fullmatch(text)
    if match is None:
        return None
    unit = _UNITS[match["unit"].lower()]
    whole, _, fraction = match["number"].partition(".")
    part: int = int(fraction) * unit // 10 ** len(fraction) if fraction else 0
    return int(whole or 0) * unit + part


def is_blank(text: str, position: int) -> bool:
    """Tell whether a word ends here: at white space, or at a backslash that continues the line."""
    return text[position].isspace() or text.startswith("\\\n", position)


def _skip_blanks(text: str, position: int) -> int:
    """Return the offset of the next word on the line, which a backslash in front of a line break prolongs."""
    second_line = False
    while position < len(text):
        if text.startswith("\\\n", position):
            position += 2
        elif text[position].isspace():
            second_line = second_line or text[position] == "\n"
            position += 1
        elif second_line:
            raise ParseError.at(SECOND_COMMAND, text, position)
        else:
            break
    return position


def split_pairs(text: str, start: int = 0) -> Iterator[Pair]:
    """Split `key=value key=value …` from offset *start* on.

    Raises ParseError for a word that is no pair, StillOpen when the last value needs more lines.
    """
    position, size = start, len(text)
    while (position := _skip_blanks(text, position)) < size:
        begin = position
        while position < size and text[position] != "=" and not is_blank(text, position):
            position += 1
        if position >= size or text[position] != "=" or position == begin:
            word = text[begin:].split(maxsplit=1)[0]
            hint = "; a comment has a line of its own" if word.startswith("#") else ""
            raise ParseError.at(f"expected key=value, found '{word}'{hint}", text, begin)
        value_start = position + 1
        position = value_end(text, value_start)
        yield Pair(text[begin : value_start - 1], text[value_start:position], begin, value_start, position)


def value_end(text: str, start: int) -> int:
    """Return the offset behind the value that begins at *start*. Raises ParseError and StillOpen."""
    size, position = len(text), start
    if text.startswith("json:{", start):
        position += 5
    if position < size and text[position] in "{[":
        found = json_text.find_end(text, position)
        if found is None:
            raise StillOpen
        position = found
    elif position < size and text[position] in "\"'":
        position = _quoted_end(text, position)
    else:
        while position < size and not is_blank(text, position):
            position += 1
    if position < size and not is_blank(text, position):
        raise ParseError.at("expected a blank behind the value", text, position)
    return position


def _quoted_end(text: str, start: int) -> int:
    quote, position = text[start], start + 1
    while position < len(text) and text[position] != "\n":
        if text[position] == quote:
            return position + 1
        position += 2 if quote == '"' and text[position] == "\\" else 1
    raise ParseError.at("the quoted value that begins here does not end", text, start)


def parse_value(text: str, info: ArgInfo | None) -> Any:
    """Turn the text of one value into what QMP is to be sent. *info* is None where the schema says nothing."""
    if text[:1] in ("{", "["):
        return _parse_literal(text.replace("\\\n", " \n"))
    if text[:1] == "'":
        return text[1:-1]
    if text[:1] == '"':
        return json_text.parse(text, 0, len(text))
    kind = info.kind if info is not None else "any"
    if kind == "alternate" and info is not None:
        return _parse_alternate(text, info)
    match kind:
        case "int":
            size = parse_size(text)
            return text if size is None else size
        case "bool":
            return _BOOLS.get(text.lower(), text)
        case "number":
            return _parse_number(text)
        case "null":
            return None if text == "null" else text
        case "any":
            if _INTEGER.fullmatch(text):
                return parse_size(text)
            return {"true": True, "false": False}.get(text.lower(), text)
    return text


def _parse_number(text: str) -> int | float | str:
    size = parse_size(text)
    if size is not None:
        return size
    try:
        number = float(text)
    except ValueError:
        return text
    return number if number - number == 0 else text  # JSON has no infinity and no NaN


def _parse_alternate(text: str, info: ArgInfo) -> Any:
    kinds = {choice.kind: choice for choice in info.choices}
    if text == "null" and "null" in kinds:
        return None
    if "enum" in kinds and text in kinds["enum"].values:
        return text
    for kind in ("int", "number", "bool"):
        if kind in kinds and "str" not in kinds:
            value = parse_value(text, kinds[kind])
            if not isinstance(value, str):
                return value
    return text


def _parse_literal(text: str) -> Any:
    try:
        return json_text.parse(text, 0, len(text))
    except ParseError:
        import ast

        class Names(ast.NodeTransformer):
            def visit_Name(self, node: ast.Name) -> ast.AST:
                known = {"true": True, "false": False, "null": None}
                return ast.Constant(known[node.id]) if node.id in known else node

        try:
            value = ast.literal_eval(Names().visit(ast.parse(text, mode="eval")))
            # What Python knows and JSON does not (sets, bytes, tuples …) is refused or made plain here.
            return json.loads(json.dumps(value, allow_nan=False))
        except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
            pass
        raise


def _build(pairs: list[Pair], text: str, members: Mapping[str, ArgInfo]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for pair in pairs:
        path = pair.key.split(".")
        if "" in path:
            raise ParseError.at(f"'{pair.key}' is not a key", text, pair.start)
        node = tree
        for depth, step in enumerate(path[:-1], 1):
            node = node.setdefault(step, {})
            if not isinstance(node, dict):
                raise ParseError.at(f"'{'.'.join(path[:depth])}' has a value already", text, pair.start)
        if path[-1] in node:
            what = "members" if isinstance(node[path[-1]], dict) else "a value"
            raise ParseError.at(f"'{pair.key}' has {what} already", text, pair.start)
        node[path[-1]] = pair
    return _object(tree, text, members)


def _object(tree: dict[str, Any], text: str, members: Mapping[str, ArgInfo]) -> dict[str, Any]:
    if isinstance(members, Members):
        members = members.narrow({key: _plain(value) for key, value in tree.items() if isinstance(value, Pair)})
    return {key: _resolve(value, text, members.get(key)) for key, value in tree.items()}


def _plain(pair: Pair) -> str:
    if pair.value[:1] not in ("'", '"'):
        return pair.value
    try:
        return str(parse_value(pair.value, None))
    except ParseError:
        return ""  # told, with its place, when the value's own turn comes


def _resolve(value: Any, text: str, info: ArgInfo | None) -> Any:
    if isinstance(value, Pair):
        try:
            return parse_value(value.value, info)
        except ParseError as error:
            # The error's place was counted within the value.
            lines = value.value.split("\n")
            offset = sum(len(line) + 1 for line in lines[: error.line - 1]) + error.column - 1
            raise ParseError.at(error.message, text, value.value_start + offset) from None
    described = {choice.kind: choice for choice in (info.choices or (info,))} if info is not None else {}
    if all(key.isdecimal() for key in value) and ("array" in described or "object" not in described):
        return _list(value, text, described.get("array"))
    target = described.get("object")
    return _object(value, text, target.members if target is not None else Members())


def _list(value: dict[str, Any], text: str, info: ArgInfo | None) -> list[Any]:
    element = info.element if info is not None else None
    indexes = sorted(int(key) for key in value)
    if indexes != list(range(len(indexes))):
        first: Any = value
        while isinstance(first, dict):
            first = next(iter(first.values()))
        missing = next(i for i, index in enumerate([*indexes, -1]) if i != index)
        raise ParseError.at(f"list element {missing} is missing", text, first.start)
    by_index = {int(key): item for key, item in value.items()}
    return [_resolve(by_index[index], text, element) for index in indexes]


def parse_shell_line(
    text: str, arguments_of: "ArgumentsOf | None" = None, start: int = 0
) -> tuple[str, dict[str, Any]]:
    """Parse `command key=value …` from offset *start* on into the command's name and its arguments.

    Raises ParseError, or StillOpen when a value needs more lines.
    """
    start = _skip_blanks(text, start)
    end = start
    while end < len(text) and not is_blank(text, end):
        end += 1
    if end == start:
        raise ParseError.at("a command is missing", text, start)
    name = text[start:end]
    pairs = list(split_pairs(text, end))
    if not pairs:
        return name, {}
    return name, _build(pairs, text, arguments_of(name) if arguments_of is not None else Members())
