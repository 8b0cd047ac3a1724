"""Scripts played on the real engine inside this process."""

import asyncio
import io
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from blockmon.backend.embedded import EmbeddedBackend
from blockmon.exitcodes import ExitStatus
from blockmon.options import CommonOptions, RunOptions
from blockmon.replay.output import TextOutput
from blockmon.replay.runner import Runner


@dataclass
class Played:
    """How a script went; `told` are its failures as FILE:LINE:COLUMN: TEXT, without the folder."""

    status: ExitStatus
    out: str
    told: list[str]
    runner: Runner


Play = Callable[..., Awaitable[Played]]


@pytest.fixture
async def engine() -> AsyncIterator[EmbeddedBackend]:
    backend = EmbeddedBackend(CommonOptions())
    await backend.start()
    yield backend
    await backend.close()


@pytest.fixture
def play(engine: EmbeddedBackend, tmp_path: Path) -> Play:
    """Play a text as the file "s": `await play(text, keep_going=True)`."""

    async def run(text: str, *, observer: Any = None, gate: Any = None, remote: bool = False, **options: Any) -> Played:
        path = tmp_path / "s"
        if text:
            path.write_text(text)
        out = io.StringIO()
        runner = Runner(engine, TextOutput(out), RunOptions(**options), observer=observer, gate=gate, remote=remote)
        try:
            async with asyncio.timeout(20):
                status = await runner.run(str(path))
        finally:
            runner.close()
        told = [str(error).replace(f"{tmp_path}/", "") for error in runner.failures]
        return Played(status, out.getvalue(), told, runner)

    return run
