"""`prefork status --explain`: each key that a server really shows is explained, and none that it does not show."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

from prefork.status.definitions import FIGURES, explanation
from tests.support.client import dial, exchange
from tests.support.control import Place
from tests.support.server import APPS, run
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Serve

pytestmark = pytest.mark.slow

WHOLE = ("server.config", "totals.respawns")  # their keys are options and causes


def keys(data: Any, at: str = "") -> Iterator[str]:
    """The places of all values, lists and tables included; `[]` stands for every item of a list."""
    if isinstance(data, list):
        yield at
        for value in data:
            yield from keys(value, f"{at}[]")
    elif isinstance(data, dict) and at not in WHOLE:
        yield from [at] if at and not at.endswith("[]") else []
        for key, value in data.items():
            yield from keys(value, f"{at}.{key}" if at else key)
    else:
        yield at


def test_every_key_of_the_document_is_explained_and_nothing_else(serve: Serve, place: Place) -> None:
    server = serve(f"{APPS / 'obey.py'}:handle", "--workers", "2", "--slow", "50ms", env=place.env)
    place.ok("reload")
    victim = min(server.worker_pids())
    os.kill(victim, signal.SIGKILL)
    server.wait_workers(2, without={victim})
    exchange(server.address, b"work 0.1\n")
    with dial(server.address) as client:
        client.sendall(b"spin\n")
        eventually(lambda: place.status()["deaths"]["count"] == 1, within_s=30, what="a death")
        found = set(keys(place.shown()))
        for pid in server.worker_pids():
            os.kill(pid, signal.SIGKILL)
    tables = {"server", "totals", "deaths", "workers", "listeners"}
    assert found - tables == {figure.key for figure in FIGURES}


def test_it_needs_no_server() -> None:
    done = run("status", "--explain")
    assert (done.returncode, done.stdout, done.stderr) == (0, explanation() + "\n", "")
