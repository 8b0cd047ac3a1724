"""block_set_io_throttle: limits of devices, groups, what queries and the monitor show."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from engine.engine import Engine
from engine.errors import DeviceNotFound, GenericError
from engine.graph.backend import BlockBackend
from engine.graph.drain import drained
from engine.graph.permissions import Perm
from engine.monitor.hmp.interpreter import run_line
from engine.throttle.backends import set_limits
from engine.throttle.group import ThrottleGroups
from engine.throttle.limits import ThrottleConfig, ThrottleLimits
from tests.engine.throttle.clock import MS, PATIENCE, FakeClock, Requests

NONE = {"bps": 0, "bps_rd": 0, "bps_wr": 0, "iops": 0, "iops_rd": 0, "iops_wr": 0}


def device(engine: Engine, name: str) -> BlockBackend:
    """A named back end with a disk of null-co."""
    engine.execute("blockdev-add", {"driver": "null-co", "node-name": f"{name}-n"})
    graph = engine.graph
    perm = Perm.CONSISTENT_READ | Perm.WRITE
    found: BlockBackend = engine.control.call(
        lambda: graph.add_backend("device", name, graph.node(f"{name}-n"), perm, Perm.ALL)
    )
    return found


def limit(engine: Engine, name: str, **limits: Any) -> None:
    engine.execute("block_set_io_throttle", {"device": name, **NONE, **limits})


def shown(engine: Engine, name: str) -> dict[str, Any]:
    """The members about throttling of a device's medium in query-block."""
    inserted = next(found["inserted"] for found in engine.execute("query-block") if found["device"] == name)
    return {key: value for key, value in inserted.items() if key.startswith(("bps", "iops")) or key == "group"}


def printed(engine: Engine, line: str) -> str:
    return asyncio.run_coroutine_threadsafe(run_line(engine, line), engine.control.loop).result(PATIENCE)


def test_limits_are_shown_where_the_device_is(engine: Engine) -> None:
    device(engine, "d0")
    limit(engine, "d0", iops_rd=5, iops_wr=7, iops_rd_max=50, iops_rd_max_length=3, iops_size=4096)
    assert shown(engine, "d0") == NONE | {
        "iops_rd": 5,
        "iops_wr": 7,
        "iops_rd_max": 50,
        "iops_rd_max_length": 3,
        "iops_size": 4096,
        "group": "d0",
    }
    node = engine.execute("query-named-block-nodes", {"flat": True})[0]
    assert (node["iops_rd"], "group" in node) == (0, False)
    assert (
        "    I/O throttling:   bps=0 bps_rd=0 bps_wr=0 bps_max=0 bps_rd_max=0 bps_wr_max=0 iops=0 iops_rd=5 iops_wr=7 "
        "iops_max=0 iops_rd_max=50 iops_wr_max=0 iops_size=4096 group=d0\r\n"
    ) in printed(engine, "info block d0")
    limit(engine, "d0")
    assert shown(engine, "d0") == NONE
    assert "throttling" not in printed(engine, "info block d0")


def test_devices_of_a_group_have_the_limits_set_last(engine: Engine) -> None:
    for name in ("d0", "d1"):
        device(engine, name)
    limit(engine, "d0", iops=50, group="g")
    limit(engine, "d1", bps=60, group="g")
    assert shown(engine, "d0") == shown(engine, "d1") == NONE | {"bps": 60, "group": "g"}
    limit(engine, "d0", iops=1, group="h")
    limit(engine, "d0", iops=2)
    assert shown(engine, "d0") == NONE | {"iops": 2, "group": "h"}
    assert shown(engine, "d1") == NONE | {"bps": 60, "group": "g"}


