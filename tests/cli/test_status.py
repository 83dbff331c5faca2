"""`prefork status`: each figure of the document, and the table."""

from __future__ import annotations

import re
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.client import Outcome, collect, crowd, dial, exchange, talkback_reply
from tests.support.control import Place
from tests.support.server import APPS, RunningServer
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Serve
    from tests.support.gate import Gate

pytestmark = pytest.mark.slow

OBEY = f"{APPS / 'obey.py'}:handle"
GATED = f"{APPS / 'gated.py'}:handle"
NUMBER = (int, float)
OPTIONAL = (*NUMBER, type(None))
SERVER: dict[str, type | tuple[type, ...]] = {
    "version": str, "pid": int, "started": str, "uptime_s": NUMBER, "app": str, "kind": str, "engine": str,
    "accept": str, "generation": int, "workers": int, "ready": bool, "unready": (str, type(None)),
    "reloading": bool, "stopping": bool,
    "last_reload": (dict, type(None)), "control": str, "config": dict,
}  # fmt: skip
LISTENER = {"address": str, "queue": (int, type(None)), "limit": (int, type(None)), "drops": (int, type(None))}
WORKER: dict[str, type | tuple[type, ...]] = {
    "slot": int, "pid": int, "generation": int, "state": str, "age_s": NUMBER, "connections": int, "accepted": int,
    "requests": int, "errors": int, "errors_by_kind": dict, "bytes_in": int, "bytes_out": int, "busy_ratio": NUMBER,
    "p50_us": OPTIONAL, "p99_us": OPTIONAL, "queue_wait": dict, "cpu_s": NUMBER, "pss_bytes": int,
    "serving": (str, type(None)), "serving_s": OPTIONAL, "deadline_in_s": OPTIONAL, "threads": int, "busy": int,
    "work": list, "slow": list,
}  # fmt: skip
TOTALS: dict[str, type | tuple[type, ...]] = {
    "connections": int, "accepted": int, "closed": int, "cut": int, "given": int, "received": int, "requests": int,
    "errors": int, "idle_closed": int, "too_long": int, "client_gone": int, "refused": int, "timed_out": int,
    "aborted": int, "bytes_in": int, "bytes_out": int, "in_transfer": int, "errors_by_kind": dict,
    "busy_s": NUMBER, "p50_us": OPTIONAL, "p99_us": OPTIONAL, "queue_wait": dict,
    "respawns": dict,
}  # fmt: skip


def assert_shape(entry: dict[str, Any], shape: dict[str, Any]) -> None:
    assert list(entry) == list(shape)
    wrong = {key: value for key, value in entry.items() if not isinstance(value, shape[key])}
    assert not wrong
    assert not {key for key, value in entry.items() if isinstance(value, bool) and shape[key] is not bool}


@pytest.fixture(scope="module")
def idle() -> Iterator[tuple[RunningServer, Place]]:
    """A server that has served twenty clients, for questions that change nothing."""
    with Place() as place:
        server = RunningServer("talkback", "--workers", "2", "--threads", "2", env=place.env)
        try:
            server.wait_ready()
            for _ in range(20):
                assert exchange(server.address, b"hello\n") == talkback_reply(b"hello")
            # a worker may be at work for a moment when its client has read to the end
            eventually(lambda: {worker["state"] for worker in place.status()["workers"]} == {"IDLE"}, within_s=30)
            yield server, place
        finally:
            server.close()


