"""A worker hears that it is to retire, whatever its application has done to signals and event loops."""

from __future__ import annotations

import os
import signal
import time
from datetime import datetime
from typing import TYPE_CHECKING

import pytest

from tests.support.owner import EACH_ENGINE, EACH_KIND, KINDS, Kind, ask
from tests.support.processes import alive
from tests.support.wait import eventually

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Serve
    from tests.support.server import RunningServer

pytestmark = pytest.mark.slow

ONE = ("--workers", "1")
DEBUG = (*ONE, "--log-level", "debug")
HOW = pytest.mark.parametrize("how", [(), ("--preload",)], ids=["each-imports", "preload"])
LOOPS = [KINDS[name] for name in ("coroutine", "coroutine-asyncio", "asgi", "asgi-asyncio")]
TOLD = ("retiring", "worker retired")
# 0.5 s, and 1 s in accept(), on a machine that is not busy. Who does not hear is killed after --graceful-timeout + 1 s.
LATE_S = 3.0


def reload(server: RunningServer, kind: Kind) -> None:
    """Reload; the old worker must leave by itself."""
    before = int(ask(server, kind, "pid"))
    began_s = time.monotonic()
    server.signal(signal.SIGHUP)
    server.wait_log("reloaded generation=2")
    assert time.monotonic() - began_s < LATE_S + 20  # with the start of the new one
    told, gone = (server.wait_log(rf"(\S+)Z DEBUG .* {what} worker=0 gen=1 pid={before}")[1] for what in TOLD)
    took_s = (datetime.fromisoformat(gone) - datetime.fromisoformat(told)).total_seconds()
    assert took_s < LATE_S, f"it left {took_s:.3f} s after it was told"
    assert int(ask(server, kind, "pid")) != before


@EACH_KIND
@HOW
@pytest.mark.parametrize("setup", ["handlers", "ignored", "mask", "wakeup"])
def test_an_application_that_has_taken_the_signals_is_reloaded_and_stopped(
    serve: Serve, tmp_path: Path, kind: Kind, how: tuple[str, ...], setup: str
) -> None:
    diary = tmp_path / "diary"
    server = serve(*kind, *DEBUG, *how, env={"SETUP": setup, "DIARY": str(diary)})
    reload(server, kind)
    assert server.stop() == 0
    assert "killing worker" not in server.log
    assert "signal" not in diary.read_text()  # of ours, none came


@pytest.mark.parametrize("kind", LOOPS)
def test_an_application_that_gives_the_loop_signal_handlers_is_reloaded(
    serve: Serve, tmp_path: Path, kind: Kind
) -> None:
    server = serve(*kind, *DEBUG, env={"DIARY": str(tmp_path / "diary")})
    ask(server, kind, "take_signals")
    reload(server, kind)
    assert server.stop() == 0
    assert "killing worker" not in server.log


@pytest.mark.parametrize("kind", LOOPS)
def test_a_loop_that_the_application_stops_goes_on(serve: Serve, kind: Kind) -> None:
    server = serve(*kind, *DEBUG)
    pid = ask(server, kind, "pid")
    assert ask(server, kind, "stop_loop") == "ok"
    assert ask(server, kind, "pid") == pid
    server.wait_log("the application has stopped the event loop; it goes on")
    assert server.stop() == 0


@pytest.mark.parametrize("kind", LOOPS)
def test_an_application_that_cancels_all_tasks_cancels_none_of_the_servers(serve: Serve, kind: Kind) -> None:
    server = serve(*kind, *DEBUG)
    pid = ask(server, kind, "pid")
    ask(server, kind, "cancel_all")
    assert ask(server, kind, "pid") == pid
    reload(server, kind)
    assert server.stop() == 0


@EACH_KIND
def test_a_term_from_somebody_else_retires_a_worker(serve: Serve, kind: Kind) -> None:
    server = serve(*kind, *DEBUG)
    pid = int(ask(server, kind, "pid"))
    os.kill(pid, signal.SIGTERM)
    eventually(lambda: not alive(pid), within_s=LATE_S, what="the worker gone")
    assert int(ask(server, kind, "pid")) != pid


@EACH_ENGINE
def test_a_worker_that_somebody_else_retires_has_a_successor_before_it_has_ended(serve: Serve, kind: Kind) -> None:
    server = serve(*kind, *DEBUG, "--graceful-timeout", "20s")
    pid = int(ask(server, kind, "pid"))
    ask(server, kind, "stuck")
    os.kill(pid, signal.SIGTERM)
    server.wait_log("spawned .* cause=recycle", within_s=LATE_S)
    eventually(lambda: int(ask(server, kind, "pid")) != pid, within_s=2 * LATE_S, what="its successor")
    assert alive(pid), "it waits for its thread"
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not alive(pid), within_s=LATE_S, what="the old worker gone")


@EACH_ENGINE
def test_a_worker_that_somebody_else_retires_and_that_leaves_at_once_has_not_died(serve: Serve, kind: Kind) -> None:
    server = serve(*kind, *DEBUG)
    pid = int(ask(server, kind, "pid"))
    os.kill(pid, signal.SIGTERM)
    server.wait_log("spawned .* cause=", within_s=LATE_S)
    eventually(lambda: not alive(pid), within_s=LATE_S, what="its end")
    server.stop()
    assert "worker died" not in server.log


@EACH_KIND
def test_logs_are_opened_again_although_the_application_has_taken_the_signal(
    serve: Serve, tmp_path: Path, kind: Kind
) -> None:
    log = tmp_path / "log"
    env = {"SETUP": "handlers", "DIARY": str(tmp_path / "diary")}
    server = serve(*kind, *ONE, "--log", str(log), "--log-level", "debug", ready=False, env=env)
    eventually(lambda: log.exists() and "ready workers=1" in log.read_text(), within_s=20, what="ready")
    log.rename(tmp_path / "old")
    server.signal(signal.SIGUSR1)
    eventually(log.exists, within_s=LATE_S, what="the new file")
    pid = int(server.worker_pids().pop())
    eventually(lambda: str(log) in map(os.readlink, fds(pid)), within_s=LATE_S, what="it in the worker")


def fds(pid: int) -> list[str]:
    """The paths of a process's descriptors."""
    return [f"/proc/{pid}/fd/{entry}" for entry in os.listdir(f"/proc/{pid}/fd")]
