"""--hooks in real processes: when each is called, where, and what its failure costs."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from tests.support.client import exchange, talkback_reply
from tests.support.server import run

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Serve

pytestmark = pytest.mark.slow

BAD_USAGE, CANNOT_LOAD = 2, 4
ALL = """
import os
def say(*words): os.write(2, (" ".join(map(str, words)) + "\\n").encode())
def template_loaded(): say("TEMPLATE", os.getpid())
def worker_started(worker): say("STARTED", worker.slot, worker.generation, worker.pid, os.getpid())
def worker_stopping(worker): say("STOPPING", worker.slot, worker.generation, worker.pid, os.getpid())
def worker_died(report):
    say("DIED", os.getpid(), report.slot, report.generation, report.pid, report.cause, repr(report.serving))
"""


@pytest.fixture
def hooks(tmp_path: Path) -> str:
    (tmp_path / "my_hooks.py").write_text(ALL)
    return str(tmp_path / "my_hooks.py")


def test_workers_tell_their_start_before_they_serve_and_their_end_after(serve: Serve, hooks: str) -> None:
    server = serve("--workers", "2", "--hooks", hooks)
    before = server.log.partition("ready workers=2")[0]
    for slot in (0, 1):
        started = server.wait_log(rf"^STARTED {slot} 1 (\d+) (\d+)$")
        assert started[1] == started[2]
        assert started[0] in before
    assert exchange(server.address) == talkback_reply(b"hello")
    assert "STOPPING" not in server.log
    server.signal(signal.SIGHUP)
    server.wait_log("reloaded generation=2")
    assert server.log.count("STOPPING") == 2
    server.stop()
    assert server.log.count("STARTED") == server.log.count("STOPPING") == 4
    assert "DIED" not in server.log, "they were told to go"
    assert "TEMPLATE" not in server.log


def test_the_template_tells_that_it_is_loaded(serve: Serve, hooks: str) -> None:
    server = serve("--workers", "2", "--hooks", hooks, "--preload")
    template = int(server.wait_log(r"^TEMPLATE (\d+)$")[1])
    assert template in server.worker_pids()
    assert server.log.count("TEMPLATE") == 1
    assert server.log.index("TEMPLATE") < server.log.index("STARTED")


def test_a_death_is_told_in_the_master(serve: Serve, hooks: str) -> None:
    server = serve("--workers", "1", "--hooks", hooks)
    (victim,) = server.worker_pids()
    os.kill(victim, signal.SIGKILL)
    server.wait_log(rf"^DIED {server.pid} 0 1 {victim} SIGKILL ''$")
    server.wait_workers(1, without={victim})


def test_a_hook_that_fails_in_the_master_costs_nothing(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("import sys\ndef worker_died(report): sys.exit('no pager')\n")
    server = serve("--workers", "1", "--hooks", str(tmp_path / "bad.py"), expect_traceback=True)
    (victim,) = server.worker_pids()
    os.kill(victim, signal.SIGKILL)
    server.wait_log("ERROR .* hook failed hook=worker_died error=SystemExit")
    server.wait_workers(1, without={victim})
    assert exchange(server.address) == talkback_reply(b"hello")


def test_a_hook_that_fails_at_the_end_of_a_worker_costs_nothing(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("def worker_stopping(worker): raise OSError('pool is gone')\n")
    server = serve("--workers", "1", "--hooks", str(tmp_path / "bad.py"), expect_traceback=True)
    assert server.stop() == 0
    assert "hook failed hook=worker_stopping error=OSError" in server.log
    assert "worker died" not in server.log


@pytest.mark.parametrize(("name", "args"), [("worker_started(worker)", []), ("template_loaded()", ["--preload"])])
def test_a_hook_that_fails_at_the_start_ends_the_start(
    serve: Serve, tmp_path: Path, name: str, args: list[str]
) -> None:
    (tmp_path / "bad.py").write_text(f"def {name}: raise ConnectionError('no database')\n")
    args = ["--workers", "1", "--hooks", str(tmp_path / "bad.py"), *args]
    server = serve(*args, ready=False, expected_exit=CANNOT_LOAD, expect_traceback=True)
    assert server.wait_exit() == CANNOT_LOAD
    hook = name.partition("(")[0]
    assert f"prefork: the hook {hook}() raised ConnectionError: no database" in server.log
    assert "bad.py" in server.log


@pytest.mark.parametrize(
    ("source", "code", "words"),
    [
        ("def worker_start(worker): ...", BAD_USAGE, "did you mean worker_started()?"),
        ("def worker_died(report): ...\n1 / 0", CANNOT_LOAD, "it raised ZeroDivisionError"),
        ("def worker_died(report): ...\ndef f(:", CANNOT_LOAD, "it raised SyntaxError"),
        ("VALUE = 1", BAD_USAGE, "has none of the hooks"),
    ],
)
def test_a_mistake_in_the_module_ends_the_start_before_anything_is_bound(
    tmp_path: Path, source: str, code: int, words: str
) -> None:
    (tmp_path / "bad.py").write_text(source)
    for command in ("serve", "check"):
        done = run(command, "--hooks", "bad.py", cwd=tmp_path)
        assert done.returncode == code
        assert done.stderr.startswith("prefork: --hooks: ")
        assert words in done.stderr
        assert "listening" not in done.stderr


def test_a_module_that_is_not_there_is_named_with_the_near_one(tmp_path: Path) -> None:
    (tmp_path / "my_hooks.py").write_text(ALL)
    done = run("serve", "--hooks", "my_hoks", cwd=tmp_path)
    assert done.returncode == CANNOT_LOAD
    assert "--hooks: cannot load 'my_hoks'" in done.stderr
    assert "Did you mean 'my_hooks'?" in done.stderr
