"""Commands and events: registration, dispatch, what a command tells about itself."""

from __future__ import annotations

import time
from typing import Any

import pytest

from engine.errors import DeviceNotActive, DeviceNotFound, GenericError, QMPError, os_error_text
from engine.qapi import Registry, Struct, to_wire
from engine.qapi.builtin import INT
from engine.qapi.types import Array
from tests.engine.qapi import sample


class Thing(Struct):
    a_b: int


@pytest.fixture
def registry() -> Registry:
    return Registry()


def test_arguments_arrive_under_their_python_names(registry: Registry) -> None:
    @registry.command(since="1.1")
    def do_it(context: list[Any], *, job_id: str | None = None, size: int, on: bool = True) -> Thing:
        context.append((job_id, size, on))
        return Thing(a_b=size)

    seen: list[Any] = []
    assert registry.dispatch(seen, "do-it", {"job-id": "j", "size": 3}) == {"a-b": 3}
    assert registry.dispatch(seen, "do-it", {"size": 4, "on": False}) == {"a-b": 4}
    assert seen == [("j", 3, True), (None, 4, False)]
    assert do_it(seen, size=1) == Thing(a_b=1)
    command = registry.commands["do-it"]
    assert (command.name, command.since, command.returns) == ("do-it", "1.1", Thing)
    assert [(m.name, m.type, m.optional) for m in command.arguments][1] == ("size", INT, False)


def test_nothing_is_an_empty_object(registry: Registry) -> None:
    @registry.command()
    def nothing(context: Any) -> None:
        """Do nothing."""

    assert registry.dispatch(None, "nothing") == {}
    assert registry.dispatch(None, "nothing", {}) == {}
    assert registry.commands["nothing"].returns is None


def test_a_boxed_command_gets_one_object(registry: Registry) -> None:
    @registry.command(boxed=True)
    def take(context: Any, arg: sample.Options) -> list[str]:
        return [arg.driver, arg.branch.filename]

    assert registry.dispatch(None, "take", {"driver": "file", "filename": "x"}) == ["file", "x"]
    command = registry.commands["take"]
    assert command.argument_type is sample.Options
    assert [m.name for m in command.arguments][:2] == ["driver", "node-name"]
    assert isinstance(command.returns, Array)


def test_old_forms_are_rewritten_before_they_are_checked(registry: Registry) -> None:
    def unwrap(arguments: dict[str, Any]) -> dict[str, Any]:
        return arguments["options"] if set(arguments) == {"options"} else arguments

    @registry.command(boxed=True, rewrite=unwrap)
    def take(context: Any, arg: Thing) -> int:
        return arg.a_b

    given = {"options": {"a-b": 5}}
    assert registry.dispatch(None, "take", given) == 5
    assert registry.dispatch(None, "take", {"a-b": 6}) == 6
    assert given == {"options": {"a-b": 5}}


async def test_a_coroutine_command_is_awaited(registry: Registry) -> None:
    @registry.command()
    async def later(context: Any, *, fail: bool = False) -> Thing | None:
        if fail:
            raise DeviceNotActive("no job")
        return Thing(a_b=1)

    assert await registry.dispatch(None, "later") == {"a-b": 1}
    with pytest.raises(DeviceNotActive, match="no job"):
        await registry.dispatch(None, "later", {"fail": True})
    with pytest.raises(GenericError, match="'x' is unexpected"):
        registry.dispatch(None, "later", {"x": 1})


def test_names_are_taken_once(registry: Registry) -> None:
    def function(context: Any) -> None: ...

    registry.command("x")(function)
    other = type(function)(function.__code__, {"__name__": "elsewhere"})
    other.__module__ = "elsewhere"
    with pytest.raises(ValueError, match="the command x exists already"):
        registry.command("x")(other)


def test_arguments_need_annotations(registry: Registry) -> None:
    @registry.command()
    def loose(context, *, a) -> None:  # type: ignore[no-untyped-def]
        """Nobody knows what *a* is."""

    with pytest.raises(TypeError, match="'a' of loose has no annotation"):
        registry.dispatch(None, "loose", {"a": 1})


def test_events_are_structs_with_a_name(registry: Registry) -> None:
    @registry.event
    class BlockJobReady(Thing, name="BLOCK_JOB_READY"):
        pass

    @registry.event("OTHER")
    class Odd(Thing):
        pass

    @registry.event
    class JobStatusChange(BlockJobReady):
        pass

    assert [cls.EVENT for cls in (BlockJobReady, Odd, JobStatusChange)] == [
        "BLOCK_JOB_READY",
        "OTHER",
        "JOB_STATUS_CHANGE",
    ]
    assert registry.events["OTHER"] is Odd
    assert to_wire(BlockJobReady(a_b=1)) == {"a-b": 1}
    assert Thing.EVENT == ""


def test_errors_know_their_class() -> None:
    error = DeviceNotFound("Cannot find x", hint="try y")
    assert isinstance(error, QMPError)
    assert (error.error_class, error.desc, error.hint, str(error)) == (
        "DeviceNotFound",
        "Cannot find x",
        "try y",
        "Cannot find x",
    )
    assert GenericError("x").hint is None


def test_texts_of_system_errors() -> None:
    assert os_error_text(FileNotFoundError(2, "whatever", "/x")) == "No such file or directory"
    assert os_error_text(OSError("only words")) == "only words"


def test_dispatch_is_quick(registry: Registry) -> None:
    @registry.command()
    def null(context: Any) -> None:
        """Do nothing."""

    best = 0.0
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(3000):
            registry.dispatch(None, "null", {})
        best = max(best, 3000 / (time.perf_counter() - start))
    assert best > 30_000
