"""--timeout outside requests: a process that stands still is replaced, busy or idle, whatever engine it has."""

from __future__ import annotations

import os
import re
import signal
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.support.admin import ADMIN, address_of, admin_pid, figure, figures, status, title, workers_of
from tests.support.client import dial, exchange, read_to_end
from tests.support.processes import stat
from tests.support.server import APPS
from tests.support.wait import eventually
from tests.support.web import fetch, request

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import Serve
    from tests.support.control import Place
    from tests.support.server import RunningServer

pytestmark = pytest.mark.slow

APP = str(APPS / "standing.py")
TIMEOUT_S = 2.0
LATE_S = 10.0  # promised is 1; the rest is for busy machines
STOPPED = r"its process did not move for [0-9.]+ s, over --timeout: the process is stopped \(SIGSTOP or a debugger\)"

WAYS = {
    "threads": (f"{APP}:stream", "--threads", "2"),
    "wsgi": (f"{APP}:wsgi",),
    "wsgi-threads": (f"{APP}:wsgi", "--threads", "4"),
    "coroutine": (f"{APP}:coroutine",),
    "protocol": (f"{APP}:Line",),
    "asgi": (f"{APP}:asgi",),
    "asgi-asyncio": (f"{APP}:asgi", "--loop", "asyncio"),
}
EACH_ENGINE = pytest.mark.parametrize("way", [pytest.param(way, id=name) for name, way in WAYS.items()])
PRELOAD = pytest.mark.parametrize("preload", [(), ("--preload",)], ids=["", "preload"])

Way = tuple[str, ...]


def line(way: Way, word: str) -> bytes:
    """What a client sends, so that the application obeys the word."""
    if way[0].endswith(("wsgi", "asgi")):
        return request("/" + word.replace(" ", "/"), connection="close")
    return word.encode() + b"\n"


def pid_of(answer: bytes) -> int:
    """Which worker has answered."""
    found = re.search(rb"ok (\d+)\n$", answer)
    assert found, answer
    return int(found[1])


def ask(server: RunningServer, way: Way, word: str = "hi") -> int:
    """Have the application obey, and return the pid of its worker."""
    return pid_of(exchange(server.address, line(way, word)))


@contextmanager
def standing(pid: int) -> Iterator[None]:
    """Stop the process meanwhile; it may have been killed by the end."""
    os.kill(pid, signal.SIGSTOP)
    eventually(lambda: (found := stat(pid)) and found.state == "T", within_s=10, what="a stopped process")
    try:
        yield
    finally:
        try:
            os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            pass


def wait_in_vain(server: RunningServer, way: Way, patience_s: float) -> None:
    """A client asks, and nobody answers it."""
    with dial(server.address, timeout_s=patience_s) as client:
        client.sendall(line(way, "hi"))
        with pytest.raises(TimeoutError):
            client.recv(1)


def wait_replaced(server: RunningServer, pid: int, began_s: float) -> None:
    """Wait until the worker is gone, not before its time, and another is there."""
    eventually(lambda: pid not in workers_of(server), within_s=TIMEOUT_S + LATE_S, what="the end of the worker")
    assert time.monotonic() - began_s > TIMEOUT_S - 0.6, "its last heartbeat is at most half a second old"
    eventually(lambda: len(workers_of(server)) == 1, within_s=30, what="another worker")


@EACH_ENGINE
@PRELOAD
def test_an_idle_worker_whose_gil_is_held_is_replaced_with_its_stack(serve: Serve, way: Way, preload: Way) -> None:
    server = serve(*way, *preload, "--workers", "1", "--timeout", f"{TIMEOUT_S}s")
    began_s = time.monotonic()
    pid = ask(server, way, "gil")
    wait_replaced(server, pid, began_s)
    server.wait_log(rf"killing worker.*pid={pid} reason=.its process did not move for [0-9.]+ s, over --timeout.")
    server.wait_log(rf"worker died.*pid={pid}")
    server.wait_log(r"standing\.py.*_hold_the_gil")
    assert ask(server, way) != pid


