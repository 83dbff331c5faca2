"""Coroutine handlers, as `asyncio.start_server` takes them: what they meet, and what is counted of them."""

from __future__ import annotations

import re
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.client import (
    Outcome,
    abort,
    attempt,
    dial,
    exchange,
    read_exactly,
    read_to_end,
    talkback_reply,
)
from tests.support.control import Place
from tests.support.server import APPS, run
from tests.support.tls import TLS, trusting
from tests.support.wait import eventually

if TYPE_CHECKING:
    from tests.conftest import AppWriter, Serve, Shared
    from tests.support.server import RunningServer

pytestmark = pytest.mark.slow

HI = talkback_reply(b"hi")
LOOPS = pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
ONE = ("--workers", "1")


def coroutine(name: str) -> str:
    return f"{APPS / 'coroutines.py'}:{name}"


def counted(server: RunningServer, **counts: int) -> None:
    """Stop the server, and find these counts in its last words."""
    assert server.stop() == 0
    for name, count in counts.items():
        assert f" {name}={count} " in server.log, name


@pytest.mark.smoke
@LOOPS
def test_the_echo_server_of_the_documentation(shared: Shared, loop: str) -> None:
    server = shared(coroutine("echo"), "--workers", "2", "--loop", loop)
    data = b"".join(b"line %d\n" % n for n in range(5_000)) + b"no end"
    with dial(server.address) as client:
        for line in (b"one\n", b"two\r\n", b"\n"):
            client.sendall(line)
            assert read_exactly(client, len(line)) == line
    assert exchange(server.address, data, half_close=True) == data
    assert exchange(server.address, b"", half_close=True) == b""


@LOOPS
def test_a_handler_that_returns_has_its_connection_closed(shared: Shared, loop: str) -> None:
    server = shared(coroutine("talk"), "--workers", "2", "--loop", loop)
    assert [exchange(server.address, b"hi\n") for _ in range(20)] == [HI] * 20


@LOOPS
def test_the_reader_and_the_writer_know_what_asyncios_do(shared: Shared, loop: str) -> None:
    server = shared(coroutine("facts"), *ONE, "--loop", loop)
    with dial(server.address) as client:
        client.sendall(b"line\n")
        module, peer, line, tls = read_to_end(client).decode().strip().split("|")
        assert peer == str(client.getsockname())
    assert module.startswith(loop)
    assert (line, tls) == ("line", "False")


def test_a_half_close_ends_one_direction_only(serve: Serve) -> None:
    server = serve(coroutine("ends_first"), *ONE)
    with dial(server.address) as client:
        assert read_to_end(client) == b"my last word\n"
        client.sendall(b"but I go on")
        client.shutdown(socket.SHUT_WR)
        server.wait_log("app: read 11")


@LOOPS
@pytest.mark.parametrize("name", ["deaf", "deaf_closes"])
def test_a_client_that_nobody_reads_from_gets_the_whole_reply(serve: Serve, name: str, loop: str) -> None:
    server = serve(coroutine(name), *ONE, "--loop", loop)
    for size in (3, 1_000_000):
        assert exchange(server.address, b"x" * size) == b"I do not listen\n", size
    counted(server, accepted=2, completed=2, errors=0)
    if name == "deaf_closes":
        assert server.log.count("app: is closing: True") == server.log.count("app: closed") == 2


def test_a_client_that_goes_on_sending_is_cut_some_seconds_after_the_reply(serve: Serve) -> None:
    server = serve(coroutine("deaf"), *ONE)
    with dial(server.address) as client:
        client.sendall(b"x" * 65_536)
        assert read_to_end(client) == b"I do not listen\n"
        with pytest.raises(ConnectionError):
            client.sendall(bytes(100 << 20))
    counted(server, completed=1, errors=0)


def test_a_line_over_64_kib_is_an_error_of_its_own_and_no_crash(serve: Serve) -> None:
    server = serve(coroutine("talk"), *ONE)
    line = b"x" * 65_535
    assert exchange(server.address, line + b"\n") == talkback_reply(line)
    assert exchange(server.address, b"y" * 200_000) == b"hello from prefork\n", "the rest of the line is unread"
    counted(server, accepted=2, completed=1, too_long=1, errors=0)


