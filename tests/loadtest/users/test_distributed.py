"""Runs on several real processes: --processes, and a master with workers that come, go and die; and locust's own pages.

The ports are passed to locust, whose default would be every test's.
"""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import socket
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from loadtest.plan.plan import Load, Pin, Plan, PlanError, Server
from prefork.status.histogram import Histogram
from tests.loadtest import stand_in as behave
from tests.loadtest.lab import Lab
from tests.loadtest.locust_process import Generator
from tests.support.processes import PROC, children, session_members
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.loadtest.stand_in import Behaviour, StandIn

    StartServer = Callable[[Behaviour], StandIn]
    Generate = Callable[..., Generator]

pytestmark = pytest.mark.slow

ENGINES = ("readable", "fast")
FAST = ("--engine", "fast")


def clients(engine: str, count: int) -> tuple[str, ...]:
    """So many of them, whatever the engine, and all at once."""
    return (*FAST, "--connections", str(count)) if engine == "fast" else ("-u", str(count), "-r", str(count))


class Machines:
    """A master and its workers, as they would be started on several machines."""

    def __init__(self, generate: Generate, port: int, *options: str, workers: int, headless: bool = True) -> None:
        self._generate, self._port = generate, str(port)
        bind = ("--master", "--master-bind-host", "127.0.0.1", "--master-bind-port", self._port)
        wait = ("--expect-workers", str(workers))
        self.master = generate(*bind, *wait, *options, headless=headless, log="master.log")
        self.workers = [self.join() for _ in range(workers)]

    def join(self) -> Generator:
        """Start one more worker."""
        name = f"worker-{len(getattr(self, 'workers', []))}-{os.urandom(3).hex()}.log"
        options = ("--worker", "--master-host", "127.0.0.1", "--master-port", self._port)
        return self._generate(*options, headless=False, log=name)

    def result(self, *, exit_code: int = 0) -> Any:
        """Wait for all processes to end."""
        found = self.master.wait(exit_code=exit_code).result()
        for worker in self.workers:
            worker.process.wait(20)
        return found


@pytest.fixture
def processes(generate: Generate, free_port: int) -> Callable[..., Generator]:
    """Start a generator of several processes: `processes(2, "--host", address)`."""
    ports = ("--master-bind-host", "127.0.0.1", "--master-bind-port", str(free_port), "--master-port", str(free_port))

    def start(count: int, *args: str, **keywords: Any) -> Generator:
        return generate("--processes", str(count), *ports, *args, **keywords)

    return start


@pytest.fixture
def machines(generate: Generate, free_port: int) -> Callable[..., Machines]:
    """Start a master and workers: `machines("--host", address, workers=2)`."""
    return lambda *args, **keywords: Machines(generate, free_port, *args, **keywords)


def check_sums(result: dict[str, Any]) -> Histogram:
    """What holds for every merged result; returns its latencies."""
    latency = Histogram.from_json(result["latency"])
    parts = result["generator"]["processes"]
    assert result["completed"] == latency.n == sum(part["completed"] for part in parts)
    assert sum(result["failures"].values()) == sum(part["failed"] for part in parts)
    assert result["connections"] == sum(part["connections"] for part in parts)
    assert result["generator"]["cpu_s"] == pytest.approx(sum(part["cpu_s"] for part in parts))
    assert result["completed"] == sum(second["completed"] for second in result["per_second"])
    assert sum(second["span_s"] for second in result["per_second"]) == pytest.approx(result["duration_s"])
    assert all(0 < second["span_s"] <= 1.1 for second in result["per_second"])
    return latency


def check_rate(shown_per_s: float, result: dict[str, Any]) -> None:
    """locust's rate is over the time from its first order to the last exchange: that of the run, and a little more."""
    generator = result["generator"]
    late_s = max(part["began_s"] for part in generator["processes"])
    requests, _ = counted(result)
    assert requests / (late_s + generator["wall_s"] + 3) < shown_per_s < 1.1 * requests / generator["wall_s"]


def counted(result: dict[str, Any]) -> tuple[int, int]:
    """Exchanges and failures, in the window and outside of it: what locust's own tables count."""
    failed = sum(result["failures"].values()) + result["outside"]["failed"]
    return result["completed"] + result["outside"]["completed"] + failed, failed


@pytest.mark.timing
@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_processes_share_the_clients_and_their_measurements_are_merged(
    engine: str, stand_in: StartServer, processes: Callable[..., Generator]
) -> None:
    server = stand_in(behave.slow(0.7))  # longer than a master waits by itself for the last words of its workers
    result = processes(2, "--host", server.address, *clients(engine, 5), "-t", "2s").wait().result()
    latency = check_sums(result)
    assert latency.min_ns >= 700_000_000
    assert sorted(part["connections"] for part in result["generator"]["processes"]) == [2, 3]
    assert (result["failures"], result["censored"], result["generator"]["lost"]) == ({}, 0, [])
    assert counted(result) == (server.answered, 0)