def test_groups_of_devices_and_of_objects_are_the_same(engine: Engine) -> None:
    device(engine, "d0")
    limit(engine, "d0", iops=50)
    with pytest.raises(GenericError, match="A group with this name already exists"):
        engine.execute("object-add", {"qom-type": "throttle-group", "id": "d0"})
    engine.execute("object-add", {"qom-type": "throttle-group", "id": "g", "limits": {"bps-total": 1000}})
    limit(engine, "d0", iops_rd=5, group="g")
    assert engine.execute("qom-get", {"path": "g", "property": "x-iops-read"}) == 5
    with pytest.raises(GenericError, match="object 'g' is in use, can not be deleted"):
        engine.execute("object-del", {"id": "g"})
    limit(engine, "d0")
    engine.execute("object-del", {"id": "g"})
    with pytest.raises(GenericError, match="Throttle group 'd0' does not exist"):
        engine.objects.throttle_groups.find("d0")


def test_the_group_goes_with_the_device(engine: Engine) -> None:
    found = device(engine, "d0")
    limit(engine, "d0", iops=50)
    engine.control.call(lambda: engine.graph.remove_backend(found))
    engine.execute("object-add", {"qom-type": "throttle-group", "id": "d0"})


def test_requests_of_the_device_wait(engine: Engine) -> None:
    clock = FakeClock()
    engine.objects.throttle_groups = ThrottleGroups(clock)
    found = device(engine, "d0")
    limit(engine, "d0", bps=1000)
    requests = Requests(clock)
    found.write(0, memoryview(bytes(1000)))
    requests.start("read", lambda: found.read(0, memoryview(bytearray(10))))
    assert clock.waiting == [900 * MS]
    # What moves no data does not.
    found.discard(0, 1 << 20)
    found.flush()
    limit(engine, "d0")
    requests.join()


def test_a_drain_lets_what_waits_through(engine: Engine) -> None:
    clock = FakeClock()
    engine.objects.throttle_groups = ThrottleGroups(clock)
    found = device(engine, "d0")
    limit(engine, "d0", bps=1000)
    requests = Requests(clock)
    found.write(0, memoryview(bytes(1000)))
    requests.start("during", lambda: found.read(0, memoryview(bytearray(10))))

    def drain() -> None:
        with drained([engine.graph.node("d0-n")]):
            # Nothing new comes in, limited or not, and what leaves the limiter waits for the end of the drain.
            limit_now(engine, found, 500)
            assert requests.done == []

    engine.control.call(drain)
    requests.join()
    found.write(0, memoryview(bytes(100)))
    requests = Requests(clock)
    requests.start("after", lambda: found.read(0, memoryview(bytearray(10))))
    assert len(clock.waiting) == 1
    limit(engine, "d0")
    requests.join()


def limit_now(engine: Engine, backend: BlockBackend, bps: int) -> None:
    """Put a device into another group, on the control plane."""
    config = ThrottleLimits(bps_total=bps).apply_to(ThrottleConfig())
    set_limits(engine.objects.throttle_groups, backend, config, "other", "")


def test_the_monitors_command(engine: Engine) -> None:
    device(engine, "d0")
    assert printed(engine, "block_set_io_throttle d0 0 0 0 10 0 0") == ""
    assert shown(engine, "d0")["iops"] == 10
    answers = [
        printed(engine, f"block_set_io_throttle {rest}") for rest in ("d0 1 1 0 0 0 0", "d1 0 0 0 1 0 0", "d0 1 2 3")
    ]
    assert answers == [
        "Error: bps/iops/max total values and read/write values cannot be used at the same time\r\n",
        "Error: Device 'd1' not found\r\n",
        'unexpected end of expression\r\nTry "help block_set_io_throttle" for more information\r\n',
    ]


def test_which_device(engine: Engine) -> None:
    found = device(engine, "d0")
    for wrong in ({}, {"device": "d0", "id": "d0"}):
        with pytest.raises(GenericError, match="Need exactly one of 'device' and 'id'"):
            engine.execute("block_set_io_throttle", {**wrong, **NONE})
    for wrong in ({"device": "d1"}, {"id": "d0"}):
        with pytest.raises(DeviceNotFound, match=r"Device 'd[01]' not found"):
            engine.execute("block_set_io_throttle", {**wrong, **NONE})
    engine.control.call(lambda: engine.graph.eject(found))
    with pytest.raises(GenericError, match="Device has no medium"):
        limit(engine, "d0", bps=1)
