"""Idle connections change hands: a worker that leaves cuts nobody off, and says `Connection: close` to nobody."""

from __future__ import annotations

import operator
import os
import signal
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from tests.master.test_upgrade import Line
from tests.support.admin import ADMIN, address_of, figure, figures
from tests.support.admin import status as admin_status
from tests.support.control import finish
from tests.support.kept import KeptClients, after_the_first, some
from tests.support.tls import TLS, trusting
from tests.support.wait import eventually
from tests.support.web import ASGI, WEB, Browser, request

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Serve
    from tests.support.control import Place
    from tests.support.gate import Gate
    from tests.support.server import RunningServer

pytestmark = pytest.mark.slow

WAYS = {
    "wsgi": (WEB, "--threads", "1"),
    "wsgi-pool": (WEB, "--threads", "4"),
    "asyncio": (ASGI, "--loop", "asyncio"),
    "uvloop": (ASGI, "--loop", "uvloop"),
}
LOOPS = ("wsgi", "asyncio", "uvloop")  # whose application can keep the loop
each_loop = pytest.mark.parametrize("way", [WAYS[name] for name in LOOPS], ids=LOOPS)
each_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
STOPPED = r"stopped .*accepted=(\d+) closed=(\d+) cut=(\d+) given=(\d+) received=(\d+)"
HELD = 60
SOON_S = 30.0


def totals(place: Place) -> dict[str, Any]:
    """The totals of the status, in which no connection may be missing or counted twice."""
    found: dict[str, Any] = place.status()["totals"]
    accounted = found["closed"] + found["cut"] + found["connections"] + found["in_transfer"]
    assert found["accepted"] == accounted, found
    return found


def until_told(browser: Browser) -> None:
    """Ask again and again until the worker has heard that it retires: that answer is the last, and says so."""
    eventually(lambda: browser.get("/").closes, within_s=SOON_S, what="an answer with Connection: close")
    assert browser.ended()


def agreed(place: Place, admin: str) -> dict[str, Any]:
    """The totals, once nothing is in transfer any more; the metrics and the page's document say the same."""
    found = eventually(lambda: (seen := totals(place))["in_transfer"] == 0 and seen, within_s=5)
    measured, shown = figures(admin), admin_status(admin)["totals"]
    for name in ("accepted", "closed", "cut", "given", "received"):
        assert (figure(measured, f"prefork_{name}_total"), shown[name]) == (found[name], found[name])
    for name in ("connections", "in_transfer"):
        assert (figure(measured, f"prefork_{name}"), shown[name]) == (found[name], found[name])
    return found


def reload(line: Line, place: Place) -> None:
    place.ok("reload")


def begin_reload(server: RunningServer, place: Place) -> set[int]:
    """Ask for a reload, and wait until the only worker was told to retire; return who has left or will."""
    before = server.worker_pids()
    server.signal(signal.SIGHUP)
    states = {"DRAINING"}
    eventually(
        lambda: states & {each["state"] for each in place.status()["workers"]} or not before & server.worker_pids(),
        within_s=SOON_S,
    )
    return before


def wait_serving(server: RunningServer, place: Place, count: int, *, without: int = 0) -> None:
    """Wait until the server has so many workers, and all of them serve."""

    def look() -> bool:
        found = {each["pid"]: each["state"] for each in place.status()["workers"]}
        return len(found) == count and without not in found and set(found.values()) <= {"IDLE", "BUSY"}

    eventually(look, within_s=SOON_S, what=f"{count} workers that serve")
    assert not server.worker_pids() & {without}


def recycle(line: Line, place: Place) -> None:
    """A worker is told to leave, and its successor comes."""
    gone = min(each["pid"] for each in place.status()["workers"])
    os.kill(gone, signal.SIGTERM)
    wait_serving(line.server, place, 2, without=gone)


def scale(line: Line, place: Place) -> None:
    for count in (3, 2):
        place.ok("scale", str(count))
        wait_serving(line.server, place, count)


def upgrade(line: Line, place: Place) -> None:
    line.upgrade()


CHANGES = [reload, recycle, scale, upgrade]


@each_way
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_nobody_is_cut_off_or_told_to_leave(
    serve: Serve, place: Place, way: tuple[str, ...], change: Callable[[Line, Place], None]
) -> None:
    line = Line(serve(*way, "--workers", "2", env=place.env))
    with ExitStack() as stack:
        stack.callback(line.stop)
        address = line.server.address
        idle = stack.enter_context(KeptClients(address, HELD, pause_s=some(0.1, 3.0)))
        busy = stack.enter_context(KeptClients(address, 4))
        busy.wait_more(100)
        for _ in range(3):
            change(line, place)
            idle.wait_more(HELD)
            busy.wait_more(100)
        found = totals(place)
        assert found["cut"] == 0
        assert found["connections"] == HELD + 4
        idle.stop()
        busy.stop()
        assert idle.losses + busy.losses == []
        assert idle.told_to_close + busy.told_to_close == 0


