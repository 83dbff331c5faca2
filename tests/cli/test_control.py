"""The control socket and the commands that use it, against real servers."""

from __future__ import annotations

import json
import os
import pty
import random
import re
import select
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.client import Hammer, Outcome, collect, crowd, dial, exchange, read_to_end, talkback_reply
from tests.support.control import Place, converse, dial_control, finish, read_lines, succeeded
from tests.support.processes import alive, open_fds
from tests.support.server import APPS, ROOT, RunningServer, clean_environment
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import AppWriter, Serve
    from tests.support.gate import Gate

pytestmark = pytest.mark.slow

OBEY = f"{APPS / 'obey.py'}:handle"
GATED = f"{APPS / 'gated.py'}:handle"
STATUS = b'{"command": "status"}\n'
NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@pytest.fixture
def place() -> Iterator[Place]:
    with Place() as made:
        yield made


# --- status

NUMBER = (int, float)
OPTIONAL = (*NUMBER, type(None))
SERVER: dict[str, type | tuple[type, ...]] = {
    "version": str, "pid": int, "started": str, "uptime_s": NUMBER, "app": str, "kind": str, "engine": str,
    "accept": str, "generation": int, "workers": int, "ready": bool, "reloading": bool, "stopping": bool,
    "last_reload": (dict, type(None)), "control": str, "config": dict,
}  # fmt: skip
LISTENER = {"address": str, "queue": (int, type(None)), "limit": (int, type(None)), "drops": (int, type(None))}
WORKER: dict[str, type | tuple[type, ...]] = {
    "slot": int, "pid": int, "generation": int, "state": str, "age_s": NUMBER, "connections": int, "accepted": int,
    "requests": int, "errors": int, "errors_by_kind": dict, "bytes_in": int, "bytes_out": int, "busy_ratio": NUMBER,
    "p50_us": OPTIONAL, "p99_us": OPTIONAL, "queue_wait": dict, "cpu_s": NUMBER, "pss_bytes": int,
    "serving": (str, type(None)), "serving_s": OPTIONAL, "deadline_in_s": OPTIONAL, "work": list, "slow": list,
}  # fmt: skip
TOTALS: dict[str, type | tuple[type, ...]] = {
    "connections": int, "accepted": int, "requests": int, "errors": int, "idle_closed": int, "too_long": int,
    "client_gone": int, "refused": int, "timed_out": int, "aborted": int, "bytes_in": int, "bytes_out": int,
    "errors_by_kind": dict, "busy_s": NUMBER, "p50_us": OPTIONAL, "p99_us": OPTIONAL, "queue_wait": dict,
    "respawns": dict,
}  # fmt: skip


def assert_shape(entry: dict[str, Any], shape: dict[str, Any]) -> None:
    assert list(entry) == list(shape)
    wrong = {key: value for key, value in entry.items() if not isinstance(value, shape[key])}
    assert not wrong
    assert not {key for key, value in entry.items() if isinstance(value, bool) and shape[key] is not bool}


@pytest.mark.smoke
def test_status_as_json_has_every_key_and_the_figures_of_what_was_served(serve: Serve, place: Place) -> None:
    server = serve("talkback", "--workers", "2", "--threads", "2", env=place.env)
    for _ in range(20):
        assert exchange(server.address, b"hello\n") == talkback_reply(b"hello")
    idle = {"IDLE"}  # a worker may be at work for a moment when its client has read to the end
    eventually(lambda: {worker["state"] for worker in place.status()["workers"]} == idle, within_s=30)
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
def test_status_as_a_table_names_server_listener_and_workers(serve: Serve, place: Place) -> None:
    server = serve("talkback", "--workers", "2", env=place.env)
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


