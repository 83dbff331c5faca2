"""TERM, INT and QUIT: who is answered, who is cut, and how soon the server is gone."""

from __future__ import annotations

import re
import signal
import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.support.client import Hammer, Outcome, attempt, collect, crowd, dial, exchange, read_to_end, talkback_reply
from tests.support.server import APPS

if TYPE_CHECKING:
    from tests.conftest import Serve
    from tests.support.gate import Gate

pytestmark = pytest.mark.slow

GATED = f"{APPS / 'gated.py'}:handle"
OBEY = f"{APPS / 'obey.py'}:handle"
HI = talkback_reply(b"hi")
SOON_S = 15.0  # less than any timeout that would end it too


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_an_idle_server_ends_soon_and_with_zero(serve: Serve, signum: signal.Signals) -> None:
    server = serve("--workers", "4")
    assert server.stop(signum, within_s=SOON_S) == 0
    assert attempt(server.address, b"hi\n", HI) is Outcome.REFUSED


@pytest.mark.smoke
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_who_is_being_served_gets_the_whole_reply(serve: Serve, gate: Gate, signum: signal.Signals) -> None:
    server = serve(GATED, "--workers", "2", env=gate.env)
    clients = crowd(server.address, 2)
    gate.wait_entered(2)
    server.signal(signum)
    server.wait_log(signum.name)
    assert server.running
    gate.open()
    assert collect(clients, HI) == {Outcome.OK: 2}
    assert server.wait_exit() == 0


@pytest.mark.smoke
def test_two_hundred_clients_connected_and_not_yet_served_all_get_their_reply(serve: Serve, gate: Gate) -> None:
    server = serve(GATED, "--workers", "4", env=gate.env)
    clients = crowd(server.address, 204)
    gate.wait_entered(4)  # four are being served, two hundred wait in the kernel's queue
    server.signal(signal.SIGTERM)
    server.wait_log("SIGTERM")
    gate.open()
    assert collect(clients, HI) == {Outcome.OK: 204}
    assert server.wait_exit() == 0


def test_clients_that_have_connected_and_said_nothing_yet_are_served_too(serve: Serve) -> None:
    server = serve("nap", "--workers", "2")
    clients = [dial(server.address) for _ in range(100)]
    server.signal(signal.SIGTERM)
    server.wait_log("SIGTERM")
    for client in clients:
        client.sendall(b"hi\n")
    assert collect(clients, HI) == {Outcome.OK: 100}
    assert server.wait_exit() == 0


def test_the_queue_of_a_unix_socket_is_drained_too(serve: Serve, gate: Gate, tmp_path: object) -> None:
    server = serve(GATED, "--workers", "2", env=gate.env, bind=f"unix:{tmp_path}/s")
    clients = crowd(server.address, 52)
    gate.wait_entered(2)
    server.signal(signal.SIGTERM)
    server.wait_log("SIGTERM")
    gate.open()
    assert collect(clients, HI) == {Outcome.OK: 52}
    assert server.wait_exit() == 0


def test_every_listener_is_drained(serve: Serve, gate: Gate) -> None:
    server = serve(GATED, "--workers", "2", env=gate.env, bind=["127.0.0.1:0", "127.0.0.1:0"])
    clients = [client for address in server.addresses for client in crowd(address, 26)]
    gate.wait_entered(2)
    server.signal(signal.SIGTERM)
    server.wait_log("SIGTERM")
    gate.open()
    assert collect(clients, HI) == {Outcome.OK: 52}
    assert server.wait_exit() == 0


def test_under_constant_connections_the_end_comes_and_none_is_reset(serve: Serve) -> None:
    server = serve("talkback", "--workers", "2")
    with Hammer(server.address, clients=8) as hammer:
        hammer.wait_more(200)
        assert server.stop(within_s=SOON_S) == 0
    assert {failure.outcome for failure in hammer.failures} <= {Outcome.REFUSED, Outcome.RESET}
    resets = sum(failure.outcome is Outcome.RESET for failure in hammer.failures)
    assert resets <= 2, "the last connections to come in between may be reset, no more"


def test_a_terminals_interrupt_reaches_everyone_and_costs_nobody(serve: Serve, gate: Gate) -> None:
    server = serve(GATED, "--workers", "2", env=gate.env)
    clients = crowd(server.address, 12)
    gate.wait_entered(2)
    server.signal_group(signal.SIGINT)
    server.wait_log("SIGINT")
    gate.open()
    assert collect(clients, HI) == {Outcome.OK: 12}
    assert server.wait_exit() == 0
    assert "respawn" not in server.log.partition("SIGINT")[2]


def test_term_to_the_whole_group_costs_nobody(serve: Serve, gate: Gate) -> None:
    server = serve(GATED, "--workers", "2", env=gate.env)
    clients = crowd(server.address, 12)
    gate.wait_entered(2)
    server.signal_group(signal.SIGTERM)
    server.wait_log("SIGTERM")
    gate.open()
    assert collect(clients, HI) == {Outcome.OK: 12}
    assert server.wait_exit() == 0


