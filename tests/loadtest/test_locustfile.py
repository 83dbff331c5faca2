"""The locustfile in real locust processes: scenarios, causes of failure, the result document, the ends of a run."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from prefork.status.histogram import Histogram
from tests.loadtest import stand_in as behave
from tests.loadtest.locust_process import LOCUSTFILE, Generator
from tests.support.wait import eventually

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    from tests.loadtest.stand_in import Behaviour, StandIn

    StartServer = Callable[[Behaviour], StandIn]
    Generate = Callable[..., Generator]

pytestmark = pytest.mark.slow

SLOW = pytest.mark.slow
ENGINES = ("readable", "fast")
# Where the other engine goes through the same code, or has tests of its own (test_engine.py), it takes its turn among
# the slow tests.
READABLE_FIRST = ("readable", pytest.param("fast", marks=SLOW))
FAST_FIRST = (pytest.param("readable", marks=SLOW), "fast")
BRIEF = ("--users", "4", "--spawn-rate", "4", "--run-time", "1s")
FAST = ("--engine", "fast", "--connections", "4", "--run-time", "1s")


def brief(engine: str) -> tuple[str, ...]:
    """Four clients for a second."""
    return FAST if engine == "fast" else BRIEF


def deadline(seconds: float) -> tuple[str, str]:
    return "--timeout", str(seconds)


def check_consistency(result: dict[str, Any], engine: str = "readable") -> Histogram:
    """What must hold for every result of the closed model; returns its latencies."""
    latency = Histogram.from_json(result["latency"])
    assert result["schema"] == 2
    assert result["generator"]["engine"] == engine
    assert (result["generator"]["max_gap_s"] is not None) == (engine == "fast")
    assert result["arrivals"] is None
    assert 0 < result["generator"]["cpu_s"] < 2 * result["generator"]["wall_s"]
    assert result["completed"] == latency.n == sum(second["completed"] for second in result["per_second"])
    assert sum(result["failures"].values()) == sum(second["failed"] for second in result["per_second"])
    assert [second["t_s"] for second in result["per_second"]] == list(range(len(result["per_second"])))
    assert result["service_time"] == result["latency"]
    assert 0 <= result["busy_s"] <= result["connections"] * result["duration_s"] * 1.001
    return latency


@pytest.mark.parametrize(
    ("scenario", "behaviour", "engine"),
    [
        ("talkback", behave.talkback, "readable"),
        pytest.param("nap", behave.slow(0.005), "readable", marks=SLOW),
        ("echo", behave.echo, "readable"),
        pytest.param("http", behave.web, "readable", marks=SLOW),
        ("talkback", behave.talkback, "fast"),
        pytest.param("nap", behave.slow(0.005), "fast", marks=SLOW),
        pytest.param("echo", behave.echo, "fast", marks=SLOW),
        ("http", behave.web, "fast"),
    ],
)
def test_each_scenario_talks_its_protocol(
    scenario: str, behaviour: Behaviour, engine: str, stand_in: StartServer, generate: Generate
) -> None:
    server = stand_in(behaviour)
    run = generate("--host", server.address, "--scenario", scenario, *brief(engine)).wait()
    result = run.result()
    latency = check_consistency(result, engine)
    assert (result["scenario"], result["connections"], result["address"]) == (scenario, 4, server.address)
    assert (result["failures"], result["censored"], result["warmup_s"]) == ({}, 0, 0.0)
    assert result["completed"] > 10
    assert result["completed"] + result["outside"]["completed"] == server.answered  # nothing is lost or invented
    assert 0 < result["duration_s"] <= result["generator"]["wall_s"] * 1.01
    assert 0.5 < result["busy_s"] / result["duration_s"] <= 4.01
    if scenario == "nap":
        assert latency.min_ns >= 5_000_000
        assert "TCP      nap " in run.log
    if scenario == "echo":
        assert server.connections >= server.answered / 10  # --exchanges
        assert "CONNECT  echo " in run.log
    if scenario == "http":
        assert server.connections == 4  # kept alive


@pytest.mark.smoke
@pytest.mark.parametrize("engine", FAST_FIRST)
def test_locusts_own_table_counts_every_exchange(engine: str, stand_in: StartServer, generate: Generate) -> None:
    server = stand_in(behave.slow(0.003))
    run = generate("--host", server.address, *brief(engine)).wait()
    row = re.search(r"^TCP +talkback +(\d+) +(\d+)\(0.00%\) \| +(\d+) +(\d+)", run.log, re.MULTILINE)
    assert row is not None, run.log
    requests, failures, average_ms, fastest_ms = map(int, row.groups())
    assert requests == server.answered
    assert failures == 0
    assert average_ms >= fastest_ms >= 3


@pytest.mark.timing
def test_the_fast_users_share_the_connections(stand_in: StartServer, generate: Generate) -> None:
    server = stand_in(behave.slow(0.01))
    options = ("--engine", "fast", "-u", "2", "-r", "2", "--connections", "5", "-t", "1s")
    result = generate("--host", server.address, *options).wait().result()
    check_consistency(result, "fast")
    assert result["connections"] == 5
    assert 3 < result["busy_s"] / result["duration_s"] <= 5.01


@pytest.mark.timing
def test_the_open_model_offers_its_rate_and_counts_latency_from_the_schedule(
    stand_in: StartServer, generate: Generate
) -> None:
    server = stand_in(behave.slow(0.02))
    options = ("--engine", "fast", "--connections", "2", "--rate", "200", "--arrivals", "poisson", "-t", "1s")
    result = generate("--host", server.address, *options).wait().result()
    latency, service = (Histogram.from_json(result[clock]) for clock in ("latency", "service_time"))
    assert latency.n == service.n == result["completed"]
    assert service.min_ns >= 20_000_000
    # Two connections serve at most 100 of the 200 exchanges that come due in a second; the others wait for them.
    assert latency.quantile(0.9) > service.quantile(0.9) + 50_000_000
    arrivals = result["arrivals"]
    # Those that waited were served in the drain. A generator that gets no CPU for 0.1 s misses some, and says so.
    late_s = Histogram.from_json(arrivals["lag"]).max_ns / 1e9
    assert arrivals["offered"] == result["completed"] + arrivals["missed"]
    assert arrivals["missed"] == 0 or late_s > 0.09
    assert arrivals["offered"] / 200 <= 1.4 * result["duration_s"]  # five standard deviations
    assert (result["failures"], result["censored"]) == ({}, 0)
    assert Histogram.from_json(arrivals["lag"]).n == arrivals["offered"]


def test_a_class_name_wins_over_the_scenario(stand_in: StartServer, generate: Generate) -> None:
    server = stand_in(behave.talkback)
    result = generate("--host", server.address, "--scenario", "echo", *BRIEF, "TalkbackUser").wait().result()
    assert result["scenario"] == "talkback"
    assert result["completed"] > 0
    assert result["failures"] == {}


def test_the_line_has_the_length_of_the_payload_and_users_send_different_ones(
    stand_in: StartServer, generate: Generate
) -> None:
    lines: list[bytes] = []

    def listen(peer: Any) -> Any:
        for line in peer.makefile("rb"):
            lines.append(line)
            peer.sendall(line)
            yield

    server = stand_in(listen)
    generate(
        "--host", f"tcp://{server.address}", "--scenario", "echo", "--payload", "20", "--exchanges", "3", *BRIEF
    ).wait()
    assert {len(line) for line in lines} == {21}
    assert len(set(lines)) == len(lines)
    assert server.connections >= server.answered / 3


@pytest.mark.parametrize("engine", ENGINES)
def test_failures_are_counted_by_cause(engine: str, stand_in: StartServer, generate: Generate) -> None:
    server = stand_in(
        behave.in_turn(
            behave.talkback,
            behave.hang,
            behave.greet_and_reset,
            behave.wrong_reply,
            behave.closed_early,
        )
    )
    run = generate("--host", server.address, *deadline(0.2), *brief(engine)).wait(exit_code=1)
    result = run.result()
    check_consistency(result, engine)
    assert set(result["failures"]) == {"timeout", "reset", "wrong reply", "closed early"}
    assert result["completed"] > 0
    assert server.answered >= result["completed"]
    for cause in result["failures"]:
        assert f"TCP talkback: {cause} " in run.log


@pytest.mark.parametrize("engine", READABLE_FIRST)
@pytest.mark.parametrize("scenario", ["talkback", *(pytest.param(name, marks=SLOW) for name in ("echo", "http"))])
def test_refused_connections_are_counted(scenario: str, engine: str, refusing_address: str, generate: Generate) -> None:
    options = ("--scenario", scenario, "--engine", engine, "-u", "1", "--connections", "2", "-t", "1s")
    run = generate("--host", refusing_address, *options).wait(exit_code=1)
    result = run.result()
    check_consistency(result, engine)
    assert set(result["failures"]) == {"refused"}
    assert result["completed"] == 0
    assert result["per_second"][0]["p50_ns"] is None


@pytest.mark.parametrize("engine", READABLE_FIRST)
def test_http_failures_are_counted_by_cause(engine: str, stand_in: StartServer, generate: Generate) -> None:
    server = stand_in(
        behave.in_turn(
            behave.responding(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", once=True),
            behave.responding(b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n", once=True),
            behave.responding(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhel", once=True),
            behave.responding(b"no HTTP at all\r\n\r\n", once=True),
            behave.reset,
            behave.hang,
        )
    )
    options = ("--scenario", "http", *brief(engine), *deadline(0.2))
    run = generate("--host", f"http://{server.address}", *options).wait(exit_code=1)
    result = run.result()
    check_consistency(result, engine)
    assert set(result["failures"]) == {"status 503", "status 302", "closed early", "wrong reply", "reset", "timeout"}
    assert result["completed"] == 0


def trickling(peer: socket.socket) -> Iterator[None]:
    """An HTTP server that never stops to answer, a byte at a time."""
    peer.recv(1000)
    peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    while peer.send(b"x"):
        threading.Event().wait(0.02)
        yield from ()


@pytest.mark.parametrize("engine", ENGINES)
def test_the_timeout_is_that_of_the_whole_exchange(engine: str, stand_in: StartServer, generate: Generate) -> None:
    server = stand_in(trickling)
    options = ("--scenario", "http", *brief(engine), *deadline(0.3))
    result = generate("--host", server.address, *options).wait(exit_code=1).result()
    assert (result["completed"], set(result["failures"])) == (0, {"timeout"})
    assert 4 <= result["failures"]["timeout"] <= 4 * (result["duration_s"] + 0.3) / 0.3


STOP_TIMEOUTS = """
import loadtest.users
from locust.argument_parser import get_parser
for args in ([], ["--timeout", "3"], ["--timeout", "60"], ["--timeout", "60", "--stop-timeout", "10"], ["-s", "0"]):
    print(loadtest.users.options.stop_timeout_s(get_parser().parse_args(args)))