@pytest.mark.smoke
def test_all_commands_work_while_every_worker_is_busy(serve: Serve, place: Place) -> None:
    """Each command as a program of its own, as operators run it."""

    def program(*args: str) -> str:
        return succeeded(finish(place.start(*args)))

    server = serve(OBEY, "--workers", "2", "--graceful-timeout", "300ms", env=place.env)
    stuck = [dial(server.address) for _ in range(2)]
    for client in stuck:
        client.sendall(b"spin\n")

    def all_busy() -> bool:
        return all(worker["deadline_in_s"] is not None for worker in place.status()["workers"])

    eventually(all_busy, within_s=30, what="handler code in both workers")
    for worker in place.status()["workers"]:
        assert (worker["state"], worker["connections"]) == ("BUSY", 1)
        assert 0 < worker["deadline_in_s"] <= 30  # to a tenth
        assert worker["busy_ratio"] > 0
        assert worker["serving_s"] > 0
    assert {worker["serving"] for worker in place.status()["workers"]} == {
        "{}:{}".format(*client.getsockname()) for client in stuck
    }
    assert json.loads(program("status", "--json"))["server"]["pid"] == server.pid
    stacks = program("stack")
    assert stacks.count("in spin_forever") == 2
    assert stacks.count("BUSY") == 2
    assert program("scale", "3").startswith("scaled: 3 workers (before: 2)")
    assert exchange(server.address, b"work\n") == b"done\n"
    assert program("reload").startswith("reloaded: generation 2, 3 workers")
    assert exchange(server.address, b"work\n") == b"done\n"
    assert program("stop").startswith("stopped")
    assert server.wait_exit(within_s=15) == 0
    for client in stuck:
        client.close()


# --- stack


def test_stack_of_one_slot_and_of_a_slot_that_nobody_is_in(serve: Serve, place: Place) -> None:
    server = serve(OBEY, "--workers", "2", env=place.env)
    answer = json.loads(place.ok("stack", "1", "--json"))
    (entry,) = answer["workers"]
    assert (entry["slot"], entry["generation"], entry["state"], entry["reason"]) == (1, 1, "IDLE", None)
    assert "MainThread" in entry["stacks"]
    refused = place.run("stack", "7")
    assert refused.returncode == 1
    assert refused.stderr == "prefork: no worker is in slot 7; in use: 0, 1\n"
    assert server.running


def test_stack_says_who_cannot_answer_and_harms_nobody(serve: Serve, place: Place) -> None:
    """A live worker is never asked by the signal that can crash it."""
    server = serve(OBEY, "--workers", "3", env=place.env)
    before = server.worker_pids()
    with dial(server.address) as client, dial(server.address) as other:
        client.sendall(b"hold_gil 6\n")
        other.sendall(b"signal SIGSTOP\n")

        def mute() -> list[dict[str, Any]]:
            entries = json.loads(place.ok("stack", "--json"))["workers"]
            return [entry for entry in entries if entry["stacks"] is None]

        entries = eventually(lambda: len(found := mute()) == 2 and found, within_s=30, what="two mute workers")
        assert {entry["reason"].replace("it computes", "waits") for entry in entries} == {  # as the kernel sees it
            "no answer in 1 s: C code holds the GIL, and waits",
            "no answer in 1 s: the worker is stopped",
        }
        host, port = client.getsockname()
        assert f"{host}:{port}" in {entry["serving"] for entry in entries}
        stopped = next(pid for pid in before if stat_state(pid) == "T")
        os.kill(stopped, signal.SIGCONT)
        assert read_to_end(client) == b"done\n"
        assert read_to_end(other) == b"survived\n"
    assert server.worker_pids() == before


def stat_state(pid: int) -> str:
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]


# --- reload, scale, stop


def test_reload_waits_until_every_worker_is_new_and_loses_nobody(serve: Serve, place: Place) -> None:
    server = serve("talkback", "--workers", "2", env=place.env)
    before = server.worker_pids()
    with Hammer(server.address, clients=2) as hammer:
        place.ok("reload")
        after = server.worker_pids()
        hammer.wait_more(20)
    assert len(after) == 2
    assert not after & before
    assert hammer.failures == []
    last = place.status()["server"]["last_reload"]
    assert (last["generation"], last["ok"], last["reason"]) == (2, True, None)
    assert place.status()["totals"]["respawns"] == {"reload": 2}


