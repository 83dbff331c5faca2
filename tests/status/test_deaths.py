"""`prefork deaths`: asked for when the workers are gone, also while all others are stuck."""

from __future__ import annotations

import json
import os
import re
import signal
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from websockets.sync.client import connect

from tests.support.client import dial, exchange, read_to_end
from tests.support.control import Place, converse
from tests.support.server import APPS
from tests.support.wait import eventually
from tests.support.web import request

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import AppWriter, Serve
    from tests.support.server import RunningServer

pytestmark = pytest.mark.slow

OBEY = f"{APPS / 'obey.py'}:handle"
GROUPS = Path("/sys/fs/cgroup")


def known(place: Place) -> list[dict[str, Any]]:
    """The deaths that the server tells of now."""
    (path,) = place.sockets
    ((line),) = converse(path, b'{"command": "deaths"}\n')
    entries: list[dict[str, Any]] = line["answer"]["deaths"]
    return entries


def told(place: Place, count: int) -> list[dict[str, Any]]:
    """Wait until so many deaths are known, and return them."""

    def look() -> list[dict[str, Any]] | None:
        entries = known(place)
        return entries if len(entries) == count else None

    return eventually(look, within_s=15, what=f"{count} deaths") or []


def die(server: RunningServer, request: bytes) -> tuple[int, str]:
    """Have the only worker die of a request; return its pid and whom it served."""
    assert exchange(server.address, b"work\n") == b"done\n"
    (pid,) = server.worker_pids()
    with dial(server.address) as client:
        host, port = client.getsockname()
        client.sendall(request)
        server.wait_workers(1, without={pid}, within_s=15)
    return pid, f"{host}:{port}"


@pytest.mark.timing
def test_each_death_is_told_with_its_cause_its_client_and_its_stacks_when_the_worker_is_gone(
    serve: Serve, place: Place
) -> None:
    server = serve(OBEY, "--workers", "1", "--timeout", "700ms", env=place.env)
    requests = {b"segfault\n": "SIGSEGV", b"exit 3\n": "exit code 3", b"spin\n": "timeout", b"hold_gil 60\n": "timeout"}
    victims = [die(server, request) for request in requests]
    entries = told(place, 4)
    assert [entry["cause"] for entry in entries] == list(requests.values())
    assert [(entry["pid"], entry["serving"]) for entry in entries] == victims
    assert [entry["exit"] for entry in entries] == ["SIGSEGV", "exit code 3", "SIGKILL", "SIGKILL"]
    for entry, function in zip(entries, ("read_null", None, "spin_forever", "hold_the_gil"), strict=True):
        assert (function in entry["detail"]) if function else entry["detail"] is None
        assert (entry["slot"], entry["generation"], entry["requests"]) == (0, 1, 1)
        assert 0 <= entry["serving_s"] <= entry["age_s"]
        assert 0 <= entry["respawn_in_s"] < 5
        assert 1 << 22 < entry["peak_rss_bytes"] < 1 << 30
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", entry["time"])
    assert all(entry["serving_s"] >= 0.7 for entry in entries[2:])
    assert entries[2]["cpu_s"] > 0.1
    short = place.status()["deaths"]
    assert short == {"count": 4, "last": {key: value for key, value in entries[-1].items() if key != "detail"}}
    assert json.loads(place.ok("deaths", "--json", "--last", "2")) == {"count": 4, "deaths": entries[2:]}
    text = place.ok("deaths")
    assert re.search(rf"worker 0  pid {victims[2][0]}  generation 1  timeout\n", text)
    assert "in spin_forever" in text
    assert "died unexpectedly: 4, last worker 0" in place.ok("status")


@pytest.mark.smoke
def test_a_kill_from_outside_is_not_laid_at_the_oom_killers_door(serve: Serve, place: Place) -> None:
    server = serve(OBEY, "--workers", "2", env=place.env)
    victim = min(server.worker_pids())
    os.kill(victim, signal.SIGKILL)
    (entry,) = told(place, 1)
    assert (entry["pid"], entry["cause"], entry["serving"], entry["requests"]) == (victim, "SIGKILL", None, 0)
    assert "by a person or a program" in entry["reason"]
    assert entry["respawn_in_s"] > 0, "it had done nothing"


