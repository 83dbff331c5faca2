"""The plans that ship: what they say of themselves is so, and what they show can be seen."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from loadtest.plan import file as planfile
from tests.loadtest.records import rounds_in
from tests.support.server import ROOT

if TYPE_CHECKING:
    from loadtest.plan.plan import Plan

pytestmark = pytest.mark.slow

FOLDER = ROOT / "loadtest" / "plans"
PLANS = sorted(FOLDER.glob("*.toml"))
START_AND_STOP_S = 1.5  # of a round, beside its load
MOST_S = 360
LONG = {"behind-nginx", "peers-asgi", "peers-wsgi"}  # two rates, or every kind of request, on every server
DEADLINE_S = 110


def read(name: str) -> Plan:
    return planfile.read(FOLDER / f"{name}.toml", {})


def seconds(plan: Plan) -> float:
    return sum(slot.load.warmup_s + slot.load.duration_s + START_AND_STOP_S for slot in plan.slots())


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_a_plan_says_what_it_asks_and_keeps_to_its_time(path: Path) -> None:
    plan = read(path.stem)
    head = " ".join(
        line.removeprefix("#").strip() for line in path.read_text("utf-8").split("\nname = ")[0].splitlines()
    )
    assert plan.name == path.stem
    assert path.read_text("utf-8").startswith("# ")
    assert seconds(plan) <= MOST_S or path.stem in LONG
    if said := re.search(r"(\d+) rounds", head):
        assert int(said[1]) == len(list(plan.slots()))
    if said := re.search(r"about ([\d.]+)\s+minutes", head):
        assert seconds(plan) / 60 == pytest.approx(float(said[1]), rel=0.3)
    assert all((FOLDER / server.cwd).is_dir() for server in plan.servers)


def test_the_promised_plans_are_there() -> None:
    assert {path.stem for path in PLANS} >= {
        "accept", "backlog", "calibrate", "demo", "peers-asgi", "peers-stream", "workers-cpu", "workers-io",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["workers-io", "workers-cpu"])
def test_workers_are_varied_and_threads_beside_them(name: str) -> None:
    commands = [server.command for server in read(name).servers]
    shapes = {tuple(int(n[1]) if (n := re.search(rf"--{what} (\d+)", c)) else 1 for what in ("workers", "threads"))
              for c in commands}  # fmt: skip
    assert shapes >= {(1, 1), (2, 1), (4, 1), (8, 1), (1, 4), (1, 8)}


def run(name: str, out: Path, *flags: str, statuses: tuple[int, ...] = (0,)) -> list[dict[str, Any]]:
    """A short run of a plan: its rounds. It ends with one of the statuses; 1 says that no round was valid."""
    argv = [sys.executable, "-m", "loadtest", "run", str(FOLDER / f"{name}.toml"), "--out", str(out), *flags]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.returncode in statuses, done.stderr
    return rounds_in(out)


@pytest.mark.slow
def test_accept_shows_what_each_worker_did(tmp_path: Path) -> None:
    rounds = run("accept", tmp_path / "out", "--rounds", "1", "--duration", "1", "--warmup", "0.2")
    assert len(rounds) == 6
    for done in rounds:
        workers = done["signals"]["workers"]
        assert [worker["slot"] for worker in workers] == [0, 1, 2, 3]
        assert sum(worker["requests"] for worker in workers) > 0
    report = (tmp_path / "out" / "report.md").read_text()
    assert report.count("| by worker ") == 2
    assert re.search(r"\| shared, epoll +\| +4 \| +requests \| +[01]\.\d{3} \|", report)


@pytest.mark.slow
def test_a_short_backlog_drops_connections_and_their_clients_wait_a_second(tmp_path: Path) -> None:
    """Where the machine is busy the generator may lag too, and that verdict comes first: so the drops are looked at."""
    rounds = run("backlog", tmp_path / "out", "--rounds", "1", "--rate", "170", "--duration", "6", statuses=(0, 1))
    by_name = {done["configuration"]: done for done in rounds}
    short, roomy = by_name["backlog 5"], by_name["backlog 2048"]
    assert (short["signals"]["queue"]["limit"], roomy["signals"]["queue"]["limit"]) == (5, 2048)
    assert short["signals"]["queue"]["drops"] > 0 == roomy["signals"]["queue"]["drops"]
    assert short["verdict"]["name"] in ("BACKLOG-DROP", "GENERATOR", "SHARED-CPU", "INVALID")
    assert short["client"]["latency"]["max_ns"] > 900_000_000  # the first repetition of a SYN comes after 1 s
