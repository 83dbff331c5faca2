"""`prefork send`, the client half: create, connect, write, half-close, read to the end, close."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING

import pytest

from tests.support.client import abort, read_to_end
from tests.support.server import APPS, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conftest import Serve, Shared

pytestmark = pytest.mark.slow

STEPS = ["created", "connected", "wrote", "half-closed", "read", "closed"]


@pytest.fixture
def peer() -> Iterator[Callable[[Callable[[socket.socket], None]], str]]:
    """A server of one connection that behaves as the test says: `peer(behave)` -> its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    threads = []

    def start(behave: Callable[[socket.socket], None]) -> str:
        def serve_one() -> None:
            accepted, _ = listener.accept()
            with accepted:
                behave(accepted)

        threads.append(threading.Thread(target=serve_one, daemon=True))
        threads[-1].start()
        return f"127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for thread in threads:
        thread.join(15)
        assert not thread.is_alive()
    listener.close()


@pytest.mark.smoke
def test_the_reply_is_printed_as_it_came(shared: Shared) -> None:
    done = run("send", "good day", "--to", shared("--workers", "1").address)
    assert done.returncode == 0
    assert done.stdout == "hello from prefork\nyou said: good day\n"
    assert done.stderr == ""


def test_a_unix_socket_is_an_address_too(serve: Serve, tmp_path: Path) -> None:
    server = serve("--workers", "1", bind=f"unix:{tmp_path}/s")
    done = run("send", "hi", "--to", server.address)
    assert done.stdout.endswith("you said: hi\n")


def test_without_text_it_sends_what_it_reads(shared: Shared) -> None:
    server = shared("echo", "--workers", "1")
    done = run("send", "--to", server.address, text="one\ntwo\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "one\ntwo\n"


def test_text_that_is_not_ascii_is_sent_as_utf8(shared: Shared) -> None:
    done = run("send", "gr\u00fc\u00df dich", "--to", shared("--workers", "1").address)
    assert done.stdout.endswith("you said: gr\u00fc\u00df dich\n")


def test_verbose_narrates_each_step_in_order_beside_the_reply(shared: Shared) -> None:
    server = shared("--workers", "1")
    done = run("send", "-v", "hi", "--to", server.address)
    assert done.returncode == 0
    assert done.stdout == "hello from prefork\nyou said: hi\n"
    told = done.stderr.splitlines()
    assert [next((step for step in STEPS if line.startswith(f"* {step}")), line) for line in told] == STEPS
    assert server.address in done.stderr


def test_the_half_close_ends_the_input_of_a_server_that_reads_to_the_end(shared: Shared) -> None:
    server = shared(f"{APPS / 'connection.py'}:counts_to_end", "--workers", "1")
    assert run("send", "12345", "--to", server.address).stdout == "6\n"


def test_a_refused_connection_names_step_address_and_reason() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # bound, not listening: refuses, and nobody else can take the port
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        done = run("send", "hi", "--to", address)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert "connect" in line
    assert address in line
    assert "refused" in line.lower()


def test_a_missing_unix_socket_names_step_path_and_reason(tmp_path: Path) -> None:
    done = run("send", "hi", "--to", f"unix:{tmp_path}/nobody")
    assert done.returncode == 1
    assert "connect" in done.stderr
    assert f"{tmp_path}/nobody" in done.stderr
    assert "No such file" in done.stderr


def test_a_reset_while_reading_is_the_read_step(peer: Callable[[Callable[[socket.socket], None]], str]) -> None:
    def behave(accepted: socket.socket) -> None:
        read_to_end(accepted)
        accepted.sendall(b"the beginning ")
        abort(accepted)

    address = peer(behave)
    done = run("send", "hi", "--to", address)
    assert done.returncode == 1
    assert "read" in done.stderr
    assert address in done.stderr
    assert "reset" in done.stderr.lower()
    assert "Traceback" not in done.stderr


def test_an_unknown_host_is_named() -> None:
    done = run("send", "hi", "--to", "no-such-host.invalid:80")
    assert done.returncode == 1
    assert "no-such-host.invalid" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_bad_address_is_bad_usage() -> None:
    done = run("send", "hi", "--to", "nowhere")
    assert done.returncode == 2
    assert "nowhere" in done.stderr
    assert "Traceback" not in done.stderr
