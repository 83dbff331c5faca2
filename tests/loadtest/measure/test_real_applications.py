"""What the lab says of real applications, by prefork and by others: the verdict names the cure that works.

Other processes on this machine are part of what is measured, so a verdict may come at the third round only, and not at
all on a machine that is busy: then the lab says so.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from loadtest.measure.server import _PEERS
from tests.support.server import APPS

if TYPE_CHECKING:
    from tests.loadtest.lab import Lab

pytestmark = pytest.mark.slow

ROUNDS = 3  # at most
QUICK = ("--scenario", "http", "--duration", "1.5", "--warmup", "0.7", "--rounds", "1", "--no-aa")
DJANGO = f"{APPS / 'waits_django.py'}:application"
FASTAPI = f"{APPS / 'waits_fastapi.py'}:app"
FOR_A_POOL = "/thread?ms=150"  # slow enough that not the CPU is what is short
TAKEN = "threads were in the application"
SERVED = "were served at a time"


def prefork(app: str, *options: str, asked: bool) -> str:
    control = " --control {control}" if asked else ""
    return " ".join(["{python} -m prefork serve", app, *options, "-b {address}"]) + control


def says(lab: Lab, command: str, verdict: str, *parts: str, load: tuple[str, ...] = ("--connections", "32")) -> None:
    """Measure until the lab says so, and a reason with these parts; fail with all that it said."""
    said = []
    for _ in range(ROUNDS):
        done = lab.run("--server", f"it={command}", *QUICK, *load)
        assert done.returncode == 0, done.stderr
        last = lab.rounds()[-1]["verdict"]
        said.append(last)
        if last["name"] == verdict and all(part in last["reason"] for part in parts):
            return
    if verdict != "BUSY-MACHINE" and all(last["name"] == "BUSY-MACHINE" for last in said):
        pytest.skip(said[-1]["reason"])
    raise AssertionError(f"not {verdict} with {parts}, but {said}")


@pytest.mark.parametrize(
    ("options", "asked", "part"),
    [
        (("-w 1", "-t 1"), True, f"1.0 of 1 {TAKEN}"),
        (("-w 1", "-t 8"), True, f"of 8 {TAKEN}"),
        (("-w 4", "-t 1"), True, ""),  # of each look, one worker may be between two requests
        (("-w 1", "-t 1"), False, f"of 32 {SERVED}"),
        (("-w 1", "-t 8"), False, f"of 32 {SERVED}; its main threads waited for clients meanwhile"),
        (("-w 4", "-t 1"), False, f"of 32 {SERVED}"),
    ],
)
def test_all_threads_of_a_django_site_are_taken(lab: Lab, options: tuple[str, ...], asked: bool, part: str) -> None:
    says(lab, prefork(DJANGO, *options, asked=asked), "SERVER-THREADS", part, "--threads")


def test_a_django_site_with_a_thread_for_each_client_is_not_short_of_threads(lab: Lab) -> None:
    command = prefork(DJANGO, "-w 1", "-t 16", asked=False)
    says(lab, command, "IDLE-LIMITED", "that of a client alone", load=("--connections", "4"))


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("workers", [1, 4])
def test_a_fastapi_application_that_awaits_takes_more_connections(lab: Lab, workers: int, asked: bool) -> None:
    command = prefork(FASTAPI, f"-w {workers}", asked=asked)
    says(lab, command, "IDLE-LIMITED", "try more --connections", load=("--connections", "8", "--path", "/awaits"))


@pytest.mark.parametrize("asked", [True, False])
def test_the_thread_pool_of_a_fastapi_application_is_taken(lab: Lab, asked: bool) -> None:
    command = prefork(FASTAPI, "-w 1", asked=asked)
    load = ("--connections", "128", "--path", FOR_A_POOL)
    says(lab, command, "SERVER-THREADS", "of 128 were served at a time; its main threads waited for clients", load=load)


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize(
    ("asked", "verdict", "part"),
    [
        (True, "LOOP-BLOCKED", "a blocking call in `async def`; await it, or run it in a thread"),
        (False, "SERVER-THREADS", "or, if it has an event loop, a blocking call in `async def` held it"),
    ],
)
def test_a_fastapi_application_that_blocks_its_loop(
    lab: Lab, workers: int, asked: bool, verdict: str, part: str
) -> None:
    command = prefork(FASTAPI, f"-w {workers}", asked=asked)
    says(lab, command, verdict, part, load=("--connections", "16", "--path", "/blocks"))


UNEVEN = """
import os, socket, sys, threading, time

listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=128)
full, tell = os.pipe()
gate = threading.Semaphore(6)  # threads of a worker
held = set()

def serve(client):
    with client:
        while client.recv(65536):
            with gate:
                time.sleep(0.02)
            client.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\nok")
    held.discard(client)

def accept(most):
    while len(held) < most:
        client, _ = listener.accept()
        held.add(client)
        threading.Thread(target=serve, args=(client,), daemon=True).start()

if os.fork() == 0:
    accept(14)
    os.write(tell, b"!")
    time.sleep(60)
if os.fork() == 0:
    os.read(full, 1)
    accept(99)
os.wait()
"""


def test_connections_that_one_worker_holds_while_another_has_room_are_uneven(lab: Lab) -> None:
    script = lab.script("uneven.py", UNEVEN)
    says(
        lab,
        f"{{python}} {script} {{port}}",
        "UNEVEN",
        "14 of 16 connections were held by one of 2 workers, and the others had room",
        load=("--connections", "16"),
    )
    assert "2-14 " in (lab.out / "report.md").read_text()


@pytest.mark.timing
def test_a_machine_that_others_use_is_said_to_be_busy(lab: Lab) -> None:
    """The server wants a CPU all the time: one that sleeps for most of it gets what it wants at once."""
    cpus = len(os.sched_getaffinity(0))
    burning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4 * cpus)]
    try:
        command = prefork("ahello", "-w 1", asked=True)
        says(lab, command, "BUSY-MACHINE", f"of its {cpus} cores", load=("--connections", "64"))
        assert "warning: other processes used up to" in (lab.out / "report.md").read_text()
    finally:
        for process in burning:
            process.kill()
            process.wait()


@pytest.mark.parametrize(
    ("command", "verdict", "part"),
    [
        ("gunicorn waits_wsgi:slow -w 1 -b {address}", "SERVER-QUEUE", "try more --workers or --threads"),
        ("gunicorn waits_wsgi:slow -w 1 --threads 8 -b {address}", "SERVER-THREADS", f"of 32 {SERVED}"),
        ("gunicorn waits_wsgi:slow -w 4 -k gthread --threads 1 -b {address}", "SERVER-THREADS", f"of 32 {SERVED}"),
        (
            "granian --interface wsgi --blocking-threads 8 --host {host} --port {port} waits_wsgi:slow",
            "SERVER-THREADS",
            f"of 32 {SERVED}",
        ),
        ("uvicorn --host {host} --port {port} waits_wsgi:awaits", "IDLE-LIMITED", "try more --connections"),
        (
            "granian --interface asgi --host {host} --port {port} waits_wsgi:awaits",
            "IDLE-LIMITED",
            "more --connections",
        ),
        ("granian --interface asgi --host {host} --port {port} waits_wsgi:blocks", "SERVER-THREADS", "`async def`"),
    ],
)
def test_the_same_of_other_servers(lab: Lab, command: str, verdict: str, part: str) -> None:
    """Their environment has no framework, so these are the same waits in bare WSGI and ASGI."""
    if not (_PEERS / ".ready").exists():
        pytest.skip("the peers are not installed; in a clone of the repository: make peers")
    lab.script("waits_wsgi.py", (APPS / "waits.py").read_text())
    program, _, rest = command.partition(" ")
    says(lab, f"{{peers}} -m {program} {rest}", verdict, part)
