"""--preload: one process imports the application, workers are forked from it, and memory is shared."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.client import exchange
from tests.support.load import ClientGroup, Load, fresh
from tests.support.processes import children, stat
from tests.support.story import events
from tests.support.wait import eventually

if TYPE_CHECKING:
    from tests.conftest import AppWriter, Serve
    from tests.support.server import RunningServer

pytestmark = pytest.mark.slow

# Tells who imported it, and answers who serves, and who the parent is.
WITNESS = """
import os
with open(os.environ["IMPORTS"], "a") as file:
    file.write(f"{os.getpid()}\\n")

def handle(conn):
    conn.sendall(b"%d %d\\n" % (os.getpid(), os.getppid()))
"""


def imports(path: Path) -> list[int]:
    """List the processes that have imported the application so far."""
    return [int(line) for line in path.read_text().split()]


def template_of(server: RunningServer) -> int:
    """Find the template among the master's children, by its title; a worker has it too for a moment."""

    def look() -> list[int]:
        titles = {pid: Path(f"/proc/{pid}/cmdline").read_text() for pid in children(server.pid)}
        return [pid for pid, title in titles.items() if title.startswith("prefork: template")]

    eventually(lambda: len(look()) == 1, within_s=15, what="one template")
    return look()[0]


def test_the_application_is_imported_once_and_never_by_the_master(serve: Serve, app: AppWriter, tmp_path: Path) -> None:
    log = tmp_path / "imports"
    server = serve(app(WITNESS), "--workers", "3", "--preload", env={"IMPORTS": str(log)})
    assert imports(log) == [template_of(server)]
    answers: dict[int, int] = {}

    def ask() -> bool:
        pid, parent = map(int, exchange(server.address, b"").split())
        answers[pid] = parent
        return len(answers) == 3

    eventually(ask, within_s=30, what="an answer of each worker")
    assert set(answers.values()) == {server.pid}, "the master itself can wait for its workers"
    assert answers.keys() == children(server.pid) - {template_of(server)}


def test_respawn_and_scaling_import_nothing(serve: Serve, app: AppWriter, tmp_path: Path) -> None:
    log = tmp_path / "imports"
    server = serve(app(WITNESS), "--workers", "2", "--preload", env={"IMPORTS": str(log)})
    victim = int(exchange(server.address, b"").split()[0])
    os.kill(victim, signal.SIGKILL)
    server.wait_log("spawned .*cause=respawn")
    server.signal(signal.SIGTTIN)
    server.wait_log("spawned .*cause=scale")
    server.wait_workers(4, without={victim})
    assert imports(log) == [template_of(server)]


def test_a_reload_imports_once_more_and_ends_the_old_template(serve: Serve, app: AppWriter, tmp_path: Path) -> None:
    log = tmp_path / "imports"
    server = serve(app(WITNESS), "--workers", "2", "--preload", env={"IMPORTS": str(log)})
    first = template_of(server)
    server.signal(signal.SIGHUP)
    server.wait_log("reloaded generation=2")
    eventually(lambda: len(children(server.pid)) == 3, within_s=15, what="two workers and one template")
    second = template_of(server)
    assert second != first
    assert imports(log) == [first, second]


def test_a_clean_application_is_not_warned_of(serve: Serve) -> None:
    server = serve("talkback", "--workers", "1", "--preload")
    assert not events(server.log, "forking is unsafe")


def test_threads_of_the_application_are_named_in_a_warning(serve: Serve, app: AppWriter) -> None:
    source = "from threading import Event, Thread\nThread(target=Event().wait, name='pusher', daemon=True).start()\n"
    server = serve(
        app(f"{source}from prefork.runtime.builtins import talkback as handle\n"), "--workers", "1", "--preload"
    )
    (warning,) = events(server.log, "forking is unsafe")
    assert warning.level == "WARNING"
    assert "pusher" in warning.fields["reason"]
    assert exchange(server.address), "a warning, no more"


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6, socket.AF_UNIX], ids=["v4", "v6", "unix"])
def test_open_connections_of_the_application_are_named_in_a_warning(
    serve: Serve, app: AppWriter, tmp_path: Path, family: socket.AddressFamily
) -> None:
    with socket.socket(family) as database:
        path = str(tmp_path / "database")
        database.bind(path if family == socket.AF_UNIX else ("127.0.0.1" if family == socket.AF_INET else "::1", 0))
        database.listen()
        where = database.getsockname()
        source = f"import socket\nheld = socket.socket({int(family)})\nheld.connect({where!r})\n"
        server = serve(
            app(f"{source}from prefork.runtime.builtins import talkback as handle\n"), "--workers", "1", "--preload"
        )
        (warning,) = events(server.log, "forking is unsafe")
    assert (path if family == socket.AF_UNIX else str(where[1])) in warning.fields["reason"]