@each_way
@pytest.mark.timing
def test_a_new_worker_gets_its_share_of_many_idle_ones_at_once(
    serve: Serve, place: Place, way: tuple[str, ...]
) -> None:
    """The queue has room for few of them. Given with each heartbeat, that many took 3 to 5 s."""
    server = serve(*way, "--workers", "1", env=place.env)
    count = 800
    with ExitStack() as stack:
        for _ in range(count):
            assert stack.enter_context(Browser(server)).get("/").status == 200
        place.ok("scale", "2")

        def even() -> bool:
            held = [each["connections"] for each in place.status()["workers"]]
            return len(held) == 2 and abs(held[0] - held[1]) <= 4 and sum(held) == count

        eventually(even, within_s=2.0, what="400 with each")
        assert totals(place)["cut"] == 0


@each_way
@pytest.mark.timing
def test_a_reload_beside_idle_connections_waits_for_none_of_them(
    serve: Serve, place: Place, way: tuple[str, ...]
) -> None:
    server = serve(*way, "--workers", "4", "--keep-alive", "75", env=place.env)
    began_s = time.monotonic()
    place.ok("reload")
    alone_s = time.monotonic() - began_s
    with KeptClients(server.address, 1000, pause_s=after_the_first(0.0, 70.0)) as clients:
        clients.wait_more(1000 - clients.asked)
        began_s = time.monotonic()
        place.ok("reload")
        took_s = time.monotonic() - began_s
        print(f"4 workers: a reload takes {alone_s:.2f} s, beside 1,000 idle connections {took_s:.2f} s")
        assert took_s <= alone_s + 2.0
        eventually(lambda: totals(place)["connections"] == 1000, within_s=SOON_S, what="all taken")
    assert clients.losses == []
    assert clients.told_to_close == 0


@each_way
@pytest.mark.smoke
def test_a_request_that_is_served_is_finished_and_its_connection_goes_on(
    serve: Serve, place: Place, way: tuple[str, ...], gate: Gate
) -> None:
    server = serve(*way, "--workers", "1", env=place.env | gate.env)
    with Browser(server) as browser:
        browser.send(request("/gate"))
        gate.wait_entered(1)
        before = begin_reload(server, place)
        gate.open()
        answer = browser.response()
        assert answer.status == 200
        assert not answer.closes
        server.wait_workers(1, without=before)
        answer = browser.get("/pid")
        assert int(answer.body) in server.worker_pids()


@each_way
def test_without_anybody_to_take_them_connections_end_with_a_last_answer(
    serve: Serve, place: Place, way: tuple[str, ...]
) -> None:
    """As of the last worker of a server that is scaled to nothing."""
    server = serve(*way, "--workers", "2", env=place.env)
    with Browser(server) as asks, Browser(server) as is_silent:
        assert not asks.get("/").closes
        assert not is_silent.get("/").closes
        server.signal(signal.SIGTTOU)
        server.wait_workers(1)
        began_s = time.monotonic()
        asked = place.start("scale", "0")
        until_told(asks)
        assert is_silent.ended()
        assert time.monotonic() - began_s < 15
        finish(asked)


@each_way
@pytest.mark.parametrize("more", [(), TLS], ids=["plain", "tls"])
def test_a_stop_ends_idle_connections_within_five_seconds(
    serve: Serve, way: tuple[str, ...], more: tuple[str, ...]
) -> None:
    server = serve(*way, *more, "--workers", "2", "--keep-alive", "75")
    tls = trusting() if more else None
    with ExitStack() as stack:
        asks, is_silent, new = (stack.enter_context(Browser(server, tls=tls)) for _ in range(3))
        asks.get("/")
        is_silent.get("/")
        began_s = time.monotonic()
        server.signal(signal.SIGTERM)
        until_told(asks)
        assert new.get("/").status == 200
        assert is_silent.ended()
        assert 4.5 < time.monotonic() - began_s < 12
        assert server.wait_exit() == 0


