"""No process, no descriptor, no memory to be had: the server goes on with what it has, and recovers by itself."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.client import dial, exchange, read_to_end, talkback_reply
from tests.support.load import Load, fresh
from tests.support.processes import children, open_fds, stat, wait_idle
from tests.support.story import events
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Serve
    from tests.support.server import RunningServer

pytestmark = pytest.mark.slow

HI = talkback_reply(b"hi")
FULL_WITHIN_S = 5.0  # by what the server says that it waits; a busy machine adds to that
FORKS = "clone,clone3,fork,vfork"
PIDS = Path("/sys/fs/cgroup/pids") if Path("/sys/fs/cgroup/pids").exists() else Path("/sys/fs/cgroup")

HOW = pytest.mark.parametrize("how", [[], ["--preload"]], ids=["each-imports", "preload"])
needs_strace = pytest.mark.skipif(not shutil.which("strace"), reason="needs strace to make system calls fail")


@contextmanager
def failing(pid: int, calls: str, error: str, count: int, *, threads: bool = False) -> Iterator[None]:
    """Make so many of these system calls of a process fail; with `threads` as many of each of its threads."""
    command = ["strace", "-q", "-p", str(pid), "-e", f"trace={calls}", "-o", "/dev/null", *(["-f"] if threads else [])]
    command += ["-e", f"inject={calls}:error={error}:when=1..{count}"]
    tracer = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: all(traced(pid)), within_s=30, what="strace attached to every thread")
        yield
    finally:
        tracer.terminate()
        tracer.wait(10)


def traced(pid: int) -> list[bool]:
    """Say of each thread whether it is traced."""
    found = [task.read_text() for task in Path(f"/proc/{pid}/task").glob("*/status")]
    return ["TracerPid:\t0\n" not in text for text in found]


def workers_of(server: RunningServer) -> set[int]:
    """List the workers that live, without the template."""
    ready = {event.pid for event in events(server.log, "worker ready")}
    return ready & children(server.pid)


def waits_s(server: RunningServer) -> list[float]:
    """For how long the master waited after each refusal, by its own word."""
    return [float(event.fields["again_in"].rstrip("s")) for event in events(server.log, "cannot fork")]


def serve_talkback(serve: Serve, workers: int, *how: str) -> RunningServer:
    """Start a server whose workers have all completed something: their deaths are no crash loop."""
    server = serve("talkback", "--workers", str(workers), "--log-level", "debug", *how)
    for _ in range(10 * workers):
        exchange(server.address)
    return server


@pytest.mark.timing
@needs_strace
def test_ten_refused_forks_delay_full_strength_by_seconds(serve: Serve) -> None:
    server = serve_talkback(serve, 4)
    victim = min(workers_of(server))
    with failing(server.pid, FORKS, "EAGAIN", 10), Load(server.address, fresh(2, pause_s=0.005)) as load:
        os.kill(victim, signal.SIGKILL)
        server.wait_log("cannot fork")
        load.wait_more(20)
        eventually(lambda: len(workers_of(server)) == 4, within_s=40, what="full strength")
    assert len(waits_s(server)) == 10
    assert sum(load.failed.values()) <= 1, load.failed
    assert sum(waits_s(server)) <= FULL_WITHIN_S


@pytest.mark.timing
@needs_strace
@pytest.mark.parametrize("error", ["EAGAIN", "ENOMEM"])
def test_with_half_the_workers_dead_refusals_delay_no_more_than_with_one(serve: Serve, error: str) -> None:
    """Each round asks for two workers: that is one refusal of the system, and not twice as long a wait."""
    server = serve_talkback(serve, 4)
    doomed = sorted(workers_of(server))[:2]
    with failing(server.pid, FORKS, error, 10):
        for pid in doomed:
            os.kill(pid, signal.SIGKILL)
        server.wait_log("cannot fork")
        assert exchange(server.address, b"hi\n") == HI
        eventually(lambda: len(workers_of(server)) == 4, within_s=40, what="full strength")
    assert 0 < sum(waits_s(server)) <= FULL_WITHIN_S


@pytest.mark.timing
@needs_strace
def test_the_template_may_be_refused_too(serve: Serve) -> None:
    server = serve_talkback(serve, 2, "--preload")
    (template,) = children(server.pid) - workers_of(server)
    with failing(template, FORKS, "EAGAIN", 10):
        os.kill(min(workers_of(server)), signal.SIGKILL)
        server.wait_log("cannot fork")
        assert exchange(server.address, b"hi\n") == HI
        eventually(lambda: len(workers_of(server)) == 2, within_s=40, what="full strength")
    assert template in children(server.pid)
    assert 0 < sum(waits_s(server)) <= FULL_WITHIN_S


@needs_strace
@HOW
def test_a_reload_that_cannot_fork_costs_nobody(serve: Serve, how: list[str]) -> None:
    server = serve_talkback(serve, 2, *how)
    before = workers_of(server)
    with failing(server.pid, FORKS, "EAGAIN", 3), Load(server.address, fresh(2, pause_s=0.005)) as load:
        server.signal(signal.SIGHUP)
        server.wait_log("cannot fork")
        assert before <= children(server.pid), "who serves stays until a successor is ready"
        server.wait_log("reloaded generation=2|reload abandoned")
        load.wait_more(20)
    assert load.failed == {}
    assert len(workers_of(server)) == 2


# --- a control group without room, which needs the rights to make one


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group whose processes can be limited."""
    folder = PIDS / f"prefork-test-{os.getpid()}"
    try:
        folder.mkdir()
        (folder / "pids.max").read_text()
    except OSError as error:
        if folder.exists():
            folder.rmdir()
        pytest.skip(f"needs a control group that limits processes: {error}")
    yield folder
    (folder / "pids.max").write_text("max")
    for pid in (folder / "cgroup.procs").read_text().split():
        (PIDS / "cgroup.procs").write_text(pid)
    eventually(lambda: removed(folder), within_s=15, what="the control group removed")


