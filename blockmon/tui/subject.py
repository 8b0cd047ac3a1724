"""What a pane has selected, and the inspector shows."""

from __future__ import annotations

from dataclasses import dataclass, field

from blockmon.model.events import LoggedEvent
from blockmon.model.graph import EdgeInfo
from blockmon.model.refresher import ScreenState


@dataclass(frozen=True, slots=True)
class NodeSubject:
    """A node, by its name; *edge* is the one it was reached by, where there is one."""

    name: str
    edge: EdgeInfo | None = None


@dataclass(frozen=True, slots=True)
class ParentSubject:
    """A parent that is no node, by its key."""

    key: str


@dataclass(frozen=True, slots=True)
class BrokenEdgeSubject:
    """An edge that leads nowhere."""

    edge: EdgeInfo


@dataclass(frozen=True, slots=True)
class JobSubject:
    """A job, by its serial number in the list."""

    serial: int


@dataclass(frozen=True, slots=True)
class EventSubject:
    """An event, by its number in the log; *entry* is the event itself, which the log may have lost since."""

    number: int
    entry: LoggedEvent = field(compare=False)


Subject = NodeSubject | ParentSubject | BrokenEdgeSubject | JobSubject | EventSubject


def subject_of_event(state: ScreenState, entry: LoggedEvent) -> Subject | None:
    """The job, node or device that an event tells of, as long as it is there; a job before a node."""
    if entry.job is not None:
        jobs = [job for job in state.jobs.listed() if job.id == entry.job]
        # Ids are used again: the job that the server knows by it comes before those that are over.
        found = state.jobs.live(entry.job) or (jobs[0] if jobs else None)
        if found is not None:
            return JobSubject(found.serial)
    for name in (*entry.nodes, *((entry.job,) if entry.job else ())):
        if name in state.graph.nodes:
            return NodeSubject(name)
        for key, parent in state.graph.parents.items():
            if parent.kind in ("device", "export") and name in (parent.name, parent.id):
                return ParentSubject(key)
    export = entry.data.get("id")
    for key, parent in state.graph.parents.items():
        if export and parent.kind == "device" and export in (parent.name, parent.id):
            return ParentSubject(key)
    return None
