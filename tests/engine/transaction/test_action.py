"""The order in which actions are played."""

from __future__ import annotations

import pytest

from engine.errors import GenericError
from engine.transaction.action import Action, run


class Told(Action):
    """Writes down what is asked of it; *fails* in prepare."""

    def __init__(self, name: str, log: list[str], *, fails: bool = False) -> None:
        self.name, self.log, self.fails = name, log, fails

    def prepare(self) -> None:
        self.log.append(f"prepare {self.name}")
        if self.fails:
            raise GenericError(f"{self.name} failed")

    def commit(self) -> None:
        self.log.append(f"commit {self.name}")

    def abort(self) -> None:
        self.log.append(f"abort {self.name}")

    def clean(self) -> None:
        self.log.append(f"clean {self.name}")


def test_all_succeed() -> None:
    log: list[str] = []
    run([Told("a", log), Told("b", log)])
    assert log == ["prepare a", "prepare b", "commit a", "commit b", "clean a", "clean b"]


def test_a_failure_aborts_what_was_begun_newest_first() -> None:
    log: list[str] = []
    with pytest.raises(GenericError, match="b failed"):
        run([Told("a", log), Told("b", log, fails=True), Told("c", log)])
    assert log == ["prepare a", "prepare b", "abort b", "abort a", "clean a", "clean b"]
