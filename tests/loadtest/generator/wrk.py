"""Load on a server in C, from wrk, our generator and a plain locust user in turns, each side on its own CPU."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from loadtest.measure.child import Child
from prefork.status.histogram import Histogram, highest, lowest
from tests.support.server import ROOT
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

WARMUP_S = 1
PLAIN_USERS = """
from locust import FastHttpUser, task

class Plain(FastHttpUser):
    @task
    def get(self):
        self.client.get("/")
"""
_UNITS_NS = {"us": 1e3, "ms": 1e6, "s": 1e9}


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What one generator saw of one server."""

    rate_per_s: float
    p50_ns: float
    p99_ns: float


class Bench:
    """A folder, a CPU for the server and one for the load."""

    def __init__(self, folder: Path, seconds: int) -> None:
        self.folder = folder
        self.seconds = seconds
        self.server_cpu, self.load_cpu = sorted(os.sched_getaffinity(0))[:2]
        self.address = ""

    @contextlib.contextmanager
    def serving(self, busy_us: int) -> Iterator[None]:
        """The server in C, which is busy for so long with each request."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        command = [sys.executable, str(ROOT / "loadtest/peers/compiled.py"), "sink.c"]
        with self._child([*command, "127.0.0.1", str(port), str(busy_us)], self.server_cpu):
            eventually(lambda: self._answers(port), within_s=20, what="the server")
            yield

    def _answers(self, port: int) -> bool:
        with socket.socket() as trial:
            return trial.connect_ex(("127.0.0.1", port)) == 0

    def wrk(self, connections: int) -> Measured:
        """What wrk says. It corrects its latencies, see `as_wrk_corrects`."""
        said = self._run(
            ["wrk", "-t1", f"-c{connections}", f"-d{self.seconds}s", "--latency", f"http://{self.address}/"]
        )
        found = {rank: (float(number), unit) for rank, number, unit in re.findall(r"(\d+)% +([\d.]+)(us|ms|s)\n", said)}
        rate = re.search(r"^Requests/sec: +([\d.]+)$", said, re.MULTILINE)
        assert rate, said
        assert "Socket errors" not in said, said
        p50_ns, p99_ns = (found[rank][0] * _UNITS_NS[found[rank][1]] for rank in ("50", "99"))
        return Measured(rate_per_s=float(rate[1]), p50_ns=p50_ns, p99_ns=p99_ns)

    def ours(self, connections: int, engine: str = "fast") -> Measured:
        """What the lab's generator says."""
        result = self.folder / "result.json"
        result.unlink(missing_ok=True)
        clients = ("--connections", str(connections)) if engine == "fast" else _users(connections)
        options = ("--scenario", "http", "--engine", engine, "--host", f"http://{self.address}", *clients)
        window = ("--run-time", f"{self.seconds + WARMUP_S}s", "--warmup", str(WARMUP_S), "--result", str(result))
        said = self._run([*_LOCUST, "-f", str(ROOT / "loadtest/locustfile.py"), *options, *window])
        assert result.exists(), said
        found = json.loads(result.read_text())
        assert found["failures"] == {}, said
        latency = Histogram.from_json(found["latency"])
        corrected = as_wrk_corrects(latency, found["duration_s"], connections)
        return Measured(
            rate_per_s=found["completed"] / found["duration_s"],
            p50_ns=_quantile(corrected, 0.50),
            p99_ns=_quantile(corrected, 0.99),
        )

    def plain_locust(self, users: int) -> float:
        """Requests per second of FastHttpUser, as locust itself counts them."""
        file = self.folder / "plain.py"
        file.write_text(PLAIN_USERS)
        stats = self.folder / "plain"
        options = (*_users(users), "--host", f"http://{self.address}", "--run-time", f"{self.seconds}s")
        said = self._run([*_LOCUST, "-f", str(file), *options, "--csv", str(stats)])
        with Path(f"{stats}_stats.csv").open() as rows:
            total = next(row for row in csv.DictReader(rows) if row["Name"] == "Aggregated")
        assert total["Failure Count"] == "0", said
        return float(total["Requests/s"])

    def _run(self, argv: list[str]) -> str:
        with self._child(argv, self.load_cpu) as child:
            assert child.ended(self.seconds + 60), child.tail()
            said = child.log.read_text()
            assert child.exit_code == 0, said
            return said

    def _child(self, argv: list[str], cpu: int) -> Child:
        log = self.folder / f"{Path(argv[0]).name}-{cpu}.log"
        env = {name: value for name, value in os.environ.items() if not name.startswith("LOCUST_")}
        return Child(argv, log=log, cwd=self.folder, env=env, cpus=[cpu])


_LOCUST = (sys.executable, "-m", "locust", "--headless", "--only-summary")


def _users(count: int) -> tuple[str, ...]:
    return "--users", str(count), "--spawn-rate", str(10 * count)


def as_wrk_corrects(latency: Histogram, duration_s: float, connections: int) -> dict[int, int]:
    """The latencies (ns -> how many) with those that wrk would add.

    wrk takes the mean time between two requests of a connection for the time at which they should have gone out. For a
    request that took more than twice as long it adds those that it takes to have been held up: one a mean shorter, one
    two means shorter, and so on. To compare like with like we do the same.
    """
    expected_ns = max(1, round(duration_s * 1e9 / max(1, latency.n // connections)))
    counts: dict[int, int] = {}
    for bucket, count in latency.to_json()["buckets"]:  # type: ignore[attr-defined]
        value = (lowest(bucket, latency.digits) + highest(bucket, latency.digits)) // 2
        counts[value] = counts.get(value, 0) + count
        if value >= 2 * expected_ns:
            for added in range(value - expected_ns, expected_ns, -expected_ns):
                counts[added] = counts.get(added, 0) + count
    return counts


def _quantile(counts: dict[int, int], share: float) -> int:
    left = share * sum(counts.values())
    for value in sorted(counts):
        left -= counts[value]
        if left <= 0:
            return value
    raise AssertionError("nothing was measured")
