"""Exclusive use: of a folder, which a second run is refused, and of the machine, about which both are warned."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from loadtest.measure.other_runs import OtherRuns
from tests.loadtest.lab import DEADLINE_S, Lab
from tests.support.server import ROOT
from tests.support.wait import eventually

if TYPE_CHECKING:
    from pathlib import Path

NAP = "nap={python} -m prefork serve nap --bind {address}"
QUICK = ("--scenario", "nap", "--connections", "2", "--duration", "0.5", "--warmup", "0.2", "--server", NAP)

HOLD = """
    import sys
    from loadtest.measure.other_runs import OtherRuns
    with OtherRuns():
        print("here", flush=True)
        sys.stdin.read()
"""


def test_a_neighbour_is_seen_while_it_lives_however_it_ends(lab: Lab) -> None:
    with OtherRuns() as ours:
        for kill in (False, True):
            process = subprocess.Popen(
                [sys.executable, lab.script("hold.py", HOLD)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
            with process:
                assert process.stdout
                assert process.stdout.readline() == b"here\n"
                assert process.pid in ours.others()
                assert ours.notes() == ["another loadtest run was on this machine"]
                if kill:
                    process.kill()
                else:
                    assert process.stdin
                    process.stdin.close()
                process.wait(DEADLINE_S)
            assert process.pid not in ours.others()
        assert os.getpid() not in ours.others()


@pytest.mark.slow
def test_two_runs_on_one_machine_are_both_warned_and_one_folder_takes_one(lab: Lab, tmp_path: Path) -> None:
    first = lab.start(*QUICK, "--rounds", "50")
    try:
        eventually((lab.out / "logs" / "001" / "generator.log").exists, within_s=DEADLINE_S, what="a second round")
        refused = lab.run(*QUICK, "--rounds", "1")
        assert refused.returncode == 2
        assert f"another run (pid {first.pid}) is writing to {lab.out}: wait for its end" in refused.stderr
        (tmp_path / "b").mkdir()
        second = Lab(tmp_path / "b")
        done = second.run(*QUICK, "--rounds", "1")
        assert done.returncode == 0, done.stderr
        assert "warning: another loadtest run (pid " in done.stderr.splitlines()[0]
        assert str(first.pid) in done.stderr.splitlines()[0]
        assert ": another loadtest run was on this machine (1 of 1 rounds)" in done.stdout
    finally:
        first.send_signal(signal.SIGINT)
        out, err = first.communicate(timeout=DEADLINE_S)
    assert first.returncode == 130, err
    notes = [note for kept in lab.rounds() for note in kept["notes"]]
    assert "another loadtest run was on this machine" in notes
    assert "another loadtest run was on this machine (" in out
    numbers = [kept["number"] for kept in lab.rounds()]
    assert numbers == list(range(len(numbers)))


@pytest.mark.slow
def test_a_server_of_the_lab_is_not_found_among_those_in_use(lab: Lab) -> None:
    places = {"XDG_RUNTIME_DIR": str(lab.folder), "TMPDIR": str(lab.folder), "PREFORK_CONTROL": "/nowhere/at/all"}
    status = [sys.executable, "-m", "prefork", "status"]
    env = {**os.environ, **places, "PYTHONPATH": str(ROOT)}
    del env["PREFORK_CONTROL"]

    def found() -> subprocess.CompletedProcess[str]:
        return subprocess.run(status, check=False, capture_output=True, text=True, env=env, timeout=DEADLINE_S)

    load = ("--scenario", "nap", "--rounds", "1", "--connections", "2", "--duration", "20")
    told = ("--server", "told={python} -m prefork serve nap --bind {address} --control {control}")
    for server in (("--server", NAP), told):
        process = lab.start(*load, *server, env=dict(places))
        logs = lab.out / "logs" / "000"
        eventually((logs / "generator.live").exists, within_s=DEADLINE_S, what="load")
        done = found()
        assert done.returncode == 6, done.stdout
        assert "no server" in done.stderr
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 130, err
        assert "control" not in (logs / "server.log").read_text()
        lab.out.rename(lab.folder / server[1][:4])