@LOOPS
def test_an_exception_is_logged_with_its_traceback_once_a_second_and_counted(serve: Serve, loop: str) -> None:
    server = serve(coroutine("obey"), *ONE, "--loop", loop, expect_traceback=True)
    for number in range(30):
        assert exchange(server.address, b"raise number %d\n" % number) == b""
    assert exchange(server.address, b"exit 3\n") == b"", "no way to end the worker"
    (pid,) = server.worker_pids()
    assert int(exchange(server.address, b"pid\n")) == pid
    server.wait_log(r"ERROR.*handler failed.*peer=127\.0\.0\.1:\d+ error=RuntimeError")
    server.wait_log(r"RuntimeError: number 0$")
    assert 'coroutines.py", line' in server.log
    assert server.log.count("handler failed") <= 10, "one a second"
    counted(server, completed=1, errors=31)


def test_an_error_of_something_else_than_the_client_is_the_handlers(serve: Serve) -> None:
    """The same error of the client's connection would be the client's right."""
    server = serve(coroutine("obey"), *ONE, expect_traceback=True)
    exchange(server.address, b"upstream\n")
    server.wait_log("ConnectionResetError.*the database has gone")
    counted(server, errors=1, client_gone=0)


@LOOPS
def test_clients_that_leave_are_no_errors(serve: Serve, loop: str) -> None:
    server = serve(coroutine("writes_late"), *ONE, "--loop", loop)
    for _ in range(5):
        client = dial(server.address)
        client.sendall(b"half a line")
        abort(client)
    counted(server, accepted=5, client_gone=5, errors=0)
    assert "ERROR" not in server.log


@LOOPS
def test_a_handler_may_work_on_when_its_client_has_left(serve: Serve, loop: str) -> None:
    server = serve(coroutine("works_on"), *ONE, "--timeout", "400ms", "--loop", loop)
    client = dial(server.address)
    client.sendall(b"x")
    server.wait_log("app: works")
    abort(client)
    server.wait_log("app: done")
    assert "ERROR" not in server.log
    counted(server, accepted=1, completed=1, errors=0)


@LOOPS
def test_clients_that_leave_a_group_of_tasks_are_no_errors(serve: Serve, loop: str) -> None:
    server = serve(coroutine("grouped"), *ONE, "--loop", loop)
    assert exchange(server.address, b"abcdef", half_close=True) == b"ABCD"
    with dial(server.address) as client:
        client.sendall(b"abcd")
        assert read_exactly(client, 4) == b"ABCD"
        abort(client)
    counted(server, accepted=2, client_gone=2, errors=0)
    assert "ERROR" not in server.log


def test_what_a_handler_has_started_goes_on_and_is_cancelled_with_the_worker(serve: Serve) -> None:
    server = serve(coroutine("background"), *ONE)
    assert exchange(server.address, b"") == b"started\n"
    server.wait_log("background runs")
    assert "finally of the background" not in server.log
    assert server.stop() == 0
    assert "finally of the background" in server.log


@LOOPS
def test_a_silent_client_is_a_timeout_error_for_each_wait(serve: Serve, loop: str) -> None:
    """The handler may go on, say goodbye, and wait anew."""
    server = serve(coroutine("waits"), *ONE, "--idle-timeout", "400ms", "--timeout", "20", "--loop", loop)
    waited = re.findall(rb"TimeoutError (\S+)\n", exchange(server.address, b"few"))
    assert len(waited) == 2
    assert all(0.35 < float(each) < 5 for each in waited)
    counted(server, idle_closed=1, completed=0, errors=0)


def test_a_client_that_sends_now_and_then_is_not_silent(serve: Serve) -> None:
    server = serve(coroutine("talk"), *ONE, "--idle-timeout", "600ms")
    with dial(server.address) as client:
        client.settimeout(0.15)
        read_exactly(client, 19)
        for byte in b"steady12":
            client.sendall(bytes([byte]))
            with pytest.raises(TimeoutError):
                client.recv(1)
        client.settimeout(10)
        client.sendall(b"\n")
        assert read_to_end(client) == b"you said: steady12\n"


@LOOPS
def test_a_client_that_does_not_read_is_a_timeout_error_in_drain(serve: Serve, loop: str) -> None:
    server = serve(coroutine("big"), *ONE, "--idle-timeout", "300ms", "--loop", loop)
    with dial(server.address) as client:
        read_exactly(client, 1)
        server.wait_log("app: drain TimeoutError the client was silent")
    counted(server, idle_closed=1, errors=0)