@pytest.mark.timing
@pytest.mark.slow
@pytest.mark.parametrize("arrivals", ["constant", "poisson"])
def test_processes_share_the_rate_and_take_turns(
    arrivals: str, stand_in: StartServer, processes: Callable[..., Generator]
) -> None:
    server = stand_in(behave.slow(0.005))
    options = ("--connections", "9", "--rate", "90", "--arrivals", arrivals, "--max-in-flight", "200")
    result = processes(3, "--host", server.address, *FAST, *options, "-t", "3s").wait().result()
    check_sums(result)
    assert result["connections"] == 9
    arrived = result["arrivals"]
    lag, service = Histogram.from_json(arrived["lag"]), Histogram.from_json(result["service_time"])
    assert arrived["offered"] == lag.n
    assert result["completed"] == service.n == arrived["offered"] - arrived["missed"]
    spread = 15 if arrivals == "constant" else 5 * (90 * 3) ** 0.5  # at equal distances only the window's edges count
    assert abs(90 * result["duration_s"] - arrived["offered"]) <= spread


@pytest.mark.timing
@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_a_master_and_its_workers_write_one_result(
    engine: str, stand_in: StartServer, machines: Callable[..., Machines]
) -> None:
    server = stand_in(behave.slow(0.02))
    run = machines("--host", server.address, *clients(engine, 7), "-t", "2s", "--warmup", "0.5", workers=2)
    result = run.result()
    check_sums(result)
    assert len(result["generator"]["processes"]) == 2
    assert result["connections"] == 7
    assert counted(result) == (server.answered, 0)
    assert result["outside"]["completed"] > 0  # the warm-up
    assert 0 < result["duration_s"] < result["generator"]["wall_s"] - 0.45
    assert result["completed"] / (result["duration_s"] + 0.02) <= 7 / 0.02  # no more than seven at a time


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_the_result_names_a_worker_that_died(
    engine: str, stand_in: StartServer, machines: Callable[..., Machines]
) -> None:
    server = stand_in(behave.slow(0.01))
    run = machines("--host", server.address, *clients(engine, 4), "-t", "4s", "--stop-timeout", "1", workers=2)
    eventually(lambda: server.answered > 100, within_s=30, what="100 answers")
    os.kill(run.workers[0].process.pid, signal.SIGKILL)
    result = run.result(exit_code=1)
    (lost,) = result["generator"]["lost"]
    (left,) = result["generator"]["processes"]
    assert lost != left["name"]
    assert check_sums(result).n < server.answered
    line = "1 of 2 workers ended without telling what they measured, which is missing in the result: "
    assert line + lost in run.master.log


