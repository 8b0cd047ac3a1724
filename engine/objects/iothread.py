"""iothread: a named event loop in a thread of its own, with workers for requests that block.

Whoever serves a node that lies in an iothread (``node.iothread``: exports, devices) runs its protocol on the iothread's
loop and its requests, which are blocking calls, on the iothread's workers; so one busy disk's clients do not queue
behind another's. A request itself may run in any thread, hence nothing breaks if it doesn't.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final, TypeVar

from engine.errors import GenericError
from engine.objects.base import UserObject, user_creatable
from engine.qapi import Int, Struct
from engine.qapi.types import Member

if TYPE_CHECKING:
    from engine.objects.store import Objects

_T = TypeVar("_T")
_INT64_MAX: Final = (1 << 63) - 1
_INT_MAX: Final = (1 << 31) - 1


class EventLoopBaseProperties(Struct):
    """Options of event loops.

    aio_max_batch: requests handed to the kernel at once, 0 for the engine's choice. thread_pool_min, thread_pool_max:
    how many workers there are even when idle, and at most.
    """

    aio_max_batch: Int | None = None
    thread_pool_min: Int | None = None
    thread_pool_max: Int | None = None


class IothreadProperties(EventLoopBaseProperties):
    """Options of an iothread.

    poll_max_ns, poll_grow, poll_shrink: for how many nanoseconds the threads that serve NBD clients wait busily for
    the next request at most (0: never; not given: 100,000), and by what factors the time adapts (0: double, drop at
    once). See ``engine.exports.nbd.polling``.
    """

    poll_max_ns: Int | None = None
    poll_grow: Int | None = None
    poll_shrink: Int | None = None


@user_creatable
class IOThread(UserObject):
    """A named loop and its workers. submit() and run() may be called from any thread."""

    options: IothreadProperties

    type_name = "iothread"
    ancestors = ("event-loop-base", "object")
    Options = IothreadProperties
    properties = ("thread-pool-min", "aio-max-batch", "thread-pool-max", "poll-max-ns", "poll-grow", "poll-shrink")
    defaults = {"thread-pool-max": 64, "poll-max-ns": 32768}  # noqa: RUF012
    # QEMU 7.2 lets go of an iothread in use, and crashes when its nodes are used next.
    deletable_in_use = False

    def __init__(self, objects: Objects, id: str, options: IothreadProperties) -> None:
        super().__init__(objects, id, options)
        for member in options.qapi_members():
            self._check_range(member, getattr(options, member.attr))
        _check_pool(self.get_property("thread-pool-min"), self.get_property("thread-pool-max"))

    def complete(self) -> None:
        self.loop = asyncio.new_event_loop()
        started = threading.Event()
        self._workers = self._make_workers()
        self._thread = threading.Thread(target=self._run, args=(started,), name=f"IO {self.id}", daemon=True)
        self._thread.start()
        started.wait()

    def _run(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.call_soon(started.set)
        self.loop.run_forever()
        self.loop.close()

    @property
    def thread_id(self) -> int:
        """The system's id of the loop's thread."""
        return self._thread.native_id or 0

    @property
    def here(self) -> bool:
        """Whether the caller runs on the loop."""
        return threading.current_thread() is self._thread

    def submit(self, function: Callable[..., _T], *args: Any) -> concurrent.futures.Future[_T]:
        """Run a blocking *function* (a request) on a worker."""
        return self._workers.submit(function, *args)

    def run(self, coroutine: Coroutine[Any, Any, _T]) -> concurrent.futures.Future[_T]:
        """Run a coroutine on the loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def _make_workers(self) -> concurrent.futures.ThreadPoolExecutor:
        least, most = self.get_property("thread-pool-min"), self.get_property("thread-pool-max")
        workers = concurrent.futures.ThreadPoolExecutor(most, thread_name_prefix=f"worker {self.id}")
        if least:
            # The pool starts threads as they are needed; these wait for one another, so each needs its own.
            barrier = threading.Barrier(least)
            concurrent.futures.wait([workers.submit(barrier.wait) for _ in range(least)])
        self.loop.set_default_executor(workers)
        return workers

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self._workers.shutdown(wait=False)

    # -- options ---------------------------------------------------------------------------------------------

    def _check_range(self, member: Member, value: int | None) -> None:
        if value is not None and value < 0:
            raise GenericError(f"{member.name} value must be in range [0, {_INT64_MAX}]")

    def change(self, member: Member, value: int) -> None:
        self._check_range(member, value)
        if not member.name.startswith("thread-pool-"):
            super().change(member, value)
            return
        sizes = {name: self.get_property(name) for name in ("thread-pool-min", "thread-pool-max")}
        sizes[member.name] = value
        _check_pool(sizes["thread-pool-min"], sizes["thread-pool-max"])
        super().change(member, value)
        old, self._workers = self._workers, self._make_workers()
        old.shutdown(wait=False)


def _check_pool(least: int, most: int) -> None:
    if least > most or not 0 < most <= _INT_MAX or least > _INT_MAX:
        raise GenericError("bad thread-pool-min/thread-pool-max values")


def find_iothread(objects: Objects, id: str) -> IOThread:
    """The iothread called *id*, as an option names it. Errors: GenericError."""
    found = objects.get(id, IOThread)
    if found is None:
        raise GenericError(f'iothread "{id}" not found')
    return found
