"""The states of a job and what may happen in each (QEMU 7.2's job core)."""

from __future__ import annotations

from engine.jobs.types import JobStatus, JobVerb

_S = JobStatus

TRANSITIONS: dict[JobStatus, frozenset[JobStatus]] = {
    _S.UNDEFINED: frozenset({_S.CREATED}),
    _S.CREATED: frozenset({_S.RUNNING, _S.ABORTING, _S.NULL}),
    _S.RUNNING: frozenset({_S.PAUSED, _S.READY, _S.WAITING, _S.ABORTING}),
    _S.PAUSED: frozenset({_S.RUNNING}),
    _S.READY: frozenset({_S.STANDBY, _S.WAITING, _S.ABORTING}),
    _S.STANDBY: frozenset({_S.READY}),
    _S.WAITING: frozenset({_S.PENDING, _S.ABORTING}),
    _S.PENDING: frozenset({_S.ABORTING, _S.CONCLUDED}),
    _S.ABORTING: frozenset({_S.ABORTING, _S.CONCLUDED}),
    _S.CONCLUDED: frozenset({_S.NULL}),
    _S.NULL: frozenset(),
}
"""State → the states that may follow."""

_WHILE_WORKING = frozenset({_S.CREATED, _S.RUNNING, _S.PAUSED, _S.READY, _S.STANDBY})
VERBS: dict[JobVerb, frozenset[JobStatus]] = {
    JobVerb.CANCEL: _WHILE_WORKING | {_S.WAITING, _S.PENDING},
    JobVerb.PAUSE: _WHILE_WORKING,
    JobVerb.RESUME: _WHILE_WORKING,
    JobVerb.SET_SPEED: _WHILE_WORKING,
    JobVerb.COMPLETE: frozenset({_S.READY, _S.STANDBY}),
    JobVerb.FINALIZE: frozenset({_S.PENDING}),
    JobVerb.DISMISS: frozenset({_S.CONCLUDED}),
}
"""Verb → the states in which it is accepted."""

HALTED = {_S.PAUSED: _S.RUNNING, _S.STANDBY: _S.READY}
"""A state of standing still → the state it is left for."""
HALTS = {running: halted for halted, running in HALTED.items()}
"""A state of work → the state of standing still in it."""
COMPLETED = frozenset({_S.WAITING, _S.PENDING, _S.ABORTING, _S.CONCLUDED, _S.NULL})
"""States in which the work is over, one way or the other."""
