"""A reload whose new code does not work is abandoned: the old generation serves on, and the log says why."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.client import exchange, talkback_reply
from tests.support.load import Load, fresh
from tests.support.processes import children
from tests.support.server import APPS
from tests.support.story import events
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import AppWriter, Serve
    from tests.support.gate import Gate
    from tests.support.server import RunningServer

pytestmark = pytest.mark.slow

HI = talkback_reply(b"hi")
HUP = signal.SIGHUP
WORKS = "from prefork.runtime.builtins import talkback as handle\n"
SAID_WITHIN_S = 10.0  # far less than the usual --boot-timeout
BOOT_S = 1.0
MEMORY_FOLDERS = [Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")]  # version 1, version 2

HOW = pytest.mark.parametrize("how", [[], ["--preload"]], ids=["each-imports", "preload"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What is wrong with an application, and what the log says of it."""

    source: str
    said: str
    after_s: float = 0.0  # when it can be told at the earliest


BROKEN = {
    "syntax": Fault(source="def handle(conn:\n", said="SyntaxError"),
    "import": Fault(source="import no_such_module_anywhere\n", said="no_such_module_anywhere"),
    "sys-exit": Fault(source="import sys\nsys.exit(0)\n", said="SystemExit|exit"),
    "raises": Fault(source="raise RuntimeError('no database')\n", said="no database"),
    "hangs": Fault(source="import time\ntime.sleep(600)\n", said="--boot-timeout 1 s", after_s=BOOT_S),
    "hangs-in-c": Fault(
        source="import ctypes\nctypes.PyDLL(None).sleep(600)\n", said="--boot-timeout 1 s", after_s=BOOT_S
    ),
    "exits-0": Fault(source="import os\nos._exit(0)\n", said="exit code 0|by itself"),
    "exits-7": Fault(source="import os\nos._exit(7)\n", said="exit code 7"),
    "segfaults": Fault(source="import ctypes\nctypes.string_at(0)\n", said="SIGSEGV"),
    "out-of-memory": Fault(
        source="import resource\nresource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\nhoard = bytes(2 << 30)\n",
        said="MemoryError",
    ),
    "not-there": Fault(source="def another(conn): ...\n", said="handle"),
}


@pytest.mark.timing
@HOW
@pytest.mark.parametrize("kind", list(BROKEN))
def test_the_old_generation_serves_on_and_the_log_says_why(
    serve: Serve, app: AppWriter, how: list[str], kind: str
) -> None:
    fault = BROKEN[kind]
    limit = ["--boot-timeout", f"{fault.after_s:g}"] if fault.after_s else []
    server = serve(app(WORKS), "--workers", "2", *limit, "--log-level", "debug", *how, expect_traceback=True)
    before = children(server.pid)
    with Load(server.address, fresh(2, pause_s=0.002)) as load:
        load.wait_more(20)
        app(fault.source)
        server.signal(HUP)
        said = server.wait_log("reload abandoned.*")[0]
        load.wait_more(20)
    assert load.failed == {}
    assert fault.said in said or any(word in said for word in fault.said.split("|")), said
    assert seconds_between(server, "reloading", "reload abandoned") <= fault.after_s + SAID_WITHIN_S
    eventually(lambda: children(server.pid) == before, within_s=15, what="the same processes as before")
    assert [event.fields["gen"] for event in events(server.log, "retiring")] == [], "nobody had to leave"


def seconds_between(server: RunningServer, first: str, second: str) -> float:
    """Measure by the log the time from one event to another."""
    return events(server.log, second)[0].at_s - events(server.log, first)[0].at_s


@HOW
def test_the_next_reload_with_mended_code_works(serve: Serve, app: AppWriter, how: list[str]) -> None:
    server = serve(app(WORKS), "--workers", "1", *how, expect_traceback=True)
    app(BROKEN["syntax"].source)
    server.signal(HUP)
    server.wait_log("reload abandoned")
    app("def handle(conn):\n    conn.sendall(b'mended\\n')\n")
    server.signal(HUP)
    server.wait_log("reloaded generation=3")
    assert exchange(server.address, b"") == b"mended\n"


