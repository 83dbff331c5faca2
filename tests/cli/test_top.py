"""`prefork top` in a real terminal: what it shows, what its keys do, and that it leaves the terminal as it was."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.support.client import Hammer, dial, exchange
from tests.support.control import Place
from tests.support.processes import children
from tests.support.server import APPS
from tests.support.tmux import Terminal, needs_tmux

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Serve

pytestmark = pytest.mark.slow

OBEY = f"{APPS / 'obey.py'}:handle"
KEYS = "q quit  s stack"


@pytest.fixture
def terminal(place: Place) -> Iterator[Terminal]:
    with Terminal(place.env) as made:
        yield made


# --- without a terminal


@pytest.mark.smoke
def test_without_a_terminal_it_says_to_use_status(place: Place) -> None:
    done = place.run("top")
    assert done.returncode == 2
    assert "prefork status prints once" in done.stderr


@pytest.mark.parametrize("interval", ["0", "fast", "-1"])
def test_a_wrong_interval_is_bad_usage(place: Place, interval: str) -> None:
    done = place.run("top", "--interval", interval)
    assert done.returncode == 2
    assert "--interval" in done.stderr


# --- what it shows


@pytest.mark.smoke
@needs_tmux
def test_server_listener_and_workers_on_a_small_screen(serve: Serve, place: Place, terminal: Terminal) -> None:
    server = serve(OBEY, "--workers", "3", env=place.env)
    terminal.run("top", "--interval", "200ms")
    terminal.wait(rf"^ prefork ready  pid {server.pid}  generation 1 ")
    terminal.wait(rf"^ {server.address}  queue 0 of 2048  drops 0")
    terminal.wait(r"^ SLOT +PID STATE +REQ/S +P99 +CPU +PSS +CONN +FOR SERVING *$")
    for pid in server.worker_pids():
        terminal.wait(rf"^[> ]\d +{pid} IDLE ")
    with Hammer(server.address, clients=2, data=b"work\n", expected=b"done\n") as hammer:
        terminal.wait(r"^ workers 3/3.* [1-9]\d* req/s   p50 \S+s ")
        hammer.wait_more(100)
    with dial(server.address) as client:
        client.sendall(b"work 60\n")
        host, port = client.getsockname()
        terminal.wait(rf" BUSY +.* {host}:{port}$")
        for pid in server.worker_pids():
            os.kill(pid, signal.SIGKILL)
    terminal.wait(r" deaths 3$")


@needs_tmux
def test_a_wide_screen_has_more_columns_and_a_change_of_size_is_followed(
    serve: Serve, place: Place, terminal: Terminal
) -> None:
    serve(OBEY, "--workers", "2", env=place.env)
    terminal.run("top", "--interval", "10s", before="COLUMNS=80 LINES=24 ")  # they do not follow the change
    terminal.wait(r"^ SLOT +PID STATE")
    terminal.resize(160, 40)
    terminal.wait(r"^ SLOT +PID GEN STATE +REQ/S +ERR/S +P50 +P99 +CPU +PSS +CONN +AGE +FOR SERVING *$", within_s=15)
    terminal.resize(80, 10)
    terminal.wait(r"^ SLOT +PID STATE", within_s=15)
    assert KEYS in terminal.text


@needs_tmux
def test_sixty_four_workers_scroll(serve: Serve, place: Place, terminal: Terminal) -> None:
    serve(OBEY, "--workers", "64", env=place.env)
    terminal.run("top")
    terminal.wait(r" 1-18 of 64$", within_s=60)
    terminal.wait(r"^>0 ")
    terminal.keys("j", "j", "Down", "k")
    terminal.wait(r"^>2 ")
    terminal.keys("End")
    terminal.wait(r"^>63 ")
    terminal.wait(r" 47-64 of 64$")
    terminal.keys("PPage", "Up")
    terminal.wait(r"^>44 ")
    terminal.keys("Home")
    terminal.wait(r"^>0 ")
    terminal.keys("q")
    terminal.wait("^exit=0$")


# --- its keys


@needs_tmux
def test_everything_works_while_four_workers_are_stuck(serve: Serve, place: Place, terminal: Terminal) -> None:
    server = serve(OBEY, "--workers", "4", "--graceful-timeout", "500ms", env=place.env)
    os.kill(min(server.worker_pids()), signal.SIGKILL)
    server.wait_workers(4)
    terminal.run("top", "--interval", "200ms")
    with ExitStack() as stuck:
        for _ in range(4):
            stuck.enter_context(dial(server.address)).sendall(b"spin\n")
        terminal.wait(r"^ workers 4/4, 4 busy ")
        terminal.keys("Home", "j", "s")  # it has followed worker 1 if it began while slot 0 was vacant
        terminal.wait(r"stacks of worker 1\b")
        terminal.wait(r"worker 1  pid \d+  generation 1  BUSY  serving 127\.")
        terminal.keys("End")
        terminal.keys("k", "k", "PPage")
        terminal.keys("q")
        terminal.wait(KEYS)
        terminal.keys("d")
        terminal.wait(r"^ unexpected deaths, the latest first")
        terminal.wait(r"^   why      killed from outside")
        terminal.keys("Escape")
        terminal.wait(KEYS)
        terminal.keys("+")
        terminal.wait(r"scaled: 5 workers, before 4")
        terminal.wait(r"^ workers 5/5")
        terminal.keys("r")
        terminal.wait(r"reload every worker\? y/n")
        terminal.keys("n")
        terminal.wait("not reloaded")
        terminal.keys("r", "y")
        terminal.wait(r"reloaded: generation 2", within_s=60)
        terminal.wait(r"^ prefork ready  pid \d+  generation 2 ")
    terminal.keys("-")
    terminal.wait(r"scaled: 4 workers, before 5")
    assert exchange(server.address, b"work\n") == b"done\n"
    terminal.keys("h")
    terminal.wait("^ help")
    terminal.keys("h")
    terminal.wait(KEYS)
    terminal.keys("q")
    terminal.wait("^exit=0$")
    terminal.assert_restored()


@needs_tmux
def test_sorting_and_pausing(serve: Serve, place: Place, terminal: Terminal) -> None:
    server = serve(OBEY, "--workers", "3", env=place.env)
    terminal.run("top", "--interval", "200ms")
    terminal.wait(KEYS)
    with dial(server.address) as client:
        client.sendall(b"pid\n")
        client.recv(20)
    with dial(server.address) as client:
        client.sendall(b"work 60\n")
        busy = terminal.wait(r"^[> ]\d +(\d+) BUSY")[1]
        terminal.keys("T")  # the last of all orders: FOR
        terminal.wait(r"sorted by FOR")
        terminal.wait(rf"^ SLOT.*\n[> ]\d +{busy} BUSY")
        terminal.keys("p")
        terminal.wait("paused: p goes on")
        for pid in server.worker_pids():
            os.kill(pid, signal.SIGKILL)
    server.wait_workers(3, without={int(busy)})
    assert f"{busy} BUSY" in terminal.text
    terminal.keys("p")
    terminal.wait_without(f"{busy} BUSY")
    terminal.keys("t")
    terminal.wait(r"sorted by SLOT")


# --- its end, and the server's


@needs_tmux
@pytest.mark.parametrize("end", ["C-c", "SIGTERM", "SIGHUP"])
def test_the_terminal_is_as_before_whatever_ends_it(serve: Serve, place: Place, terminal: Terminal, end: str) -> None:
    serve(OBEY, "--workers", "1", env=place.env)
    terminal.run("top", before="echo $$ > $TMPDIR/shell; echo before; ")
    terminal.wait(KEYS)
    terminal.keys("C-z", "C-\\")
    if end == "C-c":
        terminal.keys(end)
    else:
        shell = int((place.root / "shell").read_text())
        (pid,) = children(shell)
        os.kill(pid, getattr(signal, end))
    terminal.wait("^exit=0$")
    assert "\nbefore\n" in "\n" + terminal.text
    terminal.assert_restored()


@needs_tmux
def test_a_server_that_goes_away_is_waited_for_and_its_successor_is_shown(
    serve: Serve, place: Place, terminal: Terminal
) -> None:
    first = serve(OBEY, "--workers", "2", env=place.env)
    terminal.run("top", "--interval", "200ms")
    terminal.wait(rf"^ prefork ready  pid {first.pid} ")
    first.close()
    terminal.wait("waiting for the server: no server of yours")
    terminal.keys("r", "y")
    terminal.wait("waiting for the server")
    second = serve(OBEY, "--workers", "1", env=place.env)
    terminal.wait(rf"^ prefork ready  pid {second.pid} ")
    terminal.wait_without("waiting for the server")
    terminal.keys("q")
    terminal.wait("^exit=0$")


@needs_tmux
def test_keys_work_while_the_server_does_not_answer(serve: Serve, place: Place, terminal: Terminal) -> None:
    server = serve(OBEY, "--workers", "2", env=place.env)
    terminal.run("top", "--interval", "200ms")
    terminal.wait(KEYS)
    server.signal(signal.SIGSTOP)
    try:
        terminal.keys("j")
        terminal.wait("^>1 ")
        terminal.keys("q")
        terminal.wait("^exit=0$")
    finally:
        server.signal(signal.SIGCONT)


@needs_tmux
def test_without_a_server_it_says_so_and_ends(terminal: Terminal) -> None:
    terminal.run("top")
    terminal.wait(r"^prefork: no server of yours is running")
    terminal.wait("^exit=6$")
    terminal.assert_restored()


@needs_tmux
def test_without_rich_it_says_what_to_install(serve: Serve, place: Place, terminal: Terminal) -> None:
    serve(OBEY, "--workers", "1", env=place.env)
    hidden = place.root / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text(
        "import importlib.util as util\nfind = util.find_spec\n"
        "util.find_spec = lambda name, *more: None if name == 'rich' else find(name, *more)\n"
    )
    terminal.run("top", before=f"PYTHONPATH={hidden} ")
    terminal.wait(r"prefork top needs the package rich: pip install 'prefork\[top\]'")
    terminal.wait("^exit=2$")


@needs_tmux
def test_its_output_may_not_be_piped(place: Place, terminal: Terminal) -> None:
    terminal.run("top", before=f"{sys.executable} -m prefork top | cat; ")
    terminal.wait("prefork top needs a terminal")
