"""Fixtures of the end-to-end tests."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.support.helper import FrontEnd
from tests.support.processes import children_of


@pytest.fixture(autouse=True)
def no_process_left() -> Iterator[None]:
    """Fail a test that leaves a process behind: a helper, its worker, a target."""
    before = children_of(os.getpid())
    yield
    assert children_of(os.getpid()) == before


@pytest.fixture(params=list(FrontEnd), ids=lambda front_end: front_end.name.lower())
def front_end(request: pytest.FixtureRequest) -> FrontEnd:
    """Run a test once through each way to start a helper."""
    value: FrontEnd = request.param
    return value
