"""Several paths in one load, and what a seed repeats."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import threading
from typing import TYPE_CHECKING

import pytest

from loadtest.generator.http import Expectation, Target, TargetsLink
from loadtest.plan.request import Request
from tests.loadtest.generator.driving import Driving
from tests.loadtest.records import rounds_in
from tests.support.server import ROOT

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.loadtest.lab import Lab
    from tests.loadtest.locust_process import Generator
    from tests.loadtest.stand_in import Behaviour, StandIn

    StartServer = Callable[[Behaviour], StandIn]
    Generate = Callable[..., Generator]

pytestmark = pytest.mark.slow

ENGINES = ("fast", "readable")


class Site:
    """Answers each path with its own response, and notes what was asked for."""

    def __init__(self, responses: dict[str, bytes]) -> None:
        self.asked: list[str] = []
        self._responses = responses
        self._lock = threading.Lock()

    def __call__(self, peer: socket.socket) -> Iterator[None]:
        requests = peer.makefile("rb")
        while line := requests.readline():
            while requests.readline() not in (b"\r\n", b""):
                continue
            path = line.split()[1].decode()
            with self._lock:
                self.asked.append(path)
            response = self._responses.get(path, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            peer.sendall(response)
            yield
            if b"close" in response:
                return


def page(text: str, status: int = 200, head: str = "") -> bytes:
    return f"HTTP/1.1 {status} Some\r\nContent-Length: {len(text)}\r\n{head}\r\n{text}".encode()


def visit(server: StandIn, responses: dict[str, bytes], clients: int, expected: Expectation, enough: int) -> Driving:
    targets = Target.made([Request(path=path).encode("h") for path in responses])
    turns = (targets[number % len(targets)] for number in range(1 << 60))
    driving = Driving(server.server_address)
    for _ in range(clients):
        driving.link(lambda engine: TargetsLink(engine, turns, expected))
    try:
        return driving.until(lambda found: found.completed + found.failures.total() >= enough)
    finally:
        driving.close()


@pytest.mark.smoke
def test_answers_of_different_paths_are_told_apart(stand_in: StartServer) -> None:
    responses = {
        "/a": page("hello"),
        "/b": page("wrong"),  # as long
        "/c": page("hello", 404),
        "/d": page("short"[:4]),
        "/e": page("hello", head="Connection: close\r\n"),
        "/f": page("hello"),
    }
    site = Site(responses)
    server = stand_in(site)
    done = visit(server, responses, 3, Expectation(length=5), 120)
    assert set(done.failures) == {"status 404", "wrong length"}
    times = {path: site.asked.count(path) for path in responses}
    assert max(times.values()) - min(times.values()) <= 1
    assert (done.failures["status 404"], done.failures["wrong length"]) == (times["/c"], times["/d"])
    assert done.completed == sum(times.values()) - times["/c"] - times["/d"]
    assert server.connections in range(times["/e"], times["/e"] + 4)


def test_an_answer_that_belongs_to_another_path_is_judged_by_itself(stand_in: StartServer) -> None:
    class Changing(Site):
        def __call__(self, peer: socket.socket) -> Iterator[None]:
            for number, _ in enumerate(super().__call__(peer)):
                if number == 20:  # from now on what the other path answered
                    self._responses["/a"] = page("not here", 404)
                yield

    responses = {"/a": page("hello"), "/b": page("not here", 404)}
    server = stand_in(Changing(dict(responses)))
    done = visit(server, responses, 1, Expectation(statuses=frozenset({200})), 60)
    assert done.completed in range(9, 13)
    assert done.failures["status 404"] >= 40


def options(engine: str, *paths: str, clients: int = 1) -> tuple[str, ...]:
    many = ("--connections", str(clients)) if engine == "fast" else ("-u", str(clients), "-r", str(clients))
    chosen = [f"--path={path}" for path in paths]
    return ("--scenario", "http", "--engine", engine, "--run-time", "1s", *many, *chosen)


@pytest.mark.parametrize("engine", ENGINES)
def test_paths_are_asked_for_in_turn_by_all_clients(
    engine: str, stand_in: StartServer, generate: Generate, tmp_path: Path
) -> None:
    (tmp_path / "paths").write_text("# of items\n\n/items/1\n  /items/2?x=%20  \r\n")
    site = Site({})
    run = generate("--host", stand_in(site).address, *options(engine, "/", "@paths", clients=3)).wait()
    assert run.result()["failures"] == {}
    assert "GET      3 paths" in run.log
    times = [site.asked.count(path) for path in ("/", "/items/1", "/items/2?x=%20")]
    assert sum(times) == len(site.asked) > 30
    assert max(times) - min(times) <= 1


def test_a_seed_gives_both_engines_one_order_at_random(stand_in: StartServer, generate: Generate) -> None:
    def asked(engine: str, seed: str) -> list[str]:
        site = Site({})
        order = ("--path-order", "random", "--seed", seed)
        generate("--host", stand_in(site).address, *options(engine, "/1", "/2", "/3"), *order).wait()
        assert len(site.asked) > 60
        return site.asked[:60]

    first = asked("fast", "7")
    assert {first.count(path) > 8 for path in ("/1", "/2", "/3")} == {True}
    assert first == asked("fast", "7") == asked("readable", "7")
    assert first != asked("readable", "8") != asked("readable", "0")


def test_several_paths_are_no_load_for_a_websocket(generate: Generate) -> None:
    run = generate("--scenario", "websocket", "--path", "/a", "--path", "/b").wait(exit_code=2)
    assert "--path: a WebSocket is opened at one path; leave out the others" in run.log


NOTING = """
    import atexit, json
    from locust import events
    from loadtest.locustfile import FastUser

    dues = []

    @events.init.add_listener
    def listen(environment, **_):
        environment.events.batch.add_listener(lambda batch, **_: dues.extend(due for due, _ in batch.offered))

    atexit.register(lambda: print("dues", json.dumps(dues), flush=True))
