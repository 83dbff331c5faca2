"""What the person at the terminal sees of a real run, and what its exit status says."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from loadtest.measure import procfs
from tests.loadtest.records import rounds_in
from tests.support.server import ROOT
from tests.support.wait import eventually

pytestmark = pytest.mark.slow

NAP = "nap={python} -m prefork serve nap --workers 2 --bind {address}"
SHORT = ("--scenario", "nap", "--connections", "4", "--duration", "1", "--warmup", "0.5")
DEADLINE_S = 60.0


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "loadtest", "run", *arguments]


def at_a_terminal(folder: Path, *arguments: str) -> tuple[int, str]:
    """Run there; returns the exit status and what was written, without the terminal's own codes."""
    pid, screen = pty.fork()
    if pid == 0:
        os.chdir(folder)
        argv = command(*arguments)
        os.execve(argv[0], argv, {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "120"})
    seen = bytearray()
    deadline = time.monotonic() + DEADLINE_S
    try:
        while time.monotonic() < deadline:
            seen += os.read(screen, 65536)
    except OSError:  # EIO: everybody has closed the terminal
        pass
    else:
        os.kill(pid, signal.SIGTERM)
    os.close(screen)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return status, re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode())


@pytest.mark.slow
def test_a_terminal_shows_the_live_rate_the_rounds_and_the_time_left(tmp_path: Path) -> None:
    two = ("--server", NAP, "--server", NAP.replace("nap", "same", 1))
    status, screen = at_a_terminal(tmp_path, *two, *SHORT, "--rounds", "1", "--out", "out")
    assert status == 0, screen
    live = [int(rate.replace(",", "")) for rate in re.findall(r"(?:nap|same) \(nap\) ([\d,]+)/s ", screen)]
    measured = [done["client"] for done in rounds_in(tmp_path / "out")]
    fastest = max(client["rate_per_s"] for client in measured)
    assert live
    assert 0 < max(live) < 3 * fastest
    left_s = [60 * int(minutes) + int(seconds) for minutes, seconds in re.findall(r"(\d+):(\d\d) left", screen)]
    assert left_s[-1] == 0 < max(left_s) < DEADLINE_S
    assert "1/2" in screen
    last = "nap" if re.search(r"\[1/2\] same", screen) else "same"  # the order within a cycle is random
    assert re.search(rf"\[2/2\] {last} \(nap\): [\d,]+/s, p50 ", screen)
    assert not list((tmp_path / "out").rglob("*.live"))


@pytest.mark.slow
def test_a_run_goes_on_until_it_is_narrow_or_time_is_up_and_conditions_decide_its_status(tmp_path: Path) -> None:
    """The first run has no time for more than its rounds; the second extends it, without any limit worth the name."""
    two = ("--server", NAP, "--server", NAP.replace("nap", "same", 1))
    quick = (*SHORT, "--duration", "0.3", "--warmup", "0.2", "--rounds", "6", "--no-aa", "--out", "out")
    conditions = ("--fail-if", "p50<5ms", "--fail-if", "(nap): errors>0", "--fail-if", "same: p99.9>1ns")
    done = run(tmp_path, *two, *quick, *conditions, "--until", "0.0001", "--within", "1s")
    assert done.returncode == 3, done.stderr
    assert len(rounds_in(tmp_path / "out")) == 12
    assert re.search(r"time is up: ±\d+\.\d% in requests/s \(same, nap, n=\d\), wanted ±0\.01%", done.stderr)
    assert re.search(r"warning: the intervals did not become as narrow as ±0\.01%: ±", done.stdout)
    broken = [line for line in done.stderr.splitlines() if line.startswith("--fail-if")]
    assert [line.partition(" is ")[0] for line in broken] == ['--fail-if "same: p99.9>1ns": same (nap): p99.9']
    again = run(tmp_path, *two, *quick, "--until", "99%")
    assert again.returncode == 0, again.stderr
    assert "narrow enough: ±" in again.stderr
    assert len(rounds_in(tmp_path / "out")) == 12
    assert "did not become" not in again.stdout


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        check=False,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=2 * DEADLINE_S,
    )


@pytest.mark.slow
def test_a_generator_that_is_killed_ends_the_round_with_its_log_and_without_figures(tmp_path: Path) -> None:
    process = subprocess.Popen(
        command("--server", NAP, *SHORT, "--duration", "50", "--rounds", "1", "--out", "out"),
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    live = tmp_path / "out" / "logs" / "000" / "generator.live"
    eventually(lambda: live.exists() and live.read_bytes(), within_s=DEADLINE_S, what="load")
    (generator,) = [pid for pid in procfs.tree(process.pid) if b"locust" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(generator, signal.SIGKILL)
    out, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 1, err
    assert "FAILED: the generator was killed by SIGKILL without a result\n  " in err
    assert re.search(r"^nap +- +- ", out, re.MULTILINE)
    (done,) = rounds_in(tmp_path / "out")
    assert (done["client"], done["signals"], done["verdict"]["name"]) == (None, None, "INVALID")
    assert not live.exists()
