"""The log cannot be written: a full disk, a closed descriptor, a reader that is gone or never reads. Nobody may notice
but the reader, who is told later how many lines are missing.
"""

from __future__ import annotations

import os
import re
import resource
import signal
import socket
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.support.client import Outcome, attempt, exchange, talkback_reply
from tests.support.load import Load, fresh
from tests.support.processes import children
from tests.support.server import APPS
from tests.support.stuck import fill, read_all
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import Serve
    from tests.support.server import RunningServer

pytestmark = pytest.mark.slow

HI = talkback_reply(b"hi")
OBEY = f"{APPS / 'obey.py'}:handle"
SOON_S = 15.0  # less than any timeout that would end it too
LOST = re.compile(r"log lines lost count=(\d+)")


def answers(address: str) -> bool:
    """Say whether anyone serves there: there is no log to wait for."""
    try:
        return attempt(address, b"hi\n", HI) is not Outcome.REFUSED
    except FileNotFoundError:
        return False  # not bound yet


def live_through_everything(server: RunningServer, address: str) -> None:
    """Load, errors, a death, a reload, scaling: all of it talks to the log. Nobody may lose anything."""
    with Load(address, fresh(2, pause_s=0.001)) as load:
        load.wait_more(20)
        before = children(server.pid)
        os.kill(server.pid, signal.SIGHUP)
        eventually(
            lambda: not before & children(server.pid) and len(children(server.pid)) == len(before),
            within_s=30,
            what="everyone replaced",
        )
        load.wait_more(20)
        os.kill(server.pid, signal.SIGTTIN)
        eventually(lambda: len(children(server.pid)) == len(before) + 1, within_s=SOON_S, what="one more worker")
        os.kill(min(children(server.pid)), signal.SIGUSR1)
        load.wait_more(20)
    assert load.failed == {}, load.failures
    victim = max(children(server.pid))
    os.kill(victim, signal.SIGKILL)
    eventually(
        lambda: victim not in children(server.pid) and len(children(server.pid)) == len(before) + 1,
        within_s=SOON_S,
        what="the victim replaced",
    )
    assert exchange(address, b"hi\n") == HI


@pytest.fixture
def address(tmp_path: Path) -> str:
    """Where the server listens: with no log to read the port from, it has to be known."""
    return f"unix:{tmp_path}/s"


REDIRECTIONS = ["2>/dev/full", "2>&-", "<&- >&- 2>&-"]


@pytest.mark.parametrize("how", [[], ["--preload"]], ids=["each-imports", "preload"])
@pytest.mark.parametrize("redirection", REDIRECTIONS, ids=["full", "closed", "all-closed"])
def test_a_log_that_takes_nothing_costs_nobody(serve: Serve, address: str, redirection: str, how: list[str]) -> None:
    wrapper = ["sh", "-c", f'exec "$@" {redirection}', "sh"]
    server = serve("talkback", "--workers", "2", *how, bind=address, ready=False, wrapper=wrapper)
    eventually(lambda: answers(address), within_s=30, what="an answer")
    live_through_everything(server, address)
    assert server.stop(within_s=SOON_S) == 0


# --- a reader that is gone, or does not read


class Reader:
    """TEST. The other end of the server's standard error: a pipe or a stream socket, as of a supervisor."""

    def __init__(self, kind: str) -> None:
        if kind == "pipe":
            self.fd, self.server_end = os.pipe()
        else:
            mine, theirs = socket.socketpair()
            self.fd, self.server_end = mine.detach(), theirs.detach()

    def fill(self) -> None:
        """Leave the server no room for a single line."""
        fill(self.server_end)

    def read(self) -> str:
        """Read what there is."""
        return read_all(self.fd)


@pytest.fixture(params=["pipe", "socket"])
def reader(request: pytest.FixtureRequest) -> Iterator[Reader]:
    """Both ends; the server gets one of them as its standard error."""
    with ExitStack() as stack:
        reader = Reader(request.param)
        stack.callback(close, reader.fd)
        stack.callback(close, reader.server_end)
        yield reader


def close(fd: int) -> None:
    """Close, unless the test has."""
    try:
        os.close(fd)
    except OSError:
        pass  # closed by the test


