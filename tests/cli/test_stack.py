"""`prefork stack` where it is needed: workers that compute for ever, and loops whose tasks wait."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.client import dial
from tests.support.control import Place
from tests.support.server import APPS
from tests.support.wait import eventually
from tests.support.web import Browser, request

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Serve

pytestmark = pytest.mark.slow

OBEY = f"{APPS / 'obey.py'}:handle"
WAITING = f"{APPS / 'waiting.py'}:app"


@pytest.fixture
def place() -> Iterator[Place]:
    with Place() as made:
        yield made


def stacks(place: Place) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(place.ok("stack", "--json"))["workers"]
    return found


def test_workers_that_compute_for_ever_all_show_where(serve: Serve, place: Place) -> None:
    server = serve(OBEY, "--workers", "4", "--graceful-timeout", "100ms", env=place.env)
    with ExitStack() as stack:
        clients = [stack.enter_context(dial(server.address)) for _ in range(4)]
        for client in clients:
            client.sendall(b"spin\n")
        names = {"{}:{}".format(*client.getsockname()) for client in clients}

        def all_shown() -> bool:
            found = stacks(place)
            return (
                all("spin_forever" in (entry["stacks"] or "") for entry in found)
                and {entry["serving"] for entry in found} == names
            )

        eventually(all_shown, within_s=30, what="four stacks")


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_loop_shows_what_its_tasks_await_and_for_whom(serve: Serve, place: Place, loop: str) -> None:
    server = serve(
        WAITING, "--workers", "1", "--loop", loop, "--graceful-timeout", "100ms", env=place.env, expect_traceback=True
    )
    with Browser(server) as older, Browser(server) as younger:
        for browser in (older, younger):
            browser.send(request("/wait?60"))
        names = ["{}:{} GET /wait?60".format(*browser.sock.getsockname()) for browser in (older, younger)]

        def shown() -> str:
            (entry,) = stacks(place)
            text: str = entry["stacks"] or ""
            return text if all(name in text for name in names) else ""

        text = eventually(shown, within_s=20, what="both tasks")
        assert text.index("thread MainThread") < text.index(names[0])
        assert text.count("in _wait_deeper") == 2
        assert "_run" not in text[text.index("task ") :], "the engine's own tasks are left out"
