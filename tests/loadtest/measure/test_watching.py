"""What the lab sees of processes and sockets from outside."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from loadtest.measure import procfs
from loadtest.measure.child import Child, ChildError, Interrupt
from loadtest.measure.probe import Machine, Probe, owners
from loadtest.measure.server import RunningServer
from loadtest.plan.plan import Server
from tests.loadtest.records import usage
from tests.support.server import ROOT
from tests.support.wait import eventually

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow

DEADLINE_S = 20


def child(tmp_path: Path, *argv: str, cpus: tuple[int, ...] = ()) -> Child:
    return Child(argv, log=tmp_path / "log", cwd=tmp_path, env=os.environ, cpus=cpus)


def line_in(path: Path) -> str:
    eventually(lambda: path.read_text().endswith("\n"), within_s=DEADLINE_S)
    return path.read_text().strip()


def test_a_full_accept_queue_its_limit_and_its_drops_are_seen() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        assert procfs.listening(port) is None
        listener.listen(2)
        inode = os.fstat(listener.fileno()).st_ino
        assert procfs.listening(port) == procfs.Listening(depth=0, limit=2, drops=0, inodes=frozenset({inode}))
        clients = [socket.create_connection(("127.0.0.1", port), DEADLINE_S) for _ in range(3)]
        with socket.socket() as late:
            late.setblocking(False)
            late.connect_ex(("127.0.0.1", port))
            seen = procfs.listening(port)
        for client in clients:
            client.close()
    assert seen is not None
    assert (seen.depth, seen.limit) == (3, 2)  # the kernel lets one more in than the limit says
    assert seen.drops >= 1


def test_what_was_dropped_in_the_warm_up_is_not_of_the_window() -> None:
    with contextlib.ExitStack() as sockets:
        listener = sockets.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        port = listener.getsockname()[1]
        probe = Probe([os.getpid()], port)
        probe.sample()
        drops = []
        starts_ns = []
        for connections in (5, 1):  # two find room
            for _ in range(connections):
                late = sockets.enter_context(socket.socket())
                late.setblocking(False)
                late.connect_ex(("127.0.0.1", port))
            seen = procfs.listening(port)
            assert seen is not None
            drops.append(seen.drops)
            probe.sample()
            starts_ns.append(time.monotonic_ns())
        probe.sample()
        found = probe.queue(starts_ns[0], time.monotonic_ns())
    assert found is not None
    assert 0 < drops[1] - drops[0] <= found.drops < drops[1]


def test_cpu_of_children_counts_while_they_live_and_after_they_died(tmp_path: Path) -> None:
    source = """
import os, sys, time
def burn(until):
    while time.process_time() < until: pass
for _ in range(2):
    if (pid := os.fork()) == 0:
        burn(0.15); os._exit(0)
    os.waitpid(pid, 0)
if os.fork() == 0:
    burn(0.15); print("burnt", flush=True); sys.stdin.read(); time.sleep(60)
time.sleep(60)
"""
    with child(tmp_path, sys.executable, "-c", source) as parent:
        probe = Probe([parent.pid])
        start_ns = time.monotonic_ns()
        probe.sample()
        line_in(tmp_path / "log")
        probe.sample()
        usage = probe.usage(start_ns, time.monotonic_ns())
        pss = probe.pss_bytes()
    assert usage is not None
    assert usage.processes == 2
    assert usage.cpu_ns * usage.covered >= 0.4e9  # three times 0.15 s, less what the clock's ticks cut off
    assert pss is not None
    assert pss > 1_000_000


def test_a_window_with_too_few_samples_has_no_usage() -> None:
    probe = Probe([os.getpid()])
    probe.sample()
    assert probe.usage(0, time.monotonic_ns()) is None
    assert probe.cpu_by_pid(0, time.monotonic_ns()) == {}
    assert Probe([]).usage(0, 1) is None
    assert Probe([]).pss_bytes() is None


FORKING = """
import os, socket, time
if os.fork() == 0:  # a child that does not serve
    time.sleep(60)
listener = socket.create_server(("127.0.0.1", 0))
for _ in range(2):
    if os.fork() == 0:
        while True:
            listener.accept()[0].close()
