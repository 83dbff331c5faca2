"""Workers that are busy with calls: nobody gets behind them for evenness, and nobody is closed for want of a taker."""

from __future__ import annotations

import operator
import signal
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.master.test_handover import each_loop, totals
from tests.support.kept import KeptClients, some
from tests.support.wait import eventually
from tests.support.web import WEB, Browser, request, silent

if TYPE_CHECKING:
    from tests.conftest import Serve
    from tests.support.control import Place
    from tests.support.gate import Gate

pytestmark = pytest.mark.slow

CLIENTS = 20
BUSY_S = 0.5  # of a call, and the others know
STUCK_S = 1.2  # from a second on, a worker counts as one that cannot serve


@each_loop
@pytest.mark.timing
def test_clients_of_a_quick_view_do_not_get_behind_the_calls_of_one_client(
    serve: Serve, place: Place, way: tuple[str, ...], gate: Gate
) -> None:
    """Who came while that one was in a call is with the other worker, and stays there."""
    server = serve(*way, "--workers", "2", env=place.env | gate.env)
    with Browser(server) as busy:
        busy.send(request("/hold"))
        gate.wait_entered(1)
        entered_s = time.monotonic()
        eventually(lambda: time.monotonic() - entered_s > BUSY_S, within_s=10)
        with KeptClients(server.address, CLIENTS, path="/", pause_s=some(0.05, 0.3)) as clients:
            clients.wait_more(2 * CLIENTS)
            gate.open()
            assert busy.response().status == 200
            for _ in range(4):
                assert busy.get("/block?0.3").status == 200
            began = len(clients.took_s)
            for _ in range(6):
                assert busy.get("/block?0.3").status == 200
            took_s = sorted(clients.took_s[began:])
            found = totals(place)
            clients.stop()
        print(f"{len(took_s)} requests, the slowest {took_s[-1] * 1e3:.0f} ms; {found['given']} connections given")
        assert len(took_s) > 3 * CLIENTS
        assert took_s[-1] < 0.25
        assert (found["given"], found["connections"]) == (0, CLIENTS + 1)
        assert clients.losses == []


def given_all(place: Place, pid: int) -> bool:
    """Whether this worker, which retires, has left only the connections of its two threads."""
    found = {each["pid"]: each for each in place.status()["workers"]}
    return found[pid]["state"] == "DRAINING" and found[pid]["connections"] == 2


@pytest.mark.parametrize("change", ["scale", "reload"])
def test_if_all_threads_of_all_workers_are_in_long_calls_nobody_is_told_to_close(
    serve: Serve, place: Place, gate: Gate, change: str
) -> None:
    """Who is new takes what the one that leaves gives; if nobody is, it keeps them until a call ends."""
    server = serve(WEB, "--threads", "2", "--workers", "2", env=place.env | gate.env)
    with ExitStack() as stack:
        by_pid: dict[int, list[Browser]] = {}
        for browser in [stack.enter_context(Browser(server)) for _ in range(CLIENTS)]:
            by_pid.setdefault(int(browser.get("/pid").body), []).append(browser)
        inside = [browser for theirs in by_pid.values() for browser in theirs[:2]]
        idle = [browser for theirs in by_pid.values() for browser in theirs[2:]]
        for browser in inside:
            browser.send(request("/hold"))
        gate.wait_entered(4)
        entered_s = time.monotonic()
        eventually(lambda: time.monotonic() - entered_s > STUCK_S, within_s=10)
        first = min if change == "reload" else max
        leaver = first(place.status()["workers"], key=operator.itemgetter("slot"))["pid"]
        server.signal(signal.SIGHUP if change == "reload" else signal.SIGTTOU)
        if change == "reload":
            eventually(lambda: given_all(place, leaver), within_s=4, what="the calls alone are left")
        else:
            server.wait_log("scaling")
        assert totals(place)["closed"] == 0
        assert all(silent(browser) for browser in idle)
        gate.open()
        assert [(answer.status, answer.closes) for answer in map(Browser.response, inside)] == [(200, False)] * 4
        assert [(answer.status, answer.closes) for answer in map(Browser.get, idle)] == [(200, False)] * (CLIENTS - 4)
        if change == "scale":
            server.wait_workers(1)
        else:
            server.wait_log("reloaded generation=2")
        found = totals(place)
        assert (found["closed"], found["cut"], found["connections"]) == (0, 0, CLIENTS)
