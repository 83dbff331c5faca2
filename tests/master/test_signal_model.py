"""Signals in any order and number: the server is where a model of it is, and its end is clean.

Two views. The model: signals one after another, each heard before the next is sent. The storm: thousands at once, of
which the kernel may merge some; then what the master says of itself must be what /proc shows.
"""

from __future__ import annotations

import os
import random
import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from tests.support.client import exchange
from tests.support.load import Load, fresh
from tests.support.processes import children, session_members, stat
from tests.support.server import RunningServer
from tests.support.story import events
from tests.support.wait import eventually

if TYPE_CHECKING:
    from tests.conftest import Serve

pytestmark = pytest.mark.slow

START, MOST = 2, 5
SETTLED_WITHIN_S = 60.0
NOTHING = [signal.SIGUSR1, signal.SIGCHLD, signal.SIGWINCH, signal.SIGCONT]
ALL = [signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGUSR1, signal.SIGCHLD]

HOW = pytest.mark.parametrize("how", [(), ("--preload",)], ids=["each-imports", "preload"])


def title(pid: int) -> str:
    """Read what a process calls itself; nothing if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0 ")
    except OSError:
        return ""


def titles(pid: int) -> list[str]:
    """Read what the children of a master call themselves."""
    return sorted(map(title, children(pid)))


def expected(workers: int, generation: int, how: tuple[str, ...]) -> list[str]:
    """Say what the titles should be when nothing is going on."""
    template = [f"prefork: template gen={generation}"] if how else []
    return sorted(template + [f"prefork: worker {slot} gen={generation} serving" for slot in range(workers)])


def asleep(pid: int) -> bool:
    """A signal makes the master runnable before kill(2) returns; when it sleeps again, it has probably dealt with it.

    Probably: it also sleeps while it waits for the template's answer.
    """
    seen = stat(pid)
    return seen is not None and seen.state == "S"


def reloaded(server: RunningServer) -> int:
    """Read the generation that is in force from the log."""
    said = events(server.log, "reloaded")
    return int(said[-1].fields["generation"]) if said else 1


class Model(RuleBasedStateMachine):
    """One server and what it should be: exactly so many workers, and a generation within bounds.

    A signal to reload that comes during a reload asks for one more; how many of them come in time is chance.
    """

    how: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.workers = START
        self.least = self.most = 1  # generation
        self.server = RunningServer("talkback", "--workers", str(START), *self.how)
        self.server.wait_ready()

    def heard(self, signum: signal.Signals, pattern: str) -> str:
        """Send a signal; return the line that says that it was heard."""
        mark = len(self.server.log)
        self.server.signal(signum)
        return self.server.wait_log(pattern, after=mark)[0]

    def unheard(self, signum: signal.Signals) -> None:
        """Send a signal that changes nothing, and wait until the master has dealt with it."""
        self.server.signal(signum)
        eventually(lambda: asleep(self.server.pid), within_s=15, what=f"{signum.name} dealt with")

    @precondition(lambda self: self.workers < MOST)
    @rule()
    def more(self) -> None:
        self.workers += 1
        assert self.heard(signal.SIGTTIN, r"scaling workers=\d+") == f"scaling workers={self.workers}"

    @precondition(lambda self: self.workers > 1)
    @rule()
    def less(self) -> None:
        self.workers -= 1
        assert self.heard(signal.SIGTTOU, r"scaling workers=\d+") == f"scaling workers={self.workers}"

    @precondition(lambda self: self.workers == 1)
    @rule()
    def less_than_one(self) -> None:
        self.unheard(signal.SIGTTOU)

    @rule()
    def reload(self) -> None:
        self.heard(signal.SIGHUP, "reloading")
        self.most += 1
        self.least = max(self.least, 2)

    @rule(signum=st.sampled_from(NOTHING))
    def nothing(self, signum: signal.Signals) -> None:
        self.unheard(signum)

    @rule(number=st.integers(0, MOST))
    def death(self, number: int) -> None:
        """A worker dies. Exchanges before it make its death no crash loop, if they are of its generation."""
        workers = [pid for pid in sorted(children(self.server.pid)) if " serving" in title(pid)]
        for _ in range(4 * len(workers)):
            exchange(self.server.address)
        if workers:
            victim = workers[number % len(workers)]
            try:
                os.kill(victim, signal.SIGKILL)
            except ProcessLookupError:
                return  # it was about to leave anyway
            # Reaped: until its last thread is gone, a connection may still be given to it.
            eventually(lambda: not Path(f"/proc/{victim}").exists(), within_s=15, what="the victim buried")

    @rule()
    def settle(self) -> None:
        before = self.least
        eventually(self.settled, within_s=SETTLED_WITHIN_S, what=f"{self.workers} workers of generation {before} up")
        self.least = reloaded(self.server)
        assert before <= self.least <= self.most

    def settled(self) -> bool:
        """True if the processes are those that the model and the log say, and the master has nothing to do."""
        generation = reloaded(self.server)
        wanted = expected(self.workers, generation, self.how)
        return generation >= self.least and titles(self.server.pid) == wanted and asleep(self.server.pid)

    @invariant()
    def it_serves(self) -> None:
        assert exchange(self.server.address, b"hi\n").endswith(b"hi\n")

    def teardown(self) -> None:
        try:
            self.settle()
        finally:
            self.server.close()  # TERM, exit 0, nobody left, no traceback
            print(self.server.log)  # shown when the test fails


def run(how: tuple[str, ...], examples: int, steps: int) -> None:
    """Let hypothesis walk. Nothing is shrunk: each step is a real server's, and the log tells the story."""
    machine = type("Machine", (Model,), {"how": how})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )


