"""@wait-job: go on when a job has reached a state."""

import asyncio
import errno
import os
from typing import TYPE_CHECKING

from blockmon.replay.directives import Action, Call, directive, take_timeout, unquote
from blockmon.replay.errors import StatementFailed, WaitTimedOut

if TYPE_CHECKING:
    from blockmon.replay.runner import Runner

STATUSES = (
    *("undefined", "created", "running", "paused", "ready", "standby", "waiting", "pending"),
    *("aborting", "concluded", "null"),
)
SUCCESS = "success"  # our own word: concluded, and neither failed nor cancelled
_CANCELLED = os.strerror(errno.ECANCELED)
_LATE_EVENT = 1.0  # seconds a job's first event may come behind the answer to the command that made the job


@directive("wait-job", "ID STATUS[|STATUS...] [timeout=5s]")
def wait_job(call: Call) -> Action:
    """Wait until the job ID is, or since the last command was, in one of the states.

    Fails at once when it can no longer get there, and when it concluded with an error although concluded (or
    success, which also rules out cancelling) was waited for. Without timeout= and @timeout it waits as long as the job
    takes.
    """
    words = call.words()
    given = take_timeout(call, words)
    if len(words) != 2 or words[0].key or words[1].key:
        raise call.usage()
    job, wanted = unquote(words[0].value), unquote(words[1].value).split("|")
    for status in wanted:
        if status not in STATUSES and status != SUCCESS:
            names = f"{', '.join(STATUSES)} or {SUCCESS}"
            raise call.error(f"'{status}' is not a job status ({names})", words[1].offset)

    async def act(runner: "Runner") -> None:
        timeout = given if given is not None else runner.timeout
        try:
            async with asyncio.timeout(timeout):
                await _Wait(runner, job, wanted).finish()
        except TimeoutError:
            history = runner.watch.jobs.get(job)
            now = history.status if history else None
            raise WaitTimedOut(
                f"job '{job}' did not become {' or '.join(wanted)} within {timeout:g} s"
                + (f"; it is {now}" if now else "")
            ) from None

    return act


class _Wait:
    def __init__(self, runner: "Runner", job: str, wanted: list[str]) -> None:
        self.runner = runner
        self.job = job
        self.wanted = wanted

    async def finish(self) -> None:
        watch = self.runner.watch
        if self.job not in watch.jobs or watch.jobs[self.job].status is None:
            await self._ask()
        while not await self._is_over():
            await watch.news()

    async def _ask(self) -> None:
        """Find out about a job that no event has told about: it is older than the script, or its events are late."""
        watch = self.runner.watch
        found = await self._query()
        if found is not None:
            watch.adopt_job(self.job, str(found["status"]))
            return
        try:
            async with asyncio.timeout(_LATE_EVENT):
                while self.job not in watch.jobs or watch.jobs[self.job].status is None:
                    await watch.news()
        except TimeoutError:
            raise StatementFailed(f"there is no job '{self.job}'") from None

    async def _query(self) -> "dict[str, object] | None":
        jobs = await self.runner.execute("query-jobs")
        return next((entry for entry in jobs if entry["id"] == self.job), None)

    def _is_wanted(self, status: str | None) -> bool:
        return status in self.wanted or (status == "concluded" and SUCCESS in self.wanted)

    async def _is_over(self) -> bool:
        history = self.runner.watch.jobs[self.job]
        # The first state that is wanted decides, so that it does not matter how late this looks.
        reached = next(filter(self._is_wanted, [*history.names(self.runner.watch.mark), history.status]), None)
        if reached is not None:
            if reached == "concluded":
                await self._check_outcome()
            return True
        if not {"concluded", "null"} & set(history.names()):
            return False
        # It has ended, and what it was before it ended it will not be again.
        if self._is_wanted("concluded"):
            await self._check_outcome()
            return True
        if "null" in self.wanted:
            return False
        error = await self._error()
        raise StatementFailed(
            f"job '{self.job}' ended without becoming {' or '.join(self.wanted)}" + (f": {error}" if error else "")
        )

    async def _check_outcome(self) -> None:
        error = await self._error()
        history = self.runner.watch.jobs[self.job]
        if not history.cancelled and error:
            raise StatementFailed(f"job '{self.job}' failed: {error}")
        if history.cancelled and SUCCESS in self.wanted:
            raise StatementFailed(f"job '{self.job}' was cancelled")

    async def _error(self) -> str | None:
        """What the job concluded with; a job that is gone told it by its events only."""
        history = self.runner.watch.jobs[self.job]
        if history.error is None and history.status != "null":
            found = await self._query()
            if found is not None and found.get("error") is not None:
                history.error = str(found["error"])
        if history.error == _CANCELLED:
            # Jobs that are no block jobs have no event that tells it.
            history.cancelled = True
        if history.error is None and not history.cancelled and "aborting" in history.names():
            return "it was aborted, and is gone with its error"
        return history.error
