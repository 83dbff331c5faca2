"""--admin: a process of its own that says how the server is, whatever the others are doing."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
import textwrap
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from prefork.admin.process import is_own, own_names
from prefork.core.address import Address
from prefork.core.listener import open_listener
from tests.support.admin import (
    ADMIN,
    address_of,
    admin_pid,
    counters,
    figure,
    figures,
    status,
    workers_of,
)
from tests.support.client import Hammer, dial, exchange, read_to_end, talkback_reply
from tests.support.control import Place
from tests.support.processes import alive, children, open_fds, session_members
from tests.support.server import APPS, run
from tests.support.users import as_root
from tests.support.wait import eventually
from tests.support.web import Browser, fetch, request

if TYPE_CHECKING:
    from tests.conftest import AppWriter, Serve, Shared
    from tests.support.gate import Gate

pytestmark = pytest.mark.slow

OBEY = f"{APPS / 'obey.py'}:handle"
AT_THE_GATE = f"import sys\nsys.path.insert(0, {str(APPS)!r})\nimport gated\ngated.pass_gate()\nhandle = gated.handle\n"
HI = talkback_reply(b"hi")
NOBODY = 65534


# --- what is asked and answered


@pytest.mark.parametrize(
    ("path", "status", "kind", "body"),
    [
        ("/healthz", 200, "text/plain; charset=utf-8", b"ok\n"),
        ("/readyz", 200, "text/plain; charset=utf-8", b"ready\n"),
        ("/healthz?full", 200, "text/plain; charset=utf-8", b"ok\n"),
        ("/nothing", 404, "text/plain; charset=utf-8", b"404 Not Found\n"),
        ("//healthz", 404, "text/plain; charset=utf-8", b"404 Not Found\n"),
    ],
)
def test_small_answers(shared: Shared, path: str, status: int, kind: str, body: bytes) -> None:
    answer = fetch(address_of(shared("talkback", "--workers", "2", *ADMIN)), path)
    assert (answer.status, answer.fields["content-type"], answer.body) == (status, kind, body)
    assert (answer.closes, answer.fields["cache-control"]) == (True, "no-store")


@pytest.mark.parametrize("path", ["/", "/metrics", "/status.json", "/healthz", "/readyz", "/nothing"])
def test_head_is_get_without_the_body(shared: Shared, path: str) -> None:
    address = address_of(shared("talkback", "--workers", "2", *ADMIN))
    whole = fetch(address, path)
    with Browser(address) as browser:
        browser.send(request(path, method="HEAD"))
        answer = browser.response(head=True)
        assert browser.ended()
    assert (answer.status, answer.fields["content-type"]) == (whole.status, whole.fields["content-type"])
    if path not in ("/metrics", "/status.json"):  # which are another every time
        assert answer.fields["content-length"] == str(len(whole.body))


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "BREW"])
def test_nothing_can_be_changed(shared: Shared, method: str) -> None:
    with Browser(address_of(shared("talkback", "--workers", "2", *ADMIN))) as browser:
        browser.send(request("/metrics", method=method, body=b"x" * 100_000))
        answer = browser.response()
        assert (answer.status, answer.fields["allow"]) == (405, "GET, HEAD")
        assert browser.ended(), "it reads on, so that the answer is not reset"


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (b"\x16\x03\x01\x02\x00garbage", 400),
        (b"hello\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"A: b\r\n" * 200 + b"\r\n", 431),
        (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
    ],
)
def test_what_is_no_request_is_refused(shared: Shared, said: bytes, code: int) -> None:
    with Browser(address_of(shared("talkback", "--workers", "2", *ADMIN))) as browser:
        browser.send(said)
        assert browser.response().status == code
        assert browser.ended()


@pytest.mark.smoke
def test_the_status_is_that_of_the_command(serve: Serve, place: Place) -> None:
    server = serve("talkback", "--workers", "2", *ADMIN, env=place.env)
    address = address_of(server)
    for _ in range(30):
        exchange(server.address, b"hi\n")

    def same() -> bool:
        mine, theirs = (settled(document) for document in (status(address), place.status()))
        return mine == theirs and mine["totals"]["requests"] == 30

    eventually(same, within_s=30, what="the same document")
    assert {worker["pid"] for worker in status(address)["workers"]} == workers_of(server)


def settled(document: dict[str, Any]) -> dict[str, Any]:
    """A document without what another moment, or another process's last sample, makes different."""
    del document["server"]["uptime_s"]
    for worker in document["workers"]:
        for moving in ("age_s", "cpu_s", "pss_bytes", "busy_ratio"):
            assert worker.pop(moving) is not None
    return document