@HOW
def test_a_few_signals_lead_where_the_model_says(how: tuple[str, ...]) -> None:
    run(how, 2, 4)


@HOW
def test_many_signals_lead_where_the_model_says(how: tuple[str, ...]) -> None:
    run(how, 10, 20)


@pytest.mark.parametrize("count", [200, pytest.param(5_000, marks=pytest.mark.timeout(300))])
@HOW
def test_after_a_storm_the_server_is_what_it_says(serve: Serve, count: int, how: tuple[str, ...]) -> None:
    server = serve("talkback", "--workers", str(START), *how)
    storm(server, count)

    def wanted() -> list[str]:
        return expected(int(events(server.log, "scaling")[-1].fields["workers"]), reloaded(server), how)

    def settled() -> bool:
        return titles(server.pid) == wanted() and asleep(server.pid)

    with Load(server.address, fresh(2, pause_s=0.005)) as load:
        try:
            eventually(settled, within_s=SETTLED_WITHIN_S)
        except AssertionError:
            assert titles(server.pid) == wanted(), "it is not what it said last"
            raise
        load.wait_more(20)
    assert load.failed == {}
    assert len(re.findall("reloading", server.log)) >= 1
    assert server.stop() == 0
    assert not session_members(server.pid)


@pytest.mark.parametrize("seed", range(1, 8))
@HOW
def test_a_stop_amid_a_storm_is_clean(serve: Serve, seed: int, how: tuple[str, ...]) -> None:
    server = serve("talkback", "--workers", str(START), *how)
    storm(server, 5_000 if seed > 1 else 200, seed=seed)
    assert server.stop() == 0
    assert not session_members(server.pid)


def storm(server: RunningServer, count: int, *, seed: int = 29) -> None:
    """Send so many signals at random, a little more often one worker less than one more."""
    choose = random.Random(seed)
    for number, signum in enumerate(choose.choices(ALL, weights=[1, 1, 1.2, 1, 1], k=count)):
        server.signal(signum)
        if number % 10 == 0:  # else the kernel would merge nearly all of them
            eventually(lambda: asleep(server.pid), within_s=30, what="the signals dealt with")
    eventually(lambda: asleep(server.pid), within_s=30, what="the storm is over")