def test_who_was_told_to_leave_is_not_in_the_list_and_one_who_did_not_go_is(serve: Serve, place: Place) -> None:
    server = serve(OBEY, "--workers", "2", "--graceful-timeout", "300ms", env=place.env)
    place.ok("reload")
    place.ok("scale", "1")
    assert place.status()["deaths"] == {"count": 0, "last": None}
    assert place.ok("deaths") == "no worker has died unexpectedly since the server started\n"
    with dial(server.address) as client:
        client.sendall(b"hold_gil 60\n")
        eventually(lambda: place.status()["workers"][0]["state"] == "BUSY", within_s=30, what="a busy worker")
        place.ok("reload")
    (entry,) = told(place, 1)
    assert (entry["cause"], entry["respawn_in_s"]) == ("killed", None)
    assert "after it was told to stop" in entry["reason"]


def test_they_are_told_while_four_workers_are_stuck(serve: Serve, place: Place) -> None:
    server = serve(OBEY, "--workers", "4", env=place.env)
    os.kill(min(server.worker_pids()), signal.SIGKILL)
    told(place, 1)
    server.wait_workers(4)
    with ExitStack() as stuck:
        for _ in range(4):
            stuck.enter_context(dial(server.address)).sendall(b"spin\n")
        eventually(
            lambda: [worker["state"] for worker in place.status()["workers"]] == ["BUSY"] * 4,
            within_s=30,
            what="four busy workers",
        )
        assert "killed from outside" in place.ok("deaths")
        for pid in server.worker_pids():
            os.kill(pid, signal.SIGKILL)
    assert all("in spin" not in (entry["detail"] or "") for entry in told(place, 5))


_ASGI = """
import os

async def app(scope, receive, send):
    if scope["type"] != "http":
        raise RuntimeError("only HTTP")
    if scope["path"] == "/exit":
        os._exit(3)
    while scope["path"] == "/spin":
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})
"""
_SOCKETS = """
import os

async def app(scope, receive, send):
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await receive()
        os._exit(3)
"""
_STREAMS = """
import os

async def app(reader, writer):
    line = await reader.readline()
    if b"/exit" in line:
        os._exit(3)
    while b"/spin" in line:
        pass
    writer.write(line)
"""


@pytest.mark.timing
@pytest.mark.parametrize("source", [_ASGI, _STREAMS], ids=["asgi", "streams"])
def test_an_event_loop_tells_whom_it_served_when_it_died(
    serve: Serve, place: Place, app: AppWriter, source: str
) -> None:
    """Nobody can ask a loop that dies at once or never turns again: whom it serves has to be written before."""
    server = serve(app(source, attribute="app"), "--workers", "1", "--timeout", "1500ms", env=place.env)
    for count, (path, cause) in enumerate((("/exit", "exit code 3"), ("/spin", "timeout")), 1):
        exchange(server.address, request("/", connection="close"))
        (pid,) = server.worker_pids()
        with dial(server.address) as client:
            whom = "{}:{}".format(*client.getsockname()) + (f" GET {path}" if source is _ASGI else "")
            client.sendall(request(path))
            if cause == "timeout":
                eventually(lambda: doing(place) == [("BUSY", whom)], within_s=15, what="a busy worker")  # noqa: B023
            server.wait_workers(1, without={pid}, within_s=15)
        entry = told(place, count)[-1]
        assert (entry["cause"], entry["serving"]) == (cause, whom)
        assert entry["serving_s"] >= (1.5 if cause == "timeout" else 0)
    server.wait_log(rf"worker hung .*serving=.?{whom}")


def test_a_websocket_that_came_last_is_named(serve: Serve, place: Place, app: AppWriter) -> None:
    server = serve(app(_SOCKETS, attribute="app"), "--workers", "1", env=place.env)
    with connect(f"ws://{server.address}/chat") as client:
        whom = "{}:{} WebSocket /chat".format(*client.socket.getsockname())
        client.send("the end")
        (entry,) = told(place, 1)
    assert (entry["cause"], entry["last"]) == ("exit code 3", [whom])