def test_a_broken_reload_is_abandoned_and_says_why(serve: Serve, place: Place, app: AppWriter) -> None:
    name = app("def handle(conn):\n    conn.sendall(b'one')\n")
    server = serve(name, "--workers", "2", env=place.env)
    before = server.worker_pids()
    app("def handle(conn:\n")
    failed = place.run("reload")
    assert failed.returncode == 1
    assert failed.stderr.startswith("prefork: reload to generation 2 abandoned, the old generation serves on: ")
    assert "SyntaxError" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert exchange(server.address) == b"one"
    head = place.status()["server"]
    assert (head["generation"], head["ready"], head["reloading"]) == (1, True, False)
    assert head["last_reload"]["ok"] is False
    assert "SyntaxError" in head["last_reload"]["reason"]
    assert "SyntaxError" in place.ok("status")
    assert server.worker_pids() == before
    app("def handle(conn):\n    conn.sendall(b'two')\n")
    assert place.ok("reload").startswith("reloaded: generation 3")
    assert exchange(server.address) == b"two"
    server.expect_traceback = True  # the application's own, of its SyntaxError


def test_reloads_at_the_same_time_all_end(serve: Serve, place: Place) -> None:
    server = serve("talkback", "--workers", "2", env=place.env)
    asked = [place.start("reload") for _ in range(4)]
    done = [finish(process) for process in asked]
    assert [process.returncode for process in done] == [0, 0, 0, 0], [process.stderr for process in done]
    generations = {re.search(r"generation (\d+)", process.stdout)[1] for process in done}  # type: ignore[index]
    assert generations <= {"2", "3", "4", "5"}
    assert len(server.worker_pids()) == 2


def test_a_reload_queued_behind_one_that_is_abandoned_still_comes(serve: Serve, place: Place, app: AppWriter) -> None:
    """The queued one loads what is there by then."""
    held = place.root / "held"
    name = app("def handle(conn):\n    conn.sendall(b'one')\n")
    server = serve(name, "--workers", "1", env=place.env)
    app(
        f"import pathlib, time\nwhile not pathlib.Path({str(held)!r}).exists(): time.sleep(0.01)\nraise SystemExit(1)\n"
    )
    first = place.start("reload")
    server.wait_log("reloading control")
    server.wait_log("spawned .*cause=reload")
    second = place.start("reload")
    server.wait_log("reloading control", count=2)
    app("def handle(conn):\n    conn.sendall(b'two')\n")
    held.touch()
    assert finish(first).returncode == 1
    done = finish(second)
    assert (done.returncode, done.stderr) == (0, "")
    assert exchange(server.address) == b"two"
    server.expect_traceback = True


def test_scale_up_down_to_nothing_and_back(serve: Serve, place: Place) -> None:
    server = serve("talkback", "--workers", "2", env=place.env)
    for count in (4, 1, 0):
        place.ok("scale", str(count))
        assert len(server.worker_pids()) == count
        assert place.status()["server"]["workers"] == count
    (waiting,) = crowd(server.address, 1)
    assert place.ok("scale", "1").startswith("scaled: 1 worker (before: 0)")
    assert collect([waiting], talkback_reply(b"hi"))[Outcome.OK] == 1
    refused = place.run("scale", "9999")
    assert refused.returncode == 1
    assert re.fullmatch(r"prefork: cannot scale to 9999: from 0 to \d+, .*\n", refused.stderr)
    assert place.run("scale", "-1").returncode == 2
    assert place.run("scale", "many").returncode == 2
    assert len(server.worker_pids()) == 1


def test_stop_waits_for_what_is_in_flight_and_then_the_server_is_gone(serve: Serve, place: Place, gate: Gate) -> None:
    server = serve(GATED, "--workers", "2", env=place.env | gate.env)
    clients = crowd(server.address, 2)
    gate.wait_entered(2)
    stopping = place.start("stop")
    server.wait_log('stopping signal="prefork stop')
    head = place.status()["server"]
    assert (head["stopping"], head["ready"]) == (True, False)
    assert {worker["state"] for worker in place.status()["workers"]} == {"DRAINING"}
    for command in (("reload",), ("scale", "3")):
        refused = place.run(*command)
        assert (refused.returncode, refused.stderr) == (1, "prefork: the server is stopping\n")
    assert stopping.poll() is None
    gate.open()
    done = finish(stopping)
    assert (done.returncode, done.stderr) == (0, "")
    assert not alive(server.pid)
    assert place.sockets == []
    assert collect(clients, talkback_reply(b"hi"))[Outcome.OK] == 2
    assert server.wait_exit() == 0
    assert place.run("stop").returncode == 6


