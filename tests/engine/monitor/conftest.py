"""Fixtures for monitor tests."""

from collections.abc import Iterator

import pytest

from engine.engine import Engine
from tests.engine.monitor.wire import Server


@pytest.fixture
def engine() -> Iterator[Engine]:
    """An engine that ends with the test."""
    made = Engine()
    yield made
    made.close()


@pytest.fixture
def server(engine: Engine) -> Iterator[Server]:
    """Sessions on that engine."""
    made = Server(engine)
    yield made
    made.close()
