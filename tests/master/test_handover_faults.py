"""Workers die, stand still, or have no room, while connections change hands: what can be kept is, all is counted."""

from __future__ import annotations

import operator
import os
import signal
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import pytest

from tests.master.test_handover import SOON_S, STOPPED, each_loop, each_way, totals
from tests.master.test_upgrade import Line
from tests.support.kept import KeptClients, after_the_first, some
from tests.support.processes import alive, children
from tests.support.wait import eventually
from tests.support.web import Browser, request

if TYPE_CHECKING:
    from tests.conftest import Serve
    from tests.support.control import Place
    from tests.support.gate import Gate
    from tests.support.server import RunningServer

pytestmark = pytest.mark.slow


def cpu_s(pid: int) -> float:
    """What the process has used of a processor."""
    with open(f"/proc/{pid}/schedstat") as file:
        return int(file.read().split()[0]) / 1e9


def states(place: Place, *wanted: str) -> list[int]:
    """The workers in these states; by default, those that serve."""
    return [each["pid"] for each in place.status()["workers"] if each["state"] in (wanted or ("IDLE", "BUSY"))]


def settled(place: Place, accepted: int) -> dict[str, Any]:
    """The totals once nothing is between two workers any more."""
    return eventually(
        lambda: (found := totals(place))["in_transfer"] == 0 and found["accepted"] >= accepted and found, within_s=4
    )


def kill_one_in_a_reload(server: RunningServer, place: Place, victim: str) -> None:
    """Begin a reload, and kill one who gives, or takes, once connections change hands; unless it has left by then."""
    before, received = server.worker_pids(), place.status()["totals"]["received"]
    server.signal(signal.SIGHUP)
    eventually(lambda: server.worker_pids() - before, within_s=SOON_S)
    eventually(lambda: place.status()["totals"]["received"] > received, within_s=SOON_S)
    pid = next(iter(before & server.worker_pids() if victim == "giver" else set(states(place)) - before), 0)
    if pid:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        eventually(lambda: not alive(pid), within_s=SOON_S)


@each_way
@pytest.mark.parametrize("victim", ["giver", "taker"])
def test_who_dies_while_connections_change_hands_takes_only_its_own_along(
    serve: Serve, place: Place, way: tuple[str, ...], victim: str
) -> None:
    server = serve(*way, "--workers", "2", env=place.env)
    with ExitStack() as stack:
        idle = stack.enter_context(KeptClients(server.address, 300, pause_s=after_the_first(0.0, 1.0)))
        busy = stack.enter_context(KeptClients(server.address, 4))
        idle.wait_more(300 - idle.asked)
        for number in range(4):
            mark = len(server.log)
            kill_one_in_a_reload(server, place, victim)
            server.wait_log(f"reloaded generation={number + 2}", after=mark)
            settled(place, 304)
        assert 1 <= server.log.count("] worker died") <= 4

        def closed_alone() -> bool:
            """Whether no connection has ended but those that were cut, and those whose clients were told so."""
            found = settled(place, 304)
            told = idle.told_to_close + busy.told_to_close
            return (found["accepted"], found["closed"]) == (idle.connected + busy.connected, told)

        eventually(closed_alone, within_s=SOON_S, what="what the clients have seen")
        if victim == "giver":  # without the only taker, a worker that retires tells its clients to leave
            assert settled(place, 304)["accepted"] == 304
            assert settled(place, 304)["closed"] == 0
        assert len(idle.losses + busy.losses) <= settled(place, 304)["cut"]


@each_way
def test_a_new_master_that_dies_before_it_is_in_office_has_taken_nothing(
    serve: Serve, place: Place, way: tuple[str, ...]
) -> None:
    server = serve(*way, "--workers", "2", env=place.env)
    line = Line(server)
    with KeptClients(server.address, 100, pause_s=some(0.1, 1.0)) as clients:
        clients.wait_more(200)
        mark = line.usr2()
        successor = line.successor(mark)
        eventually(lambda: server.log.count("listening") >= 2, within_s=SOON_S)
        server.signal(signal.SIGSTOP)  # it hears that the new one is ready, and cannot answer
        server.wait_log("ready workers=2", after=mark)
        os.kill(successor, signal.SIGKILL)
        eventually(lambda: not alive(successor), within_s=SOON_S)
        server.signal(signal.SIGCONT)
        assert "SIGKILL" in line.failed(mark)
        clients.wait_more(200)
        found = settled(place, 100)
        assert (found["accepted"], found["connections"]) == (100, 100)
        clients.stop()
        assert clients.losses == []
        assert clients.told_to_close == 0
        place.ok("reload")
        assert settled(place, 100)["cut"] == 0, "and its own workers take again"