def test_progress_is_shown_on_a_terminal(serve: Serve, place: Place, gate: Gate) -> None:
    server = serve(GATED, "--workers", "2", env=place.env | gate.env)
    clients = crowd(server.address, 1)
    gate.wait_entered(1)
    ours, theirs = pty.openpty()
    process = place.start("stop", terminal=theirs)
    os.close(theirs)
    server.wait_log("stopping")
    shown = b""
    deadline = time.monotonic() + 10
    while b"1 workers left" not in shown and time.monotonic() < deadline:
        if select.select([ours], [], [], 0.1)[0]:
            shown += os.read(ours, 4096)
    assert b"1 workers left" in shown
    gate.open()
    assert finish(process).returncode == 0
    os.close(ours)
    collect(clients, b"")


def test_a_client_that_leaves_in_the_middle_takes_nothing_back(serve: Serve, place: Place) -> None:
    server = serve("talkback", "--workers", "2", env=place.env)
    before = server.worker_pids()
    with dial_control(place.socket_of(server.pid)) as client:
        client.sendall(b'{"command": "reload"}\n')
        assert b"generation 2" in client.recv(65536)
    server.wait_log("reloaded generation=2")
    assert not server.worker_pids() & before


# --- which server


@pytest.mark.smoke
def test_without_a_server_every_command_says_so_and_exits_6(place: Place) -> None:
    asked = [place.start(*command) for command in (("status",), ("reload",), ("scale", "1"), ("stop",), ("stack",))]
    for process in asked:
        done = finish(process)
        assert done.returncode == 6
        assert re.fullmatch(r"prefork: no server .*\n", done.stderr)
    missing = place.run("status", "--control", str(place.root / "none.sock"))
    assert (missing.returncode, "no such socket" in missing.stderr) == (6, True)


def test_several_servers_are_listed_and_each_can_be_named(serve: Serve, place: Place) -> None:
    one = serve("talkback", "--workers", "1", env=place.env)
    two = serve("echo", "--workers", "1", env=place.env)
    done = place.run("status")
    assert done.returncode == 2
    assert done.stderr.startswith("prefork: 2 servers are running")
    for server, name in ((one, "talkback"), (two, "echo")):
        path = place.socket_of(server.pid)
        assert re.search(rf"--control {path} +pid {server.pid} +{name} +{server.address}$", done.stderr, re.MULTILINE)
        assert place.shown("--control", str(path))["server"]["pid"] == server.pid
    place.ok("stop", PREFORK_CONTROL=str(place.socket_of(one.pid)))
    assert place.shown()["server"]["pid"] == two.pid


def test_sockets_of_killed_servers_are_skipped_and_removed(serve: Serve, place: Place) -> None:
    def kill_one() -> int:
        server = serve("talkback", "--workers", "1", env=place.env, expected_exit=-signal.SIGKILL)
        server.stop(signal.SIGKILL)
        return server.pid

    first = kill_one()
    assert place.sockets == [place.socket_of(first)]
    named = place.run("status", "--control", str(place.socket_of(first)))
    assert (named.returncode, "its server has gone" in named.stderr) == (6, True)
    server = serve("talkback", "--workers", "1", env=place.env)
    assert place.sockets == [place.socket_of(server.pid)], "a new server tidies up"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(place.socket_of(first)))
    assert place.shown()["server"]["pid"] == server.pid
    assert place.sockets == [place.socket_of(server.pid)], "a client tidies up"
    with socket.socket(socket.AF_UNIX) as early:
        early.bind(str(place.socket_of(os.getpid())))
        assert place.shown()["server"]["pid"] == server.pid
        assert len(place.sockets) == 2, "its process lives: it may be about to listen"


