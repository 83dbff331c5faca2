"""How long the lab waits for a server: to be ready, for one answer, for its end; and what the person sees meanwhile."""

from __future__ import annotations

import re
import signal
import time
from typing import TYPE_CHECKING

import pytest

from loadtest.measure.child import Interrupt
from loadtest.measure.generator import deadline_s
from loadtest.measure.progress import Progress
from loadtest.measure.server import RunningServer, ServerError
from loadtest.plan.plan import Load, Server, Slot
from tests.loadtest.lab import DEADLINE_S
from tests.loadtest.records import failed
from tests.loadtest.stand_in import hang
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.loadtest.lab import Lab
    from tests.loadtest.stand_in import Behaviour, StandIn

# A server of fixed times: it listens after START seconds, answers each request after ANSWER seconds, and takes END
# seconds to stop. Each request that it reads is a line in a file beside it.
SLOW_SERVER = """
    import signal, socketserver, sys, threading, time
    port, start, answer, end = int(sys.argv[1]), *map(float, sys.argv[2:])
    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            while line := self.rfile.readline():
                while self.rfile.readline().strip():
                    pass
                with open(sys.argv[0] + ".asked", "a") as asked:
                    asked.write(line.decode())
                time.sleep(answer)
                self.wfile.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\nok")
    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = daemon_threads = True
        request_queue_size = 100
    def stop(*_):
        time.sleep(end)
        sys.exit()
    signal.signal(signal.SIGTERM, stop)
    time.sleep(start)
    Server(("127.0.0.1", port), Handler).serve_forever()
"""
QUICK = ("--scenario", "http", "--rounds", "1", "--connections", "4", "--duration", "1", "--warmup", "0.3")
SLOW = pytest.mark.slow


@pytest.fixture
def interrupt() -> Iterator[Interrupt]:
    with Interrupt() as waiting:
        yield waiting


def server(lab: Lab, *, start: float = 0, answer: float = 0, end: float = 0) -> str:
    script = lab.script("slow_server.py", SLOW_SERVER)
    return f"s={{python}} {script} {{port}} {start} {answer} {end}"


@SLOW
def test_a_server_that_answers_after_more_than_two_seconds_is_measured(lab: Lab) -> None:
    done = lab.run("--server", server(lab, answer=2.1), *QUICK, "--duration", "5")
    assert done.returncode == 0, done.stderr
    (kept,) = lab.rounds()
    assert kept["client"]["failures"] == {}
    assert kept["client"]["completed"] >= 4
    assert 2.0e9 < kept["client"]["latency"]["max_ns"] < 3.5e9


@SLOW
def test_a_timeout_bounds_the_answers_of_a_round_and_of_the_wait_for_it(lab: Lab) -> None:
    done = lab.run("--server", server(lab, answer=1.5), *QUICK, "--timeout", "1s", "--ready", "2s")
    assert done.returncode == 1
    assert "not ready after 2 s: 127.0.0.1:" in done.stderr
    assert "no whole answer within 1 s: timed out" in done.stderr
    assert "if it needs longer, try --timeout 3s for one answer, --ready 8s for the start" in done.stderr
    assert (lab.folder / "slow_server.py.asked").read_text().count("GET / ") in (2, 3)


@SLOW
def test_an_attached_server_that_is_slow_is_said_to_be_so(lab: Lab, stand_in: Callable[[Behaviour], StandIn]) -> None:
    address = stand_in(hang).address
    done = lab.run("--attach", address, *QUICK, "--timeout", "0.5s")
    assert done.returncode == 1
    assert f"{address}: no whole answer within 0.5 s: timed out; try --timeout 1.5s" in done.stderr