"""


def test_the_end_waits_as_long_as_an_exchange_may_take(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", STOP_TIMEOUTS]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["10.0", "10.0", "60.0", "10.0", "0.0"]


@pytest.mark.slow
def test_an_exchange_that_takes_longer_than_usual_waits_is_drained(stand_in: StartServer, generate: Generate) -> None:
    server = stand_in(behave.slow(11.5))
    result = generate("--host", server.address, *BRIEF, "--timeout", "15").wait().result()
    assert (result["completed"], result["failures"], result["censored"]) == (4, {}, 0)


@pytest.mark.parametrize("engine", FAST_FIRST)
def test_an_exchange_that_ends_in_the_drain_counts_whole(
    engine: str, stand_in: StartServer, generate: Generate
) -> None:
    server = stand_in(behave.slow(1.6))
    result = generate("--host", server.address, *brief(engine)).wait().result()
    latency = check_consistency(result, engine)
    assert (result["completed"], result["censored"]) == (4, 0)
    assert latency.min_ns >= 1_600_000_000
    assert result["busy_s"] <= 4 * result["duration_s"] < 4 * 1.6


@pytest.mark.timing
@pytest.mark.parametrize("engine", ENGINES)
def test_an_exchange_that_is_cut_off_is_censored_and_nothing_measured_is_an_error(
    engine: str, stand_in: StartServer, generate: Generate
) -> None:
    server = stand_in(behave.hang)
    run = generate("--host", server.address, *brief(engine), "--stop-timeout", "0").wait(exit_code=1)
    result = run.result()
    check_consistency(result, engine)
    assert (result["completed"], result["failures"], result["censored"]) == (0, {}, 4)
    assert 3 < result["busy_s"] / result["duration_s"] <= 4.01
    assert f"no exchange ended on {server.address}: the run was too short, or the server does not answer" in run.log


@pytest.mark.parametrize("engine", READABLE_FIRST)
def test_the_warm_up_is_left_out(engine: str, stand_in: StartServer, generate: Generate) -> None:
    server = stand_in(behave.slow(0.05))
    result = generate("--host", server.address, *brief(engine), "--warmup", "0.7").wait().result()
    check_consistency(result, engine)
    assert result["duration_s"] < result["generator"]["wall_s"] - 0.65
    assert 0 < result["completed"] == server.answered - result["outside"]["completed"]
    assert result["outside"]["completed"] >= 4  # the first of each user


@pytest.mark.slow
def test_a_run_that_ends_in_its_warm_up_is_an_error(stand_in: StartServer, generate: Generate) -> None:
    run = generate("--host", stand_in(behave.talkback).address, *BRIEF, "--warmup", "30").wait(exit_code=1)
    assert "no exchange began in the 0 s that followed the warm-up of 30 s" in run.log
    result = run.result()
    assert (result["completed"], result["duration_s"], result["per_second"]) == (0, 0.0, [])


def test_without_a_number_or_an_end_it_runs_until_ctrl_c_and_keeps_the_result(
    stand_in: StartServer, generate: Generate
) -> None:
    server = stand_in(behave.talkback)
    run = generate("--host", server.address)
    eventually(lambda: server.answered > 20, within_s=20, what="20 answers")
    run.interrupt()
    result = run.wait().result()
    check_consistency(result)
    assert result["connections"] == 1
    assert 0 <= server.answered - result["completed"] <= 1


def test_a_second_ctrl_c_ends_the_drain(stand_in: StartServer, generate: Generate) -> None:
    server = stand_in(behave.in_turn(behave.talkback, behave.hang))
    run = generate("--host", server.address, "-u", "2", "-r", "2", *deadline(30), "--stop-timeout", "30")
    eventually(lambda: server.connections >= 4, within_s=20, what="both users hang")
    run.interrupt()
    eventually(lambda: "another Ctrl-C cuts them off" in run.log, within_s=20, what="the drain")
    run.interrupt()
    result = run.wait().result()
    check_consistency(result)
    assert (result["connections"], result["censored"], result["failures"]) == (2, 2, {})
    assert result["completed"] == server.answered


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--host", "http://127.0.0.1:1"], "the scenario speaks tcp, not http; write tcp://HOST:PORT"),
        pytest.param(
            ["--host", "tcp://127.0.0.1:1", "--scenario", "http"],
            "the scenario speaks http or https, not tcp",
            marks=SLOW,
        ),
        pytest.param(["--host", "127.0.0.1"], "the port is missing", marks=SLOW),
        (["--result", "no/such/folder/r.json"], "the folder 'no/such/folder' does not exist"),
        (["--rate", "100"], "--rate needs --engine fast"),
        (["--scenario", "http", "--host", "unix:/x"], "this user cannot speak over Unix sockets"),
        pytest.param(["--rate", "100", "--engine", "fast", "TalkbackUser"], "--rate needs --engine fast", marks=SLOW),
        (["--engine", "fast", "--connections", "3"], "--connections 3 are fewer than the 4 users of the engine"),
    ],
)
def test_what_cannot_work_is_refused_with_one_line(args: list[str], message: str, generate: Generate) -> None:
    run = generate(*args, *BRIEF).wait(exit_code=2)
    assert message in run.log
    assert not run.has_result


PARSE = """
import contextlib, io, json, sys
import loadtest.users
from locust.argument_parser import get_parser
for args in json.loads(sys.argv[1]):
    with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.suppress(SystemExit):
        get_parser().parse_args(args)
    print(said.getvalue().splitlines()[-1])
