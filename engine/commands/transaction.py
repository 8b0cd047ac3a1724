"""transaction: several changes in one step, all of them or none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.errors import GenericError
from engine.graph.drain import drained
from engine.jobs.transaction import JobTransaction
from engine.qapi import Struct, command
from engine.transaction.action import Action, run
from engine.transaction.actions import (
    ActionCompletionMode,
    ActionContext,
    TransactionAction,
    action,
    build,
)

if TYPE_CHECKING:
    from engine.engine import Engine


class Abort(Struct):
    """No arguments."""


class TransactionProperties(Struct):
    """How a transaction behaves as a whole. completion-mode: individual by default."""

    completion_mode: ActionCompletionMode | None = None


@action("abort", data=Abort, grouped=True, since="1.6")
class AbortAction(Action):
    """Fails, and the whole transaction with it; for tests of clients."""

    def __init__(self, context: ActionContext, data: Abort) -> None:
        pass

    def prepare(self) -> None:
        raise GenericError("Transaction aborted using Abort action")


@command(since="1.1", allow_preconfig=True)
def transaction(
    engine: Engine, *, actions: list[TransactionAction], properties: TransactionProperties | None = None
) -> None:
    """Do all of several actions at one point in time, or, if one fails, none of them.

    actions: what to do, in this order
    properties: how the jobs among them hang together
    """
    mode = ActionCompletionMode.INDIVIDUAL
    if properties is not None and properties.completion_mode is not None:
        mode = properties.completion_mode
    jobs = JobTransaction() if mode is ActionCompletionMode.GROUPED else None
    context = ActionContext(engine, jobs)
    # Requests in flight end before the first action looks at anything; the actions drain what they change.
    with drained(list(engine.graph.nodes.values())):
        pass
    run(build(context, item, mode) for item in actions)