print(listener.getsockname()[1], flush=True)
os.wait()
"""


def test_a_long_round_needs_no_more_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loadtest.measure.probe.MOST_SAMPLES", 16)
    probe = Probe([os.getpid()])
    start_ns = time.monotonic_ns()
    used_ns = time.process_time_ns()
    for _ in range(500):
        probe.sample()
    end_ns = time.monotonic_ns()
    assert 8 <= len(probe.series(start_ns)) <= 16
    seen = probe.usage(start_ns, end_ns)
    assert seen is not None
    assert seen.covered > 0.8
    assert seen.cpu_ns == pytest.approx(time.process_time_ns() - used_ns, rel=0.3)


def test_a_server_is_found_by_its_port_and_its_workers_by_the_socket_that_they_hold(tmp_path: Path) -> None:
    with child(tmp_path, sys.executable, "-c", FORKING) as parent:
        port = int(line_in(tmp_path / "log"))
        assert owners(port) == [parent.pid]
        probe = Probe(owners(port), port)
        start_ns = time.monotonic_ns()
        probe.sample()
        for _ in range(8):
            socket.create_connection(("127.0.0.1", port), DEADLINE_S).close()
        probe.sample()
        end_ns = time.monotonic_ns()
        workers, used = probe.workers(start_ns, end_ns), probe.cpu_by_pid(start_ns, end_ns)
    assert workers is not None
    assert [(worker.slot, worker.requests, worker.connections) for worker in workers] == [
        (0, None, None),
        (1, None, None),
    ]
    assert len(used) == 4
    assert {worker.cpu_ns for worker in workers} <= set(used.values())


def test_nobody_owns_a_port_that_nobody_listens_on_or_that_is_not_of_this_machine(free_port: int) -> None:
    assert owners(free_port) == []
    assert owners(None) == []


@pytest.mark.parametrize(("host", "here"), [("127.0.0.1", True), ("192.0.2.1", False)])
def test_the_port_of_another_machine_is_not_looked_for_on_this_one(tmp_path: Path, host: str, here: bool) -> None:
    with Interrupt() as interrupt:
        running = RunningServer(
            Server(name="x", attach=f"{host}:4242"),
            folder=tmp_path, log=tmp_path / "log", scratch=str(tmp_path), interrupt=interrupt,
        )  # fmt: skip
    assert running.local_port() == (4242 if here else None)


def test_a_single_process_is_the_only_worker() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert owners(port) == [os.getpid()]
        probe = Probe([os.getpid()], port)
        for _ in range(2):
            probe.sample()
        assert len(probe.workers(0, time.monotonic_ns()) or ()) == 1


def test_a_look_that_finds_no_connection_counts_as_none_held() -> None:
    """Else the mean would be that of the other looks only: of a server with little to do far too many."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        probe = Probe([os.getpid()], listener.getsockname()[1], counts_held=True)
        for _ in range(2):
            probe.sample()
        (worker,) = probe.workers(0, time.monotonic_ns()) or ()
    assert worker.connections == 0


UNLIKE = """
import os, select, socket, time
listener = socket.create_server(("127.0.0.1", 0))
pids = []
if (busy := os.fork()) == 0:
    kept = [listener.accept() for _ in range(3)]
    print("has them", flush=True)
    time.sleep(60)
if (idle := os.fork()) == 0:
    select.epoll().poll(60)
print(listener.getsockname()[1], flush=True)
os.wait()
"""


def test_who_holds_the_connections_and_whose_main_thread_sleeps_in_the_application_is_seen(tmp_path: Path) -> None:
    with child(tmp_path, sys.executable, "-c", UNLIKE) as parent:
        port = int(line_in(tmp_path / "log"))
        probe = Probe([parent.pid], port, counts_held=True)
        clients = [socket.create_connection(("127.0.0.1", port), DEADLINE_S) for _ in range(3)]
        eventually(lambda: "has them" in (tmp_path / "log").read_text(), within_s=DEADLINE_S)
        waiting = socket.create_connection(("127.0.0.1", port), DEADLINE_S)  # nobody accepts it
        eventually(lambda: len(set(map(procfs.call, procfs.tree(parent.pid))) - {-1}) == 3, within_s=DEADLINE_S)
        start_ns = time.monotonic_ns()
        for _ in range(2):
            probe.sample()
        workers = probe.workers(start_ns, time.monotonic_ns())
        assert procfs.held(port, procfs.tree(parent.pid), most=2) is None
        for client in (*clients, waiting):
            client.close()
    assert workers is not None
    assert sorted((worker.connections, worker.blocked) for worker in workers) == [(0.0, 0.0), (3.0, 1.0)]


def test_what_only_an_event_loop_would_not_wait_in_is_known_for_one_only(tmp_path: Path) -> None:
    source = "import socket; a, b = socket.socketpair(); a.settimeout(60); print('up', flush=True); a.recv(1)"
    with child(tmp_path, sys.executable, "-c", source) as waiting:  # in poll, for what may be a client or a database
        line_in(tmp_path / "log")
        eventually(lambda: (procfs.call(waiting.pid) or -1) >= 0, within_s=DEADLINE_S)
        number = procfs.call(waiting.pid)
    assert number is not None
    assert (procfs.is_blocked(number, loop=True), procfs.is_blocked(number, loop=False)) == (True, False)


