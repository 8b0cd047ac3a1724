"""The input language of the prompt and of command files: QMP as JSON, qmp-shell lines, HMP lines. No UI in it."""

from blockmon.lang import hmp
from blockmon.lang.errors import ParseError
from blockmon.lang.forms import (
    ArgumentsOf,
    Empty,
    Form,
    Incomplete,
    Parsed,
    ParsedHMP,
    ParsedQMP,
    classify,
    parse_input,
)
from blockmon.lang.schema import ArgInfo, Members, Schema
from blockmon.lang.shell_line import parse_shell_line, parse_size

__all__ = [
    "ArgInfo",
    "ArgumentsOf",
    "Empty",
    "Form",
    "Incomplete",
    "Members",
    "ParseError",
    "Parsed",
    "ParsedHMP",
    "ParsedQMP",
    "Schema",
    "classify",
    "hmp",
    "parse_input",
    "parse_shell_line",
    "parse_size",
]
