"""Driving a run: batches, going on behind failures, pause and step, and what an observer is told."""

import asyncio
from collections.abc import Sequence
from typing import Any

from blockmon.backend.embedded import EmbeddedBackend
from blockmon.exitcodes import ExitStatus
from blockmon.replay.control import Controls
from blockmon.replay.errors import ScriptError
from blockmon.replay.statements import Statement
from tests.blockmon.replay.conftest import Play

ADD = "blockdev-add driver=null-co node-name="


async def nodes(engine: EmbeddedBackend) -> list[str]:
    return sorted(node["node-name"] for node in await engine.execute("query-named-block-nodes"))


class Log:
    """An observer that notes everything."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.events: list[str] = []

    def on_statement(self, statement: Statement) -> None:
        self.lines.append(f"{statement.line} {statement.text}")

    def on_answer(self, statement: Statement, value: Any) -> None:
        self.lines.append(f"{statement.line} -> {value}")

    def on_failure(self, error: ScriptError) -> None:
        self.lines.append(f"{error.line} !! {error.message}")

    def on_event(self, events: Sequence[Any]) -> None:
        self.events += [event["event"] for event in events]


class TestBatches:
    async def test_nothing_runs_behind_a_failure(self, play: Play, engine: EmbeddedBackend) -> None:
        played = await play(f"{ADD}a\nquery-jobs\nblockdev-del node-name=x\n{ADD}b\n{ADD}c\n")
        assert await nodes(engine) == ["a"]
        assert played.out == "{}\n[]\n"
        assert played.told == [
            "s:3:1: blockdev-del: GenericError: Failed to find node with node-name='x'; there is only 'a'"
        ]

    async def test_what_stands_in_front_of_a_mistake_runs(self, play: Play, engine: EmbeddedBackend) -> None:
        for number, mistake in enumerate(("block-stream x", "@nonsense", "@echo ${NO}", '{"execute"', "----\n(\n(")):
            played = await play(f"{ADD}n{number}\n{mistake}\n{ADD}never\n")
            assert played.status in (ExitStatus.USAGE, ExitStatus.FAILED)
            assert played.out == "{}\n"
        assert await nodes(engine) == [f"n{number}" for number in range(5)]

    async def test_failure_comes_before_a_later_mistake(self, play: Play) -> None:
        for mistake in ("block-stream x", "@nonsense", '{"execute"', "@echo ${NO}"):
            played = await play(f"query-jobs\nblockdev-del node-name=x\n{mistake}\n")
            assert played.told == ["s:2:1: blockdev-del: GenericError: Failed to find node with node-name='x'"]

    async def test_going_on(self, play: Play, engine: EmbeddedBackend) -> None:
        text = (
            f"blockdev-del node-name=x\n{ADD}a\nblockdev-del node-name=y\nblockdev-del node-name=z\n{ADD}b\n"
            "@expect $ == 1\nblockdev-del node-name=q\n@error GenericError /'q'/\n"
            "info nothing\n@wait-event STOP timeout=1ms\n"
            f"{ADD}c\nblockdev-del node-name=end\n"
        )
        played = await play(text, keep_going=True)
        assert [line.split(":")[1] for line in played.told] == ["1", "3", "4", "6", "9", "10", "12"]
        assert played.status == ExitStatus.FAILED
        assert await nodes(engine) == ["a", "b", "c"]
        assert (await play("@wait-event STOP timeout=1ms\nquery-jobs\n", keep_going=True)).status == ExitStatus.TIMEOUT

    async def test_mistake_ends_a_script_that_keeps_going(self, play: Play) -> None:
        played = await play("blockdev-del node-name=x\n@nonsense\n@echo no\n", keep_going=True)
        assert played.told[1].startswith("s:2:1: unknown directive")
        assert (len(played.told), played.out) == (2, "")

    async def test_more_than_fit_into_one(self, play: Play, engine: EmbeddedBackend) -> None:
        text = "".join(f"{ADD}n{number}\nquery-jobs\n" for number in range(300))
        played = await play(text + "info block -n n299\n@expect $ ~ n299\n")
        assert played.told == []
        assert len(await nodes(engine)) == 300
        played = await play("".join(f"blockdev-del node-name=n{number}\n" for number in range(301)))
        assert played.told == ["s:301:1: blockdev-del: GenericError: Failed to find node with node-name='n300'"]

    async def test_order_is_the_same_with_an_observer(self, play: Play, engine: EmbeddedBackend) -> None:
        log = Log()
        await play(
            f"{ADD}a\nquery-jobs\nblockdev-del node-name=x\n@error GenericError /x/\nblockdev-del node-name=y\n",
            observer=log,
        )
        assert log.lines == [
            f"1 {ADD}a",
            "1 -> {}",
            "2 query-jobs",
            "2 -> []",
            "3 blockdev-del node-name=x",
            "3 -> {'class': 'GenericError', 'desc': \"Failed to find node with node-name='x'\"}",
            "4 @error GenericError /x/",
            "5 blockdev-del node-name=y",
            "5 -> {'class': 'GenericError', 'desc': \"Failed to find node with node-name='y'\"}",
            "5 !! blockdev-del: GenericError: Failed to find node with node-name='y'; there is only 'a'",
        ]
        assert "X_BLOCKMON_GRAPH_CHANGE" in log.events


class TestControls:
    async def held(self, controls: Controls) -> int:
        """The line the run is held in front of."""
        async with asyncio.timeout(10):
            while controls.held is None:  # noqa: ASYNC110  (what a front end sees, too)
                await asyncio.sleep(0)
        return controls.held.line

    async def test_steps(self, play: Play) -> None:
        controls = Controls(paused=True)
        task = asyncio.ensure_future(
            play("@echo 1\n@echo 2\n@repeat 2\n@echo x\n@end\n@echo 6\n@echo 7\n@echo 8\n", gate=controls.gate)
        )
        seen = []
        for turn in (controls.step, controls.skip, controls.step, controls.step, controls.skip, controls.resume):
            seen.append(await self.held(controls))
            turn()
            assert controls.paused is (turn != controls.resume)
        played = await task
        assert seen == [1, 2, 3, 4, 4, 6]
        assert played.out == "1\nx\n6\n7\n8\n"
        assert played.status == ExitStatus.OK

    async def test_pause_and_stop(self, play: Play, engine: EmbeddedBackend) -> None:
        controls = Controls()

        class Pauses(Log):
            def on_statement(self, statement: Statement) -> None:
                if statement.line == 3:
                    controls.pause()

        task = asyncio.ensure_future(
            play(f"{ADD}a\n@defer blockdev-del node-name=a\n{ADD}b\n@echo no\n", gate=controls.gate, observer=Pauses())
        )
        assert await self.held(controls) == 3
        assert await nodes(engine) == ["a"]
        controls.stop()
        played = await task
        assert (played.status, played.told) == (ExitStatus.INTERRUPTED, ["s:3:1: stopped here"])
        assert await nodes(engine) == []
