"""The JSON parser outlives any bytes, and reads and writes what QEMU reads and writes."""

from __future__ import annotations

import itertools
import json
import sys
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import GenericError
from engine.qapi.json_stream import MAX_NESTING, JSONParseError, JSONStream, dumps, from_json

# What random bytes are made of, so that they often come near to JSON.
PIECES = [
    *(bytes([b]) for b in b"{}[]:,\"'\\/ \t\r\n0123456789-+.eEuxtrfalsn%#"),
    b"true",
    b"null",
    b'"a"',
    b'"a": ',
    b"\\u00e9",
    b"\\ud83d\\ude00",
    b"\\ud800",
    b"\xc3\xa9",
    b"\xc0\x80",
    b"\xef\xbf\xbf",
    b"\x00",
    b"\x01",
    b"\x7f",
    b"\x80",
    b"\xc3",
    b"\xfe",
    b"\xff",
    b"[[[",
    b'{"a": 1}',
    b"{\n",
    b"12345678901234567890",
]
near_json = st.lists(st.sampled_from(PIECES), max_size=40).map(b"".join)
any_bytes = st.one_of(near_json, st.binary(max_size=60))

NONCHARACTERS = [chr(code) for code in range(0xFDD0, 0xFDF0)] + [
    chr(plane << 16 | low) for plane in range(17) for low in (0xFFFE, 0xFFFF)
]
"""Characters that JSON in QEMU's way never carries: they are replaced."""
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters=NONCHARACTERS))
)
values = st.recursive(
    scalars, lambda v: st.lists(v, max_size=4) | st.dictionaries(st.text("ab é\n\"'\\"), v), max_leaves=12
)


def shown(found: list[Any]) -> list[Any]:
    return [item.desc if isinstance(item, JSONParseError) else item for item in found]


def read(data: bytes) -> list[Any]:
    """Return what *data* holds; faults as their texts, without what is the same in all."""
    return [
        item.desc.removeprefix("JSON parse error, ") if isinstance(item, JSONParseError) else [item]
        for item in JSONStream().feed(data)
    ]


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b'{"execute": "x"}\r\n', [[{"execute": "x"}]]),
        (b'{"a":1}{"b":2}\n[] 1 "x" null ', [[{"a": 1}], [{"b": 2}], [[]], [1], ["x"], [None]]),
        (b"{'a': 'b\"c'}", [[{"a": 'b"c'}]]),
        (b'["\\u0041\\ud83d\\ude00\\u0000\\/\\\'"]', [[["A\U0001f600\0/'"]]]),
        (b'["\xc0\x80"]', [[["\0"]]]),
        (b"[1, -0, 18446744073709551615, -9223372036854775808]", [[[1, 0, (1 << 64) - 1, -(1 << 63)]]]),
        (b"[1e3, -1.5E-2, 0.0]", [[[1e3, -1.5e-2, 0.0]]]),
        (b"x y ", ["invalid keyword 'x'", "invalid keyword 'y'"]),
        (b"{1:2}", ["key is not a string in object"]),
        (b"{[1]:2}", ["key is not a string in object"]),
        (b"{[nan]:2}", ["invalid keyword 'nan'"]),
        (b'{"a" 1}', ["missing : in object pair"]),
        (b'{"a":1 "b":2}', ["expected separator in dict"]),
        (b"[1 2]", ["expected separator in list"]),
        (b"[1}", ["expected separator in list"]),
        (b"[1,]", ["expecting value"]),
        (b'{"a":1,}', ["expecting value"]),
        (b"]}", ["expecting value", "expecting value"]),
        (b'{"a":1,"a":2}', ["duplicate key"]),
        (b'{"a":1,"a":nan}', ["invalid keyword 'nan'"]),
        (b'{"x": {"a":1,"a":2}}\n', ["duplicate key"]),
        (b"[01]", ["stray '01'", "expecting value"]),
        (b"[0e1]", ["expected separator in list"]),
        (b'{"a": 0e1}\n', ["expected separator in dict"]),
        (b"[-x]", ["stray '-x'", "expecting value"]),
        (b'{"a": NaN}\n', ["stray 'N'", "expecting value"]),
        (b"# {} ", ["stray '#'", [{}]]),
        (b"#1,[1]", ["stray '#'", "expecting value", [[1]]]),
        (b"#\x01 2\n3 ", ["stray '#'", "stray '\x01'", [3]]),
        (b'"a\nb" 1\n', ["stray '\"a\n'"]),
        (b'"a\x00', ["stray '\"a'"]),
        (b"\xff{}", ["stray '\ufffd'", [{}]]),
        (b'"\x80"', ["invalid UTF-8 sequence in string"]),
        (b'"\xef\xbf\xbf"', ["invalid UTF-8 sequence in string"]),
        (b'{"a": "\xef\xbf\xbf"}\n', ["invalid UTF-8 sequence in string"]),
        (b'"\\q"', ["invalid escape sequence in string"]),
        (b'"\\udbff\\udffd\\ud800\\udfff"', [["\U0010fffd\U000103ff"]]),
        (b'"\\ud83f\\udfff"', ["\\ud83f\\udfff is not a valid Unicode character"]),
        (b'"\\ud800\\u1234"', ["\\ud800 is not a valid Unicode character"]),
        (b'{"a": "\\ud800"}\n', ["\\ud800 is not a valid Unicode character"]),
        (b'"\\u12"', ['\\u12" is not a valid Unicode character']),
        (b"%d", ["stray '%'"]),
    ],
)
def test_what_is_read(data: bytes, found: list[Any]) -> None:
    assert read(data) == found