@pytest.mark.smoke
def test_status_as_json_has_every_key_and_the_figures_of_what_was_served(idle: tuple[RunningServer, Place]) -> None:
    server, place = idle
    document = place.shown()
    assert list(document) == ["server", "listeners", "workers", "totals", "deaths"]
    assert_shape(document["server"], SERVER)
    assert_shape(document["listeners"][0], LISTENER)
    for worker in document["workers"]:
        assert_shape(worker, WORKER)
    assert_shape(document["totals"], TOTALS)
    assert document["deaths"] == {"count": 0, "last": None}
    head, workers, totals = document["server"], document["workers"], document["totals"]
    assert (head["pid"], head["app"], head["kind"], head["engine"]) == (server.pid, "talkback", "stream", "blocking")
    assert (head["generation"], head["workers"], head["ready"], head["last_reload"]) == (1, 2, True, None)
    assert head["config"]["threads"] == 2
    assert head["config"]["bind"] == ["127.0.0.1:0"]
    assert head["control"] == str(place.socket_of(server.pid))
    assert document["listeners"] == [{"address": server.address, "queue": 0, "limit": 2048, "drops": 0}]
    assert {worker["pid"] for worker in workers} == server.worker_pids()
    assert [worker["slot"] for worker in workers] == [0, 1]
    assert {worker["state"] for worker in workers} == {"IDLE"}
    sums = {key: sum(worker[key] for worker in workers) for key in ("requests", "accepted", "bytes_in", "bytes_out")}
    served = {"requests": 20, "accepted": 20, "bytes_in": 20 * 6, "bytes_out": 20 * len(talkback_reply(b"hello"))}
    assert sums == served
    assert {key: totals[key] for key in served} == served
    assert 0 < totals["p50_us"] < 10_000_000
    assert totals["p99_us"] is None, "20 samples do not bound the 99th percentile"
    assert all(1 << 20 < worker["pss_bytes"] < 1 << 30 for worker in workers)


@pytest.mark.smoke
def test_status_as_a_table_names_server_listener_and_workers(idle: tuple[RunningServer, Place]) -> None:
    server, place = idle
    text = place.ok("status")
    assert re.search(rf"pid {server.pid} .*talkback \(stream, blocking\).*\bready$", text, re.MULTILINE)
    assert re.search(rf"^{server.address} +0 +2048 +0$", text, re.MULTILINE)
    rows = re.findall(r"^(\d) +(\d+) +1 +IDLE ", text, re.MULTILINE)
    assert {int(pid) for _slot, pid in rows} == server.worker_pids()
    assert re.search(r"^all ", text, re.MULTILINE)


def test_what_dead_workers_did_stays_in_the_totals_and_their_deaths_are_counted_by_cause(
    serve: Serve, place: Place
) -> None:
    server = serve(OBEY, "--workers", "1", "--timeout", "700ms", env=place.env)
    assert exchange(server.address, b"work\n") == b"done\n"
    for request, cause in ((b"segfault\n", "SIGSEGV"), (b"exit 3\n", "exit code 3"), (b"spin\n", "timeout")):
        before = server.worker_pids()
        assert exchange(server.address, b"work\n") == b"done\n"
        with dial(server.address) as client:
            client.sendall(request)
            server.wait_workers(1, without=before)
        eventually(lambda cause=cause: place.status()["totals"]["respawns"].get(cause) == 1, within_s=15, what=cause)
    totals = place.status()["totals"]
    assert totals["requests"] == 4
    assert totals["p50_us"] is None, "4 samples bound nothing"
    for _ in range(3):
        exchange(server.address, b"work\n")
    assert place.status()["totals"]["p50_us"] > 0, "with those of the dead there are 7"


def test_the_queue_and_the_drops_of_a_full_listener_are_shown_and_a_unix_socket_has_none(
    serve: Serve, place: Place, gate: Gate
) -> None:
    path = place.root / "s"
    bind = ["127.0.0.1:0", f"unix:{path}"]
    server = serve(GATED, "--workers", "1", "--backlog", "4", env=place.env | gate.env, bind=bind)
    clients = crowd(server.address, 4)
    gate.wait_entered(1)
    tcp, unix = place.status()["listeners"]
    assert (tcp["queue"], tcp["limit"]) == (3, 4)
    assert unix == {"address": f"unix:{path}", "queue": None, "limit": None, "drops": None}
    with ExitStack() as extra:
        for _ in range(8):
            sock = extra.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(dial_target(server.address))
        eventually(lambda: place.status()["listeners"][0]["drops"] > 0, within_s=30, what="a drop")
    gate.open()
    assert collect(clients, talkback_reply(b"hi"))[Outcome.OK] == 4


def dial_target(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)
