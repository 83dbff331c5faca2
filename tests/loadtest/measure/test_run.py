"""Whole runs of `loadtest run` as a user starts it, on real servers and the real generator."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from loadtest.measure import procfs
from tests.loadtest.lab import DEADLINE_S, Lab
from tests.support.wait import eventually

pytestmark = pytest.mark.slow

GOOD = "good={python} -m prefork serve nap --workers 2 --bind {address}"
QUICK = ("--scenario", "nap", "--rounds", "1", "--connections", "4", "--duration", "0.5", "--warmup", "0.3")


def servers_left() -> list[str]:
    """Command lines of living processes that this test's servers may have left."""
    found = []
    for pid in Path("/proc").iterdir():
        if pid.name.isdecimal() and (seen := procfs.stat(int(pid.name))) and seen.state not in "ZX":
            try:
                line = (pid / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            found.append(line)
    return found


@pytest.mark.smoke
@pytest.mark.slow
def test_a_good_run_writes_rounds_and_prints_the_table(lab: Lab) -> None:
    done = lab.run("--server", GOOD, "--server", GOOD.replace("good", "same"), *QUICK)
    assert done.returncode == 0, done.stderr
    head, _, good, same = done.stdout.splitlines()[:4]
    assert head.split()[:3] == ["configuration", "requests/s", "p50"]
    assert good.startswith("good ")
    assert "(n=1)" in same
    first, second = lab.rounds()
    assert {first["configuration"], second["configuration"]} == {"good", "same"}
    assert first["seed"] == second["seed"] > 0
    client, seen = first["client"], first["signals"]
    assert 0 < client["completed"] <= 2 / 0.005 * client["duration_s"] * 1.1  # two workers, 5 ms each
    assert client["failures"] == {}
    assert (client["generator"]["engine"], client["connections"]) == ("fast", 4)
    assert seen["server"]["processes"] == 3  # master and two workers
    assert 0 < seen["server"]["cpu_ns"] < 2 * client["duration_s"] * 1e9 * os.cpu_count()
    assert seen["generator"]["cpu_ns"] > 0
    assert seen["queue"]["limit"] > 0
    assert seen["pss_bytes"] > 1_000_000
    assert first["provenance"]["kernel"] == os.uname().release
    assert "| good" in (lab.out / "report.md").read_text()
    assert 'data-series="rate_per_s"' in (lab.out / "report.html").read_text()
    assert "stopped" in (lab.out / "logs" / "000" / "server.log").read_text()
    assert not [line for line in servers_left() if str(lab.folder) in line]


@pytest.mark.timing
def test_a_run_by_schedule_shows_both_clocks(lab: Lab) -> None:
    done = lab.run("--server", GOOD, *QUICK, "--rate", "100", "--arrivals", "poisson")
    assert done.returncode == 0, done.stderr
    (kept,) = lab.rounds()
    client = kept["client"]
    assert client["generator"]["engine"] == "fast"
    assert client["arrivals"]["offered"] == client["completed"]
    row = next(line for line in done.stdout.split("by schedule")[1].splitlines() if line.startswith("good"))
    assert row.split()[1:3] == [str(client["completed"]), "0"]
    assert "4 connections, 100/s (poisson)" in done.stdout


def another(lab: Lab) -> Lab:
    folder = lab.folder / "another"
    folder.mkdir()
    return Lab(folder)


SPOILED = """
    import itertools, socketserver, sys
    GOOD = int(sys.argv[2])
    answers = itertools.count()
    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            while self.rfile.readline():
                while self.rfile.readline() not in (b"\\r\\n", b""):
                    pass
                status = b"200 OK" if next(answers) < GOOD else b"500 No"
                self.wfile.write(b"HTTP/1.1 " + status + b"\\r\\nContent-Length: 2\\r\\n\\r\\nok")
    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = daemon_threads = True
    Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
    """


@pytest.mark.slow
def test_a_run_of_which_no_round_can_be_used_ends_with_status_1(lab: Lab) -> None:
    """The server answers 50 requests well, and then all others with 500."""
    server = lab.script("spoiled.py", SPOILED)
    quick = ("--scenario", "http", "--rounds", "2", "--duration", "0.5", "--warmup", "0.2", "--connections", "4")
    done = lab.run("--server", f"s={{python}} {server} {{port}} 50", *quick)
    assert done.returncode == 1
    assert "s (http) has no valid round: 2 INVALID; the table says why" in done.stderr
    rounds = lab.rounds()
    assert [(kept["cycle"], kept["again"]) for kept in rounds] == [(0, None), (1, None)]
    assert "INVALID in round 0, 1: " in done.stdout
    assert another(lab).run("--server", f"s={{python}} {server} {{port}} 999999", *quick).returncode == 0


@pytest.mark.slow
def test_arrivals_by_chance_are_the_same_for_all_servers_of_a_cycle(lab: Lab) -> None:
    servers = ("--server", GOOD, "--server", GOOD.replace("good", "same"))
    done = lab.run(*servers, *QUICK, "--rate", "150", "--arrivals", "poisson", "--rounds", "3", "--duration", "1")
    assert done.returncode == 0, done.stderr
    offered: dict[int, list[int]] = {}
    for kept in lab.rounds():
        offered.setdefault(kept["cycle"], []).append(kept["client"]["arrivals"]["offered"])
    for found in offered.values():  # of both servers, and of a round that was measured again
        assert len(found) >= 2
        assert max(found) - min(found) <= 9  # at the window's ends; two schedules differ by 17, the root of 2 x 150
    same = next(line for line in done.stdout.split("ratio to good")[1].splitlines() if line.startswith("same"))
    assert same.split()[1:3] == ["3", "-"]  # requests/s are what was asked for


@pytest.mark.slow
def test_the_order_of_a_run_can_be_had_again(lab: Lab) -> None:
    servers = [word for name in "abc" for word in ("--server", GOOD.replace("good", name))]
    quick = (*QUICK, "--duration", "0.2", "--warmup", "0")
    assert lab.run(*servers, *quick, "--seed", "5").returncode == 0
    assert "seed = 5" in (lab.out / "plan.toml").read_text()
    again = another(lab)
    assert again.run(str(lab.out / "plan.toml")).returncode == 0
    both = [[kept["configuration"] for kept in each.rounds()] for each in (lab, again)]
    assert both[0] == both[1]
    assert sorted(both[0]) == ["a", "b", "c"]


@pytest.mark.slow
def test_the_readable_engine_measures_the_same_server(lab: Lab) -> None:
    done = lab.run("--server", GOOD, *QUICK, "--engine", "readable")
    assert done.returncode == 0, done.stderr
    (kept,) = lab.rounds()
    assert (kept["client"]["generator"]["engine"], kept["client"]["connections"]) == ("readable", 4)
    assert "readable engine" in done.stdout


@pytest.mark.slow
def test_the_same_plan_again_extends_the_run(lab: Lab) -> None:
    plan = lab.script(
        "plan.toml",
        """
        scenario = "nap"
        connections = 4
        duration = "500ms"
        warmup = 0.3
        rounds = 1
        [[server]]
        name = "good"
        command = "{python} -m prefork serve nap --bind {address}"
        """,
    )
    for cycles in (1, 2):
        done = lab.run(str(plan))
        assert done.returncode == 0, done.stderr
        assert [kept["cycle"] for kept in lab.rounds()] == list(range(cycles))
    assert lab.run(str(plan), "--connections", "5").returncode == 2


@pytest.mark.slow
def test_one_bad_server_costs_only_its_own_rounds(lab: Lab) -> None:
    bad = "bad={python} -c 'import sys; sys.exit(\"no config at {port}\")'"
    done = lab.run("--server", bad, "--server", GOOD, *QUICK, "--rounds", "2")
    assert done.returncode == 1
    assert "bad (nap): FAILED: the server exited with status 1 before it was ready" in done.stderr
    assert "no config at" in done.stderr
    assert sorted(kept["configuration"] for kept in lab.rounds()) == ["bad", "good", "good"]
    bad_row, good_row = done.stdout.splitlines()[2:4]
    assert bad_row.split()[:3] == ["bad", "-", "-"]
    assert "0" not in bad_row.split()
    assert good_row.split()[:1] == ["good"]


def test_a_server_that_exits_at_start_ends_the_wait_at_once(lab: Lab) -> None:
    began = time.monotonic()
    done = lab.run("--server", "bad={python} -c 'print(\"last words\"); exit(3)' {port}", *QUICK)
    assert done.returncode == 1
    assert "FAILED: the server exited with status 3 before it was ready\n  last words" in done.stderr
    assert time.monotonic() - began < 25  # far below the 30 s that a silent server gets
    assert "last words" in (lab.out / "logs" / "000" / "server.log").read_text()
    (kept,) = lab.rounds()
    assert (kept["client"], kept["verdict"]["name"]) == (None, "INVALID")


def test_a_command_that_does_not_exist(lab: Lab) -> None:
    done = lab.run("--server", "bad=no-such-command {port}", *QUICK)
    assert done.returncode == 1
    assert "cannot start 'no-such-command': the command: No such file or directory" in done.stderr


def test_a_server_of_another_protocol_is_told_so(lab: Lab) -> None:
    done = lab.run("--server", "web={python} -m http.server --bind {host} {port}", *QUICK)
    assert done.returncode == 1
    assert "is nap its scenario?" in done.stderr


def test_a_server_that_cannot_run_here_is_left_out_without_failing_the_run(lab: Lab) -> None:
    done = lab.run("--server", "c={python} -c 'print(\"no compiler\"); exit(77)' {port}", *QUICK)
    assert done.returncode == 0, done.stderr
    assert "c (nap): LEFT-OUT: no compiler" in done.stderr
    assert "warning: c: LEFT-OUT in round 0: no compiler" in done.stdout


def test_nobody_at_the_attached_address(lab: Lab) -> None:
    done = lab.run("--attach", "127.0.0.1:1", *QUICK)
    assert done.returncode == 1
    assert "nobody answers at 127.0.0.1:1: Connection refused; start that server first" in done.stderr


def test_a_generator_that_fails_shows_its_log(lab: Lab) -> None:
    (lab.folder / "broken" / "locust").mkdir(parents=True)
    lab.script("broken/locust/__init__.py", "")
    lab.script("broken/locust/__main__.py", "import sys; sys.exit('the generator is broken')")
    done = lab.run("--server", GOOD, *QUICK, env={"PYTHONPATH": str(lab.folder / "broken")})
    assert done.returncode == 1
    assert "the generator exited with status 1 without a result\n  the generator is broken" in done.stderr
    assert "the generator is broken" in (lab.out / "logs" / "000" / "generator.log").read_text()


@pytest.mark.slow
def test_a_server_that_dies_under_load_ends_the_round(lab: Lab) -> None:
    mortal = lab.script(
        "mortal.py",
        """
        import os, socketserver, sys
        class Handler(socketserver.StreamRequestHandler):
            served = 0
            def handle(self):
                self.wfile.write(b"hello from prefork\\n")
                self.wfile.write(b"you said: " + self.rfile.readline())
                Handler.served += 1
                if Handler.served == 50:
                    os.abort()
        socketserver.TCPServer.allow_reuse_address = True
        socketserver.TCPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
        """,
    )
    done = lab.run("--server", f"mortal={{python}} {mortal} {{port}}", *QUICK, "--duration", "20")
    assert done.returncode == 1
    assert "FAILED: the server was killed by SIGABRT during the round" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_keeps_the_finished_rounds_and_stops_the_server(lab: Lab, number: signal.Signals) -> None:
    marker = f"X_{os.getpid()}_{number}"
    server = f"good=sh -c '{{python}} -m prefork serve nap --bind {{address}} & wait; : {marker}'"
    process = lab.start("--server", server, *QUICK, "--rounds", "50")
    eventually((lab.out / "logs" / "001" / "generator.log").exists, within_s=DEADLINE_S, what="a second round")
    process.send_signal(number)
    out, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130, err
    assert "interrupted: the finished rounds are kept" in err
    assert out.startswith("configuration")
    assert len(lab.rounds()) >= 1
    assert not [line for line in servers_left() if marker in line or str(lab.folder) in line]


@pytest.mark.slow
def test_a_running_server_can_be_attached_and_its_processes_are_found_by_its_socket(lab: Lab, serve: Any) -> None:
    server = serve("nap", "--workers", "2")
    done = lab.run("--attach", server.address, *QUICK)
    assert done.returncode == 0, done.stderr
    (kept,) = lab.rounds()
    assert kept["configuration"] == server.address
    assert kept["signals"]["server"]["processes"] == 3  # master and two workers
    assert kept["signals"]["server"]["cpu_ns"] > 0
    assert kept["signals"]["pss_bytes"] > 1_000_000
    assert kept["signals"]["queue"]["limit"] > 0
    assert [worker["slot"] for worker in kept["signals"]["workers"]] == [0, 1]
    assert kept["client"]["completed"] > 0


@pytest.mark.slow
def test_a_prefork_server_tells_what_each_worker_did_and_both_ends_agree(lab: Lab) -> None:
    asked = GOOD + " --control {control}"
    done = lab.run("--server", asked, *QUICK, "--duration", "1")
    assert done.returncode == 0, done.stderr
    (kept,) = lab.rounds()
    workers = kept["signals"]["workers"]
    assert [worker["slot"] for worker in workers] == [0, 1]
    assert 0 < sum(worker["requests"] for worker in workers) <= kept["client"]["completed"] * 1.1
    assert 0 < sum(worker["connections"] for worker in workers) <= 2
    row = next(line for line in done.stdout.split("by worker")[1].splitlines() if line.startswith("good"))
    assert row.split()[1:3] == ["2", "requests"]
    assert 0.5 <= float(row.split()[3]) <= 1  # of two workers
    assert not [note for note in kept["notes"] if "status" in note]


@pytest.mark.slow
def test_a_server_that_does_not_answer_at_its_control_socket_is_measured_all_the_same(lab: Lab) -> None:
    done = lab.run("--server", GOOD.replace("{python}", "env X={control} {python}"), *QUICK)
    assert done.returncode == 0, done.stderr
    assert "good: the server's status is not known at all times: No such file or directory" in done.stdout
    (kept,) = lab.rounds()
    assert [worker["requests"] for worker in kept["signals"]["workers"]] == [None, None]  # their CPU time is known