@each_way
@pytest.mark.parametrize("change", ["stop", "reload"])
@pytest.mark.parametrize("more", [("--proxy-protocol", "--trusted-proxies", "127.0.0.1"), TLS], ids=["proxy", "tls"])
def test_clients_that_have_sent_nothing_before_http_have_five_seconds(
    serve: Serve, place: Place, way: tuple[str, ...], more: tuple[str, ...], change: str
) -> None:
    """The header of a proxy, or a handshake, could come within --header-timeout."""
    server = serve(*way, *more, "--workers", "1", "--header-timeout", "60", env=place.env)
    with ExitStack() as stack:
        silent = [stack.enter_context(Browser(server)) for _ in range(2)]
        eventually(lambda: place.status()["totals"]["connections"] == 2, within_s=SOON_S)
        began_s = time.monotonic()
        if change == "reload":
            place.ok("reload")
        else:
            server.signal(signal.SIGTERM)
        assert all(browser.ended() for browser in silent)
        assert 4.5 < time.monotonic() - began_s < 12
        if change == "reload":
            assert totals(place)["cut"] == 0
        else:
            assert server.wait_exit() == 0


@each_way
def test_before_a_stop_with_lame_duck_nobody_is_told_to_leave(serve: Serve, way: tuple[str, ...]) -> None:
    server = serve(*way, "--workers", "2", "--keep-alive", "75", "--lame-duck", "2")
    with Browser(server) as asks, Browser(server) as is_silent:
        asks.get("/")
        is_silent.get("/")
        began_s = time.monotonic()
        server.signal(signal.SIGTERM)
        server.wait_log("leaving")
        assert not asks.get("/").closes
        server.wait_log("stopping")
        until_told(asks)
        assert is_silent.ended()
        assert 6.5 < time.monotonic() - began_s < 14
        assert server.wait_exit() == 0


def leaver(place: Place) -> int:
    """The worker that leaves first: a server that is scaled down loses its last one."""
    return max(place.status()["workers"], key=operator.itemgetter("slot"))["pid"]


def begin_upgrade(line: Line) -> None:
    mark = line.usr2()
    line.server.wait_log("handed over", after=mark)
    line.master = line.successor(mark)


LEAVING: dict[str, tuple[tuple[str, ...], Callable[[Line], object]]] = {
    "reload": (("--workers", "1"), lambda line: line.server.signal(signal.SIGHUP)),
    "recycle": (("--workers", "1", "--max-requests", "4"), lambda line: None),  # with the next request
    "scale": (("--workers", "2"), lambda line: line.server.signal(signal.SIGTTOU)),
    "upgrade": (("--workers", "1"), begin_upgrade),
}


@each_way
@pytest.mark.parametrize("how", LEAVING)
def test_under_tls_idle_clients_of_a_worker_that_leaves_have_five_seconds(
    serve: Serve, place: Place, way: tuple[str, ...], how: str
) -> None:
    """In which a request is answered, as the last one."""
    options, leave = LEAVING[how]
    line = Line(serve(*way, *TLS, *options, env=place.env))
    pid = leaver(place)
    with ExitStack() as stack:
        stack.callback(line.stop)
        theirs: list[Browser] = []
        while len(theirs) < 3:
            browser = stack.enter_context(Browser(line.server, tls=trusting()))
            answer = browser.get("/pid")
            assert not answer.closes
            if int(answer.body) == pid:
                theirs.append(browser)
        asks, asks_late, is_silent = theirs
        began_s = time.monotonic()
        leave(line)
        until_told(asks)
        told_s = time.monotonic()
        eventually(lambda: time.monotonic() - told_s > 3, within_s=10)
        answer = asks_late.get("/pid")
        assert (int(answer.body), answer.closes) == (pid, True)
        assert asks_late.ended()
        assert is_silent.ended()
        assert 5 < time.monotonic() - began_s < 15
        for browser in theirs:
            browser.close()
        if how != "upgrade":
            wait_serving(line.server, place, 1, without=pid)


@each_way
def test_an_upgrade_to_another_kind_of_application_gives_nothing(
    serve: Serve, place: Place, tmp_path: Any, way: tuple[str, ...]
) -> None:
    """Its workers cannot go on with a connection of HTTP: it ends as it would without them."""
    kind = tmp_path / "app.py"
    name = way[0].rpartition("/")[2].partition(":")[0].removesuffix(".py")
    folder = way[0].rpartition("/")[0]
    kind.write_text(f"import sys\nsys.path.insert(0, {folder!r})\nfrom {name} import app\n")
    line = Line(serve(f"{kind}:app", *way[1:], "--workers", "1", env=place.env))
    with ExitStack() as stack:
        stack.callback(line.stop)
        browser = stack.enter_context(Browser(line.server))
        assert not browser.get("/").closes
        kind.write_text("def app(conn):\n    conn.sendall(b'hello')\n")
        begin_upgrade(line)
        until_told(browser)
        eventually(lambda: not line.server.running, within_s=SOON_S)


