"""Who has room for a connection that changes hands, and who has not: what is full, stuck, older, or about to fail."""

from __future__ import annotations

import signal
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, cast

import pytest

from prefork.engines.handover import FRESH_NS
from tests.master.test_handover import ASGI, SOON_S, WAYS, begin_upgrade, each_loop, each_way, fill, totals
from tests.master.test_upgrade import Line
from tests.support.client import dial, read_to_end
from tests.support.kept import KeptClients, after_the_first, some
from tests.support.tls import TLS, trusting
from tests.support.wait import eventually
from tests.support.web import Browser, request

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import AppWriter, Serve
    from tests.support.control import Place
    from tests.support.gate import Gate

pytestmark = pytest.mark.slow


@each_way
@pytest.mark.parametrize("held", [390, 340])
def test_a_reload_of_a_server_that_is_nearly_full_closes_nobody(
    serve: Serve, place: Place, way: tuple[str, ...], held: int
) -> None:
    server = serve(*way, "--workers", "4", "--max-connections", "100", env=place.env)
    with KeptClients(server.address, held, pause_s=after_the_first(4.0, 8.0)) as clients:
        clients.wait_more(held - clients.asked)
        for _ in range(2):
            began_s = time.monotonic()
            place.ok("reload")
            assert time.monotonic() - began_s < 4.5, "who is told to leave has five seconds"
        clients.wait_more(held)
        found = totals(place)
        assert (found["accepted"], found["closed"], found["cut"]) == (held, 0, 0)
        clients.stop()
    assert clients.losses == []
    assert clients.told_to_close == 0


def is_served(browser: Browser) -> bool:
    """Whether a client that was there before still is."""
    try:
        return browser.get("/").status == 200
    except (EOFError, ConnectionError):
        return False


@each_way
def test_whom_the_others_have_no_room_for_has_five_seconds(serve: Serve, place: Place, way: tuple[str, ...]) -> None:
    """The worker that stays has room for some. Nobody who is there is closed for the others."""
    server = serve(*way, "--workers", "2", "--max-connections", "20", env=place.env)
    with ExitStack() as stack:
        browsers = [stack.enter_context(Browser(server)) for _ in range(30)]
        for browser in browsers:
            assert browser.get("/").status == 200
        server.signal(signal.SIGTTOU)
        eventually(lambda: max(each["connections"] for each in workers(place)) == 20, within_s=SOON_S)
        answers = [browser.get("/") for browser in browsers]
        assert all(answer.status == 200 for answer in answers)
        # One may be back just now from a worker that had no room for it in the end; it is closed later, while idle.
        assert 5 < sum(answer.closes for answer in answers) <= 10
        server.wait_workers(1)
        assert (totals(place)["closed"], totals(place)["cut"]) == (10, 0)
        assert sum(map(is_served, browsers)) == 20


@pytest.mark.parametrize(("name", "threads"), [("wsgi", 1), ("wsgi-pool", 4), ("asyncio", 1), ("uvloop", 1)])
def test_while_all_others_are_in_calls_who_leaves_serves_its_clients(
    serve: Serve, place: Place, gate: Gate, name: str, threads: int
) -> None:
    server = serve(*WAYS[name], "--workers", "2", env=place.env | gate.env)
    with ExitStack() as stack:
        stays = min(workers(place), key=lambda each: cast("int", each["slot"]))["pid"]
        inside = fill(server, stack, cast("int", stays), threads, "/hold")
        gate.wait_entered(threads)
        browsers = [stack.enter_context(Browser(server)) for _ in range(20)]
        for browser in browsers:
            assert browser.get("/").status == 200
        server.signal(signal.SIGTTOU)
        eventually(lambda: totals(place)["given"] >= 20, within_s=SOON_S, what="all are on their way")
        answers = [browser.get("/") for browser in browsers]
        assert all(answer.status == 200 and not answer.closes for answer in answers)
        gate.open()
        server.wait_workers(1)
        assert not any(browser.get("/").closes for browser in browsers)
        assert [browser.response().status for browser in inside] == [200] * threads
        assert (totals(place)["closed"], totals(place)["cut"]) == (0, 0)


