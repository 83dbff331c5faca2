"""A private place for the control sockets of a test's servers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.control import Place

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def place() -> Iterator[Place]:
    with Place() as made:
        yield made
