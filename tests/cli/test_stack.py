"""`prefork stack`: of one slot, of workers that compute for ever or cannot answer, of loops whose tasks wait."""

from __future__ import annotations

import json
import os
import signal
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.client import dial, read_to_end
from tests.support.control import Place
from tests.support.server import APPS
from tests.support.wait import eventually
from tests.support.web import Browser, request

if TYPE_CHECKING:
    from tests.conftest import Serve

pytestmark = pytest.mark.slow

OBEY = f"{APPS / 'obey.py'}:handle"
WAITING = f"{APPS / 'waiting.py'}:app"


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


def test_stack_of_one_slot_and_of_a_slot_that_nobody_is_in(serve: Serve, place: Place) -> None:
    server = serve(OBEY, "--workers", "2", env=place.env)
    answer = json.loads(place.ok("stack", "1", "--json"))
    (entry,) = answer["workers"]
    assert (entry["slot"], entry["generation"], entry["state"], entry["reason"]) == (1, 1, "IDLE", None)
    assert "MainThread" in entry["stacks"]
    refused = place.run("stack", "7")
    assert refused.returncode == 1
    assert refused.stderr == "prefork: no worker is in slot 7; in use: 0, 1\n"
    assert server.running


def test_stack_says_who_cannot_answer_and_harms_nobody(serve: Serve, place: Place) -> None:
    """A live worker is never asked by the signal that can crash it."""
    server = serve(OBEY, "--workers", "3", env=place.env)
    before = server.worker_pids()
    with dial(server.address) as client, dial(server.address) as other:
        client.sendall(b"hold_gil 6\n")
        other.sendall(b"signal SIGSTOP\n")

        def mute() -> list[dict[str, Any]]:
            entries = json.loads(place.ok("stack", "--json"))["workers"]
            return [entry for entry in entries if entry["stacks"] is None]

        entries = eventually(lambda: len(found := mute()) == 2 and found, within_s=30, what="two mute workers")
        assert {entry["reason"].replace("it computes", "waits") for entry in entries} == {  # as the kernel sees it
            "no answer in 1 s: C code holds the GIL, and waits",
            "no answer in 1 s: the worker is stopped",
        }
        host, port = client.getsockname()
        assert f"{host}:{port}" in {entry["serving"] for entry in entries}
        stopped = next(pid for pid in before if stat_state(pid) == "T")
        os.kill(stopped, signal.SIGCONT)
        assert read_to_end(client) == b"done\n"
        assert read_to_end(other) == b"survived\n"
    assert server.worker_pids() == before


def stat_state(pid: int) -> str:
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]