@each_way
def test_a_worker_that_is_stopped_during_a_reload_takes_only_its_own_along(
    serve: Serve, place: Place, way: tuple[str, ...]
) -> None:
    server = serve(*way, "--workers", "2", "--timeout", "3", "--graceful-timeout", "3", env=place.env)
    with KeptClients(server.address, 60, pause_s=after_the_first(0.1, 1.0)) as clients:
        clients.wait_more(60)
        victim = place.status()["workers"][0]
        os.kill(victim["pid"], signal.SIGSTOP)
        place.run("reload")
        eventually(lambda: not alive(victim["pid"]), within_s=SOON_S)
        found = settled(place, 60)
        assert (found["accepted"], found["closed"]) == (60, 0)
        assert 0 < found["cut"] < 60
        assert len(clients.losses) <= found["cut"]


@each_loop
@pytest.mark.parametrize(("most", "closed"), [(2000, 0), (1000, 1)], ids=["room", "full"])
def test_to_wait_for_room_costs_next_to_nothing(
    serve: Serve, place: Place, way: tuple[str, ...], gate: Gate, most: int, closed: int
) -> None:
    """Who could take is in the application: the worker that retires keeps them, and has back what it gave.

    With one connection more than there is room for, one is closed in the end, and no other.
    """
    server = serve(*way, "--workers", "2", "--max-connections", str(most), env=place.env | gate.env)
    stays = place.status()["workers"][0]["pid"]
    with ExitStack() as stack:
        clients = stack.enter_context(KeptClients(server.address, 1000, pause_s=after_the_first(60.0, 70.0)))
        clients.wait_more(1000 - clients.asked)
        busy = stack.enter_context(Browser(server))
        others = []  # which stay, so that in the end the one with more connections takes one
        while int(busy.get("/pid").body) != stays:
            others.append(busy)
            busy = stack.enter_context(Browser(server))
        for other in others:
            other.close()
        eventually(lambda: totals(place)["connections"] == 1001, within_s=SOON_S)
        busy.send(request("/hold"))
        gate.wait_entered(1)
        (giver,) = server.worker_pids() - {stays}
        server.signal(signal.SIGTTOU)
        eventually(lambda: totals(place)["in_transfer"] >= 20, within_s=SOON_S)
        before = totals(place)
        began_s, used_s = time.monotonic(), cpu_s(giver)
        # What is measured is this window, in which nothing is to happen.
        eventually(lambda: time.monotonic() - began_s > 4, within_s=10)
        share = (cpu_s(giver) - used_s) / (time.monotonic() - began_s)
        print(f"who waits for room, of {before['connections']} connections: {share:.1%} of a processor")
        assert share < 0.2
        assert totals(place)["connections"] > 950, "what it has back, or never gave"
        gate.open()
        assert busy.response().status == 200
        server.wait_workers(1)
        found = eventually(
            lambda: (seen := settled(place, 1001))["closed"] - before["closed"] == closed and seen, within_s=SOON_S
        )
        assert (found["cut"], found["connections"]) == (0, 1001 - closed)
        assert len(clients.losses) == closed


@each_loop
def test_at_the_limit_of_descriptors_nothing_is_lost(serve: Serve, place: Place, way: tuple[str, ...]) -> None:
    server = serve(*way, "--workers", "2", env=place.env, wrapper=["prlimit", "--nofile=200:200"])
    with ExitStack() as stack:
        browsers = [stack.enter_context(Browser(server)) for _ in range(60)]
        by_pid: dict[int, list[Browser]] = {}
        for browser in browsers:
            by_pid.setdefault(int(browser.get("/pid").body), []).append(browser)
        (first, second) = sorted(by_pid)
        # One that has no descriptor left can take none, whatever the other gives.
        assert by_pid[second][0].get("/exhaust?0").status == 200
        os.kill(first, signal.SIGTERM)
        server.wait_workers(2, without={first})
        used_s, began_s = cpu_s(second), time.monotonic()
        answers = [int(browser.get("/pid").body) for browser in browsers]
        assert set(answers) <= server.worker_pids()
        # So much of a processor in these two seconds would be a loop that tries to take again and again.
        eventually(lambda: time.monotonic() - began_s > 2, within_s=10)
        assert cpu_s(second) - used_s < 1.0
        found = settled(place, 60)
        assert (found["accepted"], found["cut"], found["connections"]) == (60, 0, 60)