@HOW
def test_a_reload_asked_for_during_a_broken_one_is_tried_after_it(
    serve: Serve, app: AppWriter, gate: Gate, how: list[str]
) -> None:
    """Somebody mends the code and signals again while the broken generation still hangs at its import."""
    server = serve(app(WORKS), "--workers", "1", "--boot-timeout", f"{BOOT_S:g}", *how, env=gate.env)
    app(f"import sys\nsys.path.insert(0, {str(APPS)!r})\nimport gated\ngated.pass_gate()\n")
    server.signal(HUP)
    gate.wait_entered(1)
    app("def handle(conn):\n    conn.sendall(b'mended\\n')\n")
    server.signal(HUP)
    server.wait_log("reload abandoned")
    server.wait_log("reloaded generation=", within_s=15)
    assert exchange(server.address, b"") == b"mended\n"


def test_with_preload_a_respawn_after_a_broken_reload_runs_the_code_that_works(serve: Serve, app: AppWriter) -> None:
    server = serve(app(WORKS), "--workers", "1", "--preload", expect_traceback=True)
    app(BROKEN["import"].source)
    server.signal(HUP)
    server.wait_log("reload abandoned")
    assert exchange(server.address, b"hi\n") == HI
    kill_worker(server)
    server.wait_log("spawned .*gen=1 .*cause=respawn")
    assert exchange(server.address, b"hi\n") == HI


def test_without_preload_a_respawn_finds_the_broken_code_and_recovers_when_it_is_mended(
    serve: Serve, app: AppWriter
) -> None:
    server = serve(app(WORKS), "--workers", "1", expect_traceback=True)
    assert exchange(server.address, b"hi\n") == HI
    app(BROKEN["import"].source)
    kill_worker(server)
    server.wait_log("worker died .*no_such_module_anywhere")
    app(WORKS)
    assert exchange(server.address, b"hi\n") == HI, "who connected meanwhile has waited in the queue"


def kill_worker(server: RunningServer) -> None:
    """Send SIGKILL to the worker that got ready last."""
    with_debug = events(server.log, "worker ready")
    pids = [event.pid for event in with_debug] or [
        pid for pid in children(server.pid) if "worker" in Path(f"/proc/{pid}/cmdline").read_text()
    ]
    os.kill(pids[-1], signal.SIGKILL)


# --- the kernel's killer, which needs a memory group of its own


@pytest.fixture
def memory_group() -> Iterator[Path]:
    """A control group of 300 MB; only with the rights to make one."""
    folder = next((folder for folder in MEMORY_FOLDERS if (folder / "cgroup.procs").exists()), None)
    if folder is None or not os.access(folder, os.W_OK):
        pytest.skip("needs the right to make a memory control group")
    group = folder / f"prefork-test-{os.getpid()}"
    try:
        group.mkdir()
        limit = next(name for name in ("memory.limit_in_bytes", "memory.max") if (group / name).exists())
        (group / limit).write_text(str(300 << 20))
    except (OSError, StopIteration) as error:
        if group.exists():
            group.rmdir()
        pytest.skip(f"no memory control group here: {error}")
    yield group
    for pid in (group / "cgroup.procs").read_text().split():
        (folder / "cgroup.procs").write_text(pid)
    eventually(lambda: removed(group), within_s=15, what="the control group removed")


def removed(group: Path) -> bool:
    try:
        group.rmdir()
    except OSError:
        return False  # busy: somebody is still in it
    return True


@HOW
def test_a_generation_that_the_kernel_kills_for_memory_is_abandoned(
    serve: Serve, app: AppWriter, memory_group: Path, how: list[str]
) -> None:
    join = 'echo 0 > "$0" && exec "$@"'
    wrapper = ["sh", "-c", join, str(memory_group / "cgroup.procs")]
    server = serve(app(WORKS), "--workers", "2", *how, wrapper=wrapper)
    before = children(server.pid)
    with Load(server.address, fresh(2, pause_s=0.002)) as load:
        load.wait_more(20)
        app("hoard = b'x' * (1 << 30)\n")
        server.signal(HUP)
        said = server.wait_log("reload abandoned.*", within_s=20)[0]
        load.wait_more(20)
    assert load.failed == {}
    assert "out of memory" in said or "SIGKILL" in said, said
    eventually(lambda: children(server.pid) == before, within_s=15, what="the same processes as before")
    assert server.stop() == 0, "the group is removed with the test"
