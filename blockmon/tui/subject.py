"""What a pane has selected, and the inspector shows."""

from __future__ import annotations

from dataclasses import dataclass

from blockmon.model.graph import EdgeInfo


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
    """An event, by its number in the log."""

    number: int


Subject = NodeSubject | ParentSubject | BrokenEdgeSubject | JobSubject | EventSubject