@SLOW
def test_a_server_that_is_ready_late_is_measured_if_it_may_take_that_long(lab: Lab) -> None:
    slow = server(lab, start=2.5)
    done = lab.run("--server", slow, *QUICK, "--ready", "1s")
    assert done.returncode == 1
    assert re.search(r"not ready after 1 s: 127.0.0.1:\d+: Connection refused; if it needs longer, try --ready 4s\n",
                     done.stderr)  # fmt: skip
    (lab.out).rename(lab.folder / "first")
    assert lab.run("--server", slow, *QUICK, "--ready", "40s").returncode == 0
    plan = (lab.out / "plan.toml").read_text()
    assert "\nready = 40\n" in plan


@SLOW
def test_a_server_that_ends_late_is_killed_after_its_grace_and_the_flag_is_named(lab: Lab) -> None:
    done = lab.run("--server", server(lab, end=2), *QUICK, "--grace", "0.5s")
    assert done.returncode == 0, done.stderr
    said = "the server did not end within 0.5 s of SIGTERM and was killed; if it needs longer: --grace 1.5s"
    assert said in done.stdout
    assert lab.rounds()[0]["notes"][0] == said
    (lab.out).rename(lab.folder / "first")
    done = lab.run("--server", server(lab, end=2), *QUICK, "--grace", "30s")
    assert "was killed" not in done.stdout


@SLOW
def test_an_interrupt_ends_the_wait_for_an_answer_at_once(lab: Lab) -> None:
    process = lab.start("--server", server(lab, answer=50), *QUICK, "--timeout", "1m")
    eventually((lab.folder / "slow_server.py.asked").exists, within_s=DEADLINE_S, what="a request")
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130, err
    assert time.monotonic() - began < 10


@SLOW
def test_who_waits_for_a_server_is_told_how_long(lab: Lab, interrupt: Interrupt) -> None:
    command = server(lab, answer=50).partition("=")[2]
    waits: list[tuple[float, float]] = []
    configured = Server(name="s", command=command, ready_s=2.5, grace_s=0)
    with RunningServer(
        configured, folder=lab.folder, log=lab.folder / "log", scratch=str(lab.folder), interrupt=interrupt
    ) as running, pytest.raises(ServerError, match=r"not ready after 2\.5 s"):  # fmt: skip
        running.wait_ready(Load(name="l", scenario="http"), lambda *wait: waits.append(wait))
    assert len(waits) == 2
    assert [ready_s for _, ready_s in waits] == [2.5, 2.5]
    assert 0.9 < waits[0][0] < waits[1][0] < 2.6


SLOT = Slot(
    cycle=0, position=0, seed=1, configuration="s", server=Server(name="s"), load=Load(name="l", duration_s=3600)
)


def test_without_a_bar_a_long_wait_and_a_long_round_are_told_from_time_to_time(
    capfd: pytest.CaptureFixture[str],
) -> None:
    now = 1000.0
    progress = Progress("p", clock=lambda: now)
    progress.expect(2)
    progress.begin(SLOT)
    for waited_s in (1, 4.9, 5, 6, 70):
        progress.waiting(waited_s, 120)
    for now in range(1001, 4601, 1):  # noqa: B007 - the clock
        progress.live(250.4, 0)
    progress.done(SLOT, failed("s", 0))
    lines = capfd.readouterr().err.splitlines()
    assert lines[0] == "[1/2] s (l): not ready after 0:05, waiting for up to 2:00 (--ready)"
    assert lines[1] == "[1/2] s (l): 250/s, 1:55:06 left"
    assert len(lines) == 1 + 12 + 1
    assert lines[-1].startswith("[1/2] s (l): FAILED: ")


@pytest.mark.parametrize("duration_s", [1.0, 3600.0])
def test_the_generator_has_time_to_end_its_slowest_exchange_and_to_count_a_long_round(duration_s: float) -> None:
    for timeout_s in (0.5, 10.0, 120.0):
        load = Load(name="l", duration_s=duration_s, timeout_s=timeout_s)
        assert deadline_s(load) > 1.02 * duration_s + timeout_s + 20