@each_way
def test_when_all_are_full_the_connection_that_was_idle_the_longest_makes_room(
    serve: Serve, place: Place, way: tuple[str, ...]
) -> None:
    server = serve(*way, "--workers", "1", "--max-connections", "4", env=place.env)
    with ExitStack() as stack:
        browsers = [stack.enter_context(Browser(server)) for _ in range(4)]  # the longest idle one first
        for browser in browsers:
            assert browser.get("/").status == 200
        assert browsers[0].get("/").status == 200
        browsers.append(browsers.pop(0))
        for _ in range(3):
            browsers.append(stack.enter_context(Browser(server)))
            assert browsers[-1].get("/").status == 200
            assert browsers.pop(0).ended()
        assert [browser.get("/").status for browser in browsers] == [200] * 4
        found = totals(place)
        assert (found["closed"], found["cut"], found["connections"]) == (3, 0, 4)


def fill(server: RunningServer, stack: ExitStack, pid: int, count: int, path: str) -> list[Browser]:
    """Have this worker serve so many requests for `path`, each over a connection of its own."""
    inside: list[Browser] = []
    while len(inside) < count:
        browser = stack.enter_context(Browser(server))
        if int(browser.get("/pid").body) == pid:
            inside.append(browser)
    for browser in inside:
        browser.send(request(path))
    return inside


@pytest.mark.parametrize(("name", "threads"), [("wsgi", 1), ("wsgi-pool", 4), ("asyncio", 1), ("uvloop", 1)])
def test_who_is_full_gives_to_one_who_is_not(serve: Serve, place: Place, gate: Gate, name: str, threads: int) -> None:
    """Also to one who is in the application, and takes it only afterwards."""
    most = 4 + threads
    server = serve(*WAYS[name], "--workers", "2", "--max-connections", str(most), env=place.env | gate.env)
    with ExitStack() as stack:
        inside = fill(server, stack, min(server.worker_pids()), threads, "/hold")
        gate.wait_entered(threads)
        browsers = []
        while totals(place)["accepted"] < 2 * most:
            browsers.append(stack.enter_context(Browser(server)))
            assert browsers[-1].get("/").status == 200
        gate.open()
        assert [browser.response().status for browser in inside] == [200] * threads
        assert [browser.get("/").status for browser in browsers] == [200] * len(browsers)
        found = totals(place)
        assert (found["closed"], found["connections"]) == (0, 2 * most)
        assert found["given"] >= 4


@each_way
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_whoever_is_asked_counts_alike(
    serve: Serve, place: Place, way: tuple[str, ...], change: Callable[[Line, Place], None]
) -> None:
    line = Line(serve(*way, "--workers", "2", *ADMIN, env=place.env))
    admin = address_of(line.server)
    with ExitStack() as stack:
        stack.callback(line.stop)
        browsers = [stack.enter_context(Browser(line.server)) for _ in range(10)]
        assert [browser.get("/").status for browser in browsers] == [200] * 10
        browsers.pop().close()
        eventually(lambda: totals(place)["connections"] == 9, within_s=SOON_S)
        mark = len(line.server.log)
        change(line, place)
        if change is upgrade:
            line.server.wait_log("admin listening", after=mark)
            old = line.server.wait_log(STOPPED)
            assert [int(each) for each in old.groups()][:3] == [10, 1, 0]
            assert int(old[4]) - int(old[5]) == 9, "the new one has them"
        eventually(lambda: totals(place)["connections"] == 9, within_s=SOON_S)
        found = agreed(place, admin)
        assert (found["connections"], found["cut"]) == (9, 0)
        assert found["accepted"] - found["closed"] == 9
        line.stop()
    last = line.server.wait_log(STOPPED, count=2 if change is upgrade else 1)
    accepted, closed, cut, given, received = (int(each) for each in last.groups())
    assert (closed, cut, given) == (accepted, 0, received)


@each_way
def test_a_worker_that_dies_has_cut_what_it_held(serve: Serve, place: Place, way: tuple[str, ...]) -> None:
    server = serve(*way, "--workers", "2", env=place.env)
    with ExitStack() as stack:
        for _ in range(6):
            stack.enter_context(Browser(server)).get("/")
        victim = max(place.status()["workers"], key=operator.itemgetter("connections"))
        assert victim["connections"] >= 3
        os.kill(victim["pid"], signal.SIGKILL)
        server.wait_log(rf"worker died .*cut={victim['connections']}\b")
        found = eventually(lambda: (seen := totals(place))["cut"] and seen, within_s=SOON_S)
        assert (found["cut"], found["connections"]) == (victim["connections"], 6 - victim["connections"])
        assert place.shown()["deaths"]["last"]["cut"] == victim["connections"]