def removed(folder: Path) -> bool:
    """Remove a group, unless somebody is in it still."""
    try:
        folder.rmdir()
    except OSError:
        return False
    return True


@pytest.mark.timing
@HOW
@pytest.mark.parametrize("room", [0, 1])
def test_without_room_for_a_process_the_rest_serves_and_room_is_used_at_once(
    serve: Serve, group: Path, how: list[str], room: int
) -> None:
    """A worker is a process and a thread at least: with room for one, it is born and cannot serve."""
    wrapper = ["sh", "-c", 'echo 0 > "$0" && exec "$@"', str(group / "cgroup.procs")]
    args = ["--workers", "4", "--log-level", "debug", *how]
    server = serve("talkback", *args, wrapper=wrapper, expect_traceback=True)
    for _ in range(40):
        exchange(server.address)
    victim = min(workers_of(server))
    threads = len(list(Path(f"/proc/{victim}/task").iterdir()))
    used = int((group / "pids.current").read_text())
    (group / "pids.max").write_text(str(used - threads + room))
    os.kill(victim, signal.SIGKILL)
    server.wait_log("cannot fork|worker died", count=3)
    assert exchange(server.address, b"hi\n") == HI
    (group / "pids.max").write_text("max")
    eventually(lambda: len(workers_of(server)) == 4, within_s=40, what="full strength")
    assert max(waits_s(server), default=0) <= FULL_WITHIN_S
    assert server.stop() == 0, "the group is removed with the test"


def test_a_reload_without_room_for_a_thread_costs_nobody(serve: Serve, group: Path) -> None:
    """The successor's process can be born, its thread cannot: it must not be called ready."""
    wrapper = ["sh", "-c", 'echo 0 > "$0" && exec "$@"', str(group / "cgroup.procs")]
    server = serve("talkback", "--workers", "2", "--log-level", "debug", wrapper=wrapper, expect_traceback=True)
    before = workers_of(server)
    used = int((group / "pids.current").read_text())
    (group / "pids.max").write_text(str(used + 1))
    with Load(server.address, fresh(2, pause_s=0.005)) as load:
        server.signal(signal.SIGHUP)
        server.wait_log("reload abandoned")
        load.wait_more(20)
    assert load.failed == {}
    assert workers_of(server) == before
    (group / "pids.max").write_text("max")
    assert server.stop() == 0, "the group is removed with the test"


