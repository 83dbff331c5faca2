"""Kept connections are spread evenly: after a burst, with every kind of client, application and number of workers.

`python -m tests.engines.test_evenness` prints what was measured of each case as the table of docs/operating.md.
"""

from __future__ import annotations

import itertools
import random
import re
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from tabulate import tabulate

from tests.support.client import dial, read_to_end
from tests.support.control import Place
from tests.support.fairness import even
from tests.support.kept import KeptClients, some
from tests.support.server import RunningServer
from tests.support.wait import eventually
from tests.support.web import Browser, request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import AppWriter, Serve
    from tests.support.gate import Gate

pytestmark = [pytest.mark.slow, pytest.mark.timing]

APP = """
import asyncio, os, time
from tests.apps.gated import pass_gate

def work(query):
    if query == "gate":
        pass_gate()
    else:
        time.sleep(float(query))

def wsgi(environ, start_response):
    work(environ["QUERY_STRING"])
    body = b"%d" % os.getpid()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]

async def _answer(send):
    body = b"%d" % os.getpid()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})

async def awaits(scope, receive, send):
    assert scope["type"] == "http"
    if scope["query_string"] == b"gate":
        pass_gate()  # which holds the loop, too
    else:
        await asyncio.sleep(float(scope["query_string"]))
    await _answer(send)

async def blocks(scope, receive, send):
    assert scope["type"] == "http"
    work(scope["query_string"].decode())
    await _answer(send)
"""


class Case(NamedTuple):
    """One server and its clients."""

    workers: int
    serves: str  # wsgi with so many threads; or a coroutine that awaits, or blocks its loop
    view_ms: int
    clients: str
    arrival: str


CHOICES = Case(
    workers=(2, 4, 8, 16),  # type: ignore[arg-type]
    serves=("wsgi 1", "wsgi 4", "wsgi 8", "awaits", "blocks"),  # type: ignore[arg-type]
    view_ms=(1, 5, 30, 300),  # type: ignore[arg-type]
    clients=("load generator", "proxy", "browsers"),  # type: ignore[arg-type]
    arrival=("at once", "staggered", "idle first"),  # type: ignore[arg-type]
)
PAUSES: dict[str, Callable[[int], float]] = {
    "load generator": lambda _: 0.0,
    "proxy": lambda _: random.expovariate(20),
    "browsers": lambda served: 0.02 if served % 10 else random.uniform(0.1, 1.5),
}


def pairs(case: Case) -> set[tuple[int, object, int, object]]:
    """Every two of the values, with their places."""
    return {(i, case[i], j, case[j]) for i, j in itertools.combinations(range(len(case)), 2)}


def covering() -> list[Case]:
    """Few cases in which every two values of different places meet."""
    every = [Case(*values) for values in itertools.product(*CHOICES)]  # type: ignore[call-overload]
    missing = set().union(*map(pairs, every))
    found: list[Case] = []
    while missing:
        best = max(every, key=lambda case: len(pairs(case) & missing))
        missing -= pairs(best)
        found.append(best)
    return found


SEEN = [  # at their worst: 31 of 32 with one worker for ever; 4 s until the last was accepted by a blocked loop
    Case(2, "wsgi 1", 30, "load generator", "at once"),
    Case(2, "blocks", 30, "load generator", "at once"),
]


def held(place: Place) -> list[int]:
    """The connections of each worker."""
    return [worker["connections"] for worker in place.status()["workers"]]


def options(case: Case) -> tuple[str, tuple[str, ...]]:
    """The application, and the options of its server."""
    kind, threads = case.serves.split(" ") if " " in case.serves else (case.serves, "1")
    return kind, ("--workers", f"{case.workers}", "--threads", threads)


class Measured(NamedTuple):
    """What became of the connections of a case."""

    first: list[int]  # of each worker, once all clients were connected
    settled_s: float  # then until they were even
    spread: list[int]  # after another request of each
    given: int  # until then
    moved: int  # from then on
    requests: int  # from then on
    p50_s: float
    p99_s: float


