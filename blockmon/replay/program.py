"""`blockmon run`: the backend around the scripts, and what is told about them."""

import asyncio
import contextlib
import dataclasses
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

from blockmon.backend import open_backend
from blockmon.backend.recording import STOPPED as RECORDING_STOPPED
from blockmon.exitcodes import ExitStatus
from blockmon.replay.errors import OutputLost, ScriptError, Skipped
from blockmon.replay.narration import Asker, Trace
from blockmon.replay.output import JSONOutput, TextOutput
from blockmon.replay.reader import unreadable
from blockmon.replay.report import Case, unwritable, write_report
from blockmon.replay.runner import Runner

if TYPE_CHECKING:
    from blockmon.backend import Backend, Event
    from blockmon.options import CommonOptions
    from blockmon.replay.control import Decision
    from blockmon.replay.output import Output
    from blockmon.replay.runner import Observer
    from blockmon.replay.statements import Statement

    Gate = Callable[[Statement], Awaitable[Decision]]

TERMINATED = 128 + signal.SIGTERM


def main(options: "CommonOptions", scripts: list[str]) -> int:
    """Run *scripts* and return the exit status. Raises StartupError."""
    # Noticed before anything runs, not after the scripts in front of it.
    problem = unreadable_script(scripts)
    if problem:
        print(f"blockmon: {problem}", file=sys.stderr)
        return ExitStatus.USAGE
    if options.run.junit is not None and (problem := unwritable(options.run.junit)):
        print(f"blockmon: --junit {options.run.junit}: {problem}", file=sys.stderr)
        return ExitStatus.USAGE
    if options.run.step and not sys.stdin.isatty():
        print("blockmon: --step: standard input is no terminal to ask at", file=sys.stderr)
        return ExitStatus.USAGE
    try:
        return asyncio.run(Program(options, scripts).run())
    except asyncio.CancelledError:
        return ExitStatus.INTERRUPTED


