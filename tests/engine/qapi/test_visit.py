"""What is said about wrong values. test_interop.py compares the texts with the real ones."""

from __future__ import annotations

from typing import Any

import pytest

from engine.errors import CommandNotFound, GenericError
from engine.qapi import from_wire
from tests.engine.qapi import sample


def failure(command: str, arguments: Any) -> str:
    with pytest.raises(GenericError) as caught:
        sample.registry.dispatch(None, command, arguments)
    return caught.value.desc


@pytest.mark.parametrize(
    ("command", "arguments", "text"),
    [
        ("block_resize", {}, "Parameter 'size' is missing"),
        ("block_resize", {"size": "1"}, "Invalid parameter type for 'size', expected: integer"),
        ("block_resize", {"size": 1.0}, "Invalid parameter type for 'size', expected: integer"),
        ("block_resize", {"size": True}, "Invalid parameter type for 'size', expected: integer"),
        ("block_resize", {"size": 1 << 63}, "Invalid parameter type for 'size', expected: integer"),
        ("block_resize", {"size": 1, "foo": 1}, "Parameter 'foo' is unexpected"),
        ("block_resize", {"size": "1", "foo": 1}, "Invalid parameter type for 'size', expected: integer"),
        ("block_resize", {"size": 1, "device": None}, "Invalid parameter type for 'device', expected: string"),
        ("blockdev-add", {}, "Parameter 'driver' is missing"),
        ("blockdev-add", {"driver": "nope"}, "Parameter 'driver' does not accept value 'nope'"),
        ("blockdev-add", {"driver": "raw", "file": {}}, "Parameter 'file.driver' is missing"),
        ("blockdev-add", {"driver": "raw", "file": 3}, "Invalid parameter type for 'file', expected: BlockdevRef"),
        (
            "blockdev-add",
            {"driver": "raw", "file": {"driver": "raw", "file": {"driver": "file"}}},
            "Parameter 'file.file.filename' is missing",
        ),
        ("blockdev-add", {"driver": "null-co", "x": 3}, "Parameter 'x' is unexpected"),
        (
            "blockdev-add",
            {"driver": "raw", "file": {"driver": "null-co", "filename": "x"}},
            "Parameter 'file.filename' is unexpected",
        ),
        ("blockdev-add", {"driver": "null-co", "latency-ns": "1"}, "Parameter 'latency-ns' expects uint64"),
        ("blockdev-add", {"driver": "null-co", "cache": {"x": 3}}, "Parameter 'cache.x' is unexpected"),
        (
            "blockdev-add",
            {"driver": "quorum", "vote-threshold": 1, "children": ["a", {"driver": "null-co", "size": "x"}]},
            "Invalid parameter type for 'children[1].size', expected: integer",
        ),
        (
            "blockdev-add",
            {"driver": "quorum", "vote-threshold": 1, "children": [3]},
            "Invalid parameter type for 'null', expected: BlockdevRef",
        ),
        ("transaction", {"actions": [{"type": "abort"}]}, "Parameter 'actions[0].data' is missing"),
        ("transaction", {"actions": {}}, "Invalid parameter type for 'actions', expected: array"),
        ("query-version", {"x": 1}, "Parameter 'x' is unexpected"),
        ("query-version", [], "QMP input member 'arguments' must be an object"),
    ],
)
def test_texts(command: str, arguments: Any, text: str) -> None:
    assert failure(command, arguments) == text


def test_unknown_command() -> None:
    with pytest.raises(CommandNotFound) as caught:
        sample.registry.dispatch(None, "nope", {})
    assert caught.value.desc == "The command nope has not been found"
    assert caught.value.error_class == "CommandNotFound"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"size": "1x"}, "Parameter 'o.size' expects size"),
        ({"byte": "256"}, "Parameter 'byte' expects uint8_t"),
        ({"byte": "x"}, "Parameter 'o.byte' expects integer"),
        ({"number": "x"}, "Invalid parameter type for 'o.number', expected: number"),
        ({"number": {"x": "1"}}, "Parameters 'o.number.*' are unexpected"),
        ({"nope": "1"}, "Parameter 'o.nope' is unexpected"),
    ],
)
def test_texts_of_dotted_keys(value: Any, text: str) -> None:
    with pytest.raises(GenericError) as caught:
        from_wire(sample.Tiny, value, name="o", keyval=True)
    assert caught.value.desc == text


def test_dotted_keys_are_converted() -> None:
    tiny = from_wire(sample.Tiny, {"size": "1.5k", "byte": "0x10", "number": "2.5"}, keyval=True)
    assert (tiny.size, tiny.byte, tiny.number) == (1536, 16, 2.5)
    options = from_wire(
        sample.Options,
        {"driver": "qcow2", "file": {"driver": "null-co", "read-zeroes": "on"}, "lazy-refcounts": "no"},
        keyval=True,
    )
    assert options.branch.file.branch.read_zeroes is True
    assert options.branch.lazy_refcounts is False


def test_a_value_without_a_name_is_anonymous() -> None:
    with pytest.raises(GenericError, match="Invalid parameter type for '<anonymous>', expected: object"):
        from_wire(sample.Options, 3)


def test_very_deep_values_are_refused_in_words() -> None:
    options: dict[str, Any] = {"driver": "null-co"}
    for _ in range(5000):
        options = {"driver": "raw", "file": options}
    assert failure("blockdev-add", options) == "The parameters are nested too deeply"