@EACH_ENGINE
@PRELOAD
def test_a_stopped_worker_is_replaced_idle_or_busy(serve: Serve, way: Way, preload: Way) -> None:
    server = serve(*way, *preload, "--workers", "1", "--timeout", f"{TIMEOUT_S}s")
    idle = ask(server, way)
    began_s = time.monotonic()
    with standing(idle):
        wait_replaced(server, idle, began_s)
    server.wait_log(rf"killing worker.*pid={idle} reason=.{STOPPED}")
    known = "" if way[0].endswith(":Line") else ".*served_last="  # of a protocol it is not known
    server.wait_log(rf"worker died.*pid={idle}{known}")
    busy = ask(server, way)
    with dial(server.address) as client:
        began_s = time.monotonic()
        client.sendall(line(way, "nap 600"))
        server.wait_log(f"naps {busy}")
        with standing(busy):
            wait_replaced(server, busy, began_s)
    server.wait_log(rf"killing worker.*pid={busy} reason=.*over --timeout: the process is stopped")
    assert ask(server, way) not in (idle, busy)


@EACH_ENGINE
def test_a_worker_that_was_stopped_and_continues_in_time_stays(serve: Serve, way: Way) -> None:
    server = serve(*way, "--workers", "1", "--timeout", "6s")
    pid = ask(server, way)
    with standing(pid):
        wait_in_vain(server, way, 2)
    for _ in range(3):
        assert ask(server, way) == pid
    assert "hung" not in server.log


@EACH_ENGINE
def test_work_that_adds_up_to_more_than_the_timeout_is_no_hang(serve: Serve, way: Way) -> None:
    """Of inline calls also in one turn of the loop."""
    server = serve(*way, "--workers", "1", "--timeout", "1s")
    pid = ask(server, way)
    if way[0].endswith(("asgi", "coroutine", "Line")):
        clients, nap = 6, "nap 0.1"  # an event loop is blocked by its callbacks together
        rounds = 5
    else:
        clients, nap, rounds = 12, "nap 0.3", 1
    for _ in range(rounds):
        with ExitStack() as stack:
            waiting = [stack.enter_context(dial(server.address)) for _ in range(clients)]
            for client in waiting:
                client.sendall(line(way, nap))
            assert {pid_of(read_to_end(client)) for client in waiting} == {pid}
    assert workers_of(server) == {pid}


@EACH_ENGINE
@PRELOAD
def test_an_idle_server_replaces_nobody_and_uses_no_cpu(serve: Serve, way: Way, preload: Way) -> None:
    server = serve(*way, *preload, "--workers", "2", "--timeout", "1s")
    pids = server.worker_pids()
    workers = workers_of(server)
    assert len(workers) == 2

    def used_s() -> float:
        found = [stat(pid) for pid in (*pids, server.pid)]
        return sum(each.cpu_s for each in found if each)

    before_s = used_s()
    with dial(server.address, timeout_s=5) as client, pytest.raises(TimeoutError):
        client.recv(1)  # a client that says nothing for five timeouts
    assert server.worker_pids() == pids
    assert used_s() - before_s < 0.5, "three or four processes, for five seconds"
    assert "hung" not in server.log


@pytest.mark.parametrize("way", [WAYS["wsgi"], WAYS["asgi"]], ids=["wsgi", "asgi"])
def test_a_stopped_worker_is_killed_while_it_retires(serve: Serve, way: Way) -> None:
    server = serve(*way, "--workers", "1", "--timeout", f"{TIMEOUT_S}s", "--graceful-timeout", "5m", expected_exit=0)
    pid = ask(server, way)
    with dial(server.address) as client:
        client.sendall(line(way, "hi")[:-2])  # the head is not complete, so the connection is in flight
        server.signal(signal.SIGTERM)
        eventually(lambda: "draining" in title(pid), within_s=20, what="the beginning of its end")
        with standing(pid):
            server.wait_log(rf"killing worker.*pid={pid} reason=.{STOPPED}", within_s=TIMEOUT_S + LATE_S)


@pytest.mark.parametrize("way", [pytest.param(WAYS[name], id=name) for name in ("threads", "wsgi", "asgi")])
def test_the_end_of_a_worker_is_judged_by_the_graceful_timeout_alone(serve: Serve, way: Way, tmp_path: Path) -> None:
    (tmp_path / "slow_end.py").write_text("import time\ndef worker_stopping(worker):\n    time.sleep(4)\n")
    hooks = ("--hooks", str(tmp_path / "slow_end.py"))
    server = serve(*way, *hooks, "--workers", "1", "--timeout", "1s", "--graceful-timeout", "30s")
    ask(server, way)
    server.signal(signal.SIGTERM)
    server.wait_log("stopped uptime")
    assert "killing worker" not in server.log


