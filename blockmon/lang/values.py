"""Values as directives write them, and whether a value of an answer is one."""

from typing import Any

from blockmon.lang.shell_line import parse_value


def read_value(text: str) -> Any:
    """A value as directives write it: JSON, text in quotes, or a bare word (null, true, an integer, else text)."""
    return None if text == "null" else parse_value(text, None)


def same(value: Any, text: str) -> bool:
    """Whether *value* of an answer is what *text* writes. A string equals its bare text, whatever that looks like."""
    if isinstance(value, str) and text[:1] not in ("{", "["):
        return value == (str(parse_value(text, None)) if text[:1] in ('"', "'") else text)
    return _equal(value, read_value(text))


def _equal(value: Any, wanted: Any) -> bool:
    # In Python True == 1; in JSON it is not, but 1 is 1.0.
    if isinstance(value, bool) or isinstance(wanted, bool):
        return value is wanted
    if isinstance(value, dict) and isinstance(wanted, dict):
        return value.keys() == wanted.keys() and all(_equal(value[key], wanted[key]) for key in value)
    if isinstance(value, list) and isinstance(wanted, list):
        return len(value) == len(wanted) and all(map(_equal, value, wanted))
    return bool(value == wanted)
