"""What a file node tells of data and holes, and that it need not look through the whole file each time."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from engine.graph.driver import Driver, Status, WriteFlag
from engine.graph.node import Node
from tests.graphs import Bench

MIB = 1 << 20


def told(node: Node) -> list[tuple[bool, int, int]]:
    """(whether it is data, offset, bytes) of every run, asked in steps of half a MiB; neighbours alike joined."""
    found: list[tuple[bool, int, int]] = []
    at = 0
    while at < node.length:
        extent = node.driver.block_status(at, min(MIB // 2, node.length - at))
        data = bool(extent.flags & Status.DATA)
        if found and found[-1][0] == data:
            found[-1] = (data, found[-1][1], found[-1][2] + extent.length)
        else:
            found.append((data, at, extent.length))
        at += extent.length
    whole = [(bool(flags & Status.DATA), at, run) for run, flags, _, at in node.driver.block_map(0, node.length)]
    assert whole == found
    return found


@pytest.fixture
def node(bench: Bench) -> Node:
    return bench.add(driver="file", node_name="f", filename=bench.file("f", b"\1" * (8 * MIB)))


def test_a_long_run_of_data_is_looked_for_once(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = os.lseek, 0

    def count(fd: int, offset: int, whence: int) -> int:
        nonlocal calls
        calls += 1
        return real(fd, offset, whence)

    monkeypatch.setattr(os, "lseek", count)
    assert told(node) == [(True, 0, 8 * MIB)]
    assert calls == 2


def punch(driver: Driver) -> None:
    driver.write_zeroes(2 * MIB, MIB, int(WriteFlag.MAY_UNMAP))


def discard(driver: Driver) -> None:
    driver.discard(2 * MIB, MIB)


@pytest.mark.parametrize("change", [punch, discard])
def test_a_new_hole_shows(node: Node, change: Callable[[Driver], None]) -> None:
    told(node)
    change(node.driver)
    assert told(node) == [(True, 0, 2 * MIB), (False, 2 * MIB, MIB), (True, 3 * MIB, 5 * MIB)]
    node.driver.write(2 * MIB, memoryview(b"\2" * MIB))
    assert told(node) == [(True, 0, 8 * MIB)]


def test_what_a_file_grows_by_is_a_hole(node: Node) -> None:
    told(node)
    node.driver.truncate(4 * MIB)
    node.driver.truncate(8 * MIB)
    assert told(node) == [(True, 0, 4 * MIB), (False, 4 * MIB, 4 * MIB)]