def test_big_numbers_turn_into_floating_point() -> None:
    (value,) = JSONStream().feed(b"[18446744073709551616, -9223372036854775809]")
    assert value == [18446744073709551616.0, -9223372036854775808.0]
    assert [type(v) for v in value] == [float, float]
    (plain,) = JSONStream().feed(b'{"a": 18446744073709551616}\n')
    assert type(plain["a"]) is float


@pytest.mark.parametrize("recursion_limit", [1000, 10000])
def test_nesting_limit(recursion_limit: int) -> None:
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(recursion_limit)
    try:
        check_nesting_limit()
    finally:
        sys.setrecursionlimit(before)


def check_nesting_limit() -> None:
    deep = b"[" * MAX_NESTING + b"]" * MAX_NESTING
    (value,) = JSONStream().feed(deep)
    assert json_depth(value) == MAX_NESTING
    assert read(b"[" * (MAX_NESTING + 1) + b"]") == ["JSON nesting depth limit exceeded", "expecting value"]
    objects = b'{"a":' * (MAX_NESTING + 1) + b"1" + b"}" * (MAX_NESTING + 1) + b"\n"
    assert read(objects)[0] == "JSON nesting depth limit exceeded"
    inside = b'{"a":' + b"[" * MAX_NESTING + b"]" * MAX_NESTING + b"}\n"
    assert read(inside)[0] == "JSON nesting depth limit exceeded"


def json_depth(value: Any) -> int:
    depth = 0
    while isinstance(value, list):
        depth += 1
        value = value[0] if value else None
    return depth


def test_token_size_limit() -> None:
    stream = JSONStream()
    found = []
    piece = b"a" * (1 << 20)
    found += stream.feed(b'"')
    for _ in range(65):
        found += stream.feed(piece)
    found += stream.feed(b" 5\n")
    assert shown(found)[0] == "JSON token size limit exceeded"
    assert found[-1] == 5
    assert len(found) == 3, "what comes after the limit is read as if nothing had been before"


def test_token_size_counts_all_of_a_value() -> None:
    stream = JSONStream()
    piece = b'"' + b"a" * ((1 << 23) - 3) + b'",'
    found = stream.feed(b"[")
    for _ in range(7):
        found += stream.feed(piece)
    assert found == []
    found += stream.feed(piece)
    assert shown(found)[0] == "JSON token size limit exceeded"


def test_token_count_limit() -> None:
    stream = JSONStream()
    found = stream.feed(b"[" + b"1," * (1 << 20))
    assert shown(found) == ["JSON token count limit exceeded"]
    assert stream.idle


def test_a_huge_token_of_escapes_is_limited_too() -> None:
    stream = JSONStream()
    piece = b"\\n" * (1 << 19)
    found = stream.feed(b'"')
    for _ in range(65):
        found += stream.feed(piece)
    assert shown(found)[0] == "JSON token size limit exceeded"