def test_the_figures_are_those_of_the_status_and_of_the_clients(serve: Serve) -> None:
    server = serve("echo", "--workers", "2", *ADMIN)
    address = address_of(server)
    with ExitStack() as stack:
        clients = [stack.enter_context(dial(server.address)) for _ in range(2)]
        for client in clients:
            client.sendall(b"one\n")
            assert client.recv(100) == b"one\n"
        eventually(lambda: figure(figures(address), "prefork_bytes_out_total") == 8, within_s=30)
        found, totals = figures(address), status(address)["totals"]
        assert figure(found, "prefork_connections") == totals["connections"] == 2
        assert figure(found, "prefork_accepted_total") == totals["accepted"] == 2
        assert figure(found, "prefork_bytes_in_total") == totals["bytes_in"] == 8
        assert figure(found, "prefork_workers", state="BUSY") == 2
        assert figure(found, "prefork_listener_queue", address=server.address) == 0
        assert [figure(found, "prefork_worker_connections", slot=slot) for slot in "01"] == [1, 1]
    eventually(lambda: figure(figures(address), "prefork_requests_total") == 2, within_s=30)
    found = figures(address)
    assert figure(found, "prefork_request_duration_seconds_count") == 2
    assert figure(found, "prefork_request_duration_seconds_bucket", le="+Inf") == 2
    assert figure(found, "prefork_up") == figure(found, "prefork_ready") == 1


# --- whom it needs


def test_it_answers_while_every_worker_burns_cpu(serve: Serve) -> None:
    server = serve(OBEY, "--workers", "4", "--graceful-timeout", "100ms", *ADMIN)
    address = address_of(server)
    stuck = [dial(server.address) for _ in range(4)]
    for client in stuck:
        client.sendall(b"spin\n")
    eventually(lambda: figure(figures(address), "prefork_workers", state="BUSY") == 4, within_s=20)
    assert fetch(address, "/healthz").status == fetch(address, "/readyz").status == fetch(address).status == 200
    eventually(
        lambda: all(worker["deadline_in_s"] is not None for worker in status(address)["workers"]),
        within_s=30,
        what="deadlines of all four",
    )
    assert server.stop(signal.SIGQUIT) == 0
    for client in stuck:
        client.close()


def test_it_answers_while_the_master_is_stopped(serve: Serve) -> None:
    server = serve("talkback", "--workers", "1", *ADMIN)
    address = address_of(server)
    server.signal(signal.SIGSTOP)
    try:
        assert exchange(server.address, b"hi\n") == HI
        eventually(lambda: figure(figures(address), "prefork_requests_total") == 1, within_s=30)
        assert fetch(address, "/readyz").status == 200, "its workers serve"
        assert fetch(address, "/healthz").status == 200, "it was there a moment ago"
    finally:
        server.signal(signal.SIGCONT)


def test_a_master_that_hangs_is_seen_and_when_it_goes_on(serve: Serve) -> None:
    server = serve("talkback", "--workers", "1", *ADMIN)
    address = address_of(server)
    server.signal(signal.SIGSTOP)
    try:
        eventually(lambda: fetch(address, "/healthz").status == 503, within_s=30, what="a sick master")
        assert re.fullmatch(rb"the master has not been heard of for \d\d s\n", fetch(address, "/healthz").body)
        assert figure(figures(address), "prefork_up") == 0
    finally:
        server.signal(signal.SIGCONT)
    eventually(lambda: fetch(address, "/healthz").status == 200, within_s=30, what="a healthy master")
    eventually(lambda: figure(figures(address), "prefork_up") == 1, within_s=30)