# A shell cannot name a descriptor of more than one digit.
ONTO_STDERR = "import os, sys; fd = int(sys.argv[1]); os.dup2(fd, 2); os.close(fd); os.execv(sys.argv[2], sys.argv[2:])"


def serve_into(serve: Serve, reader: Reader, address: str, *args: str) -> RunningServer:
    """Start a server that logs to the reader."""
    server = serve(
        *args,
        "--workers",
        "2",
        bind=address,
        ready=False,
        pass_fds=[reader.server_end],
        wrapper=[sys.executable, "-c", ONTO_STDERR, str(reader.server_end)],
    )
    eventually(lambda: answers(address), within_s=30, what="an answer")
    return server


def test_a_reader_that_is_gone_costs_nobody(serve: Serve, reader: Reader, address: str) -> None:
    server = serve_into(serve, reader, address, "talkback")
    os.close(reader.fd)
    os.close(reader.server_end)
    live_through_everything(server, address)
    assert server.stop(within_s=SOON_S) == 0


def test_a_reader_that_never_reads_costs_nobody(serve: Serve, reader: Reader, address: str) -> None:
    """A full pipe takes no line for as long as nobody reads: whoever waits for it serves nobody."""
    server = serve_into(serve, reader, address, "talkback")
    reader.fill()
    live_through_everything(server, address)
    assert server.stop(within_s=SOON_S) == 0


def test_handlers_that_fail_are_not_held_up_by_a_reader_that_never_reads(
    serve: Serve, reader: Reader, address: str
) -> None:
    server = serve_into(serve, reader, address, OBEY)
    reader.fill()
    for _ in range(5):
        assert exchange(address, b"raise nobody hears it\n") == b""
        assert exchange(address, b"work\n") == b"done\n"
    assert server.stop(within_s=SOON_S) == 0


def test_a_reader_that_reads_again_is_told_how_many_lines_are_missing(
    serve: Serve, reader: Reader, address: str
) -> None:
    server = serve_into(serve, reader, address, "talkback")
    eventually(lambda: "ready workers=2" in reader.read(), within_s=SOON_S, what="the end of the start")
    reader.fill()
    for signum, workers in ((signal.SIGTTIN, 3), (signal.SIGTTIN, 4), (signal.SIGTTOU, 3)):
        os.kill(server.pid, signum)
        eventually(lambda n=workers: len(children(server.pid)) == n, within_s=SOON_S, what=f"{workers} workers")
    reader.read()
    os.kill(server.pid, signal.SIGTTOU)
    eventually(lambda: len(children(server.pid)) == 2, within_s=SOON_S, what="two workers")
    said = eventually(reader.read, within_s=SOON_S, what="the log goes on")
    lost = LOST.search(said)
    assert lost, said
    assert int(lost[1]) >= 3, "one line at least for each time that it was scaled"
    assert said.index("log lines lost") < said.index("scaling workers=2")
    assert server.stop(within_s=SOON_S) == 0


def test_a_disk_that_has_room_again_is_told_how_many_lines_are_missing(
    serve: Serve, address: str, tmp_path: Path
) -> None:
    """A limit on the size of files is a full disk that needs no rights; it is lifted while the server runs."""
    path = tmp_path / "log"
    wrapper = ["sh", "-c", f'exec "$@" 2>>{path}', "sh"]
    server = serve("talkback", "--workers", "2", bind=address, ready=False, wrapper=wrapper)
    eventually(lambda: answers(address), within_s=30, what="an answer")
    eventually(lambda: "ready workers=2" in path.read_text(), within_s=SOON_S, what="the log so far")
    size = path.stat().st_size
    usual = resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (size + 20, resource.RLIM_INFINITY))
    live_through_everything(server, address)
    assert path.stat().st_size <= size + 20
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, usual)
    os.kill(server.pid, signal.SIGTTOU)
    said = eventually(lambda: LOST.search(path.read_text()), within_s=SOON_S, what="the count of lost lines")
    assert int(said[1]) >= 5, "reloading, spawned, reloaded, scaling, worker died"
    assert server.stop(within_s=SOON_S) == 0
    whole = path.read_text()
    assert re.search(r"stopped .*completed=\d+", whole)
    assert all(re.match(r"\S+Z [A-Z]+ \[", line) for line in whole[size:].splitlines()[1:]), (
        "no line is glued to a torn one"
    )
