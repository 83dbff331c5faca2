"""Prints what the lab and other load generators report about servers of known behaviour, beside the servers' counts.

`python -m tests.loadtest.truth.table [--only WORD] [--seconds S]`. Tools that are not installed have no column. Each
cell is `reported (true)`: requests/s, then p99 in ms. True is what that tool's own server counted during its run, from
the first request of the load to its last answer; for the lab, in its window. A true p99 is the server's service time:
at a rate, users also wait for a connection, so the lab's reported p99 stands beside it from the send.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from loadtest.measure.server import free_port
from prefork.status.histogram import Histogram
from tests.loadtest.truth.bench import SERVER, Notes, measure
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

STOP_S = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One server under one load."""

    mode: str
    connections: int = 8
    rate: float = 0
    each: bool = False  # a connection for each request
    poisson: bool = False
    cap: int = 10_000
    seconds: float = 0  # 0: as asked
    scenario: str = "http"

    @property
    def name(self) -> str:
        rate = f" at {self.rate:g}/s{' poisson' if self.poisson else ''}" if self.rate else ""
        cap = f", {self.cap} in flight" if self.cap < 10_000 else ""
        return f"{self.mode}{', each' if self.each else ''}{rate}{cap}"


ROWS = [
    Row(mode="fixed 5"),
    Row(mode="unix fixed 5"),
    Row(mode="fixed 5", each=True),
    Row(mode="mutex 5"),
    Row(mode="pool 4 5"),
    Row(mode="bimodal 5"),
    Row(mode="leak 5 20"),
    Row(mode="warm 0.6 5"),
    Row(mode="stall 0.8 0.3 5"),
    Row(mode="first 100 5"),
    Row(mode="errors 10 5"),
    Row(mode="reset 20 5"),
    Row(mode="short 20 5"),
    Row(mode="close 10 5"),
    Row(mode="hangup 10 5"),
    Row(mode="chunked 5"),
    Row(mode="slowbody 12"),
    Row(mode="lf 5"),
    Row(mode="double-length 5"),
    Row(mode="cpu 2000", connections=2),
    Row(mode="accept-late 20", each=True),
    Row(mode="talkback 5", scenario="talkback"),
    Row(mode="echo 5", scenario="echo"),
    Row(mode="mutex 5", rate=150, connections=64),
    Row(mode="pool 4 5", rate=300, connections=64, poisson=True),
    Row(mode="mutex 5", rate=206, connections=64, seconds=2),
    Row(mode="mutex 5", rate=350, connections=64),
    Row(mode="mutex 5", rate=520, connections=64),
    Row(mode="mutex 5", rate=350, connections=64, cap=10),
    Row(mode="fixed 900", connections=16, seconds=5),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What a tool reported."""

    rate: float | None = None
    p99_ms: float | None = None
    failures: str = ""


def wrk(row: Row, url: str, seconds: float, folder: Path) -> tuple[list[str], Callable[[str], Said]]:
    close = ["-H", "Connection: close"] if row.each else []
    command = ["wrk", "-t1", f"-c{row.connections}", f"-d{round(seconds)}s", "--latency", *close, url]

    def read(out: str) -> Said:
        p99 = re.search(r"99%\s+([0-9.]+)(us|ms|s)", out)
        bad = re.findall(r"Non-2xx or 3xx responses: \d+|Socket errors: .*", out)
        return Said(
            rate=_number(r"Requests/sec:\s+([0-9.]+)", out),
            p99_ms=float(p99[1]) * {"us": 0.001, "ms": 1, "s": 1000}[p99[2]] if p99 else None,
            failures="; ".join(bad).replace("Socket errors: ", "").replace("Non-2xx or 3xx responses: ", "not 2xx "),
        )

    return command, read


def ab(row: Row, url: str, seconds: float, folder: Path) -> tuple[list[str], Callable[[str], Said]]:
    keep = [] if row.each else ["-k"]
    command = ["ab", *keep, "-r", "-l", f"-c{row.connections}", "-t", f"{seconds:.0f}", "-n", "1000000", f"{url}/"]

    def read(out: str) -> Said:
        failed, bad = _number(r"Failed requests:\s+(\d+)", out), _number(r"Non-2xx responses:\s+(\d+)", out)
        return Said(
            rate=_number(r"Requests per second:\s+([0-9.]+)", out),
            p99_ms=_number(r"\s99%\s+(\d+)", out),
            failures=", ".join(f"{n:g} {what}" for n, what in ((failed, "failed"), (bad, "not 2xx")) if n),
        )

    return command, read


def h2load(row: Row, url: str, seconds: float, folder: Path) -> tuple[list[str], Callable[[str], Said]]:
    log = folder / "h2load.log"
    log.unlink(missing_ok=True)
    rate = [f"--rps={row.rate / row.connections:g}"] if row.rate else []
    command = ["h2load", "--h1", f"-c{row.connections}", f"-D{seconds:.0f}", *rate, f"--log-file={log}", f"{url}/"]

    def read(out: str) -> Said:
        times = sorted(int(line.split()[2]) for line in log.read_text().splitlines()) if log.exists() else []
        counts = re.search(r"(\d+) failed, (\d+) errored, (\d+) timeout", out)
        bad = f"{counts[1]} failed" if counts and int(counts[1]) else ""
        return Said(
            rate=_number(r"finished in [^,]*, ([0-9.]+) req/s", out),
            p99_ms=times[min(len(times) - 1, len(times) * 99 // 100)] / 1000 if times else None,
            failures=bad,
        )

    return command, read


def hey(row: Row, url: str, seconds: float, folder: Path) -> tuple[list[str], Callable[[str], Said]]:
    close = ["-disable-keepalive"] if row.each else []
    rate = ["-q", f"{row.rate / row.connections:g}"] if row.rate else []
    command = ["hey", f"-c={row.connections}", f"-z={seconds:g}s", *close, *rate, url]

    def read(out: str) -> Said:
        p99_s = _number(r"99% in ([0-9.]+) secs", out)
        bad = re.findall(r"\[([345]\d\d)\]\s+(\d+) responses", out)
        bad += [("error", count) for count in re.findall(r"^\s+\[(\d+)\]\s+Get ", out, re.MULTILINE)]
        return Said(
            rate=_number(r"Requests/sec:\s+([0-9.]+)", out),
            p99_ms=p99_s * 1000 if p99_s is not None else None,
            failures=", ".join(f"{count} {what}" for what, count in bad),
        )

    return command, read


def wrk2(row: Row, url: str, seconds: float, folder: Path) -> tuple[list[str], Callable[[str], Said]]:
    command, read = wrk(row, url, seconds, folder)
    return ["wrk2", *command[1:-1], f"-R{row.rate:g}", url], read


TOOLS = {
    name: tool
    for name, tool in {"wrk": wrk, "ab": ab, "h2load": h2load, "hey": hey, "wrk2": wrk2}.items()
    if shutil.which(name)
}


def plays(tool: str, row: Row) -> bool:
    """Whether the tool has such a load."""
    if row.scenario != "http" or row.mode.startswith("unix ") or row.poisson or row.cap < 10_000:
        return False
    if row.rate:
        return tool in ("h2load", "hey", "wrk2")
    return tool in ("wrk", "ab", "hey") or (tool == "h2load" and not row.each)


def run_tool(name: str, row: Row, seconds: float, folder: Path) -> str:
    """Run a tool against a server of its own, and return its cell."""
    address, log = f"127.0.0.1:{free_port()}", folder / f"{name}.json"
    server = subprocess.Popen([sys.executable, str(SERVER), address, str(log), *row.mode.split()])
    try:
        eventually(lambda: _asked(address), within_s=10, what=f"{row.mode} answers")
        command, read = TOOLS[name](row, f"http://{address}", seconds, folder)
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=seconds + STOP_S)
    except subprocess.TimeoutExpired:
        return "does not end"
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(STOP_S)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or [f"status {done.returncode}"]
        return lines[-1][:30]
    notes = Notes.read(log)
    first_ns = min((arrived for _, arrived, *_ in notes.exchanges[1:]), default=notes.ended_ns)
    last_ns = max((answered for _, _, answered, *_ in notes.exchanges[1:]), default=first_ns) + 1
    truth = notes.between(first_ns, last_ns)
    said = read(done.stdout)
    p99_ns = truth.quantile_ns(0.99) if truth.latencies_ns else None
    return _cell(said, truth.ended / truth.duration_s, p99_ns, said.failures, truth.failed.total())


def run_lab(row: Row, seconds: float, folder: Path) -> tuple[str, str]:
    """Run the lab, and return its cell and its verdict."""
    load: dict[str, Any] = {
        "scenario": row.scenario,
        "connections": row.connections,
        "duration": seconds,
        "keep-alive": not row.each,
        "max-in-flight": row.cap,
    }
    if row.rate:
        load |= {"rate": row.rate, "arrivals": "poisson" if row.poisson else "constant"}
    done = measure(folder, {"server": row.mode}, {"http": load}).rounds[0]  # an INVALID one is measured again
    if done.truth is None:
        return "cannot be measured", f"{done.verdict}: {done.round['verdict']['reason']}"
    client, truth = done.client, done.truth
    seen = Histogram.from_json(client["service_time" if row.rate else "latency"])
    rate = client.get("rate_per_s", client["completed"] / client["duration_s"])
    failures = ", ".join(f"{count} {cause}" for cause, count in client["failures"].items())
    said = Said(rate=rate, p99_ms=seen.quantile(0.99) / 1e6 if seen.n else None)
    true_rate = (truth.ended if row.rate else truth.parts) / truth.duration_s
    cell = _cell(
        said,
        true_rate,
        truth.quantile_ns(0.99) if truth.latencies_ns else None,
        failures,
        truth.began_failed.total(),
    )
    return cell, f"{done.verdict}: {done.round['verdict']['reason']}"


def _cell(said: Said, rate: float, p99_ns: int | None, failures: str, failed: int) -> str:
    p99 = "-" if said.p99_ms is None else f"{said.p99_ms:.3g}"
    true_p99 = "-" if p99_ns is None else f"{p99_ns / 1e6:.3g}"
    bad = f"; {failures or 'no failure'} ({failed})" if failures or failed else ""
    return f"{'-' if said.rate is None else f'{said.rate:,.1f}'} ({rate:,.1f}); {p99} ({true_p99}){bad}"


def _asked(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            return bool(connection.recv(100))
    except OSError:
        return False


def _number(pattern: str, text: str) -> float | None:
    found = re.search(pattern, text)
    return float(found[1]) if found else None


def rows(only: str, seconds: float) -> Iterator[list[str]]:
    """Measure row by row."""
    for row in ROWS:
        if only not in row.name:
            continue
        span_s = row.seconds or seconds
        with tempfile.TemporaryDirectory(prefix="truth-") as folder:
            lab, verdict = run_lab(row, span_s, Path(folder))
            others = [run_tool(name, row, span_s, Path(folder)) if plays(name, row) else "" for name in TOOLS]
        yield [row.name, lab, *others, verdict[:90]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="only rows with this word")
    parser.add_argument("--seconds", type=float, default=1.0, help="how long each tool measures")
    parser.add_argument("--format", default="github", choices=("github", "simple", "tsv"))
    options = parser.parse_args()
    began = time.monotonic()
    made = []
    try:
        for row in rows(options.only, options.seconds):
            made.append(row)
            print(*row, sep=" | ", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        print("interrupted: what was measured is shown", file=sys.stderr)
    print(tabulate(made, ["mode", "lab", *TOOLS, "verdict"], tablefmt=options.format))
    print(f"{len(made)} modes, {time.monotonic() - began:.0f} s, load average {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