def doing(place: Place) -> list[tuple[str, str | None]]:
    return [(worker["state"], worker["serving"]) for worker in place.status()["workers"]]


def test_an_idle_worker_has_served_somebody_last(serve: Serve, place: Place) -> None:
    server = serve(OBEY, "--workers", "1", env=place.env)
    with dial(server.address) as client:
        whom = "{}:{}".format(*client.getsockname())
        client.sendall(b"work\n")
        assert read_to_end(client)
    eventually(lambda: doing(place) == [("IDLE", None)], within_s=15)
    (pid,) = server.worker_pids()
    os.kill(pid, signal.SIGKILL)
    (entry,) = told(place, 1)
    assert (entry["serving"], entry["last"]) == (None, [whom])
    assert f"served   {whom}, last" in place.ok("deaths")


@pytest.mark.parametrize("last", ["0", "-1", "some"])
def test_a_wrong_number_is_bad_usage(last: str, place: Place) -> None:
    assert place.run("deaths", "--last", last).returncode == 2


def test_a_wrong_request_is_refused(serve: Serve, place: Place) -> None:
    serve("talkback", "--workers", "1", env=place.env)
    (path,) = place.sockets
    for last in (b"0", b'"x"', b"true", b"null"):
        ((line),) = converse(path, b'{"command": "deaths", "last": %s}\n' % last)
        assert line["error"].startswith("last is a whole number from 1, not ")


# --- the OOM killer

HOG = """
import os
def handle(conn):
    if conn.readline() != b"grow\\n":
        conn.sendall(b"done\\n")
        return
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # the kernel takes this process, and not the master, which asks for memory in the meantime
    kept = []
    while True:
        kept.append(bytearray(1 << 20))
"""


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group with 150 MB of memory, of whichever version this machine has."""
    v1 = (GROUPS / "memory" / "memory.limit_in_bytes").exists()
    folder = (GROUPS / "memory" if v1 else GROUPS) / f"prefork-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made: {error.strerror}")
    try:
        limits = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes") if v1 else ("memory.max", "memory.swap.max")
        (folder / limits[0]).write_text(str(150 << 20))
        if (folder / limits[1]).exists():
            (folder / limits[1]).write_text(str(150 << 20) if v1 else "0")
        yield folder
    except OSError as error:
        pytest.skip(f"memory cannot be limited here: {error.strerror}")
    finally:
        eventually(lambda: not (folder / "cgroup.procs").read_text(), within_s=30, what="an empty group")
        folder.rmdir()


def test_the_oom_killers_victim_is_told_from_other_kills(
    group: Path, serve: Serve, place: Place, app: AppWriter
) -> None:
    enter = ("sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh")
    server = serve(app(HOG), "--workers", "2", env=place.env, wrapper=enter)

    def of_the_hog() -> dict[str, Any] | None:
        return next((entry for entry in known(place) if entry["serving"] == whom), None)

    try:
        assert exchange(server.address, b"work\n") == b"done\n"
        with dial(server.address) as client:
            client.sendall(b"grow\n")
            whom = "{}:{}".format(*client.getsockname())
            entry = eventually(of_the_hog, within_s=30, what="the death of the worker that grew")
        assert entry is not None
        assert (entry["cause"], entry["exit"]) == ("out-of-memory", "SIGKILL")
        assert entry["reason"].startswith("out of memory: ")
        assert entry["peak_rss_bytes"] > 80 << 20
        server.wait_log('worker died .*cause=SIGKILL reason="out of memory')
        server.wait_workers(2, without={entry["pid"]})
        # The kernel may take the idle worker as well, while the one that grew has not given its memory back.
        killed = {entry["pid"] for entry in known(place)}
        assert len(killed) in (1, 2)
        respawns = {"out-of-memory": len(killed)}
        eventually(lambda: place.status()["totals"]["respawns"] == respawns, within_s=30, what="counted")
        victim = min(server.worker_pids())
        os.kill(victim, signal.SIGKILL)
        (last,) = (entry for entry in told(place, len(killed) + 1) if entry["pid"] not in killed)
        assert (last["pid"], last["cause"]) == (victim, "SIGKILL")
    finally:
        server.close()
