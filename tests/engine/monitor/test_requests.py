"""What a request must look like: texts and the order of checks as in qemu-storage-daemon 7.2 (tried)."""

from typing import Any

import pytest

from engine.errors import GenericError
from engine.monitor.qmp.requests import Request, check_request, wants_oob
from engine.qapi.member_order import in_member_order


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ([1], "QMP input must be a JSON object"),
        ("abc", "QMP input must be a JSON object"),
        (5, "QMP input must be a JSON object"),
        ({}, "QMP input lacks member 'execute'"),
        ({"id": 1}, "QMP input lacks member 'execute'"),
        ({"foo": 1}, "QMP input member 'foo' is unexpected"),
        ({"execute": "x", "foo": 1}, "QMP input member 'foo' is unexpected"),
        ({"execute": 5}, "QMP input member 'execute' must be a string"),
        ({"execute": None}, "QMP input member 'execute' must be a string"),
        ({"exec-oob": 5}, "QMP input member 'exec-oob' must be a string"),
        ({"execute": "x", "arguments": []}, "QMP input member 'arguments' must be an object"),
        ({"execute": "x", "arguments": None}, "QMP input member 'arguments' must be an object"),
        ({"arguments": [], "execute": "x", "foo": 1}, "QMP input member 'arguments' must be an object"),
        ({"execute": 5, "arguments": 5}, "QMP input member 'execute' must be a string"),
        ({"execute": "a", "exec-oob": "b"}, "QMP input member 'execute' clashes with 'exec-oob'"),
        ({"exec-oob": "b", "execute": "a"}, "QMP input member 'execute' clashes with 'exec-oob'"),
    ],
)
def test_faults(message: Any, text: str) -> None:
    with pytest.raises(GenericError) as caught:
        check_request(message, oob_enabled=True)
    assert caught.value.desc == text


def test_oob_must_be_enabled() -> None:
    with pytest.raises(GenericError, match="QMP input member 'exec-oob' is unexpected"):
        check_request({"exec-oob": "x"}, oob_enabled=False)
    assert check_request({"exec-oob": "x"}, oob_enabled=True) == Request("x", {}, True)


def test_good_request() -> None:
    request = check_request({"execute": "x", "arguments": {"a": 1}, "id": None}, oob_enabled=False)
    assert request == Request("x", {"a": 1}, False)


def test_wants_oob() -> None:
    assert wants_oob({"exec-oob": 5})
    assert not wants_oob({"exec-oob": "a", "execute": "b"})
    assert not wants_oob(["exec-oob"])


def test_member_order() -> None:
    # As qemu-img info prints them for a qcow2 image.
    names = ["compat", "data-file", "extended-l2", "lazy-refcounts", "corrupt", "refcount-bits", "compression-type"]
    assert in_member_order(names) == [
        *("compat", "compression-type", "lazy-refcounts", "refcount-bits", "data-file", "corrupt", "extended-l2"),
    ]
