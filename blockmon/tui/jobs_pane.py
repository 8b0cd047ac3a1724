"""The jobs: bars, status, rate, time left, and how those that are over ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.message import Message

from blockmon.model.format import duration_short, elide_middle, rate_short, safe_text, size_short
from blockmon.model.jobs import FAILED, Job
from blockmon.model.refresher import Changes, ScreenState
from blockmon.tui.actions import JOB_ACTIONS, Choice, job_choices
from blockmon.tui.line import Line
from blockmon.tui.look import Look
from blockmon.tui.rows import RowsPane
from blockmon.tui.subject import JobSubject, Subject
from blockmon.tui.symbols import Symbols

_STATUS = 9


def draw_bar(line: Line, fraction: float, cells: int, style: str = "bar") -> Line:
    """A bar of *cells* cells, filled to eighths of a cell where the terminal has the characters."""
    symbols: Symbols = line.look.symbols
    parts = len(symbols.bar_parts) + 1
    filled = int(min(1.0, max(0.0, fraction)) * cells * parts)
    full, part = divmod(filled, parts)
    line.add(symbols.bar_full * full, style)
    if part:
        line.add(symbols.bar_parts[part - 1], style)
    return line.add(symbols.bar_rest * (cells - full - bool(part)), "bar-rest")


class JobsPane(RowsPane):
    """The list of jobs, newest first. Those that are gone stay until they are put away."""

    title = "Jobs"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "choose", "inspect", key_display="Enter", id="jobs.inspect"),
        *(
            Binding(action.key, f"verb('{action.key}')", action.name, id=f"jobs.{action.name.replace(' ', '_')}")
            for action in JOB_ACTIONS
        ),
        Binding("x,delete", "put_away", "put away", key_display="x", id="jobs.put_away"),
        Binding("X", "put_away_all", "put all away", key_display="X", id="jobs.put_away_all"),
    ]

    class Selected(Message):
        """The cursor came to another job."""

        def __init__(self, subject: Subject | None) -> None:
            super().__init__()
            self.subject = subject

    def __init__(self, look: Look, state: ScreenState, *, id: str | None = None) -> None:
        super().__init__(look, id=id)
        self.state = state
        self.jobs: list[Job] = []
        self._names = self._types = 0
        self.on_command: Callable[[Choice], None] = lambda choice: None
        """Does an action on a job."""

    @property
    def job(self) -> Job | None:
        """The job under the cursor."""
        return self.jobs[self.cursor] if self.cursor < len(self.jobs) else None

    def subject(self) -> Subject | None:
        """What the cursor is on."""
        return JobSubject(self.job.serial) if self.job is not None else None

    def model_changed(self, changes: Changes) -> None:
        """Take in what changed; the cursor stays with its job."""
        if not changes.jobs:
            if changes.status:
                self.update_rows()
            return
        old = self.job
        self._take_jobs()
        if old is not None and old in self.jobs:
            self.cursor = self.jobs.index(old)
        self.update_rows()
        if self.has_focus:
            self.screen.refresh_bindings()

    def title_note(self) -> str:
        return "as last seen" if self.state.lost is not None else ""

    def _take_jobs(self) -> None:
        self.jobs = self.state.jobs.listed()
        self._names = min(16, max((len(job.id) for job in self.jobs), default=0))
        self._types = min(9, max((len(job.type) for job in self.jobs), default=0))

    def count(self) -> int:
        return len(self.jobs)

    def empty_text(self) -> Sequence[str]:
        return ("No jobs.",)

    def draw(self, index: int, line: Line) -> Line:
        job, symbols, width = self.jobs[index], self.look.symbols, line.width
        word = job.word
        style = f"state.{'failed' if job.error and job.finished else word}"
        sign = symbols.state("failed" if job.error and job.finished else word)
        line.add(sign, style).add(" ")
        line.add(safe_text(job.id), "dim" if job.gone else "node", limit=16).to(2 + self._names + 1)
        if width >= 56:
            line.add(safe_text(job.type), "driver", limit=9).to(2 + self._names + 1 + self._types + 1)
        start = line.used
        line.add(word, style, limit=_STATUS).to(start + _STATUS + 1)
        if (job.error and job.finished) or job.outcome == FAILED:
            return line.add(elide_middle(safe_text(job.error or "failed"), line.room, symbols.ellipsis), "state.error")
        # What is at the right of the bar: per cent, rate, time left.
        tail = 5 + 8 + 7 + (15 if width >= 90 else 0)
        bar = min(32, line.room - tail)
        if bar >= 4:
            draw_bar(line, job.fraction, bar, "dim" if job.gone else style)
        per_cent = job.percent
        line.right("" if per_cent is None else f"{per_cent}%", 5, "strong")
        if job.error and not job.finished:
            return line.add(" ").add(safe_text(job.error), "state.error")
        if job.finished:
            return line.add(f"  {size_short(job.total)}" if job.total else "", "dim")
        if job.block_job and job.io_status != "ok":
            return line.add(f"  {symbols.error} {job.io_status}", "state.error")
        if width >= 90 and job.total:
            line.right(f"{size_short(job.current)} of {size_short(job.total)}", 15, "dim")
        line.right(rate_short(job.rate), 8, "size")
        return line.right(duration_short(job.time_left), 7, "dim")

    def select(self, serial: int) -> None:
        """Bring the cursor to the job with this serial number, if it is listed."""
        self._take_jobs()
        for index, job in enumerate(self.jobs):
            if job.serial == serial:
                self.go_to(index)

    # Keys.

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Only the verbs that the job's status allows are there."""
        if action == "verb":
            job = self.job
            return job is not None and any(
                choice.key == parameters[0] for choice in job_choices(self.state, job.serial)
            )
        if action == "put_away":
            return self.job is not None and self.job.gone
        if action == "put_away_all":
            return any(job.gone for job in self.jobs)
        if action == "choose":
            return self.job is not None
        return True

    def action_verb(self, key: str) -> None:
        job = self.job
        if job is not None:
            for choice in job_choices(self.state, job.serial):
                if choice.key == key:
                    self.on_command(choice)

    def action_put_away(self) -> None:
        if self.job is not None and self.state.jobs.put_away(self.job.serial):
            self._after_put_away()

    def action_put_away_all(self) -> None:
        if self.state.jobs.put_away_all():
            self._after_put_away()

    def _after_put_away(self) -> None:
        self._take_jobs()
        self.cursor = min(self.cursor, max(0, len(self.jobs) - 1))
        self.update_rows()
        self.cursor_moved()
        self.screen.refresh_bindings()

    def cursor_moved(self) -> None:
        self.post_message(self.Selected(self.subject()))

    def row_chosen(self) -> None:
        self.on_choose(self.subject())

    def action_choose(self) -> None:
        self.row_chosen()

    def on_focus(self) -> None:
        # Textual calls the base class's own handler as well.
        self.cursor_moved()