@each_way
def test_in_an_upgrade_to_a_server_that_takes_fewer_the_rest_has_five_seconds(
    serve: Serve, place: Place, way: tuple[str, ...], tmp_path: Path
) -> None:
    path = tmp_path / "prefork.toml"
    path.write_text("workers = 1\n")
    line = Line(serve(*way, "--config", str(path), env=place.env))
    with ExitStack() as stack:
        stack.callback(line.stop)
        browsers = [stack.enter_context(Browser(line.server)) for _ in range(20)]
        for browser in browsers:
            assert browser.get("/").status == 200
        path.write_text("workers = 1\nmax-connections = 5\n")
        begin_upgrade(line)
        line.server.wait_log("took over")
        # The old master's worker has given what the queue takes, and has it back.
        eventually(lambda: sum(each["connections"] for each in workers(place)) == 5, within_s=SOON_S)
        answers = [browser.get("/") for browser in browsers]
        assert all(answer.status == 200 for answer in answers)
        assert sum(answer.closes for answer in answers) == 15


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_when_the_newest_worker_is_full_older_ones_take(serve: Serve, place: Place, loop: str, gate: Gate) -> None:
    server = serve(ASGI, "--loop", loop, "--workers", "2", "--max-connections", "40", env=place.env | gate.env)
    with ExitStack() as stack:
        held = [stack.enter_context(Browser(server)) for _ in range(40)]
        for browser in held:
            browser.send(request("/gate"))
        gate.wait_entered(40)
        before = server.worker_pids()
        server.signal(signal.SIGHUP)
        (newest,) = eventually(lambda: server.worker_pids() - before, within_s=SOON_S)
        eventually(
            lambda: any(each["generation"] == 2 and each["state"] == "IDLE" for each in workers(place)), within_s=9
        )
        new: list[Browser] = []
        theirs = 0
        while theirs < 23:  # it holds fewest, so these are most of them
            new.append(stack.enter_context(Browser(server)))
            theirs += int(new[-1].get("/pid").body) == newest
        assert len(new) < 39, "there is room for all"
        gate.open()
        assert [browser.response().closes for browser in held] == [False] * 40
        server.wait_log("reloaded")
        assert all(browser.get("/").status == 200 for browser in (*held, *new))
        found = totals(place)
        assert (found["accepted"], found["closed"], found["cut"]) == (40 + len(new), 0, 0)


def workers(place: Place) -> list[dict[str, object]]:
    found: list[dict[str, object]] = place.status()["workers"]
    return found


@pytest.mark.parametrize(("name", "threads"), [("wsgi", 1), ("wsgi-pool", 4)])
def test_a_worker_that_cannot_serve_is_given_nothing_for_long(
    serve: Serve, place: Place, gate: Gate, name: str, threads: int
) -> None:
    """For a second it counts as one that is free in a moment; the rest of what is allowed here is a busy machine's."""
    server = serve(*WAYS[name], "--workers", "2", env=place.env | gate.env)
    with ExitStack() as stack:
        stuck = min(server.worker_pids())
        inside = fill(server, stack, stuck, threads, "/hold")
        gate.wait_entered(threads)
        clients = stack.enter_context(KeptClients(server.address, 24, pause_s=some(0.0, 0.1)))
        clients.wait_more(24 * 30)
        assert max(clients.took_s) < 4
        held = next(each["connections"] for each in workers(place) if each["pid"] == stuck)
        assert held == threads, "what it was given would wait for it"
        clients.stop()
        assert clients.losses == []
        gate.open()
        assert [browser.response().status for browser in inside] == [200] * threads


@pytest.mark.parametrize(("name", "threads"), [("wsgi", 1), ("wsgi-pool", 4), ("asyncio", 1), ("uvloop", 1)])
def test_who_is_full_makes_room_though_the_other_is_stuck(
    serve: Serve, place: Place, gate: Gate, name: str, threads: int
) -> None:
    most = 44  # more than the queue takes
    server = serve(*WAYS[name], "--workers", "2", "--max-connections", str(most), env=place.env | gate.env)
    with ExitStack() as stack:
        inside = fill(server, stack, min(server.worker_pids()), threads, "/hold")
        gate.wait_entered(threads)
        idle = [stack.enter_context(Browser(server)) for _ in range(most)]
        for browser in idle:
            assert browser.get("/").status == 200
        # Until these clients are none any more whose next request may be on the way, and the other one counts as stuck.
        began_s = time.monotonic()
        eventually(lambda: time.monotonic() - began_s > 1.2, within_s=10)
        for _ in range(40):
            began_s = time.monotonic()
            assert stack.enter_context(Browser(server)).get("/").status == 200
            assert time.monotonic() - began_s < 4
        gate.open()
        assert [browser.response().status for browser in inside] == [200] * threads


@each_way
def test_for_one_that_comes_one_makes_room(serve: Serve, place: Place, way: tuple[str, ...]) -> None:
    """All workers are full and see it at once."""
    server = serve(*way, "--workers", "4", "--max-connections", "5", env=place.env)
    with ExitStack() as stack:
        for _ in range(20):
            assert stack.enter_context(Browser(server)).get("/").status == 200
        served_s = time.monotonic()
        eventually(lambda: time.monotonic() - served_s > FRESH_NS / 1e9, within_s=SOON_S)  # else none may be closed
        for _ in range(3):
            assert stack.enter_context(Browser(server)).get("/").status == 200
        found = eventually(
            lambda: (seen := totals(place))["accepted"] == 23 and seen["connections"] <= 20 and seen, within_s=SOON_S
        )
        assert (found["closed"], found["connections"]) == (3, 20)


