"""Processes that an application starts in the template, at import: they are the template's, and end with it."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.support.control import Place
from tests.support.owner import EACH_ENGINE, Kind, ask
from tests.support.processes import alive, session_members
from tests.support.wait import eventually
from tests.worker.test_preload import template_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Serve
    from tests.support.server import RunningServer

pytestmark = pytest.mark.slow

WITHIN_S = 20.0
TROUBLE = ("Exception ignored", "can only join a child process", "Traceback", "WARNING", "ERROR")


class Answer(NamedTuple):
    """Who served, the processes that were started in the template, and how often they were used so far."""

    worker: int
    manager: int
    process: int
    uses: int

    @property
    def helpers(self) -> tuple[int, int]:
        """The processes that were started in the template."""
        return self.manager, self.process


def use(server: RunningServer, kind: Kind) -> Answer:
    """Have a worker use the manager."""
    return Answer(*map(int, ask(server, kind, "helpers").split()))


def preloaded(serve: Serve, kind: Kind, *options: str, env: dict[str, str] | None = None) -> RunningServer:
    """Start a server whose application starts a manager and a daemonic process at import."""
    return serve(*kind, "--preload", *options, env={"SETUP": "helpers", **(env or {})})


def stop_without_trouble(server: RunningServer) -> None:
    """Stop the server, and see that nothing went wrong on the way."""
    assert server.stop() == 0
    assert not [what for what in TROUBLE if what in server.log]


def used_by_others(server: RunningServer, kind: Kind, known: set[int]) -> Iterator[Answer]:
    """Answers of workers until one comes that is not known."""
    while True:
        answer = use(server, kind)
        yield answer
        if answer.worker not in known:
            return


@EACH_ENGINE
def test_they_outlive_a_worker_that_is_not_needed_any_more(serve: Serve, place: Place, kind: Kind) -> None:
    server = preloaded(serve, kind, "--workers", "2", env=place.env)
    workers = server.worker_pids() - {template_of(server)}
    before = use(server, kind)
    place.ok("scale", "1")
    eventually(lambda: sum(map(alive, workers)) == 1, within_s=WITHIN_S, what="one worker")
    after = use(server, kind)
    assert after == (*(pid for pid in workers if alive(pid)), *before.helpers, before.uses + 1)
    assert all(map(alive, after.helpers))
    stop_without_trouble(server)


@EACH_ENGINE
def test_they_outlive_workers_that_are_recycled(serve: Serve, kind: Kind) -> None:
    server = preloaded(serve, kind, "--workers", "2", "--max-requests", "4")
    workers = server.worker_pids() - {template_of(server)}
    answers: list[Answer] = []
    while any(map(alive, workers)):
        answers += used_by_others(server, kind, workers)
    answers.append(use(server, kind))
    assert {answer.helpers for answer in answers} == {answers[0].helpers}
    assert [answer.uses for answer in answers] == list(range(1, len(answers) + 1))
    assert all(map(alive, answers[0].helpers))
    stop_without_trouble(server)


@EACH_ENGINE
def test_a_reload_ends_them_with_the_old_template(serve: Serve, kind: Kind) -> None:
    server = preloaded(serve, kind, "--workers", "2")
    old = use(server, kind).helpers
    server.signal(signal.SIGHUP)
    server.wait_log("reloaded generation=2")
    eventually(lambda: not any(map(alive, old)), within_s=WITHIN_S, what="those of the old template gone")
    new = use(server, kind)
    assert not {*old} & {*new.helpers}
    assert new.uses == 1
    assert all(map(alive, new.helpers))
    stop_without_trouble(server)


@EACH_ENGINE
def test_a_stop_leaves_none_of_them(serve: Serve, kind: Kind) -> None:
    server = preloaded(serve, kind, "--workers", "2")
    helpers = use(server, kind).helpers
    assert all(map(alive, helpers))
    stop_without_trouble(server)
    assert not session_members(server.pid)
