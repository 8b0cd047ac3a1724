"""A store of objects, with a short way to fill it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import engine.objects.types  # noqa: F401
from engine.objects.base import ObjectOptions, UserObject
from engine.objects.store import Objects
from engine.qapi import from_wire


class Store(Objects):
    """add() as object-add: keyword names with _ for -."""

    def make(self, qom_type: str, id: str, **options: Any) -> Any:
        wire = {key.replace("_", "-"): value for key, value in options.items()}
        found: UserObject = self.add(from_wire(ObjectOptions, {"qom-type": qom_type, "id": id, **wire}))
        return found


@pytest.fixture
def store() -> Iterator[Store]:
    made = Store()
    yield made
    made.close()