def test_it_is_replaced_and_nobody_else_is_touched(serve: Serve) -> None:
    server = serve("talkback", "--workers", "2", *ADMIN)
    address, workers, admin = address_of(server), workers_of(server), admin_pid(server)
    exchange(server.address, b"hi\n")
    for _ in range(2):
        os.kill(admin, signal.SIGKILL)
        mark = len(server.log)
        admin = admin_pid(server, without=admin)
        found = eventually(lambda: status(address)["totals"]["requests"], within_s=30)
        assert found == 1
        assert server.log[:mark].count("admin died") <= 2
    server.wait_log(r"admin died pid=\d+ cause=SIGKILL respawn_in=0.25s")
    server.wait_log(r"admin died pid=\d+ cause=SIGKILL respawn_in=0.38s")
    assert workers_of(server) == workers


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM])
def test_signals_to_the_group_are_the_masters_business(shared: Shared, signum: signal.Signals) -> None:
    server = shared("talkback", "--workers", "2", *ADMIN)
    admin = admin_pid(server)
    os.kill(admin, signum)
    assert fetch(address_of(server), "/healthz").status == 200
    assert alive(admin)


@pytest.mark.parametrize("how", [(), ("--preload",)], ids=["each-imports", "preload"])
def test_no_orphan_is_left_by_a_master_that_is_killed(serve: Serve, how: tuple[str, ...]) -> None:
    server = serve("talkback", "--workers", "2", *how, *ADMIN, expected_exit=-signal.SIGKILL)
    address = address_of(server)
    assert fetch(address, "/readyz").status == 200
    server.signal(signal.SIGKILL)
    eventually(lambda: not session_members(server.pid), within_s=15, what="nobody left")
    with pytest.raises(ConnectionRefusedError):
        dial(address)


def test_workers_and_programs_hold_nothing_of_it(serve: Serve) -> None:
    server = serve("talkback", "--workers", "2", "--preload", *ADMIN)
    admin = admin_pid(server)
    listener = listening_inode(int(address_of(server).rpartition(":")[2]))
    holders = {pid for pid in children(server.pid) if f"socket:[{listener}]" in open_fds(pid).values()}
    assert holders == {admin}


