"""Option strings: dotted keys, JSON, json: file names, the older syntax, and the numbers in them."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import GenericError
from engine.qapi import keyval, opts, scalars
from tests.engine.qapi import sample


def fails(function: Any, *args: Any) -> str:
    with pytest.raises(GenericError) as caught:
        function(*args)
    return caught.value.desc


def test_dotted_keys() -> None:
    text = "driver=qcow2,file.driver=file,file.filename=a,,b,server.0.host=x,server.1.host=,cache.direct=on"
    assert keyval.parse(text) == {
        "driver": "qcow2",
        "file": {"driver": "file", "filename": "a,b"},
        "server": [{"host": "x"}, {"host": ""}],
        "cache": {"direct": "on"},
    }


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", {}),
        ("a=", {"a": ""}),
        ("a=1,", {"a": "1"}),
        ("a=,,,", {"a": ","}),
        ("a=b=c", {"a": "b=c"}),
        ("a=1,a=2", {"a": "2"}),
        ("l.1=b,l.0=a", {"l": ["a", "b"]}),
        ("l.00=a,l.1=b", {"l": ["a", "b"]}),
        ("l.0.0=a", {"l": [["a"]]}),
        ("__org.qemu_x.y=1", {"__org.qemu_x": {"y": "1"}}),
        ("a=help", {"a": "help"}),
        ("a.help=1", {"a": {"help": "1"}}),
    ],
)
def test_values(text: str, value: Any) -> None:
    assert keyval.parse(text) == value


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("a", "Expected '=' after parameter 'a'"),
        ("a.b,c=1", "Expected '=' after parameter 'a.b'"),
        ("=1", "Invalid parameter ''"),
        (",", "Invalid parameter ''"),
        ("a..b=1", "Invalid parameter 'a..b'"),
        ("0=1", "Invalid parameter '0'"),
        ("a.1b=1", "Invalid parameter 'a.1b'"),
        ("a=1,a.b=2", "Parameters 'a.*' used inconsistently"),
        ("a.b=2,a=1", "Parameters 'a.*' used inconsistently"),
        ("a.b.0=2,a.b.c=1", "Parameters 'a.b.*' used inconsistently"),
        ("l.0=a,l.2=b", "Parameter 'l.1' missing"),
        ("l.99999999999999999999=a", "Parameter 'l.0' missing"),
        ("a." + "b" * 128 + "=1", f"Parameter fragment '{'b' * 128}' is too long"),
        ("b" * 128 + "=1", f"Parameter '{'b' * 128}' is too long"),
        ("help", "Help is not available for this option"),
        ("a=1,?", "Help is not available for this option"),
    ],
)
def test_faults(text: str, error: str) -> None:
    assert fails(keyval.parse, text) == error


def test_the_implied_key() -> None:
    assert keyval.parse("qcow2,x=1", "driver") == {"driver": "qcow2", "x": "1"}
    assert keyval.parse("driver=raw,x=1", "driver") == {"driver": "raw", "x": "1"}
    assert fails(keyval.parse, "qcow2,raw", "driver") == "Expected '=' after parameter 'raw'"
    assert fails(keyval.parse, "a=1,qcow2", "driver") == "Expected '=' after parameter 'qcow2'"


def test_help() -> None:
    assert keyval.parse_with_help("null-co,help", "driver") == ({"driver": "null-co"}, True)
    assert keyval.parse_with_help("driver=raw", "driver") == ({"driver": "raw"}, False)


def test_very_deep_keys_are_refused_in_words() -> None:
    assert fails(keyval.parse, ".".join(["a"] * 20000) + "=1") == "The parameters are nested too deeply"


def test_an_option_in_both_forms() -> None:
    dotted = keyval.from_option(sample.Options, "raw,offset=512,file.driver=null-co,file.read-zeroes=on", "driver")
    as_json = keyval.from_option(
        sample.Options, '{"driver": "raw", "offset": 512, "file": {"driver": "null-co", "read-zeroes": true}}', "driver"
    )
    assert dotted == as_json
    assert fails(keyval.from_option, sample.Options, '{"driver": "raw", "offset": "512"}') == (
        "Parameter 'file' is missing"
    )
    assert fails(keyval.from_option, sample.Options, "{") == "JSON parse error, premature EOI"


def test_json_file_names() -> None:
    assert keyval.parse_json_filename('json:{"driver": "raw", "file.driver": "file"}') == {
        "driver": "raw",
        "file.driver": "file",
    }
    assert fails(keyval.parse_json_filename, "json:") == "Could not parse the JSON options: Expecting a JSON value"
    assert fails(keyval.parse_json_filename, "json:{") == (
        "Could not parse the JSON options: JSON parse error, premature EOI"
    )
    assert fails(keyval.parse_json_filename, "json:[]") == "Invalid JSON object given"


def test_flattening_and_back() -> None:
    nested = {"a": {"b": [{"c": 1}, "x"], "d": None}, "e": {}, "f": [], "g": True}
    flat = keyval.flatten(nested)
    assert list(flat.items()) == [("a.b.0.c", 1), ("a.b.1", "x"), ("a.d", None), ("e", {}), ("f", []), ("g", True)]
    assert keyval.crumple(flat) == nested
    assert fails(keyval.crumple, {"a": 1, "a.b": 2}) == "Cannot mix scalar and non-scalar keys"
    assert fails(keyval.crumple, {"a.b": 2, "a": 1}) == "Cannot mix scalar and non-scalar keys"
    assert fails(keyval.crumple, {"a.0": 2, "a.b": 1}) == "Cannot mix list and non-list keys"
    assert fails(keyval.crumple, {"a.0": 3, "a.2": 4}) == (
        "List indices are not contiguous, saw 2 elements but 2 largest index"
    )


@given(st.text("ab.=,01{}\\é?help", max_size=30))
def test_any_text_gives_a_value_or_one_error(text: str) -> None:
    with contextlib.suppress(GenericError):
        value, _ = keyval.parse_with_help(text, "a")
        assert isinstance(value, dict)


names = st.from_regex(r"\A[a-z][a-z0-9-]{0,5}\Z")
trees = st.dictionaries(
    names,
    st.recursive(
        st.text(max_size=8),
        lambda t: st.dictionaries(names, t, min_size=1, max_size=3) | st.lists(t, min_size=1, max_size=3),
        max_leaves=6,
    ),
    max_size=4,
)


@given(trees)
def test_options_written_with_dotted_keys_are_read_back(tree: dict[str, Any]) -> None:
    text = ",".join(f"{key}={value.replace(',', ',,')}" for key, value in keyval.flatten(tree).items())
    assert keyval.parse(text) == tree


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("4k", 4096),
        (" +1K", 1024),
        ("1.5M", 1572864),
        ("1.", 1),
        ("1.00", 1),
        ("1b", 1),
        ("010", 10),
        ("0x1e", 30),
        ("0x10k", 16384),
        ("0x5B", 91),
        ("1.1k", 1126),
        ("1.9999k", 2048),
        ("1.0001k", 1024),
        ("1.9999999999999999999999k", 1024),
        ("1.7P", 1914029841632461),
        ("7E", 8070450532247928832),
        ("18446744073709551615", 18446744073709551615),
        ("x", None),
        ("", None),
        ("-1", None),
        ("1.5", None),
        (".5M", None),
        ("1e3", None),
        ("1k ", None),
        ("1KiB", None),
        ("0x1.8k", None),
        ("16E", None),
        ("18446744073709551616", None),
        ("9" * 5000, None),
    ],
)
def test_sizes(text: str, size: int | None) -> None:
    assert scalars.parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "signed", "unsigned"),
    [
        ("12", 12, 12),
        ("0x10", 16, 16),
        ("010", 8, 8),
        ("08", None, None),
        (" 8", 8, 8),
        ("8 ", None, None),
        ("", None, None),
        ("-1", -1, (1 << 64) - 1),
        ("9223372036854775808", None, 1 << 63),
        ("18446744073709551616", None, None),
        ("9" * 5000, None, None),
    ],
)
def test_integers(text: str, signed: int | None, unsigned: int | None) -> None:
    assert scalars.parse_int64(text) == signed
    assert scalars.parse_uint64(text) == unsigned


def test_floating_point_numbers() -> None:
    assert scalars.parse_number("-1.5e3") == -1500.0
    assert scalars.parse_number(".5") == 0.5
    for text in ("", "x", "inf", "nan", "1e999", "1 "):
        assert scalars.parse_number(text) is None


def test_the_older_syntax() -> None:
    assert opts.parse_opts("file=a,,b,if=virtio,readonly,nosnapshot,x=,if=none") == [
        ("file", "a,b"),
        ("if", "virtio"),
        ("readonly", "on"),
        ("snapshot", "off"),
        ("x", ""),
        ("if", "none"),
    ]
    assert opts.parse_opts("socket,id=a", "backend") == [("backend", "socket"), ("id", "a")]
    assert opts.parse_opts("id=a,socket", "backend") == [("id", "a"), ("socket", "on")]


def test_values_of_the_older_syntax() -> None:
    assert opts.option_bool("x", "yes") is True
    assert fails(opts.option_bool, "x", "ON") == "Parameter 'x' expects 'on' or 'off'"
    assert opts.option_number("x", "0x10") == 16
    assert fails(opts.option_number, "x", "1k") == "Parameter 'x' expects a number"
    assert fails(opts.option_number, "x", "18446744073709551616") == (
        "Value '18446744073709551616' is too large for parameter 'x'"
    )
    assert opts.option_size("x", "1.5k") == 1536
    assert fails(opts.option_size, "x", "16E") == "Value '16E' is out of range for parameter 'x'"
    with pytest.raises(GenericError) as caught:
        opts.option_size("x", "1y")
    assert caught.value.desc == "Parameter 'x' expects a non-negative number below 2^64"
    assert caught.value.hint == opts.SIZE_HINT