def test_a_master_that_is_stopped_is_listed_as_mute(serve: Serve, place: Place) -> None:
    one = serve("talkback", "--workers", "1", env=place.env)
    two = serve("talkback", "--workers", "1", env=place.env)
    one.signal(signal.SIGSTOP)
    try:
        done = place.run("status")
    finally:
        one.signal(signal.SIGCONT)
    assert done.returncode == 2
    assert re.search(rf"{one.pid}\.sock +\(.*does not answer within 2 s", done.stderr)
    assert f"pid {two.pid}" in done.stderr


# --- where the socket is, and for whom


def test_the_socket_and_its_folder_are_private(serve: Serve, place: Place) -> None:
    server = serve("talkback", "--workers", "1", env=place.env)
    path = place.socket_of(server.pid)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_without_a_runtime_dir_it_is_in_the_temp_dir_and_found_by_a_client_that_has_one(
    serve: Serve, place: Place
) -> None:
    server = serve("talkback", "--workers", "1", env={"XDG_RUNTIME_DIR": "", "TMPDIR": str(place.root)})
    assert (place.root / f"prefork-{os.geteuid()}" / f"{server.pid}.sock").is_socket()
    assert place.shown()["server"]["pid"] == server.pid


def test_a_path_of_ones_own_is_used_and_removed_at_the_end(serve: Serve, place: Place) -> None:
    path = place.root / "mine.sock"
    server = serve("talkback", "--workers", "1", "--control", str(path), env=place.env)
    assert place.sockets == []
    assert place.run("status").returncode == 6
    assert place.shown("--control", str(path))["server"]["pid"] == server.pid
    place.ok("stop", "--control", str(path))
    assert not path.exists()


def test_a_server_without_a_control_socket_serves_all_the_same(serve: Serve, place: Place) -> None:
    server = serve("talkback", "--workers", "1", "--control", "none", env=place.env)
    assert exchange(server.address) == talkback_reply(b"hello")
    assert place.sockets == []
    assert "control" not in server.log


@pytest.mark.parametrize("fault", ["open folder", "missing folder", "a file", "too long"])
def test_a_socket_that_cannot_be_made_is_one_line_in_the_log(serve: Serve, place: Place, fault: str) -> None:
    (place.root / "file").write_text("precious")
    long = place.root / ("x" * 100)
    args: list[str] = []
    env = place.env
    match fault:
        case "open folder":
            for folder in (place.runtime / "prefork", place.root / f"prefork-{os.geteuid()}"):
                folder.mkdir()
                folder.chmod(0o755)
        case "missing folder":
            args = ["--control", str(place.root / "no" / "such.sock")]
        case "a file":
            args = ["--control", str(place.root / "file")]
        case "too long":
            long.mkdir(mode=0o700)
            env = env | {"XDG_RUNTIME_DIR": str(long)}
    server = serve("talkback", "--workers", "1", *args, env=env)
    level = "WARNING" if args else "INFO"
    server.wait_log(rf'{level} \[master=\d+\] no control socket reason=".+"$')
    assert server.log.count("no control socket") == 1
    assert exchange(server.address) == talkback_reply(b"hello")
    assert (place.root / "file").read_text() == "precious"


def test_a_live_servers_socket_is_not_taken_from_it(serve: Serve, place: Place) -> None:
    path = str(place.root / "shared.sock")
    one = serve("talkback", "--workers", "1", "--control", path, env=place.env)
    two = serve("talkback", "--workers", "1", "--control", path, env=place.env)
    two.wait_log("WARNING .*no control socket")
    assert two.stop() == 0
    assert place.shown("--control", path)["server"]["pid"] == one.pid


IMPORT_ALL = (
    "import importlib, os, pkgutil, sys, prefork; [importlib.import_module(found.name)"
    " for found in pkgutil.walk_packages(prefork.__path__, 'prefork.') if found.name != 'prefork.__main__']\n"
    "from prefork.cli.main import main"
)
AS_NOBODY = """
{everything}
os.setgroups([]); os.setgid({uid}); os.setuid({uid})
sys.argv = ["prefork", "status", "--control", {path!r}]
main()
"""