"""


def test_an_option_that_cannot_be_read_is_refused_with_one_line(tmp_path: Path) -> None:
    mistakes = {
        ("--scenario", "chat"): "invalid choice: 'chat'",
        ("--payload", "-1"): "'-1' is not a whole number from 0 up",
        ("--warmup", "soon"): "'soon' is not a number from 0 up",
        ("--engine", "faster"): "invalid choice: 'faster'",
        ("--connections", "0"): "'0' is not a whole number from 1 up",
        ("--timeout", "0"): "'0' is no time in which anything can happen; write seconds above 0",
        ("--seed", "x"): "'x' is not a whole number from 0 up",
        ("--path", "@/none"): "cannot read '/none': No such file or directory",
        ("--path-order", "any"): "invalid choice: 'any'",
    }
    argv = [sys.executable, "-c", PARSE, json.dumps(list(mistakes))]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60)
    for line, message in zip(done.stdout.splitlines(), mistakes.values(), strict=True):
        assert message in line


@pytest.mark.slow
def test_an_unknown_host_ends_the_run_with_the_reason(generate: Generate) -> None:
    run = generate("--host", "no-such-host.invalid:1935", *BRIEF).wait(exit_code=1)
    assert "--host 'no-such-host.invalid:1935': " in run.log


def test_the_defaults_suit_a_default_server(tmp_path: Path) -> None:
    script = (
        "import loadtest.users; from locust.argument_parser import get_parser; print(vars(get_parser().parse_args([])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60
    )
    for default in ("'host': '127.0.0.1:1935'", "'stop_timeout': 10.0", "'scenario': 'talkback'", "'exchanges': 0"):
        assert default in done.stdout


@pytest.mark.slow
def test_the_packages_beside_the_locustfile_are_the_ones_that_run(
    tmp_path: Path, stand_in: StartServer, generate: Generate
) -> None:
    for package in ("loadtest", "prefork"):
        shutil.copytree(LOCUSTFILE.parents[1] / package, tmp_path / "elsewhere" / package)
    options = tmp_path / "elsewhere" / "loadtest" / "users" / "options.py"
    options.write_text(options.read_text().replace('"--payload"', '"--payload-of-the-copy"'))
    copy = tmp_path / "elsewhere" / "loadtest" / "locustfile.py"
    run = generate("--payload-of-the-copy", "1", "--host", "nowhere", locustfile=copy).wait(exit_code=2)
    assert "the port is missing" in run.log


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_the_web_page_starts_and_stops_a_run(
    engine: str, stand_in: StartServer, generate: Generate, free_port: int
) -> None:
    server = stand_in(behave.talkback)
    options = ("--web-host", "127.0.0.1", "--web-port", str(free_port), "--host", "127.0.0.1:1", "--engine", engine)
    run = generate(*options, headless=False)

    def ask(path: str, **form: object) -> Any:
        data = urllib.parse.urlencode(form).encode() if form else None
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{free_port}{path}", data, timeout=10) as answer:
                return answer.read().decode()
        except urllib.error.URLError:
            return ""

    page = eventually(lambda: ask("/"), within_s=20, what="the web page")
    assert "127.0.0.1:1" in page
    form = {"user_count": 3, "spawn_rate": 3, "host": f"tcp://{server.address}", "payload": 8, "connections": 7}
    assert json.loads(ask("/swarm", **form))["success"]
    eventually(lambda: server.answered > 50, within_s=20, what="50 answers")

    def talked_so_far() -> list[Any]:
        return [entry for entry in json.loads(ask("/stats/requests"))["stats"] if entry["name"] == "talkback"]

    (talked,) = eventually(talked_so_far, within_s=15, what="the row of the table")
    assert talked["num_requests"] > 0
    assert talked["num_failures"] == 0
    assert json.loads(ask("/stop", now=1))["success"]
    run.interrupt()
    result = run.wait().result()
    check_consistency(result, engine)
    assert result["connections"] == (7 if engine == "fast" else 3)
    assert result["address"] == f"tcp://{server.address}"
