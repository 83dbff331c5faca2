"""Users' own handlers: plain callables, Connection's methods, socketserver classes, threads, exceptions."""

from __future__ import annotations

import re
import socket
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.client import dial, exchange, read_exactly, read_to_end
from tests.support.server import APPS
from tests.support.wait import eventually

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import AppWriter, Serve, Shared
    from tests.support.gate import Gate

pytestmark = pytest.mark.slow


def connection(attribute: str) -> str:
    return f"{APPS / 'connection.py'}:{attribute}"


def classic(attribute: str) -> str:
    return f"{APPS / 'classic.py'}:{attribute}"


OBEY = f"{APPS / 'obey.py'}:handle"
GATED = f"{APPS / 'gated.py'}:handle"


class TestConnection:
    """What a stream handler may ask of `conn`."""

    def test_readline_keeps_the_line_end_and_answers_nothing_at_the_end(self, shared: Shared) -> None:
        server = shared(connection("lines"), "--workers", "1")
        assert exchange(server.address, b"a\nb\r\n\nc", half_close=True) == b"b'a\\n'\nb'b\\r\\n'\nb'\\n'\nb'c'\n"

    def test_a_line_over_the_limit_is_an_error_of_its_own(self, shared: Shared) -> None:
        server = shared(connection("short_lines"), "--workers", "1")
        reply = exchange(server.address, b"short\n" + b"much too long\n", half_close=True)
        first, second, rest = reply.split(b"\n")
        assert first == b"b'short\\n'"
        assert second == b"more than 8"
        assert rest == b""

    def test_a_line_too_long_that_escapes_the_handler_closes_and_is_no_crash(self, shared: Shared) -> None:
        server = shared(connection("unhandled_long_line"), "--workers", "1")
        pids = server.worker_pids()
        with dial(server.address) as client:
            client.sendall(b"z" * 100_000)
            assert b"read" not in read_to_end(client)
        assert exchange(server.address, b"short\n") == b"read\n"
        assert server.worker_pids() == pids

    def test_recv_gets_what_readline_has_read_ahead(self, shared: Shared) -> None:
        server = shared(connection("mixed"), "--workers", "1")
        assert exchange(server.address, b"5\nabcde") == b"5 abcde"
        with dial(server.address) as client:
            client.sendall(b"6\nabc")
            client.sendall(b"def")
            assert read_to_end(client) == b"6 abcdef"

    def test_recv_answers_nothing_at_the_end(self, shared: Shared) -> None:
        server = shared(connection("counts_to_end"), "--workers", "1")
        assert exchange(server.address, b"x" * 1_000_000, half_close=True) == b"1000000\n"

    def test_shutdown_write_ends_the_reply_and_still_reads(self, shared: Shared, tmp_path: Path) -> None:
        server = shared(connection("ends_first"), "--workers", "1")
        count = tmp_path / "count"
        with dial(server.address) as client:
            client.sendall(f"{count}\n".encode())
            assert read_to_end(client) == b"my last word\n"
            client.sendall(b"but I go on")
            client.shutdown(socket.SHUT_WR)
            eventually(count.exists, within_s=30)
        assert count.read_text() == "11"

    def test_peer_is_the_address_of_the_client(self, shared: Shared) -> None:
        server = shared(connection("facts"), "--workers", "1")
        with dial(server.address) as client:
            host, port = client.getsockname()
            peer, kernel_peer, _ = read_to_end(client).decode().split("|")
        assert kernel_peer == str((host, port))
        assert host in peer
        assert str(port) in peer

    def test_a_big_answer_reaches_a_client_that_reads_late(self, shared: Shared) -> None:
        server = shared(connection("big_answer"), "--workers", "1")
        assert len(exchange(server.address, b"")) == 8 << 20

    def test_a_client_that_takes_no_answer_is_given_up(self, serve: Serve) -> None:
        """Waiting to write is waiting for the client: the idle timeout ends it, not --timeout."""
        server = serve(connection("big_answer"), "--workers", "1", "--idle-timeout", "300ms", "--timeout", "20")
        pids = server.worker_pids()
        with dial(server.address) as client:
            read_exactly(client, 1)
            with dial(server.address) as other:  # the only worker is free again once the first was given up
                assert len(read_to_end(other)) == 8 << 20
        assert server.worker_pids() == pids

    def test_a_wait_for_the_client_ends_as_timeout_error_in_the_handler(self, serve: Serve) -> None:
        server = serve(connection("waits"), "--workers", "1", "--idle-timeout", "300ms")
        reply = exchange(server.address, b"")
        assert float(re.fullmatch(rb"TimeoutError after (\S+)\n", reply)[1]) >= 0.29  # type: ignore[index]

    def test_waiting_for_the_client_does_not_count_towards_the_timeout(self, serve: Serve) -> None:
        server = serve(connection("waits"), "--workers", "1", "--idle-timeout", "1500ms", "--timeout", "500ms")
        pids = server.worker_pids()
        assert exchange(server.address, b"").startswith(b"TimeoutError")
        assert server.worker_pids() == pids

    def test_returning_closes_even_what_is_still_referenced(self, shared: Shared) -> None:
        server = shared(connection("keeps_reference"), "--workers", "1")
        assert exchange(server.address, b"") == b"kept\n"

    def test_any_callable_of_one_argument_is_a_handler(self, shared: Shared) -> None:
        server = shared(connection("instance"), "--workers", "1")
        assert exchange(server.address, b"") == b"from an object\n"