@given(any_bytes)
def test_random_bytes_never_raise_and_the_stream_recovers(data: bytes) -> None:
    stream = JSONStream()
    stream.feed(data)
    stream.feed(b"\xff\n")  # what clients send to begin anew
    assert stream.feed(b'{"execute": "x"}\n') == [{"execute": "x"}]
    assert stream.idle


@given(any_bytes, st.lists(st.integers(0, 100), max_size=8))
def test_pieces_make_no_difference(data: bytes, cuts: list[int]) -> None:
    whole = JSONStream()
    expected = shown(whole.feed(data)) + shown(whole.flush())
    stream = JSONStream()
    found: list[Any] = []
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    for begin, end in itertools.pairwise(edges):
        found += stream.feed(data[begin:end])
    found += stream.flush()
    assert repr(shown(found)) == repr(expected)
    assert stream.idle


@given(any_bytes)
def test_the_quick_way_reads_the_same(data: bytes) -> None:
    line = data.replace(b"\n", b" ")
    quick = shown(JSONStream().feed(line + b"\n"))
    slow = JSONStream()
    found: list[Any] = []
    for byte in line + b"\n":
        found += slow.feed(bytes([byte]))
    assert repr(quick) == repr(shown(found))


@given(values)
def test_what_is_written_can_be_read(value: Any) -> None:
    for text in (dumps(value), dumps(value, pretty=True), json.dumps(value)):
        assert text.isascii()
        assert json.loads(text) == value
        assert from_json(text) == value


@given(values)
@settings(max_examples=50)
def test_an_object_on_a_line(value: Any) -> None:
    assert JSONStream().feed(b"%s\n" % dumps({"v": value}).encode()) == [{"v": value}]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"a": [1, True, None], "b": {}}, '{"a": [1, true, null], "b": {}}'),
        ('"\\/\b\f\n\r\t\x1f\x7fé\U0001f600', '"\\"\\\\/\\b\\f\\n\\r\\t\\u001F\\u007F\\u00E9\\uD83D\\uDE00"'),
        ("\udcff\ufffe", '"\\uFFFD\\uFFFD"'),
        ("a \\u00e9", '"a \\\\u00e9"'),
        ([1.0, 0.1, 1e20, -1e-5], "[1, 0.10000000000000001, 1e+20, -1.0000000000000001e-05]"),
        (0.5, "0.5"),
        (-0.0, "-0"),
        ({"a": 0.1}, '{"a": 0.10000000000000001}'),
        (" 1.5", '" 1.5"'),
    ],
)
def test_formatting(value: Any, text: str) -> None:
    assert dumps(value) == text


def test_pretty_formatting() -> None:
    assert dumps({"a": [], "b": {"c": [1, {}]}}, pretty=True).splitlines() == [
        "{",
        '    "a": [',
        "    ],",
        '    "b": {',
        '        "c": [',
        "            1,",
        "            {",
        "            }",
        "        ]",
        "    }",
        "}",
    ]


def test_what_could_be_read_can_be_written() -> None:
    (value,) = JSONStream().feed(b"[" * MAX_NESTING + b"]" * MAX_NESTING)
    assert dumps(value) == "[" * MAX_NESTING + "]" * MAX_NESTING


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "Expecting a JSON value"),
        ("  ", "Expecting a JSON value"),
        ("{} {}", "Expecting at most one JSON value"),
        ("{} x", "Expecting at most one JSON value"),
        ("x {}", "JSON parse error, invalid keyword 'x'"),
        ("{", "JSON parse error, premature EOI"),
        ('{"a', "JSON parse error, stray '\"a'"),
        ("nope", "JSON parse error, invalid keyword 'nope'"),
    ],
)
def test_one_value_from_a_text(text: str, error: str) -> None:
    with pytest.raises(GenericError) as caught:
        from_json(text)
    assert caught.value.desc == error
    assert from_json(" [1]") == [1]
    assert from_json("12") == 12


def test_lines_are_read_quickly() -> None:
    line = b'{"execute": "block-stream", "arguments": {"device": "d0", "speed": 1048576}, "id": 3}\r\n'
    stream = JSONStream()
    best = 0.0
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(2000):
            stream.feed(line)
        best = max(best, 2000 / (time.perf_counter() - start))
    assert best > 30_000
