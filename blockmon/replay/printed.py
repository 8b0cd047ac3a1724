"""Answers as a run prints them, which is what the text behind `----` is compared with.

A QMP answer is JSON: in one line when it fits into WIDTH columns, otherwise each member and element on lines of its
own, where again what fits stays in one line. An HMP answer and what @shell printed are their text.
"""

import json
from typing import Any

WIDTH = 100  # columns
INDENT = 2

_encode = json.JSONEncoder().encode


def printed(answer: Any) -> str:
    """The text of a QMP command's value, without a line end behind it."""
    text = _encode(answer)
    return text if len(text) <= WIDTH else "\n".join(_lines(answer, 0, "", ""))


def _lines(value: Any, depth: int, before: str, behind: str) -> list[str]:
    margin = " " * (INDENT * depth)
    if not isinstance(value, dict | list) or not value:
        return [f"{margin}{before}{_encode(value)}{behind}"]
    # Most of a long answer is short inside; only what may fit is put together.
    whole = f"{margin}{before}{_encode(value)}{behind}"
    if len(whole) <= WIDTH:
        return [whole]
    if isinstance(value, dict):
        opens, closes, members = "{", "}", [(f"{_encode(key)}: ", item) for key, item in value.items()]
    else:
        opens, closes, members = "[", "]", [("", item) for item in value]
    lines = [f"{margin}{before}{opens}"]
    for number, (label, item) in enumerate(members, 1):
        lines += _lines(item, depth + 1, label, "," if number < len(members) else "")
    lines.append(f"{margin}{closes}{behind}")
    return lines