class TestSocketserver:
    """socketserver handlers run unchanged."""

    def test_a_stream_request_handler(self, shared: Shared) -> None:
        server = shared(classic("Shout"), "--workers", "2")
        assert exchange(server.address, b"hello\n") == b"HELLO 127.0.0.1\n"

    def test_a_stream_request_handler_that_reads_to_the_end(self, shared: Shared) -> None:
        server = shared(classic("EveryLine"), "--workers", "1")
        assert exchange(server.address, b"abc\ndef\nghi", half_close=True) == b"cba\nfed\nihg\n"

    def test_a_slow_client_is_no_end_of_file(self, shared: Shared) -> None:
        """Whatever timeout the listener has must not reach rfile: readline would answer b'' in the middle of a line."""
        server = shared(classic("Shout"), "--workers", "1")
        with dial(server.address) as client:
            client.sendall(b"two ")
            client.settimeout(0.8)
            with pytest.raises(TimeoutError):
                client.recv(1)
            client.settimeout(10)
            client.sendall(b"parts\n")
            assert read_to_end(client) == b"TWO PARTS 127.0.0.1\n"

    def test_a_base_request_handler_with_setup_and_finish(self, shared: Shared) -> None:
        server = shared(classic("Raw"), "--workers", "1")
        assert exchange(server.address, b"data\n") == b"setup data finish\n"

    def test_the_handlers_own_timeout_holds(self, shared: Shared) -> None:
        server = shared(classic("Impatient"), "--workers", "1")
        assert exchange(server.address, b"") == b"too slow\n"

    def test_the_idle_timeout_holds_for_them_too(self, serve: Serve) -> None:
        server = serve(classic("Shout"), "--workers", "1", "--idle-timeout", "300ms", "--timeout", "20")
        pids = server.worker_pids()
        exchange(server.address, b"")
        assert exchange(server.address, b"next\n") == b"NEXT 127.0.0.1\n"
        assert server.worker_pids() == pids

    def test_waiting_for_the_client_does_not_count_towards_the_timeout(self, serve: Serve) -> None:
        server = serve(classic("Shout"), "--workers", "1", "--timeout", "500ms")
        pids = server.worker_pids()
        with dial(server.address) as client:
            client.settimeout(1.5)
            with pytest.raises(TimeoutError):
                client.recv(1)
            client.settimeout(10)
            client.sendall(b"patience\n")
            assert read_to_end(client) == b"PATIENCE 127.0.0.1\n"
        assert server.worker_pids() == pids

    def test_finish_runs_after_an_exception_as_its_users_know_it(self, serve: Serve) -> None:
        server = serve(classic("Fails"), "--workers", "1", expect_traceback=True)
        exchange(server.address, b"")
        server.wait_log("a classic failure")
        assert exchange(server.address, b"") in (b"finished\n", b"")