@as_root
def test_another_user_is_refused_by_the_mode_and_by_the_kernels_word(serve: Serve, place: Place) -> None:
    path = place.root / "open.sock"
    server = serve("talkback", "--workers", "1", "--control", str(path), env=place.env)
    place.root.chmod(0o755)

    def as_nobody() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", AS_NOBODY.format(everything=IMPORT_ALL, uid=NOBODY, path=str(path))],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            cwd=ROOT,
            env=clean_environment(),
        )

    barred = as_nobody()
    assert barred.returncode == 1
    assert barred.stderr == f"prefork: {path} belongs to uid 0: only that user and root control the server\n"
    path.chmod(0o666)
    refused = as_nobody()
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == f"prefork: this server is controlled by uid 0; you are uid {NOBODY}\n"
    assert place.shown("--control", str(path))["server"]["pid"] == server.pid


@as_root
def test_a_server_of_another_user_obeys_root(place: Place) -> None:
    """The server becomes the other user only when it has imported all: that user may not be able to read our home."""
    path = place.root / "theirs.sock"
    place.root.chmod(0o777)
    script = (
        f"{IMPORT_ALL}\n"
        f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})\n"
        f"sys.argv = ['prefork', 'serve', '-w', '1', '-b', 'unix:{place.root}/s', '--control', {str(path)!r}]\n"
        f"main()\n"
    )
    server = subprocess.Popen(
        [sys.executable, "-c", script], stderr=subprocess.PIPE, text=True, cwd=ROOT, env=clean_environment(place.env)
    )
    try:
        eventually(path.exists, within_s=60, what="its socket")
        assert place.shown("--control", str(path))["server"]["pid"] == server.pid
        assert path.stat().st_uid == NOBODY
        place.ok("stop", "--control", str(path))
        assert server.wait(10) == 0
    finally:
        server.kill()
        server.communicate()


# --- rude clients


def test_more_clients_than_allowed_are_turned_away_and_the_others_kept(serve: Serve, place: Place) -> None:
    server = serve("talkback", "--workers", "1", env=place.env)
    path = place.socket_of(server.pid)
    with ExitStack() as stack:
        silent = [stack.enter_context(dial_control(path)) for _ in range(32)]
        (answer,) = converse(path, b"")
        assert (answer["ok"], "32 control clients" in answer["error"]) == (False, True)
        silent[7].sendall(STATUS)
        assert read_lines(silent[7])[0]["ok"]
    eventually(lambda: converse(path, STATUS)[0]["ok"], within_s=15, what="room again")


@pytest.mark.timing
def test_a_client_that_never_finishes_its_line_is_told_so_and_dropped(serve: Serve, place: Place) -> None:
    server = serve("talkback", "--workers", "1", env=place.env)
    began = time.monotonic()
    (answer,) = converse(place.socket_of(server.pid), b'{"command": "sta')
    assert answer == {"ok": False, "error": "no request came within 10 s"}
    assert 9.5 < time.monotonic() - began < 20
    assert exchange(server.address) == talkback_reply(b"hello")


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (b"\n", "one line of JSON"),
        (b"status\n", "one line of JSON"),
        (b"[]\n", "it is not an object"),
        (b"[" * 60_000 + b"\n", "one line of JSON"),
        (b'{"command": ' + b"9" * 5000 + b"}\n", "one line of JSON"),
        (b"\xff\xfe\x00\n", "one line of JSON"),
        (b"{}\n", "there is no command None"),
        (b'{"command": "Status"}\n', "there is no command 'Status'"),
        (b'{"command": ["status"]}\n', "there is no command ['status']"),
        (b'{"command": "scale"}\n', "a whole number of workers, not None"),
        (b'{"command": "scale", "workers": true}\n', "a whole number of workers, not True"),
        (b'{"command": "scale", "workers": 2.0}\n', "a whole number of workers, not 2.0"),
        (b'{"command": "scale", "workers": -1}\n', "cannot scale to -1"),
        (b'{"command": "stack", "slot": "0"}\n', "a slot is a whole number, not '0'"),
        (b"x" * 70_000, "longer than 65536 bytes"),
    ],
)
def test_a_bad_request_is_answered_with_what_is_wrong(
    control_of_shared: tuple[str, int], request_: bytes, words: str
) -> None:
    path, _pid = control_of_shared
    (answer,) = converse(path, request_)
    assert answer["ok"] is False
    assert words in answer["error"]


