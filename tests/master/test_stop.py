"""TERM, INT and QUIT: who is answered, who is cut, and how soon the server is gone."""

from __future__ import annotations

import itertools
import os
import re
import signal
import time
from collections import Counter
from dataclasses import dataclass
from signal import SIGINT, SIGQUIT, SIGTERM
from typing import TYPE_CHECKING

import pytest

from prefork.core.signals import name
from tests.support.client import Hammer, Outcome, attempt, collect, crowd, dial, exchange, read_to_end, talkback_reply
from tests.support.server import APPS

if TYPE_CHECKING:
    import socket
    from pathlib import Path

    from tests.conftest import AppWriter, Serve
    from tests.support.gate import Gate
    from tests.support.server import RunningServer

pytestmark = pytest.mark.slow

GATED = f"{APPS / 'gated.py'}:handle"
OBEY = f"{APPS / 'obey.py'}:handle"
HI = talkback_reply(b"hi")
SOON_S = 15.0  # less than any timeout that would end it too
TCP = "127.0.0.1:0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """Clients that have asked and wait: as many are served as there are workers, the others lie in the queues."""

    workers: int = 2
    clients: int  # at each listener
    bind: tuple[str, ...] = (TCP,)
    args: tuple[str, ...] = ()
    signals: tuple[signal.Signals, ...] = (SIGTERM,)
    to_group: bool = False  # as a terminal's Ctrl-C

    def begin(self, serve: Serve, gate: Gate, folder: Path) -> tuple[RunningServer, list[socket.socket]]:
        """Start the server and its clients; no handler ends before the gate opens."""
        bind = [address.format(folder=folder) for address in self.bind]
        server = serve(GATED, "--workers", str(self.workers), *self.args, env=gate.env, bind=bind)
        clients = [client for address in server.addresses for client in crowd(address, self.clients)]
        gate.wait_entered(min(self.workers, len(clients)))
        return server, clients


# Another one each time: the log names each at most once a second.
_MEANINGLESS = itertools.cycle(range(signal.SIGRTMIN + 1, signal.SIGRTMAX))


def wait_heard(server: RunningServer) -> None:
    """Wait until the master has dealt with the signals that it got: it takes them in their order, and names this."""
    mark, signum = len(server.log), next(_MEANINGLESS)
    os.kill(server.pid, signum)
    server.wait_log(f'signal ignored signal="?{re.escape(name(signum))}"?$', after=mark)


@pytest.mark.parametrize(
    "waiting",
    [
        pytest.param(Waiting(clients=2), id="served", marks=pytest.mark.smoke),
        pytest.param(Waiting(clients=2, signals=(SIGINT,)), id="served, INT", marks=pytest.mark.smoke),
        pytest.param(Waiting(workers=4, clients=204), id="two hundred in the queue", marks=pytest.mark.smoke),
        pytest.param(Waiting(clients=52, bind=("unix:{folder}/s",)), id="in the queue of a Unix socket"),
        pytest.param(Waiting(clients=26, bind=(TCP, TCP)), id="in the queues of two listeners"),
        pytest.param(Waiting(clients=12, signals=(SIGINT,), to_group=True), id="INT to the whole group"),
        pytest.param(Waiting(clients=12, to_group=True), id="TERM to the whole group"),
        pytest.param(Waiting(workers=4, clients=1_000, to_group=True), id="a thousand, TERM to the whole group"),
        pytest.param(Waiting(workers=1, clients=3, signals=(SIGTERM, SIGTERM)), id="TERM again is no hurry"),
        pytest.param(Waiting(workers=1, clients=3, signals=(SIGTERM, SIGINT)), id="nor is the first INT"),
        pytest.param(Waiting(workers=1, clients=3, signals=(SIGINT, SIGTERM)), id="nor is TERM after INT"),
    ],
)
def test_who_waits_gets_the_whole_reply(waiting: Waiting, serve: Serve, gate: Gate, tmp_path: Path) -> None:
    server, clients = waiting.begin(serve, gate, tmp_path)
    mark = len(server.log)
    for signum in waiting.signals:
        (server.signal_group if waiting.to_group else server.signal)(signum)
        wait_heard(server)
    assert server.running
    assert waiting.signals[0].name in server.log[mark:]
    gate.open()
    assert collect(clients, HI) == {Outcome.OK: len(waiting.bind) * waiting.clients}
    assert server.wait_exit() == 0
    assert "respawn" not in server.log[mark:]


@pytest.mark.parametrize(
    "waiting",
    [
        pytest.param(Waiting(clients=2, signals=(SIGQUIT,)), id="QUIT"),
        pytest.param(Waiting(workers=1, clients=1, signals=(SIGTERM, SIGQUIT)), id="QUIT after TERM"),
        pytest.param(Waiting(clients=2, signals=(SIGINT, SIGINT)), id="INT again"),
        pytest.param(Waiting(clients=2, signals=(SIGTERM, SIGINT, SIGINT)), id="INT again after TERM"),
        pytest.param(Waiting(clients=2, signals=(SIGINT, SIGTERM, SIGINT)), id="TERM between two INT"),
    ],
)
def test_who_waits_is_cut_at_once(waiting: Waiting, serve: Serve, gate: Gate, tmp_path: Path) -> None:
    server, clients = waiting.begin(serve, gate, tmp_path)
    *before, last = waiting.signals
    for signum in before:
        server.signal(signum)
        wait_heard(server)
    assert server.stop(last, within_s=SOON_S) == 0
    assert Outcome.OK not in collect(clients, HI)


def test_the_graceful_timeout_cuts_who_is_stuck_and_says_so(serve: Serve, gate: Gate, tmp_path: Path) -> None:
    server, clients = Waiting(clients=1, args=("--graceful-timeout", "500ms")).begin(serve, gate, tmp_path)
    mark = len(server.log)
    started = time.monotonic()
    assert server.stop(within_s=SOON_S) == 0
    assert time.monotonic() - started >= 0.45
    assert re.search(r"cut\b.*count=1\b", server.log[mark:])
    assert Outcome.OK not in collect(clients, HI)


@pytest.mark.parametrize("signum", [SIGTERM, SIGINT, SIGQUIT])
def test_an_idle_server_ends_soon_and_with_zero(serve: Serve, signum: signal.Signals) -> None:
    server = serve("--workers", "4")
    assert server.stop(signum, within_s=SOON_S) == 0
    assert attempt(server.address, b"hi\n", HI) is Outcome.REFUSED


@pytest.mark.parametrize("signum", [SIGTERM, SIGINT, SIGQUIT])
def test_a_stop_while_the_app_is_still_being_imported(
    serve: Serve, gate: Gate, app: AppWriter, signum: signal.Signals
) -> None:
    """The gate holds the import, so the workers are not ready when the signal comes."""
    source = f"import sys\nsys.path.insert(0, {str(APPS)!r})\nimport gated\ngated.pass_gate()\nhandle = gated.handle\n"
    server = serve(app(source), "--workers", "2", env=gate.env, ready=False)
    gate.wait_entered(2)
    server.signal(signum)
    server.wait_log(signum.name)
    gate.open()
    assert server.wait_exit(within_s=SOON_S) == 0


def test_clients_that_have_connected_and_said_nothing_yet_are_served_too(serve: Serve) -> None:
    server = serve("nap", "--workers", "2")
    clients = [dial(server.address) for _ in range(100)]
    server.signal(SIGTERM)
    server.wait_log("SIGTERM")
    for client in clients:
        client.sendall(b"hi\n")
    assert collect(clients, HI) == {Outcome.OK: 100}
    assert server.wait_exit() == 0


def test_reading_is_not_needed_for_the_server_to_end(serve: Serve) -> None:
    """A client that was answered and does not close must not hold up the stop for the whole graceful timeout."""
    server = serve("talkback", "--workers", "1", "--graceful-timeout", "20")
    with dial(server.address) as client:
        client.sendall(b"hi\n")
        assert server.stop(within_s=SOON_S) == 0
        assert read_to_end(client) == HI


def test_a_worker_that_ignores_term_does_not_stop_the_stop(serve: Serve) -> None:
    server = serve(OBEY, "--workers", "1", "--graceful-timeout", "500ms")
    with dial(server.address) as client:
        client.sendall(b"spin\n")
        assert server.stop(within_s=SOON_S) == 0


def test_the_port_is_free_for_the_next_server_at_once(serve: Serve) -> None:
    first = serve("--workers", "2")
    for _ in range(20):
        exchange(first.address)
    assert first.stop() == 0
    second = serve("--workers", "2", bind=first.address)
    assert exchange(second.address, b"hi\n") == HI


@pytest.mark.parametrize(
    ("application", "workers", "clients", "stops", "most_resets"),
    [
        # the last connections to come in between may be reset, no more
        pytest.param("talkback", 2, 8, 1, 2, id="once"),
        # a plain drain resets about two of the clients a stop; holding new connections back, hardly any
        pytest.param("nap", 4, 20, 10, 6, id="ten times"),
    ],
)
def test_under_constant_connections_the_end_comes_and_hardly_any_is_reset(
    application: str, workers: int, clients: int, stops: int, most_resets: int, serve: Serve
) -> None:
    totals = Counter[Outcome]()
    for _ in range(stops):
        server = serve(application, "--workers", str(workers))
        with Hammer(server.address, clients=clients) as hammer:
            hammer.wait_more(200)
            assert server.stop(within_s=SOON_S) == 0
        totals += hammer.outcomes
    assert set(totals) <= {Outcome.OK, Outcome.REFUSED, Outcome.RESET}
    assert totals[Outcome.RESET] <= most_resets, totals