"""


def test_a_seed_gives_two_runs_the_same_arrivals(stand_in: StartServer, generate: Generate, tmp_path: Path) -> None:
    (tmp_path / "noting.py").write_text(textwrap.dedent(NOTING))
    server = stand_in(Site({}))

    def gaps(seed: int) -> list[int]:
        load = ("--rate", "300", "--arrivals", "poisson", "--seed", str(seed))
        run = generate("--host", server.address, *options("fast"), *load, locustfile=tmp_path / "noting.py").wait()
        (line,) = [line for line in run.log.splitlines() if line.startswith("dues ")]
        dues = json.loads(line.removeprefix("dues "))
        assert len(dues) > 150
        return [due - dues[0] for due in dues[:150]]

    first = gaps(3)
    again = gaps(3)
    assert max(abs(one - other) for one, other in zip(first, again, strict=True)) <= 1000  # ns, of rounding
    assert abs(gaps(4)[-1] - first[-1]) > 1000
    assert abs(gaps(0)[-1] - first[-1]) > 1000


CHANCES = """
    import argparse
    from loadtest.generator.account import Share
    from loadtest.users.options import chance

    sources = [(5, 0, "a"), (5, 0, "a"), (5, 1, "a"), (5, 0, "b"), (6, 0, "a"), (0, 0, "a"), (0, 0, "a")]
    for seed, index, purpose in sources:
        print(chance(argparse.Namespace(seed=seed), Share(index=index, of=2), purpose).random())
"""


def test_each_user_and_each_purpose_has_a_stream_of_its_own(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", textwrap.dedent(CHANCES)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, check=True, timeout=60)
    first, again, *others = done.stdout.split()
    assert first == again
    assert len({first, *others}) == 1 + len(others)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_plan_with_paths_of_a_file_beside_it(engine: str, lab: Lab, stand_in: StartServer) -> None:
    site = Site({"/no": page("", 404)})
    server = stand_in(site)
    (lab.folder / "plans").mkdir()
    lab.script("plans/paths.txt", "/one\n/two\n")
    plan = f"""
        scenario = "http"
        engine = "{engine}"
        path = ["@paths.txt", "/three"]
        path-order = "random"
        retry = false
        attach = "{server.address}"
        rounds = 1
        connections = 2
        duration = 0.5
        warmup = 0.2
    """
    done = lab.run(str(lab.script("plans/plan.toml", plan)))
    assert done.returncode == 0, done.stderr
    assert "plan plan: http GET 1 path and the paths of paths.txt at random, 2 connections" in done.stdout
    (found,) = rounds_in(lab.out)
    assert found["client"]["failures"] == {}
    assert set(site.asked) == {"/one", "/two", "/three"}
    lab.script("plans/paths.txt", "/one\n\nno path\n")
    refused = lab.run(str(lab.folder / "plans/plan.toml"))
    assert refused.returncode == 2
    assert "load 'http': paths.txt:3: 'no path' is not a path" in refused.stderr