@pytest.fixture(scope="module")
def control_of_shared() -> Iterator[tuple[str, int]]:
    """One server for the requests that change nothing."""
    with Place() as place:
        server = RunningServer("talkback", "--workers", "1", env=place.env)
        try:
            server.wait_ready()
            yield str(place.socket_of(server.pid)), server.pid
        finally:
            server.close()


def test_a_request_may_end_with_the_connections_half(control_of_shared: tuple[str, int]) -> None:
    path, pid = control_of_shared
    with dial_control(path) as client:
        client.sendall(STATUS.rstrip())
        client.shutdown(socket.SHUT_WR)
        (answer,) = read_lines(client)
    assert answer["answer"]["server"]["pid"] == pid


def test_two_hundred_kinds_of_rubbish_leave_the_master_alive_and_without_a_leak(serve: Serve, place: Place) -> None:
    server = serve("talkback", "--workers", "1", env=place.env)
    path = place.socket_of(server.pid)
    workers, before = server.worker_pids(), len(open_fds(server.pid))
    choose = random.Random(1935)
    for _ in range(200):
        with dial_control(path) as client:
            try:
                client.sendall(rubbish(choose))
                match choose.randrange(4):
                    case 0:
                        client.shutdown(socket.SHUT_WR)
                    case 1:
                        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    case 2:
                        client.settimeout(0.001)
                        client.recv(10)
            except (BrokenPipeError, ConnectionResetError, TimeoutError):
                pass  # its right
    answer = eventually(lambda: converse(path, STATUS)[0].get("answer"), within_s=15, what="room for one more client")
    assert answer["server"]["pid"] == server.pid
    eventually(lambda: len(open_fds(server.pid)) <= before, within_s=15, what="as few descriptors as before")
    assert server.worker_pids() == workers
    assert "control command failed" not in server.log


def rubbish(choose: random.Random) -> bytes:
    """Random bytes, broken JSON, and requests of the wrong shape that could do no harm if they were taken."""
    match choose.randrange(5):
        case 0:
            return choose.randbytes(choose.choice([0, 1, 100, 5000, 70_000]))
        case 1:
            return STATUS[: choose.randrange(len(STATUS))]
        case 2:
            value = choose.choice([None, 0, -1, 1e308, "x" * 1000, [], {}, [[[]]], True, "\ud800"])
            return (
                json.dumps({"command": choose.choice(["scale", "stack", value]), "workers": [value]}).encode() + b"\n"
            )
        case 3:
            flipped = bytearray(STATUS * choose.choice([1, 3]))
            flipped[choose.randrange(len(flipped))] ^= 1 << choose.randrange(8)
            return bytes(flipped)
        case _:
            return choose.choice([b"{", b"[", b'{"a":', b'"']) * choose.choice([1, 1000, 20_000]) + b"\n"


def test_a_worker_that_is_forked_while_clients_are_connected_holds_none_of_their_sockets(
    serve: Serve, place: Place
) -> None:
    server = serve("talkback", "--workers", "1", env=place.env)
    (worker,) = server.worker_pids()
    was = sockets_of(worker)
    with dial_control(place.socket_of(server.pid)) as one, dial_control(place.socket_of(server.pid)) as two:
        assert exchange(server.address) == talkback_reply(b"hello")
        two.sendall(b'{"command": "stack"}\n')
        assert read_lines(two)[-1]["ok"], "so both have been accepted"
        os.kill(worker, signal.SIGKILL)
        (successor,) = server.wait_workers(1, without={worker})
        assert exchange(server.address) == talkback_reply(b"hello")
        eventually(lambda: sockets_of(successor) == was, within_s=15, what=f"{was}, the listener alone")
        one.sendall(STATUS)
        assert read_lines(one)[0]["ok"], "and the end of the connection is seen at once"


def sockets_of(pid: int) -> set[str]:
    return {target for target in open_fds(pid).values() if target.startswith("socket:")}
