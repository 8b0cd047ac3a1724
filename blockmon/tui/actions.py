"""
What can be done to what is selected: each action is one row in a table, and writes a command into the prompt.

An action is offered only where the server has its command and the thing selected is in a state for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from blockmon.model.jobs import Job
from blockmon.model.refresher import ScreenState
from blockmon.tui.choice import Choice, value
from blockmon.tui.node_actions import NODE_ACTIONS, node_choices
from blockmon.tui.parent_actions import parent_choices
from blockmon.tui.subject import JobSubject, NodeSubject, ParentSubject, Subject

__all__ = [
    "JOB_ACTIONS", "NODE_ACTIONS", "Choice", "choices", "job_choices", "node_choices", "parent_choices", "possible",
    "value",
]  # fmt: skip


@dataclass(frozen=True)
class _JobAction:
    """*write* gives the command, or None where it has to be another one in the job's state."""

    key: str
    name: str
    verb: str
    write: Callable[[Job], str | None]


def _cancel(job: Job) -> str | None:
    if job.paused:
        # QEMU refuses to cancel a paused job but by force.
        return None
    # On a ready job this ends it softly: the target keeps a consistent copy. Elsewhere the two are the same.
    return f"block-job-cancel device={value(job.id)}" if job.block_job else f"job-cancel id={value(job.id)}"


def _cancel_by_force(job: Job) -> str | None:
    if job.status in ("ready", "standby") or job.paused:
        return f"job-cancel id={value(job.id)}"
    return None


JOB_ACTIONS: tuple[_JobAction, ...] = (
    _JobAction("p", "pause", "pause", lambda job: f"job-pause id={value(job.id)}"),
    _JobAction("r", "resume", "resume", lambda job: f"job-resume id={value(job.id)}"),
    _JobAction(
        "v", "set speed", "set-speed",
        lambda job: f"block-job-set-speed device={value(job.id)} speed={job.speed}",
    ),
    _JobAction("o", "complete", "complete", lambda job: f"job-complete id={value(job.id)}"),
    _JobAction("f", "finalize", "finalize", lambda job: f"job-finalize id={value(job.id)}"),
    _JobAction("c", "cancel", "cancel", _cancel),
    _JobAction("K", "cancel by force", "cancel", _cancel_by_force),
    _JobAction("d", "dismiss", "dismiss", lambda job: f"job-dismiss id={value(job.id)}"),
)  # fmt: skip


def job_choices(state: ScreenState, serial: int) -> list[Choice]:
    """What can be done to a job in its present status."""
    job = state.jobs.by_serial(serial)
    if job is None:
        return []
    verbs = job.verbs()
    found: list[Choice] = []
    for action in JOB_ACTIONS:
        command = action.write(job)
        if command is None or action.verb not in verbs:
            continue
        if command.split(" ", 1)[0] not in state.commands:
            command = _before_jobs(command)
        if command.split(" ", 1)[0] in state.commands:
            found.append(Choice(action.key, action.name, command))
    return found


def _before_jobs(command: str) -> str:
    """The same for a server from before QEMU 3.0, which knows block jobs only."""
    if not command.startswith("job-"):
        return command
    force = " force=on" if command.startswith("job-cancel ") else ""
    return f"block-{command.replace(' id=', ' device=', 1)}{force}"


def possible(state: ScreenState, subject: Subject | None) -> bool:
    """Whether anything can be done to *subject*."""
    if isinstance(subject, NodeSubject):
        return next(node_choices(state, subject.name), None) is not None
    return bool(choices(state, subject))


def choices(state: ScreenState, subject: Subject | None) -> list[Choice]:
    """What can be done to *subject*; nothing, for things that no command takes."""
    if isinstance(subject, NodeSubject):
        return list(node_choices(state, subject.name))
    if isinstance(subject, ParentSubject):
        return parent_choices(state, subject.key)
    if isinstance(subject, JobSubject):
        return job_choices(state, subject.serial)
    return []