@pytest.mark.timing
@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_a_worker_may_leave_and_another_come_late(
    engine: str, stand_in: StartServer, machines: Callable[..., Machines]
) -> None:
    """The run lasts until all that has happened; how fast that may be follows from the server's 20 ms an answer."""
    server = stand_in(behave.slow(0.02))
    count = 8 if engine == "fast" else 4
    users = ("-u", "4", "-r", "4")
    options = (*users, *FAST, "--connections", str(count)) if engine == "fast" else users
    run = machines("--host", server.address, *options, workers=2)

    def serve_for(least_s: float, what: str) -> None:
        more = server.answered + round(least_s * count / 0.02)
        eventually(lambda: server.answered > more, within_s=30, what=f"{least_s} s of answers {what}")

    serve_for(0.5, "from two workers")
    late = run.join()
    seen = r"3 workers connected[^$]*All users spawned|All users spawned[^$]*3 workers connected"
    eventually(lambda: re.search(seen, run.master.log), within_s=30, what="the third worker")
    serve_for(0.5, "from three workers")
    os.kill(run.workers[0].process.pid, signal.SIGTERM)  # leaves in good order: what it measured is not lost
    assert run.workers[0].process.wait(30) == 0
    serve_for(1.5, "without the one that left")
    run.master.interrupt()
    result = run.result()
    assert late.process.wait(30) == 0
    check_sums(result)
    assert result["generator"]["lost"] == []
    *early, latest = sorted(result["generator"]["processes"], key=lambda part: float(part["began_s"]))
    left, stayed = sorted(early, key=lambda part: float(part["duration_s"]))
    assert latest["began_s"] > 0.5  # by the master's clock
    assert left["duration_s"] < stayed["duration_s"] - 1
    assert stayed["duration_s"] == pytest.approx(result["duration_s"], abs=1)  # windows are laid by whole seconds
    assert counted(result) == (server.answered, 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "model"), [("readable", ()), ("fast", ()), ("fast", ("--rate", "60"))], ids=["readable", "fast", "open"]
)
def test_what_is_cut_off_is_censored_in_every_process(
    engine: str, model: tuple[str, ...], stand_in: StartServer, processes: Callable[..., Generator]
) -> None:
    server = stand_in(behave.hang)
    options = ("--host", server.address, *clients(engine, 4), *model, "-t", "2s", "--stop-timeout", "0")
    run = processes(2, *options).wait(exit_code=1)
    result = run.result()
    check_sums(result)
    assert (result["completed"], result["failures"]) == (0, {})
    assert result["censored"] == (result["arrivals"]["offered"] - result["arrivals"]["missed"] if model else 4)
    assert result["censored"] >= 4
    assert f"no exchange ended on {server.address}" in run.log


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "exit_code", "message"),
    [
        (("--host", "http://127.0.0.1:1"), 2, "the scenario speaks tcp, not http"),
        (("--host", "no-such-host.invalid:1"), 1, "no exchange ended on no-such-host.invalid:1: "),
        ((*FAST, "--connections", "1", "-u", "2"), 2, "--connections 1 are fewer than the 2 users"),
    ],
)
def test_what_cannot_work_ends_all_processes_with_one_line(
    args: tuple[str, ...], exit_code: int, message: str, processes: Callable[..., Generator]
) -> None:
    run = processes(2, *args, "-t", "1s").wait(exit_code=exit_code)
    assert message in run.log
    eventually(lambda: not session_members(run.process.pid), within_s=20, what="the workers have ended")
    assert not run.has_result or not run.result()["completed"]


@pytest.mark.slow
def test_workers_end_with_a_master_that_is_killed(stand_in: StartServer, processes: Callable[..., Generator]) -> None:
    server = stand_in(behave.talkback)
    run = processes(2, "--host", server.address, *clients("fast", 4))
    eventually(lambda: server.answered > 50, within_s=30, what="50 answers")
    assert len(children(run.process.pid)) == 2
    os.kill(run.process.pid, signal.SIGKILL)
    run.process.wait(10)
    eventually(lambda: not session_members(run.process.pid), within_s=20, what="the workers have ended")


@pytest.mark.slow
def test_more_workers_than_fast_users_is_said(stand_in: StartServer, processes: Callable[..., Generator]) -> None:
    server = stand_in(behave.slow(0.01))
    run = processes(2, "--host", server.address, *clients("fast", 3), "-u", "1", "-r", "1", "-t", "1s").wait()
    assert "1 of 2 workers will do nothing: the fast engine needs a user for each, --users 2" in run.log
    assert run.result()["connections"] == 3


@pytest.mark.timing
@pytest.mark.slow
@pytest.mark.parametrize("distributed", [False, True], ids=["alone", "processes"])
def test_the_web_page_the_files_and_the_result_agree(
    *,
    distributed: bool,
    stand_in: StartServer,
    generate: Generate,
    processes: Callable[..., Generator],
    tmp_path: Path,
) -> None:
    server = stand_in(behave.in_turn(*[behave.talkback] * 9, behave.closed_early))
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
    page = ("--web-host", "127.0.0.1", "--web-port", str(port), "--autostart", "--autoquit", "4")
    files = ("--csv", str(tmp_path / "own"), "--html", str(tmp_path / "own.html"))
    options = ("--host", server.address, *clients("fast", 4), "-t", "3s", *page, *files)
    run = processes(2, *options, headless=False) if distributed else generate(*options, headless=False)
    total = eventually(lambda: stopped_total(port), within_s=40, what="the end of the run")
    assert run.process.wait(40) == 1  # of locust: there were failures
    result = run.result()
    requests, failures = counted(result)
    assert failures > 0
    assert (total["num_requests"], total["num_failures"]) == (requests, failures)
    assert server.answered == requests - failures
    check_rate(total["total_rps"], result)
    latency = Histogram.from_json(result["latency"])
    for share, name in ((0.5, "median_response_time"), (0.95, "response_time_percentile_0.95")):
        assert total[name] == pytest.approx(latency.quantile(share) / 1e6, rel=0.2)
        assert total[name] > 0
    with (tmp_path / "own_stats.csv").open() as file:
        row = list(csv.DictReader(file))[-1]
    assert (int(row["Request Count"]), int(row["Failure Count"])) == (requests, failures)
    assert float(row["50%"]) == pytest.approx(latency.quantile(0.5) / 1e6, rel=0.2)
    assert f'"num_requests": {requests}' in (tmp_path / "own.html").read_text()


