"""The parts of an action, and the order in which several are played (QEMU's qmp_transaction)."""

from __future__ import annotations

from collections.abc import Iterable


class Action:
    """One change of the graph or of a node that can still be taken back. Control plane.

    ``prepare`` does all that can fail, ``commit`` what can't. One of commit and abort follows; abort also follows a
    prepare that failed half-way. ``clean`` comes last, in either case.
    """

    def prepare(self) -> None:
        """Check and prepare. Errors: GenericError."""

    def commit(self) -> None:
        """Make it final. Never raises."""

    def abort(self) -> None:
        """Undo as much as was prepared. Never raises."""

    def clean(self) -> None:
        """Let go of what was held meanwhile. Never raises."""


def run(actions: Iterable[Action]) -> None:
    """Play *actions*: each is prepared after the one before; if all succeed all are committed, else all are aborted.

    Errors: GenericError, of the first action that failed.
    """
    begun: list[Action] = []
    try:
        try:
            for action in actions:
                begun.append(action)
                action.prepare()
        except BaseException:
            for action in reversed(begun):
                action.abort()
            raise
        for action in begun:
            action.commit()
    finally:
        for action in begun:
            action.clean()