def listening_inode(port: int) -> str:
    """The inode of the socket that listens on a port of 127.0.0.1 (proc(5), net/tcp)."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1] == f"0100007F:{port:04X}" and fields[3] == "0A":
            return fields[9]
    raise AssertionError(f"nobody listens on {port}")


def test_without_it_there_are_only_workers(serve: Serve) -> None:
    server = serve("talkback", "--workers", "2")
    assert workers_of(server) == server.worker_pids()
    assert "admin" not in server.log


# --- while workers come and go


def test_counters_never_fall_and_lose_nothing_while_workers_are_killed(serve: Serve) -> None:
    server = serve("talkback", "--workers", "3", *ADMIN)
    address = address_of(server)
    before = counters(figures(address))
    with Hammer(server.address, clients=3) as hammer:
        for _ in range(10):
            hammer.wait_more(20)
            victim = min(workers_of(server))
            os.kill(victim, signal.SIGKILL)
            while victim in {worker["pid"] for worker in status(address)["workers"]}:
                before = assert_none_fell(before, counters(figures(address)))
            before = assert_none_fell(before, counters(figures(address)))
        hammer.wait_more(20)
    cut = len(hammer.failures)
    # A handler sends its last bytes by itself, so a worker may die between them and the count of them.
    uncounted = 10
    eventually(lambda: figure(figures(address), "prefork_requests_total") >= hammer.count - uncounted, within_s=30)
    found = figures(address)
    assert_none_fell(before, counters(found))
    requests = figure(found, "prefork_requests_total")
    assert hammer.count - uncounted <= requests <= hammer.count + cut, "what was cut may have been counted"
    slots = [figure(found, "prefork_worker_requests_total", slot=slot) for slot in "012"]
    assert sum(slots) == requests
    counted = figure(found, "prefork_request_duration_seconds_count")
    assert abs(counted - requests) <= 10, "a worker counts in two places, one after the other"
    assert counted == figure(found, "prefork_request_duration_seconds_bucket", le="+Inf")
    assert figure(found, "prefork_respawns_total", cause="SIGKILL") == 10
    assert min(figure(found, "prefork_worker_cpu_seconds_total", slot=slot) for slot in "012") > 0


def assert_none_fell(before: dict[Any, float], now: dict[Any, float]) -> dict[Any, float]:
    assert before.keys() <= now.keys()
    fallen = {key: (value, now[key]) for key, value in before.items() if now[key] < value}
    assert not fallen
    return now


def test_it_outlives_reloads_and_scaling(serve: Serve, place: Place) -> None:
    server = serve("talkback", "--workers", "2", *ADMIN, env=place.env)
    address, admin = address_of(server), admin_pid(server)
    exchange(server.address, b"hi\n")
    place.ok("reload")
    place.ok("scale", "3")
    found = eventually(lambda: figures(address) if len(status(address)["workers"]) == 3 else None, within_s=30)
    assert admin_pid(server) == admin
    assert figure(found, "prefork_generation") == 2
    assert figure(found, "prefork_last_reload_ok") == 1
    assert figure(found, "prefork_respawns_total", cause="reload") == 2
    assert figure(found, "prefork_requests_total") == 1
    assert figure(found, "prefork_workers_wanted") == 3


# --- readiness


def test_it_is_ready_when_all_workers_have_been(serve: Serve, app: AppWriter, gate: Gate, place: Place) -> None:
    server = serve(app(AT_THE_GATE), "--workers", "2", *ADMIN, env=place.env | gate.env, ready=False)
    gate.wait_entered(1)
    address = address_of(server)
    answer = fetch(address, "/readyz")
    assert (answer.status, answer.body) == (503, b"the server is starting\n")
    assert fetch(address, "/healthz").status == 200
    eventually(lambda: figure(figures(address), "prefork_workers", state="STARTING") == 2, within_s=30)
    assert figure(figures(address), "prefork_ready") == 0
    gate.open()
    server.wait_ready()
    eventually(lambda: fetch(address, "/readyz").status == 200, within_s=15, what="ready")
    place.ok("scale", "0")
    answer = eventually(lambda: answer if (answer := fetch(address, "/readyz")).status == 503 else None, within_s=15)
    assert answer.body == b"no worker serves\n"
    assert fetch(address, "/healthz").status == 200


def test_it_is_the_first_to_fail_when_the_server_is_to_stop(serve: Serve) -> None:
    server = serve("talkback", "--workers", "2", "--lame-duck", "10m", *ADMIN)
    address = address_of(server)
    server.signal(signal.SIGTERM)
    answer = eventually(lambda: answer if (answer := fetch(address, "/readyz")).status == 503 else None, within_s=15)
    assert answer.body == b"the server is stopping\n"
    assert exchange(server.address, b"hi\n") == HI
    found = figures(address)
    assert (figure(found, "prefork_ready"), figure(found, "prefork_up")) == (0, 1)
    assert fetch(address, "/healthz").status == 200
    assert server.stop() == 0
    with pytest.raises(ConnectionRefusedError):
        dial(address)


def test_it_answers_until_the_last_client_is_served(serve: Serve, gate: Gate) -> None:
    server = serve(f"{APPS / 'gated.py'}:handle", "--workers", "1", *ADMIN, env=gate.env)
    address = address_of(server)
    with dial(server.address) as client:
        client.sendall(b"hi\n")
        gate.wait_entered(1)
        server.signal(signal.SIGTERM)
        eventually(lambda: status(address)["server"]["stopping"], within_s=15)
        assert [worker["state"] for worker in status(address)["workers"]] == ["DRAINING"]
        gate.open()
        assert read_to_end(client) == HI
    assert server.wait_exit() == 0


# --- clients that are no good


def test_silent_clients_leave_room_for_a_probe(serve: Serve) -> None:
    server = serve("talkback", "--workers", "1", *ADMIN)
    address = address_of(server)
    with ExitStack() as stack:
        silent = [stack.enter_context(dial(address)) for _ in range(200)]
        for sock in silent[::2]:
            sock.sendall(b"GET /metrics HTTP/1.1\r\n")
        for _ in range(20):
            assert fetch(address, "/healthz").status == 200
        assert len(open_fds(admin_pid(server))) < 100
        assert read_to_end(silent[0]) == b"", "the oldest has made room"
    assert fetch(address, "/healthz").status == 200


def test_who_does_not_finish_or_does_not_read_is_dropped(serve: Serve) -> None:
    server = serve("talkback", "--workers", "1", *ADMIN)
    address, admin = address_of(server), admin_pid(server)
    idle = sockets(admin)
    with dial(address) as slow, dial(address) as deaf:
        slow.sendall(b"GET /metrics HTTP/1.1\r\nHost: a\r\n")
        deaf.sendall(b"GET /status.json HTTP/1.1\r\nHost: localhost\r\n\r\n")
        eventually(lambda: len(sockets(admin) - idle) == 2, within_s=15, what="both are held")
        assert read_to_end(slow) == b""
        eventually(lambda: sockets(admin) == idle, within_s=30, what="nobody connected")
        assert b"HTTP/1.1 200 OK\r\n" in deaf.recv(100)


def sockets(pid: int) -> set[str]:
    """The sockets that a process has open."""
    return {place for place in open_fds(pid).values() if place.startswith("socket:")}


def test_a_client_that_leaves_in_the_midst_harms_nobody(serve: Serve) -> None:
    server = serve("talkback", "--workers", "1", *ADMIN)
    address, admin = address_of(server), admin_pid(server)
    for n in range(60):
        with dial(address) as sock:
            sock.sendall(request("/status.json")[: n if n < 50 else None])
    assert fetch(address, "/healthz").status == 200
    assert admin_pid(server) == admin


# --- where it listens


def test_a_port_that_is_taken_ends_the_start(serve: Serve) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = run("serve", "talkback", "--bind", "127.0.0.1:0", "--admin", address)
    assert done.returncode == 5
    assert f"prefork: --admin: cannot bind {address}: Address already in use" in done.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("fd://3", "'fd://3' is not an address of the admin's own: give HOST:PORT, [V6]:PORT or unix:PATH"),
        ("host", "'host' is not an address"),
        ("", "'' is not an address"),
    ],
)
def test_what_is_no_address_is_refused(text: str, said: str) -> None:
    done = run("serve", "--admin", text)
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr


def test_a_unix_socket_and_the_environment(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    server = serve("talkback", "--workers", "1", "--umask", "077", env={"PREFORK_ADMIN": f"unix:{path}"})
    assert address_of(server) == f"unix:{path}"
    assert fetch(f"unix:{path}", "/readyz").body == b"ready\n"
    assert path.stat().st_mode & 0o077 == 0
    assert server.stop() == 0
    assert not path.exists()


@pytest.mark.parametrize(("where", "warned"), [("0.0.0.0:0", True), ("[::1]:0", False), ("127.0.0.9:0", False)])
def test_other_machines_are_let_in_only_with_a_warning(serve: Serve, where: str, warned: bool) -> None:
    if where.startswith("[") and not Path("/proc/net/if_inet6").exists():
        pytest.skip("no IPv6 here")
    server = serve("talkback", "--workers", "1", "--admin", where)
    address = address_of(server)
    assert fetch(address.replace("0.0.0.0", "127.0.0.1"), "/healthz").status == 200
    assert (f"WARNING [master={server.pid}] admin is not on loopback address={address}" in server.log) == warned


# --- who it is


@as_root
def test_it_gives_up_its_rights_with_the_workers(serve: Serve, open_folder: Path) -> None:
    args = ("--workers", "1", "--user", str(NOBODY), "--group", str(NOBODY), *ADMIN)
    server = serve("talkback", *args, cwd=open_folder)
    text = Path(f"/proc/{admin_pid(server)}/status").read_text()
    assert re.search(rf"^Uid:\t{NOBODY}\t{NOBODY}\t", text, re.MULTILINE)
    address = address_of(server)
    assert fetch(address, "/readyz").status == 200
    assert len(status(address)["workers"]) == 1
    assert figure(figures(address), "prefork_worker_connections", slot="0") == 0


def test_it_goes_on_in_the_new_log(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "log"
    server = serve("talkback", "--workers", "1", "--log", str(path), *ADMIN, ready=False)
    eventually(lambda: path.exists() and "ready workers=1" in path.read_text(), within_s=20)
    admin = admin_pid(server)
    path.rename(tmp_path / "log.1")
    server.signal(signal.SIGUSR1)
    eventually(lambda: str(path) in open_fds(admin).values(), within_s=15, what="the new file")
    assert str(tmp_path / "log.1") not in open_fds(admin).values()


SCRIPT = """
    import json, os, prefork, urllib.request

    def handle(conn):
        conn.sendall(b"hi")

    raise SystemExit(prefork.serve(handle, bind="127.0.0.1:0", workers=1, admin="127.0.0.1:0", control="none"))