def test_with_a_timeout_of_zero_nobody_is_replaced_and_the_log_says_so(serve: Serve) -> None:
    way = WAYS["wsgi"]
    server = serve(*way, "--workers", "1", "--timeout", "0", *ADMIN)
    server.wait_log("no worker is killed for standing still")
    pid, admin = ask(server, way), admin_pid(server)
    with standing(pid), standing(admin):
        wait_in_vain(server, way, 3)
    assert ask(server, way) == pid
    assert admin_pid(server) == admin


# --- the other processes


def test_a_stopped_admin_process_is_replaced(serve: Serve) -> None:
    server = serve(*WAYS["wsgi"], "--workers", "1", "--timeout", f"{TIMEOUT_S}s", *ADMIN)
    address, admin = address_of(server), admin_pid(server)
    with standing(admin):
        server.wait_log(rf"admin died pid={admin}.*did not move for [0-9.]+ s.*stopped", within_s=TIMEOUT_S + LATE_S)
    assert admin_pid(server, without=admin) != admin
    assert fetch(address, "/healthz").status == 200
    assert len(re.findall("ERROR.*admin", server.log)) == 1


def test_a_stopped_template_is_replaced(serve: Serve) -> None:
    way = WAYS["wsgi"]
    server = serve(*way, "--workers", "1", "--timeout", f"{TIMEOUT_S}s", "--preload")
    worker = ask(server, way)
    (template,) = {pid for pid in server.worker_pids() if title(pid).startswith("prefork: template")}
    with standing(template):
        server.wait_log(r"template died gen=1.*did not move for [0-9.]+ s.*stopped", within_s=TIMEOUT_S + LATE_S)
    eventually(lambda: any(title(pid).startswith("prefork: template") for pid in server.worker_pids()), within_s=30)
    assert ask(server, way) == worker
    os.kill(worker, signal.SIGKILL)
    assert ask(server, way) != worker


# --- readiness


def test_while_nobody_accepts_the_server_is_not_ready_everywhere(serve: Serve, place: Place) -> None:
    way = WAYS["wsgi"]
    server = serve(*way, "--workers", "2", "--timeout", "0", *ADMIN, env=place.env)
    address = address_of(server)
    assert fetch(address, "/readyz").status == 200
    reason = r"clients wait and nobody has accepted for [0-9.]+ s"
    with ExitStack() as stack:
        for pid in workers_of(server):
            stack.enter_context(standing(pid))
        client = stack.enter_context(dial(server.address))
        client.sendall(line(way, "hi"))
        eventually(lambda: fetch(address, "/readyz").status == 503, within_s=30, what="not ready")
        assert re.fullmatch(reason + "\n", fetch(address, "/readyz").body.decode())
        assert figure(figures(address), "prefork_ready") == 0
        document = status(address)["server"]
        assert not document["ready"]
        assert re.fullmatch(reason, document["unready"])
        told = eventually(lambda: place.status()["server"]["unready"], within_s=15)
        assert re.fullmatch(reason, told)
        assert re.search(f"not ready: {reason}$", place.ok("status").split("\n")[0])
    eventually(lambda: fetch(address, "/readyz").status == 200, within_s=15, what="ready")
    assert place.status()["server"]["unready"] is None


@pytest.mark.smoke
def test_without_workers_the_server_is_not_ready_everywhere(serve: Serve, place: Place) -> None:
    server = serve(*WAYS["wsgi"], "--workers", "2", *ADMIN, env=place.env)
    address = address_of(server)
    place.ok("scale", "0")
    eventually(lambda: fetch(address, "/readyz").body == b"no worker serves\n", within_s=15)
    assert figure(figures(address), "prefork_ready") == 0
    for document in (status(address), place.status()):
        assert (document["server"]["ready"], document["server"]["unready"]) == (False, "no worker serves")
    assert place.ok("status").split("\n")[0].endswith("not ready: no worker serves")
    place.ok("scale", "1")
    eventually(lambda: fetch(address, "/readyz").status == 200, within_s=15)