def stopped_total(port: int) -> Any:
    """The row of all exchanges on the web page, once the run has stopped."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/stats/requests", timeout=10) as answer:
            found = json.loads(answer.read())
    except (urllib.error.URLError, ConnectionError):
        return None
    return found["stats"][-1] if found["state"] == "stopped" else None


@pytest.mark.timing
@pytest.mark.slow
def test_the_console_the_json_file_and_the_result_agree(
    stand_in: StartServer, processes: Callable[..., Generator], tmp_path: Path
) -> None:
    server = stand_in(behave.slow(0.003))
    options = ("--host", server.address, *clients("fast", 4), "-t", "2s")
    run = processes(2, *options).wait()
    requests, failures = counted(run.result())
    row = re.search(r"Aggregated +(\d+) +(\d+)\(0.00%\) \| +(\d+) +(\d+) .*\| +([0-9.]+) ", run.log)
    assert row is not None, run.log
    assert (int(row[1]), int(row[2])) == (requests, failures) == (server.answered, 0)
    assert int(row[3]) >= int(row[4]) >= 3
    check_rate(float(row[5]), run.result())
    run = processes(2, *options, "--json-file", str(tmp_path / "own")).wait()
    (entry,) = json.loads((tmp_path / "own.json").read_text())
    assert (entry["num_requests"], entry["num_failures"]) == counted(run.result())
    assert sum(entry["response_times"].values()) == entry["num_requests"]


ECHO = "echo={python} -m prefork serve echo --workers 1 --bind {address}"


def test_generators_need_connections_and_cpus() -> None:
    with pytest.raises(PlanError, match="load 'l': 1 connections are too few for 2 generators"):
        Load(name="l", connections=1, generators=2)
    servers, loads = (Server(name="s", attach="127.0.0.1:1"),), (Load(name="l", generators=2),)
    with pytest.raises(PlanError, match="2 generators need a CPU each; pin 0:1 gives the load 1"):
        Plan(name="p", servers=servers, loads=loads, pin=Pin(server=(0,), load=(1,)))
    assert Plan(name="p", servers=servers, loads=loads, pin=Pin(server=(0,), load=(1, 2))).loads == loads


@pytest.mark.slow
def test_the_lab_lets_several_generators_make_the_load_together(lab: Lab) -> None:
    load = ("--scenario", "echo", "--connections", "5", "--generators", "2", "--duration", "1", "--warmup", "0.3")
    done = lab.run("--server", ECHO, "--rounds", "1", *load)
    assert done.returncode == 0, done.stderr
    (measured,) = lab.rounds()
    check_sums(measured["client"])
    assert sorted(part["connections"] for part in measured["client"]["generator"]["processes"]) == [2, 3]
    assert 0.5 < measured["client"]["duration_s"] <= 1
    assert measured["signals"]["generator"]["processes"] == 3  # a master, which does nothing, and two workers
    seen_s = measured["signals"]["generator"]["cpu_ns"] / 1e9
    assert seen_s > measured["signals"]["generator"]["busiest_ns"] / 1e9  # more than one of them worked
    assert "5 connections, 1 s after 0.3 s of warm-up, 2 generators" in done.stdout


@pytest.mark.slow
def test_a_generator_that_dies_fails_the_round(lab: Lab) -> None:
    load = ("--scenario", "echo", "--connections", "4", "--generators", "2", "--duration", "5", "--warmup", "0")
    run = lab.start("--server", ECHO, "--rounds", "1", *load)
    try:
        log = lab.out / "logs"
        eventually(lambda: [*log.rglob("generator.live")], within_s=30, what="a generator")
        (master,) = eventually(lambda: masters(run.pid), within_s=30, what="the generator's master")
        eventually(
            lambda: "All users spawned" in next(log.rglob("generator.log")).read_text(), within_s=30, what="load"
        )
        os.kill(min(children(master)), signal.SIGKILL)
        _, said = run.communicate(timeout=60)
    finally:
        run.kill()
        run.communicate()
    assert run.returncode == 1
    assert "1 of the generator's processes died in the run" in said
    (failed,) = lab.rounds()
    assert (failed["client"], failed["verdict"]["name"]) == (None, "INVALID")


def masters(lab_pid: int) -> list[int]:
    """The children of the lab that have two children and are locust."""
    found = [pid for pid in children(lab_pid) if b"locustfile" in (PROC / str(pid) / "cmdline").read_bytes()]
    return [pid for pid in found if len(children(pid)) == 2]