def test_a_client_that_does_not_read_does_not_hold_a_closed_connection(serve: Serve) -> None:
    server = serve(coroutine("closes"), *ONE, "--idle-timeout", "300ms")
    with dial(server.address) as client:
        read_exactly(client, 1)
        server.wait_log("app: closed")
    assert server.stop(within_s=15) == 0


def test_a_client_that_reads_slowly_but_steadily_gets_everything(serve: Serve) -> None:
    server = serve(coroutine("big"), *ONE, "--idle-timeout", "500ms")
    with dial(server.address) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        got, pace = 0, threading.Event()
        while chunk := client.recv(131_072):
            got += len(chunk)
            pace.wait(0.02)  # in all much longer than the idle timeout
    assert got == 8 << 20
    counted(server, completed=1, idle_closed=0)


@LOOPS
def test_the_graceful_timeout_cancels_handlers_and_their_finally_runs(serve: Serve, loop: str) -> None:
    server = serve(coroutine("cleans_up"), "--workers", "2", "--graceful-timeout", "300ms", "--loop", loop)
    clients = [dial(server.address) for _ in range(6)]
    for client in clients:
        assert read_exactly(client, 5) == b"here\n"
    assert server.stop(within_s=15) == 0
    assert server.log.count("finally of the handler") == 6
    cut = re.findall(r"connections cut.*count=(\d+)", server.log)
    assert sum(map(int, cut)) == 6
    for client in clients:
        client.close()


@LOOPS
def test_a_handler_that_will_not_be_cancelled_is_left_behind(serve: Serve, loop: str) -> None:
    server = serve(coroutine("stubborn"), *ONE, "--graceful-timeout", "300ms", "--loop", loop)
    with dial(server.address) as client:
        assert read_exactly(client, 5) == b"here\n"
        assert server.stop(within_s=15) == 0
    assert "app: not me" in server.log
    assert "worker died" not in server.log, "it left by itself, with its last words"


@LOOPS
def test_a_worker_hears_its_master_also_when_the_application_handles_signals(serve: Serve, loop: str) -> None:
    server = serve(coroutine("handles_signals"), *ONE, "--loop", loop)
    for generation in (2, 3):
        assert exchange(server.address, b"") == b"done\n"
        server.signal(signal.SIGHUP)
        server.wait_log(f"reloaded generation={generation}", within_s=30)
    assert exchange(server.address, b"") == b"done\n"
    assert server.stop(within_s=30) == 0
    assert "killing worker" not in server.log


@LOOPS
def test_tls(serve: Serve, loop: str) -> None:
    server = serve(coroutine("facts"), *ONE, *TLS, "--loop", loop)
    context = trusting()
    for _ in range(3):
        with context.wrap_socket(dial(server.address), server_hostname="127.0.0.1") as client:
            client.sendall(b"secret\n")
            assert read_to_end(client).endswith(b"|secret|True\n")
    assert exchange(server.address, b"GET / HTTP/1.1\r\n\r\n") == b""
    server.wait_log("WARNING.*connection failed")
    with dial(server.address) as silent, context.wrap_socket(dial(server.address), server_hostname="127.0.0.1") as good:
        good.sendall(b"beside it\n")
        assert b"beside it" in read_to_end(good)
        silent.sendall(b"\x16")
    assert server.stop(within_s=15) == 0


def test_every_kind_of_address(serve: Serve, tmp_path: Path) -> None:
    bind = ["127.0.0.1:0", "[::1]:0", f"unix:{tmp_path}/s"]
    server = serve(coroutine("talk"), "--workers", "2", bind=bind)
    for address in server.addresses:
        assert [exchange(address, b"hi\n") for _ in range(10)] == [HI] * 10


@pytest.mark.parametrize("accept", ["shared", "per-worker"])
def test_preload(serve: Serve, accept: str) -> None:
    server = serve(coroutine("talk"), "--workers", "2", "--preload", "--accept", accept)
    assert [exchange(server.address, b"hi\n") for _ in range(20)] == [HI] * 20


