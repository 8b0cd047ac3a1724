"""Blocking work of a command in a thread of its own, so that the control plane goes on meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def in_thread(work: Callable[[], T]) -> T:
    """Run *work* in a new thread and return its result. Once started it runs to its end, cancelled or not."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def finish(result: T | None, error: BaseException | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result: T | None = None
        error: BaseException | None = None
        try:
            result = work()
        except BaseException as exc:  # handed to whoever waits
            error = exc
        try:
            loop.call_soon_threadsafe(finish, result, error)
        except RuntimeError:
            pass  # the engine has been closed without waiting

    threading.Thread(target=run, name="monitor I/O", daemon=True).start()
    return await done