def test_a_second_interrupt_ends_at_once(serve: Serve, gate: Gate) -> None:
    server = serve(GATED, "--workers", "2", env=gate.env)
    clients = crowd(server.address, 2)
    gate.wait_entered(2)
    server.signal(signal.SIGINT)
    server.wait_log("SIGINT")
    assert server.stop(signal.SIGINT, within_s=SOON_S) == 0
    assert Outcome.OK not in collect(clients, HI)


def test_quit_ends_at_once(serve: Serve, gate: Gate) -> None:
    server = serve(GATED, "--workers", "2", env=gate.env)
    clients = crowd(server.address, 2)
    gate.wait_entered(2)
    assert server.stop(signal.SIGQUIT, within_s=SOON_S) == 0
    assert Outcome.OK not in collect(clients, HI)


def test_quit_after_term_ends_at_once(serve: Serve, gate: Gate) -> None:
    server = serve(GATED, "--workers", "1", env=gate.env)
    clients = crowd(server.address, 1)
    gate.wait_entered(1)
    server.signal(signal.SIGTERM)
    server.wait_log("SIGTERM")
    assert server.stop(signal.SIGQUIT, within_s=SOON_S) == 0
    assert Outcome.OK not in collect(clients, HI)


def test_a_second_term_is_no_hurry(serve: Serve, gate: Gate) -> None:
    server = serve(GATED, "--workers", "1", env=gate.env)
    clients = crowd(server.address, 3)
    gate.wait_entered(1)
    server.signal(signal.SIGTERM)
    server.wait_log("SIGTERM")
    server.signal(signal.SIGTERM)
    gate.open()
    assert collect(clients, HI) == {Outcome.OK: 3}
    assert server.wait_exit() == 0


def test_the_graceful_timeout_cuts_who_is_stuck_and_says_so(serve: Serve, gate: Gate) -> None:
    server = serve(GATED, "--workers", "2", "--graceful-timeout", "500ms", env=gate.env)
    clients = crowd(server.address, 1)
    gate.wait_entered(1)
    mark = len(server.log)
    started = time.monotonic()
    assert server.stop(within_s=SOON_S) == 0
    assert time.monotonic() - started >= 0.45
    said = server.log[mark:]
    assert re.search(r"cut\b.*count=1\b", said)
    assert Outcome.OK not in collect(clients, HI)


def test_a_worker_that_ignores_term_does_not_stop_the_stop(serve: Serve) -> None:
    server = serve(OBEY, "--workers", "1", "--graceful-timeout", "500ms")
    with dial(server.address) as client:
        client.sendall(b"spin\n")
        assert server.stop(within_s=SOON_S) == 0


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_stop_while_the_app_is_still_being_imported(
    serve: Serve, gate: Gate, app: object, signum: signal.Signals
) -> None:
    """The gate holds the import, so the workers are not ready when the signal comes."""
    source = f"import sys\nsys.path.insert(0, {str(APPS)!r})\nimport gated\ngated.pass_gate()\nhandle = gated.handle\n"
    server = serve(app(source), "--workers", "2", env=gate.env, ready=False)  # type: ignore[operator]
    gate.wait_entered(2)
    server.signal(signum)
    server.wait_log(signum.name)
    gate.open()
    assert server.wait_exit(within_s=SOON_S) == 0


def test_the_port_is_free_for_the_next_server_at_once(serve: Serve) -> None:
    first = serve("--workers", "2")
    for _ in range(20):
        exchange(first.address)
    assert first.stop() == 0
    second = serve("--workers", "2", bind=first.address)
    assert exchange(second.address, b"hi\n") == HI


def test_ten_stops_under_load_reset_hardly_anyone(serve: Serve) -> None:
    """A plain drain resets about two of the hammering clients a stop; holding new connections back, hardly any."""
    totals = Counter[Outcome]()
    for _ in range(10):
        server = serve("nap", "--workers", "4")
        with Hammer(server.address, clients=20) as hammer:
            hammer.wait_more(200)
            assert server.stop(within_s=SOON_S) == 0
        totals += hammer.outcomes
    assert set(totals) <= {Outcome.OK, Outcome.REFUSED, Outcome.RESET}
    assert totals[Outcome.RESET] <= 6, totals


def test_a_thousand_waiting_clients_are_all_answered(serve: Serve, gate: Gate) -> None:
    server = serve(GATED, "--workers", "4", env=gate.env)
    clients = crowd(server.address, 1_000)
    gate.wait_entered(4)
    server.signal_group(signal.SIGTERM)
    server.wait_log("SIGTERM")
    gate.open()
    assert collect(clients, HI) == {Outcome.OK: 1_000}
    assert server.wait_exit() == 0


def test_reading_is_not_needed_for_the_server_to_end(serve: Serve) -> None:
    """A client that was answered and does not close must not hold up the stop for the whole graceful timeout."""
    server = serve("talkback", "--workers", "1", "--graceful-timeout", "20")
    with dial(server.address) as client:
        client.sendall(b"hi\n")
        assert server.stop(within_s=SOON_S) == 0
        assert read_to_end(client) == HI