@each_loop
def test_under_tls_one_that_is_full_leaves_a_newcomer_to_one_that_is_not(
    serve: Serve, place: Place, way: tuple[str, ...], gate: Gate
) -> None:
    """Though that one is in a call for a moment: nothing can be given to it, but nobody has to end."""
    server = serve(*way, *TLS, "--workers", "2", "--max-connections", "4", env=place.env | gate.env)
    with ExitStack() as stack:
        by_pid: dict[int, list[Browser]] = {}
        for browser in [stack.enter_context(Browser(server, tls=trusting())) for _ in range(8)]:
            by_pid.setdefault(int(browser.get("/pid").body), []).append(browser)
        _full, (busy, *leave) = by_pid.values()
        for browser in leave:
            browser.close()
        before = eventually(lambda: (seen := totals(place))["connections"] == 5 and seen, within_s=SOON_S)
        served_s = time.monotonic()
        eventually(lambda: time.monotonic() - served_s > FRESH_NS / 1e9, within_s=SOON_S)
        busy.send(request("/hold"))
        gate.wait_entered(1)
        entered_s = time.monotonic()
        dial(server.address).close()  # it waits to be accepted
        eventually(lambda: time.monotonic() - entered_s > 0.4, within_s=SOON_S)
        assert totals(place)["closed"] == before["closed"]
        gate.open()
        assert busy.response().status == 200
        assert stack.enter_context(Browser(server, tls=trusting())).get("/").status == 200


@each_way
def test_a_client_that_has_just_come_is_not_closed_to_make_room(
    serve: Serve, place: Place, way: tuple[str, ...]
) -> None:
    """Its request is on the way; who comes next waits in the kernel for a moment."""
    server = serve(*way, "--workers", "1", "--max-connections", "2", env=place.env)
    with KeptClients(server.address, 1) as busy, ExitStack() as stack:
        for _ in range(3):
            socks = [stack.enter_context(dial(server.address)) for _ in range(5)]
            eventually(lambda: totals(place)["connections"] >= 2, within_s=SOON_S)
            for sock in socks:
                sock.sendall(request("/", connection="close"))
            assert [b" 200 " in read_to_end(sock) for sock in socks] == [True] * 5
        busy.stop()
    assert len(busy.losses) <= 3, "it may have been idle for a second"


@each_loop
def test_whose_request_waits_to_be_read_is_not_closed_to_make_room(
    serve: Serve, place: Place, way: tuple[str, ...], gate: Gate
) -> None:
    """It comes while the worker is in the application. Who is silent has to go, though others were idle for longer."""
    server = serve(*way, "--workers", "1", "--max-connections", "5", env=place.env | gate.env)
    with ExitStack() as stack:
        first, second, silent, busy = browsers = [stack.enter_context(Browser(server)) for _ in range(4)]
        for browser in browsers:
            assert browser.get("/").status == 200
        # Until these clients are none any more whose next request may be on the way.
        began_s = time.monotonic()
        eventually(lambda: time.monotonic() - began_s > 1.1, within_s=10)
        busy.send(request("/hold"))
        gate.wait_entered(1)
        new = [stack.enter_context(Browser(server)) for _ in range(2)]  # there is room for one; they are taken first
        for browser in (first, second, *new):
            browser.send(request("/"))
        gate.open()
        assert [browser.response().status for browser in (first, second, busy, *new)] == [200] * 5
        assert silent.ended()
        found = totals(place)
        assert (found["closed"], found["cut"], found["connections"]) == (1, 0, 5)


FAILS_LATER = """
import os, sys, time
sys.path.insert(0, {folder!r})
from {module} import app

if os.path.exists({broken!r}):
    try:
        os.mkdir({first!r})
    except FileExistsError:
        until_s = time.monotonic() + 60
        while not os.path.exists({now!r}) and time.monotonic() < until_s:
            time.sleep(0.01)
        raise RuntimeError("the second one fails")
"""


@each_way
def test_what_a_new_master_has_accepted_goes_to_the_old_one_if_it_fails(
    serve: Serve, place: Place, app: AppWriter, way: tuple[str, ...], tmp_path: object
) -> None:
    folder, _, name = way[0].rpartition(":")[0].rpartition("/")
    paths = {key: f"{tmp_path}/{key}" for key in ("broken", "first", "now")}
    source = FAILS_LATER.format(folder=folder, module=name.removesuffix(".py"), **paths)
    line = Line(serve(app(source, attribute="app"), *way[1:], "--workers", "2", env=place.env))
    line.server.expect_traceback = True
    old = line.server.worker_pids()
    with ExitStack() as stack:
        stack.callback(line.stop)
        open(paths["broken"], "w").close()
        mark = line.usr2()
        browsers: list[Browser] = []
        before = 0
        while before < 5:  # that the new master's only worker holds
            browsers.append(stack.enter_context(Browser(line.server)))
            before += int(browsers[-1].get("/pid").body) not in old
        open(paths["now"], "w").close()
        assert "the second one fails" in line.failed(mark)
        answers = [browser.get("/pid") for browser in browsers]
        assert {int(answer.body) for answer in answers} <= old
        assert not any(answer.closes for answer in answers)
        assert totals(place)["connections"] == len(browsers)