# --- descriptors


@contextmanager
def without_descriptors(pid: int) -> Iterator[None]:
    """Let a process open nothing more, until the end of the context."""
    wait_idle(pid)  # it may have some open for a moment
    usual = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    used = open_fds(pid)
    free = next(fd for fd in range(len(used) + 1) if fd not in used)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (free, usual[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, usual)


@HOW
def test_a_master_without_descriptors_lives_and_recovers(serve: Serve, how: list[str]) -> None:
    """A worker needs a pipe to tell its master of itself."""
    server = serve_talkback(serve, 2, *how)
    victim = min(workers_of(server))
    with without_descriptors(server.pid):
        os.kill(victim, signal.SIGKILL)
        server.wait_log("cannot .*reason=.*open files")
        assert exchange(server.address, b"hi\n") == HI
    eventually(lambda: len(workers_of(server)) == 2, within_s=20, what="full strength")


@HOW
def test_a_reload_without_descriptors_costs_nobody(serve: Serve, how: list[str]) -> None:
    server = serve_talkback(serve, 1, *how)
    before = workers_of(server)
    with without_descriptors(server.pid), Load(server.address, fresh(2, pause_s=0.005)) as load:
        server.signal(signal.SIGHUP)
        server.wait_log("cannot .*reason=.*open files")
        load.wait_more(20)
        assert workers_of(server) == before
    assert load.failed == {}
    server.wait_log("reloaded generation=2|reload abandoned")


@pytest.mark.timing
def test_ten_seconds_without_descriptors_cost_neither_workers_nor_cpu(serve: Serve) -> None:
    server = serve_talkback(serve, 4)
    workers = workers_of(server)
    with ExitStack() as stack, ExitStack() as shortage:
        for pid in workers:
            shortage.enter_context(without_descriptors(pid))
        clients = [stack.enter_context(dial(server.address)) for _ in range(40)]
        for client in clients:
            client.sendall(b"waiting\n")
        server.wait_log("accept paused", count=4)
        before_s, began_s = cpu_s(server, workers), time.monotonic()
        clients[-1].settimeout(10)
        with pytest.raises(TimeoutError):
            clients[-1].recv(1)
        busy = (cpu_s(server, workers) - before_s) / (time.monotonic() - began_s)
        print(f"without descriptors for 10 s: {busy:.1%} of a processor")
        shortage.close()
        for client in clients:
            client.settimeout(10)
            assert read_to_end(client) == talkback_reply(b"waiting")
        lasted_s = time.monotonic() - began_s
    assert busy < 0.05
    assert workers_of(server) == workers
    assert len(events(server.log, "accept paused")) <= 4 * (lasted_s + 2), "one line a second and worker"


def cpu_s(server: RunningServer, workers: set[int]) -> float:
    """Add up the processor time of the master and the workers."""
    return sum(stat(pid).cpu_s for pid in (server.pid, *workers))  # type: ignore[union-attr]


@needs_strace
@pytest.mark.parametrize(
    "error", ["ECONNABORTED", "EPROTO", "EPERM", "ENETDOWN", "ENFILE", "ENOBUFS", "ENOMEM", "EINTR"]
)
def test_an_accept_that_fails_kills_nobody(serve: Serve, error: str) -> None:
    """What accept(2) may say of a client that has gone, of the network, of the firewall, and of the whole system."""
    server = serve_talkback(serve, 1)
    workers = workers_of(server)
    with failing(min(workers), "accept,accept4", error, 3, threads=True):
        assert [exchange(server.address, b"hi\n") for _ in range(10)] == [HI] * 10
    assert workers_of(server) == workers