class Program:
    """The scripts of one run, and how they went. A front end may take what is told, and drive the runner.

    out: takes the answers. say: takes what else there is to tell, failures too; by default stderr does.
    """

    def __init__(
        self,
        options: "CommonOptions",
        scripts: list[str],
        out: "Output | None" = None,
        *,
        observer: "Observer | None" = None,
        gate: "Gate | None" = None,
        say: "Callable[[str], None] | None" = None,
    ) -> None:
        if options.run.dry_run:
            # What the engine would be set up with is not needed to ask for its schema.
            options = dataclasses.replace(options, images=[], startup=[], prepare=None, pidfile=None)
        self._options = options
        self._scripts = scripts
        self._signal = 0
        self._cases: list[Case] = []
        own = JSONOutput(sys.stdout, sys.stderr) if options.run.json else TextOutput(sys.stdout)
        self._out: Output = out if out is not None else own
        self._observer = observer if observer is not None else Trace(sys.stderr) if options.run.trace else None
        self._gate = gate if gate is not None else Asker(sys.stderr).gate if options.run.step else None
        self._say = say if say is not None else _say

    async def run(self) -> int:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def end(number: int) -> None:
            # What is deferred runs now, and the engine has metadata to write back: the signal must not just end the
            # process. A second one ends what is deferred.
            self._signal = number
            task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, end, number)
        backend = open_backend(self._options)
        self.watch_recording(backend)
        status: int = ExitStatus.OK
        try:
            await backend.start()
            try:
                status = await self.run_all(backend)
            finally:
                await backend.close()
        except asyncio.CancelledError:
            if not self._signal:
                raise
            status = TERMINATED if self._signal == signal.SIGTERM else ExitStatus.INTERRUPTED
        status = self.report() or status
        _forget_unwritten()
        return status

    def watch_recording(self, backend: "Backend") -> None:
        """Say so when --record can write no more."""

        def look(events: "Sequence[Event]") -> None:
            for event in events:
                if event["event"] == RECORDING_STOPPED:
                    self._say(f"--record {event['data']['reason']}")

        backend.subscribe(look)

    async def run_all(self, backend: "Backend") -> int:
        """Run the scripts on *backend*, which is started, and tell how it went as an exit status."""
        options = self._options.run
        runner = Runner(
            backend,
            self._out,
            options,
            remote=self._options.connect is not None,
            observer=self._observer,
            gate=self._gate,
            on_failure=lambda error: self._say(str(error)),
        )
        try:
            for script in self._scripts:
                if runner.ended:
                    break
                case = await self._run_one(runner, script)
                if case.status not in (ExitStatus.OK, ExitStatus.SKIPPED) and not self._goes_on(case):
                    break
        finally:
            runner.close()
            for path, problem in ({} if self._signal else runner.updates.write()).items():
                self._say(f"{path}: {problem}")
                self._cases.append(Case(path, status=ExitStatus.FAILED))
        failed = next((c.status for c in self._cases if c.status not in (ExitStatus.OK, ExitStatus.SKIPPED)), None)
        if failed is not None:
            return failed
        skipped = bool(self._cases) and all(case.status == ExitStatus.SKIPPED for case in self._cases)
        return ExitStatus.SKIPPED if skipped else ExitStatus.OK

    def _goes_on(self, case: Case) -> bool:
        """Whether the next script runs behind one that failed."""
        run = self._options.run
        return (run.keep_going or run.dry_run) and case.status != ExitStatus.INTERRUPTED

    async def _run_one(self, runner: Runner, script: str) -> Case:
        case = Case("<stdin>" if script == "-" else script)
        self._cases.append(case)
        start = time.monotonic()
        try:
            case.status = await runner.run(script)
        except Skipped as skipped:
            self._say(f"{case.name}: skipped: {skipped}")
            case.skipped = str(skipped)
            case.status = runner.failures[0].status if runner.failures else ExitStatus.SKIPPED
        except asyncio.CancelledError:
            case.status = ExitStatus.INTERRUPTED
            case.failures.append(ScriptError("interrupted", case.name, 1, 1, ExitStatus.INTERRUPTED))
            raise
        finally:
            case.seconds = time.monotonic() - start
            case.statements = runner.statements
            case.failures += runner.failures
        with contextlib.suppress(OutputLost):
            self._out.result(_result(case))
        return case

    def report(self) -> int:
        """Write the report that --junit asks for; the exit status of failing to."""
        path = self._options.run.junit
        if path is None:
            return ExitStatus.OK
        try:
            write_report(path, self._cases)
        except OSError as error:
            print(f"blockmon: --junit {path}: {error.strerror or error}", file=sys.stderr)
            return ExitStatus.USAGE
        return ExitStatus.OK


def unreadable_script(scripts: "Sequence[str]") -> str:
    """The first of *scripts* that cannot be read, and why; "" when all can."""
    problems = ((script, "" if script == "-" else unreadable(script)) for script in scripts)
    return next((f"{script}: {problem}" for script, problem in problems if problem), "")


def _say(text: str) -> None:
    # Answers and errors may share a terminal, so they come in their order.
    # (Either is None where Python found it closed.)
    with contextlib.suppress(OSError):
        if sys.stdout is not None:
            sys.stdout.flush()
    with contextlib.suppress(OSError):
        if sys.stderr is not None:
            print(text, file=sys.stderr, flush=True)


def _result(case: Case) -> dict[str, Any]:
    found: dict[str, Any] = {
        "script": case.name,
        "status": int(case.status),
        "statements": case.statements,
        "seconds": round(case.seconds, 6),
    }
    if case.skipped:
        found["skipped"] = case.skipped
    if case.failures:
        found["failures"] = [
            {"file": e.file, "line": e.line, "column": e.column, "message": e.message} for e in case.failures
        ]
    return found


def _forget_unwritten() -> None:
    """Keep the interpreter from complaining at exit once more about an output that could not be written."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