def test_what_others_use_of_the_cpus_is_what_neither_side_used(tmp_path: Path) -> None:
    source = "import time\nwhile time.process_time() < 0.5: pass\nprint('burnt', flush=True)"
    machine = Machine(sorted(os.sched_getaffinity(0)))
    start_ns = time.monotonic_ns()
    machine.sample()
    with child(tmp_path, sys.executable, "-c", source):
        line_in(tmp_path / "log")
    machine.sample()
    end_ns = time.monotonic_ns()
    all_of_it = machine.others(start_ns, end_ns, [usage(cpu_ns=0), None])
    less = machine.others(start_ns, end_ns, [usage(cpu_ns=300_000_000)])
    assert all_of_it is not None
    assert less is not None
    assert all_of_it * (end_ns - start_ns) >= 0.4e9  # whole ticks of 10 ms on each CPU
    assert (all_of_it - less) * (end_ns - start_ns) == pytest.approx(0.3e9, rel=0.02)
    assert machine.others(start_ns, end_ns, [None]) is None


def test_how_long_the_busiest_thread_wanted_a_cpu_is_seen(tmp_path: Path) -> None:
    source = "import time\nprint('up', flush=True)\nwhile True: pass"
    with child(tmp_path, sys.executable, "-c", source) as spinning:
        line_in(tmp_path / "log")
        probe = Probe([spinning.pid])
        start_ns = time.monotonic_ns()
        probe.sample()
        eventually(lambda: time.monotonic_ns() - start_ns > 3e8, within_s=DEADLINE_S)
        probe.sample()
        end_ns = time.monotonic_ns()
        seen = probe.usage(start_ns, end_ns)
    assert seen is not None
    assert seen.wanted_ns is not None
    assert seen.wanted_ns == pytest.approx(end_ns - start_ns, rel=0.2)  # whether it had one or not


def test_stopping_leaves_no_process_of_the_session(tmp_path: Path) -> None:
    source = "trap '' TERM; (trap '' TERM; sleep 60) & (setsid true; sleep 61) & echo up; wait; sleep 62"
    with child(tmp_path, "sh", "-c", source) as shell:
        line_in(tmp_path / "log")
        assert len(procfs.session(shell.pid)) >= 2
        assert shell.stop(grace_s=0.1) is False
        assert procfs.session(shell.pid) == []


def test_what_was_started_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    """However that ends: what stayed would take its CPU from the next run."""
    source = f"""
import os, signal, sys
from pathlib import Path
from loadtest.measure.child import Child
Child(["sh", "-c", "echo $$; exec sleep 60"], log=Path({str(tmp_path / "log")!r}), cwd=Path.cwd(), env=os.environ)
signal.pause()
"""
    with subprocess.Popen([sys.executable, "-c", source], cwd=ROOT) as lab:
        eventually((tmp_path / "log").exists, within_s=DEADLINE_S)
        left = int(line_in(tmp_path / "log"))
        lab.kill()
    eventually(lambda: (seen := procfs.stat(left)) is None or seen.state in "ZX", within_s=DEADLINE_S)


def test_a_leader_that_is_gone_already_does_not_hide_what_it_left(tmp_path: Path) -> None:
    with child(tmp_path, "sh", "-c", "sleep 60 & echo $!") as shell:
        assert shell.ended(DEADLINE_S)
        left = int(line_in(tmp_path / "log"))
        assert procfs.session(shell.pid) == [left]
        assert shell.status() == "exited with status 0"
        assert shell.stop(grace_s=0) is True
        assert procfs.session(shell.pid) == []


def test_the_affinity_is_the_childs_and_ours_stays(tmp_path: Path) -> None:
    ours = os.sched_getaffinity(0)
    cpu = min(ours)
    with child(tmp_path, sys.executable, "-c", "import os; print(os.sched_getaffinity(0))", cpus=(cpu,)) as other:
        assert other.ended(DEADLINE_S)
        assert other.tail() == f"{{{cpu}}}"
    assert os.sched_getaffinity(0) == ours


def test_what_cannot_be_started_is_said_and_changes_nothing(tmp_path: Path) -> None:
    ours = os.sched_getaffinity(0)
    with pytest.raises(ChildError, match="cannot start 'no-such-command'"):
        child(tmp_path, "no-such-command", cpus=(min(ours),))
    assert os.sched_getaffinity(0) == ours


def test_a_process_that_is_gone_reads_as_nothing() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    assert procfs.stat(gone.pid) is None
    assert (procfs.cpu_ns(gone.pid), procfs.threads(gone.pid), procfs.pss_bytes(gone.pid)) == (0, [], None)