def within_s(case: Case) -> float:
    """How long the connections may take to be even: a second, and what the machine and the view may take.

    A second more for processes that share two processors with other tests. And a worker counts what it has accepted,
    which it does between two calls of a view that blocks; and all of it is done by then, and so is the giving, if
    every worker has had a few.
    """
    return 2.0 + 4 * case.view_ms / 1000


LONGEST_S = 20.0  # to find out whether some that moved in few requests are few of many


def most_moves(requests: int) -> float:
    """How many connections may change hands in so many requests, once balanced."""
    return max(1, requests / 1000)


def measure(case: Case, address: str, place: Place) -> Measured:
    """Let the clients of a case come. Raises AssertionError if the connections are not even in time."""
    count = max(32, 4 * case.workers)
    pause_s = PAUSES[case.clients]
    clients = KeptClients(
        address,
        count,
        path=f"/?{case.view_ms / 1000}",
        apart_s=0.05 if case.arrival == "staggered" else 0.0,
        pause_s=(lambda n: pause_s(n) if n else 1.0) if case.arrival == "idle first" else pause_s,
    )
    with clients:
        began_s, first = time.monotonic(), held(place)
        eventually(lambda: sum(found := held(place)) == count and even(found), within_s=within_s(case), what="evenness")
        settled_s = time.monotonic() - began_s
        clients.wait_more(count, within_s=60)
        spread, before = held(place), place.status()["totals"]
        until_s = time.monotonic() + LONGEST_S
        while True:
            clients.wait_more(10 * count if case.view_ms < 100 else count, within_s=60)
            after = place.status()["totals"]
            moved, requests = after["given"] - before["given"], after["requests"] - before["requests"]
            if moved <= most_moves(requests) or time.monotonic() > until_s:
                break
        took_s = sorted(clients.took_s)
    assert clients.losses == []
    assert clients.told_to_close == 0
    return Measured(
        first,
        settled_s,
        spread,
        before["given"],
        moved,
        requests,
        took_s[len(took_s) // 2],
        took_s[len(took_s) * 99 // 100],
    )


@pytest.mark.parametrize("case", [*SEEN, *covering()], ids=lambda case: "-".join(map(str, case)).replace(" ", "_"))
def test_kept_connections_even_out(serve: Serve, app: AppWriter, place: Place, case: Case) -> None:
    kind, how = options(case)
    found = measure(case, serve(app(APP, attribute=kind), *how, env=place.env).address, place)
    print(found)
    assert even(found.spread)
    assert found.moved <= most_moves(found.requests), "once balanced, connections stay"


@contextmanager
def one_is_held_up(server: RunningServer, gate: Gate, threads: int) -> Iterator[None]:
    """One worker is in the application, with all its threads."""
    victim = min(server.worker_pids())
    with ExitStack() as stack:
        inside: list[Browser] = []
        while len(inside) < threads:
            browser = stack.enter_context(Browser(server))
            if int(browser.get("/?0").body) == victim:
                inside.append(browser)
        for browser in inside:
            browser.send(request("/?gate"))
        gate.wait_entered(threads)
        yield
        gate.open()
        assert [browser.response().status for browser in inside] == [200] * threads


@pytest.mark.parametrize(
    ("kind", "how", "threads"),
    [
        ("wsgi", ("--threads", "1"), 1),
        ("wsgi", ("--threads", "4"), 4),
        ("awaits", ("--loop", "uvloop"), 1),
        ("awaits", ("--loop", "asyncio"), 1),
        ("blocks", ("--loop", "uvloop"), 1),
        ("blocks", ("--loop", "asyncio"), 1),
    ],
    ids=lambda it: it[1] if isinstance(it, tuple) else str(it),
)
def test_what_one_had_to_take_alone_is_even_soon(
    serve: Serve, app: AppWriter, place: Place, gate: Gate, kind: str, how: tuple[str, ...], threads: int
) -> None:
    """The bar is a second of traffic; the rest is for processes that share the machine with clients and other work."""
    server = serve(app(APP, attribute=kind), "--workers", "2", *how, env=place.env | gate.env)
    count = 40
    with ExitStack() as stack:
        clients = KeptClients(server.address, count, path="/?0.001", pause_s=some(0.05, 0.15))
        with one_is_held_up(server, gate, threads):
            stack.enter_context(clients)
            # What it gives meanwhile to who is held up comes back to it.
            eventually(lambda: max(held(place)) >= count, within_s=30, what="one has all of them")
        eventually(lambda: sum(found := held(place)) == count and even(found), within_s=3.0, what="evenness")
        clients.wait_more(count)
        before = place.status()["totals"]
        clients.wait_more(1000)
        after = place.status()["totals"]
        assert even(held(place))
        assert before["given"] > 0
        assert after["given"] - before["given"] <= 1, "once balanced, connections stay"
    assert clients.losses == []
    assert clients.told_to_close == 0


CALL_S = 2.0


@pytest.mark.parametrize(
    "how",
    [("wsgi", "-t", "1"), ("wsgi", "-t", "4"), ("blocks", "--loop", "uvloop"), ("blocks", "--loop", "asyncio")],
    ids="-".join,
)
def test_beside_a_worker_in_a_long_call_who_comes_is_served_at_once(
    serve: Serve, app: AppWriter, how: tuple[str, ...]
) -> None:
    """Clients that come one after the other; who got behind the call would wait for it to end."""
    kind, *more = how
    server = serve(app(APP, attribute=kind), "--workers", "4", *more)
    took_s = []
    with dial(server.address) as inside:
        inside.sendall(request(f"/?{CALL_S}", connection="close"))
        until_s = time.monotonic() + 0.8 * CALL_S
        while (began_s := time.monotonic()) < until_s:
            with dial(server.address) as sock:
                sock.sendall(request("/?0", connection="close"))
                assert b" 200 " in read_to_end(sock)
            took_s.append(time.monotonic() - began_s)
        assert b" 200 " in read_to_end(inside)
    assert len(took_s) > 20
    assert max(took_s) < CALL_S / 2, sorted(took_s)[-5:]


BURST = 24


def ask_and_leave(server: RunningServer) -> int:
    """A client who leaves when it is answered: for that the worker must not take another one, whom it lets wait."""
    with Browser(server) as browser:
        return browser.get("/?0.3").status


@pytest.mark.parametrize("slow", [False, True], ids=["not_known", "known_as_slow"])
@pytest.mark.parametrize(
    "how",
    [("wsgi", "-t", "1"), ("wsgi", "-t", "4"), ("blocks", "--loop", "uvloop"), ("blocks", "--loop", "asyncio")],
    ids="-".join,
)
def test_a_burst_beside_idle_ones_is_served_by_all(
    serve: Serve, app: AppWriter, place: Place, how: tuple[str, ...], slow: bool
) -> None:
    """One worker holds fewer idle connections: it does not take what others could serve at once."""
    kind, *more = how
    server = serve(app(APP, attribute=kind), "--workers", "4", *more, env=place.env)
    with ExitStack() as stack:
        idle: dict[int, list[Browser]] = {}
        for _ in range(160):
            browser = stack.enter_context(Browser(server))
            idle.setdefault(int(browser.get("/?0").body), []).append(browser)
        fewest = min(idle.values(), key=len)
        for browser in fewest[24:]:
            browser.close()
        eventually(lambda: min(held(place)) == 24, within_s=5)
        if slow:
            asked = [theirs[0] for theirs in idle.values()]
            for browser in asked:
                browser.send(request("/?0.3"))
            assert [browser.response().status for browser in asked] == [200] * 4
        threads = stack.enter_context(ThreadPoolExecutor(BURST))
        took_s = []
        for _ in range(3):
            began_s = time.monotonic()
            assert [*threads.map(lambda _: ask_and_leave(server), range(BURST))] == [200] * BURST
            took_s.append(time.monotonic() - began_s)
    at_once = 4 * (int(more[1]) if kind == "wsgi" else 1)
    best_s = 0.3 * -(-BURST // at_once)
    assert max(took_s) < best_s + 2 * 0.3 + 0.5, f"two calls more, and what a busy machine may take: {took_s}"


@pytest.mark.parametrize("how", [("wsgi", "-t", "1"), ("wsgi", "-t", "4"), ("awaits",)], ids="-".join)
@pytest.mark.parametrize("full", [True, False], ids=["full", "uneven"])
def test_workers_that_take_no_more_sleep(
    serve: Serve, app: AppWriter, place: Place, how: tuple[str, ...], full: bool
) -> None:
    """They look every few milliseconds whether something waits, but not for ever."""
    kind, *more = how
    most = ("--max-connections", "20") if full else ()
    server = serve(app(APP, attribute=kind), "--workers", "2", *more, *most, env=place.env)
    with ExitStack() as stack:
        idle: dict[int, list[Browser]] = {}
        for _ in range(40 if full else 41):
            browser = stack.enter_context(Browser(server))
            idle.setdefault(int(browser.get("/?0").body), []).append(browser)
        if not full:
            for browser in min(idle.values(), key=len)[17:]:
                browser.close()
            eventually(lambda: max(held(place)) - min(held(place)) > 2, within_s=5)
        eventually(lambda: max(wake_ups_a_s(pid) for pid in server.worker_pids()) < 20, within_s=15)
        assert stack.enter_context(Browser(server)).get("/?0").status == 200


def wake_ups_a_s(pid: int) -> float:
    """How often a process has begun to wait, over a second."""

    def count() -> int:
        found = re.search(r"^voluntary_ctxt_switches:\t(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
        assert found
        return int(found[1])

    before, began_s = count(), time.monotonic()
    eventually(lambda: time.monotonic() - began_s > 1, within_s=5)
    return (count() - before) / (time.monotonic() - began_s)


def test_clients_who_are_here_do_not_keep_new_ones_out(serve: Serve, app: AppWriter) -> None:
    """All threads are busy for ever, as each of these clients asks again at once."""
    server = serve(app(APP, attribute="wsgi"), "--workers", "2", "--threads", "2")
    with KeptClients(server.address, 24, path="/?0.03") as clients:
        for _ in range(10):
            with dial(server.address) as sock:
                sock.sendall(request("/?0", connection="close"))
                assert b" 200 " in read_to_end(sock)
        clients.wait_more(24)
        clients.stop()
    assert clients.losses == []


def main() -> None:
    """Print the table."""
    rows = []
    for case in [*SEEN, *covering()]:
        kind, how = options(case)
        with Place() as place:
            path = Path(place.root, "app.py")
            path.write_text(APP)
            server = RunningServer(f"{path}:{kind}", *how, env=place.env)
            try:
                server.wait_ready()
                found = measure(case, server.address, place)
            finally:
                server.stop()
        mean = sum(found.spread) / case.workers
        rows.append(
            (
                case.serves,
                case.workers,
                f"{case.view_ms} ms",
                case.clients,
                case.arrival,
                f"{min(found.first)} to {max(found.first)}",
                f"{found.settled_s:.2f} s",
                f"{min(found.spread)} to {max(found.spread)} of {mean:g}",
                found.given,
                f"{1000 * found.moved / found.requests:.1f}",
                f"{1000 * found.p50_s:.0f} ms",
                f"{1000 * found.p99_s:.0f} ms",
            )
        )
    headers = ("serves", "workers", "view", "clients", "arrive", "held at first", "even after", "then held", "given")
    rows.sort(key=lambda row: -float(row[6].split()[0]))
    print(tabulate(rows, headers=(*headers, "per 1,000 later", "p50", "p99"), tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