"""


def test_from_python(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(textwrap.dedent(SCRIPT))
    server = serve(wrapper=[sys.executable, "main.py"], bind=None, cwd=tmp_path)
    exchange(server.address)
    address = address_of(server)
    assert eventually(lambda: status(address)["totals"]["requests"], within_s=15) == 1
    assert server.stop() == 0


def test_the_configuration_is_shown() -> None:
    done = run("config", "--json", env={"PREFORK_ADMIN": "[::1]:9100"})
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["admin"] == {"value": "[::1]:9100", "source": "PREFORK_ADMIN"}


# --- whom a request is for


def asked_as(address: str, host: str | None) -> tuple[int, bytes]:
    """Ask for the status as a browser does that has been told this name."""
    with Browser(address) as browser:
        browser.send(request("/status.json", host=host) if host is not None else b"GET /status.json HTTP/1.0\r\n\r\n")
        answer = browser.response()
        return answer.status, answer.body


OWN = ["127.0.0.1", "127.0.0.1:8000", "[::1]:80", "10.1.2.3", "localhost", "LocalHost:1", "localhost.", "a.localhost"]
FOREIGN = [
    "evil.example",
    "evil.example:80",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "notlocalhost",
    "0x7f.1",
]


@pytest.mark.parametrize("host", [*OWN, socket.gethostname(), None])
def test_on_loopback_its_own_names_are_answered(shared: Shared, host: str | None) -> None:
    assert asked_as(address_of(shared("talkback", "--workers", "2", *ADMIN)), host)[0] == 200


@pytest.mark.parametrize("host", FOREIGN)
def test_on_loopback_no_other_name_is_answered(shared: Shared, host: str) -> None:
    status, body = asked_as(address_of(shared("talkback", "--workers", "2", *ADMIN)), host)
    assert status == 421
    assert body.startswith(f"{host.partition(':')[0]} is not a name of this server".encode())
    assert body.count(b"\n") == 1


def test_elsewhere_any_name_is_answered(serve: Serve, tmp_path: Path) -> None:
    for where in ("0.0.0.0:0", f"unix:{tmp_path / 'admin'}"):
        server = serve("talkback", "--admin", where)
        address = address_of(server).replace("0.0.0.0", "127.0.0.1")
        assert asked_as(address, "evil.example")[0] == 200


def test_the_name_of_the_option_is_one_of_its_own() -> None:
    listener = open_listener(Address.parse("127.0.0.1:0"), backlog=1)
    names = own_names(listener, "Metrics.Internal.")
    listener.close()
    assert names
    assert is_own("metrics.internal", names)
    assert not is_own("internal", names)
