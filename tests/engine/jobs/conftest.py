"""Fixtures for job tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.jobs.session import Session


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    """An engine that ends with the test."""
    made = Session(tmp_path)
    yield made
    made.close()