def test_a_socket_that_only_listens_is_no_connection(serve: Serve, app: AppWriter) -> None:
    source = "import socket\nheld = socket.create_server(('127.0.0.1', 0))\n"
    server = serve(
        app(f"{source}from prefork.runtime.builtins import talkback as handle\n"), "--workers", "1", "--preload"
    )
    assert not events(server.log, "forking is unsafe")


def test_random_numbers_differ_between_workers(serve: Serve, app: AppWriter) -> None:
    """The random module seeds itself anew after a fork; copies of one state would give every worker the same tokens."""
    source = "import os, random\nrandom.random()\n"
    source += "def handle(conn):\n    conn.sendall(b'%d %a\\n' % (os.getpid(), random.random()))\n"
    server = serve(app(source), "--workers", "4", "--preload")
    first: dict[bytes, bytes] = {}
    while len(first) < 4:
        pid, number = exchange(server.address, b"").split()
        first.setdefault(pid, number)
    assert len(set(first.values())) == 4


def test_a_template_that_does_not_answer_is_replaced(serve: Serve) -> None:
    """SIGSTOP: it is alive and says nothing. The master may not wait for it for long."""
    server = serve("talkback", "--workers", "2", "--preload")
    for _ in range(10):
        exchange(server.address)
    template = template_of(server)
    (victim, *_) = children(server.pid) - {template}
    os.kill(template, signal.SIGSTOP)
    os.kill(victim, signal.SIGKILL)
    server.wait_log("template died", within_s=15)
    eventually(lambda: len(children(server.pid) - {victim, template}) == 3, within_s=15, what="everyone is back")
    assert exchange(server.address)


def test_the_master_answers_while_the_template_is_stopped(serve: Serve) -> None:
    """Nothing in the master may wait: TERM is obeyed at once, whatever the template does."""
    server = serve("talkback", "--workers", "2", "--preload")
    for _ in range(10):
        exchange(server.address)
    template = template_of(server)
    (victim, *_) = children(server.pid) - {template}
    os.kill(template, signal.SIGSTOP)
    os.kill(victim, signal.SIGKILL)
    server.wait_log("worker died")
    assert server.stop(within_s=15) == 0


# --- memory

# 100 MB of Python objects. Each exchange reads some of the hundredth that is in use; every hundredth runs the collector
# in full, which writes to every object that is not frozen (seen then: 3.3 times one worker's). CPython also writes to
# an object to read it (its reference count): an application that reads all of its objects all over copies all of
# their pages, and no server can help that (seen: 3.2 times).
HOARD = """
import gc
import random
import sys

hoard = []
size = 0
while size < 100 << 20:
    record = {"number": len(hoard), "name": f"record {len(hoard)}", "tags": [str(len(hoard))] * 3}
    size += sys.getsizeof(record) + sum(map(sys.getsizeof, record.values())) + sys.getsizeof(record["tags"][0])
    hoard.append(record)
in_use = hoard[: len(hoard) // 100]

def handle(conn):
    conn.sendall(b"hello from prefork\\n")
    line = conn.readline()
    names = [record["name"] for record in random.choices(in_use, k=10)]
    if random.random() < 0.01:
        gc.collect()
    conn.sendall(b"you said: " + line)
"""


def pss_bytes(pid: int) -> int:
    """Read a process's share of memory: pages that n processes share count for 1/n in each."""
    with open(f"/proc/{pid}/smaps_rollup") as rollup:
        return next(int(line.split()[1]) * 1024 for line in rollup if line.startswith("Pss:"))


def test_four_workers_share_a_hundred_megabytes_of_objects(serve: Serve, app: AppWriter) -> None:
    name = app(HOARD)
    exchanges = 10_000
    one = serve(name, "--workers", "1")
    with Load(one.address, fresh(2)) as load:
        load.wait_more(1_000)
    (alone,) = (pss_bytes(pid) for pid in children(one.pid))
    four = serve(name, "--workers", "4", "--preload")
    before = {pid: pss_bytes(pid) for pid in children(four.pid)}
    with Load(four.address, ClientGroup(clients=8)) as load:
        load.wait_more(exchanges, within_s=60)
    assert load.failed == {}
    after = {pid: pss_bytes(pid) for pid in children(four.pid)}
    assert after.keys() == before.keys(), "five processes, all alive: four workers and the template"
    assert all(stat(pid) for pid in after)
    print(
        f"PSS, MB: one worker alone {alone >> 20}; four and their template {sum(before.values()) >> 20} at first,"
        f" {sum(after.values()) >> 20} after {exchanges} exchanges: {sum(after.values()) / alone:.2f} times one"
    )
    assert alone > 100 << 20
    assert sum(after.values()) <= 1.6 * alone
