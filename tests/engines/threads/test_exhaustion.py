"""Out of descriptors or processes: accepting or spawning pauses, nothing dies, and it goes on when there is room."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.support.client import dial, exchange, read_to_end, talkback_reply
from tests.support.processes import open_fds, stat
from tests.support.server import APPS
from tests.support.wait import eventually

if TYPE_CHECKING:
    from tests.conftest import Serve

pytestmark = pytest.mark.slow


@pytest.mark.timing
def test_without_free_descriptors_accepting_pauses_and_nobody_dies(serve: Serve) -> None:
    server = serve("talkback", "--workers", "1")
    (worker,) = server.worker_pids()
    usual = resource.prlimit(worker, resource.RLIMIT_NOFILE)
    used = open_fds(worker)
    first_free = next(fd for fd in range(len(used) + 1) if fd not in used)
    resource.prlimit(worker, resource.RLIMIT_NOFILE, (first_free, usual[1]))
    cpu_before_s = stat(worker).cpu_s  # type: ignore[union-attr]
    # The kernel takes the descriptor when accept() is called, not when a client comes: the first may be served still.
    with dial(server.address) as first, dial(server.address) as second:
        first.sendall(b"waiting\n")
        second.sendall(b"waiting too\n")
        server.wait_log("(?i)EMFILE|too many open files")
        second.settimeout(0.7)
        with pytest.raises(TimeoutError):
            second.recv(1)
        assert stat(worker).cpu_s - cpu_before_s < 0.3, "it does not spin"  # type: ignore[union-attr]
        resource.prlimit(worker, resource.RLIMIT_NOFILE, usual)
        second.settimeout(10)
        assert read_to_end(first) == talkback_reply(b"waiting")
        assert read_to_end(second) == talkback_reply(b"waiting too")
    assert server.worker_pids() == {worker}
    assert len([line for line in server.log.splitlines() if "open files" in line or "EMFILE" in line]) <= 10


@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace to make fork() fail")
def test_a_fork_that_fails_is_tried_again_while_the_others_serve(serve: Serve) -> None:
    server = serve(f"{APPS / 'identity.py'}:pid", "--workers", "2")
    exchange(server.address, b"")
    tracer = subprocess.Popen(
        ["strace", "-q", "-p", str(server.pid), "-e", "trace=clone,clone3,fork,vfork",
         "-e", "inject=clone,clone3,fork,vfork:error=EAGAIN:when=1..3"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        eventually(lambda: traced(server.pid), within_s=30, what="strace attached")
        victim = min(server.worker_pids())
        os.kill(victim, signal.SIGKILL)
        server.wait_log("(?i)EAGAIN|temporarily unavailable")
        assert int(exchange(server.address, b"")) != victim
        server.wait_workers(2, without={victim}, within_s=15)
    finally:
        tracer.terminate()
        tracer.wait(10)
    assert exchange(server.address, b"")


def traced(pid: int) -> bool:
    with open(f"/proc/{pid}/status") as status:
        return any(line.startswith("TracerPid:") and line.split()[1] != "0" for line in status)