DEEDS = """
import asyncio, os, sys, time
sys.path.insert(0, {apps!r})
from {name} import app as inner

def do(deed):
    if deed == "close":
        os.closerange(3, 4096)
    elif deed == "fork" and os.fork() == 0:
        time.sleep(3)
        os._exit(0)

if asyncio.iscoroutinefunction(inner):
    async def app(scope, receive, send):
        do(scope.get("query_string", b"").decode())
        await inner(scope, receive, send)
else:
    def app(environ, start_response):
        do(environ["QUERY_STRING"])
        return inner(environ, start_response)
"""


def written(tmp_path: Any, way: tuple[str, ...]) -> str:
    """An application that does such deeds before it answers."""
    folder, _, name = way[0].rpartition(":")[0].rpartition("/")
    path = tmp_path / "app.py"
    path.write_text(DEEDS.format(apps=folder, name=name.removesuffix(".py")))
    return f"{path}:app"


@each_way
def test_what_is_on_its_way_when_the_server_ends_at_once_is_cut(
    serve: Serve, place: Place, way: tuple[str, ...]
) -> None:
    """Who could take it stands still, and the other had to leave."""
    server = serve(*way, "--workers", "2", "--graceful-timeout", "2", env=place.env)
    with ExitStack() as stack:
        for _ in range(20):
            assert stack.enter_context(Browser(server)).get("/").status == 200
        first, last = sorted(place.status()["workers"], key=operator.itemgetter("slot"))
        os.kill(first["pid"], signal.SIGSTOP)
        server.signal(signal.SIGTTOU)
        server.wait_workers(1, without={last["pid"]})
        waiting = totals(place)["in_transfer"]
        assert waiting > 0
        server.signal(signal.SIGQUIT)
        assert server.wait_exit() == 0
    found = server.wait_log(STOPPED)
    accepted, closed, cut, given, received = (int(each) for each in found.groups())
    assert (accepted, closed, cut) == (20, 0, 20)
    assert given == received >= waiting
    server.wait_log(f"connections cut count={waiting} ")


@each_loop
def test_an_application_that_closes_every_descriptor_ends_its_own_worker_alone(
    serve: Serve, place: Place, tmp_path: Any, way: tuple[str, ...]
) -> None:
    server = serve(written(tmp_path, way), *way[1:], "--workers", "2", env=place.env)
    with ExitStack() as stack:
        others = [stack.enter_context(Browser(server)) for _ in range(20)]
        where = {browser: int(browser.get("/pid").body) for browser in others}
        browser = stack.enter_context(Browser(server))
        victim = int(browser.get("/pid").body)
        browser.send(request("/?close"))
        eventually(lambda: victim not in server.worker_pids(), within_s=SOON_S)
        server.wait_workers(2, without={victim})
        assert all(each.get("/").status == 200 for each, pid in where.items() if pid != victim)
        place.ok("reload")
        assert all(each.get("/").status == 200 for each, pid in where.items() if pid != victim)
        found = settled(place, 21)
        assert found["connections"] >= sum(pid != victim for pid in where.values()), "it may have given some before"


@each_loop
def test_what_a_child_of_the_application_has_a_copy_of_is_given_all_the_same(
    serve: Serve, place: Place, tmp_path: Any, way: tuple[str, ...]
) -> None:
    server = serve(written(tmp_path, way), *way[1:], "--workers", "1", env=place.env)
    before = server.worker_pids()
    with ExitStack() as stack:
        browsers = [stack.enter_context(Browser(server)) for _ in range(20)]
        for browser in browsers:
            browser.get("/")
        assert browsers[0].get("/?fork").status == 200
        place.ok("reload")
        eventually(lambda: not before & children(server.pid), within_s=SOON_S)
        assert all(int(browser.get("/pid").body) in server.worker_pids() for browser in browsers)
        assert totals(place)["connections"] == 20
