"""The actions that the transaction command knows: each states its data and its place in TransactionAction once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from engine.errors import GenericError
from engine.qapi import Enum, Struct, Union
from engine.transaction.action import Action, run

if TYPE_CHECKING:
    from engine.engine import Engine
    from engine.jobs.transaction import JobTransaction


class TransactionAction(Union, tag="type", tag_enum="TransactionActionKind"):
    """One action of a transaction: what command it stands for, and that command's arguments."""


class ActionCompletionMode(Enum):
    """Whether the jobs of one transaction end each for itself, or all succeed or fail together.

    individual: jobs succeed or fail each by itself
    grouped: one job's failure makes all of them fail
    """

    INDIVIDUAL = "individual"
    GROUPED = "grouped"


@dataclass(frozen=True, slots=True)
class ActionContext:
    """What an action gets besides its data. jobs: the transaction its jobs belong to; None: one of their own."""

    engine: Engine
    jobs: JobTransaction | None = None


@dataclass(frozen=True, slots=True)
class _Kind:
    factory: Callable[[ActionContext, Any], Action]
    grouped: bool


_kinds: dict[str, _Kind] = {}

A = TypeVar("A", bound=type[Action])


def action(
    name: str, *, data: type[Struct], grouped: bool = False, since: str | None = None, features: tuple[str, ...] = ()
) -> Callable[[A], A]:
    """Class decorator: make an Action reachable by the transaction command. It is made from (context, data).

    grouped: whether it may be part of a transaction with completion-mode=grouped (it has a job, or nothing to do).
    """

    def register(cls: A) -> A:
        TransactionAction.add_branch(name, data, features=features, since=since, wrap="data")
        _kinds[name] = _Kind(cls, grouped)
        return cls

    return register


def perform(engine: Engine, cls: Callable[[ActionContext, Any], Action], data: Struct) -> None:
    """Run one action alone, as the command of its name does. Errors: QMPError."""
    run([cls(ActionContext(engine), data)])


class _Refused(Action):
    """Stands for an action that the transaction's completion mode does not allow."""

    def __init__(self, name: str, mode: ActionCompletionMode) -> None:
        self._text = f"Action '{name}' does not support Transaction property completion-mode = {mode.value}"

    def prepare(self) -> None:
        raise GenericError(self._text)


def build(context: ActionContext, item: TransactionAction, mode: ActionCompletionMode) -> Action:
    """The action that *item* asks for. That it can't be grouped shows when its turn to prepare comes, as in QEMU."""
    name = str(getattr(item, "type"))  # noqa: B009  (the tag of the union)
    kind = _kinds[name]
    if mode is ActionCompletionMode.GROUPED and not kind.grouped:
        return _Refused(name, mode)
    return kind.factory(context, item.branch.data)