@pytest.mark.parametrize("accept", ["shared", "per-worker"])
@pytest.mark.parametrize("name", ["coroutines.py:slot", "protocols.py:Slot"], ids=["coroutine", "protocol"])
def test_max_requests(serve: Serve, name: str, accept: str) -> None:
    server = serve(str(APPS / name), *ONE, "--max-requests", "50", "--accept", accept, "--log-level", "debug")
    pids = set()
    for _ in range(10_000):
        pids.add(exchange(server.address, b"").split()[2])
        if len(pids) == 3:
            break
    assert len(pids) == 3


@pytest.mark.parametrize("accept", ["shared", "per-worker"])
@pytest.mark.parametrize("name", ["coroutines.py:stay", "protocols.py:Stay"], ids=["coroutine", "protocol"])
@pytest.mark.parametrize("most", [3, 40])
def test_a_full_worker_takes_no_more_until_a_client_leaves(serve: Serve, name: str, accept: str, most: int) -> None:
    server = serve(str(APPS / name), *ONE, "--max-connections", str(most), "--accept", accept)
    inside = [dial(server.address) for _ in range(most)]
    for client in inside:
        assert client.recv(100).strip().isdigit()
    late = [dial(server.address, timeout_s=0.2) for _ in range(3)]
    for client in late:
        with pytest.raises(TimeoutError):
            client.recv(1)
    for client, leaving in zip(late, inside, strict=False):
        leaving.close()
        client.settimeout(10)
        assert client.recv(100).strip().isdigit()
    for client in [*inside, *late]:
        client.close()


@pytest.mark.smoke
def test_from_python(serve: Serve, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import prefork\nasync def handle(reader, writer):\n    writer.write(await reader.readline())\n"
        "if __name__ == '__main__':\n    raise SystemExit(prefork.serve(handle, workers=2, bind='127.0.0.1:0'))\n"
    )
    server = serve(wrapper=[sys.executable, str(script)], bind=None, cwd=tmp_path)
    assert exchange(server.address, b"from python\n") == b"from python\n"


def test_the_interface_can_be_said(serve: Serve, app: AppWriter) -> None:
    name = app("async def handle(reader, writer=None, *others):\n    writer.write(await reader.readline())\n")
    assert "--interface" in run("check", name).stderr
    server = serve(name, "--interface", "streams", *ONE)
    assert exchange(server.address, b"hi\n") == b"hi\n"


def test_what_is_no_coroutine_function_is_an_error_for_each_connection(serve: Serve) -> None:
    server = serve(coroutine("not_a_coroutine"), "--interface", "streams", *ONE, expect_traceback=True)
    assert exchange(server.address, b"hi\n") == b""
    server.wait_log("TypeError: object NoneType can't be used in 'await' expression")


@pytest.mark.timing
@pytest.mark.parametrize("accept", ["shared", "per-worker"])
@pytest.mark.parametrize("name", ["coroutines.py:talk", "protocols.py:Talk"], ids=["coroutine", "protocol"])
def test_status_counts_what_the_clients_count(serve: Serve, place: Place, name: str, accept: str) -> None:
    server = serve(str(APPS / name), "--workers", "2", "--accept", accept, env=place.env)
    for _ in range(200):
        assert attempt(server.address, b"hi\n", HI) is Outcome.OK
    waiting = [dial(server.address) for _ in range(3)]
    for client in waiting:
        read_exactly(client, 19)

    def all_told() -> dict[str, Any] | None:
        totals = place.status()["totals"]
        told = totals["requests"], totals["connections"], totals["bytes_out"]
        return totals if told == (200, 3, sent) else None

    sent = 0 if "protocols" in name else 200 * len(HI) + 3 * 19  # a protocol writes to the loop itself
    eventually(all_told, within_s=30, what="200 requests, 3 connections, what was sent")
    document = place.status()
    totals = document["totals"]
    assert (totals["accepted"], totals["errors"], totals["client_gone"]) == (203, 0, 0)
    assert totals["bytes_in"] == 200 * len(b"hi\n")
    assert 0 < totals["p50_us"] < 1_000_000
    for worker in document["workers"]:
        in_progress = worker["serving_s"] is not None  # of a protocol it is not known
        assert (20 < worker["deadline_in_s"] <= 30) if in_progress else worker["deadline_in_s"] is None
    for client in waiting:
        client.close()
    server.signal(signal.SIGTERM)