class TestThreads:
    """--threads N: N accept loops in each worker."""

    def test_each_worker_serves_so_many_at_once_and_no_more(self, serve: Serve, gate: Gate) -> None:
        server = serve(GATED, "--workers", "2", "--threads", "3", env=gate.env)
        clients = [dial(server.address) for _ in range(8)]
        for client in clients:
            client.sendall(b"x\n")
        gate.wait_entered(6)
        with pytest.raises(AssertionError, match="only 0 of 1"):
            gate.wait_entered(1, within_s=0.3)
        gate.open()
        assert [read_to_end(client) for client in clients] == [b"hello from prefork\nyou said: x\n"] * 8
        for client in clients:
            client.close()

    def test_threads_of_a_worker_take_turns(self, shared: Shared) -> None:
        server = shared(f"{APPS / 'identity.py'}:thread", "--workers", "2", "--threads", "2")
        seen = set[bytes]()
        eventually(lambda: seen.add(exchange(server.address, b"")) or len(seen) == 4, within_s=30, what="four threads")
        assert len({line.split()[0] for line in seen}) == 2


class TestExceptions:
    """What escapes a handler ends its connection, never the worker."""

    def test_the_log_shows_it_and_the_worker_lives(self, serve: Serve) -> None:
        server = serve(OBEY, "--workers", "1", expect_traceback=True)
        pids = server.worker_pids()
        assert exchange(server.address, b"raise the reason\n") == b""
        server.wait_log(r"RuntimeError: the reason")
        assert "obey.py" in server.log
        assert exchange(server.address, b"pid\n") == b"%d\n" % pids.pop()

    def test_a_repeated_error_is_one_traceback_a_second_and_a_count(self, serve: Serve) -> None:
        """What was not shown is counted by the next line; at the end the totals know them all."""
        server = serve(OBEY, "--workers", "1", expect_traceback=True)
        started = time.monotonic()
        raised = 0
        while raised < 200 or "also=" not in server.log:
            exchange(server.address, b"raise again %d\n" % raised)
            raised += 1
            assert time.monotonic() - started < 20
        assert 2 <= server.log.count("Traceback (most recent call last)") <= 2 + time.monotonic() - started
        assert server.stop() == 0
        assert sum(map(int, re.findall(r"also=(\d+)", server.log))) > 100
        assert f" errors={raised} " in server.log

    def test_sys_exit_in_a_handler_ends_only_its_connection(self, serve: Serve) -> None:
        server = serve(OBEY, "--workers", "1", expect_traceback=True)
        pids = server.worker_pids()
        assert exchange(server.address, b"sys_exit 7\n") == b""
        assert exchange(server.address, b"pid\n") == b"%d\n" % next(iter(pids))


@pytest.mark.smoke
def test_what_a_handler_prints_is_not_lost(serve: Serve, app: AppWriter) -> None:
    server = serve(app("def handle(conn):\n    print('printed by the handler', flush=True)\n"), "--workers", "1")
    exchange(server.address, b"")
    server.wait_log("printed by the handler")


def test_logging_of_the_app_works_without_setting_it_up(serve: Serve, app: AppWriter) -> None:
    source = "import logging\ndef handle(conn):\n    logging.getLogger('shop').warning('out of %s', 'stock')\n"
    server = serve(app(source), "--workers", "1")
    exchange(server.address, b"")
    server.wait_log("out of stock")


def test_the_locals_of_a_handler_that_failed_are_gone_with_its_connection(serve: Serve, app: AppWriter) -> None:
    """A worker whose application has switched the collector off must not grow with each client that leaves."""
    source = """
import gc, weakref
class Local: pass
gc.disable()
made = []
def handle(conn):
    if conn.readline() == b"count\\n":
        conn.sendall(b"%d" % sum(each() is not None for each in made))
        return
    local = Local()
    made.append(weakref.ref(local))
    raise ConnectionResetError("the client has left")
"""
    server = serve(app(source), "--workers", "1", expect_traceback=True)
    for _ in range(5):
        assert exchange(server.address, b"fail\n") == b""
    assert exchange(server.address, b"count\n") == b"0"


def test_what_a_failed_request_handler_has_not_flushed_goes_out(serve: Serve, app: AppWriter) -> None:
    source = """
import socketserver
class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        file = self.request.makefile("wb")
        file.write(b"hello\\n")
        raise ValueError("boom")
"""
    server = serve(app(source, attribute="Handler"), "--workers", "1", expect_traceback=True)
    assert exchange(server.address, b"") == b"hello\n"
