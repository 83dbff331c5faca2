"""Where values come from: shown by `prefork config`, obeyed by `prefork serve`; and what `prefork check` finds."""

from __future__ import annotations

import json
import re
import socket
import subprocess
from typing import TYPE_CHECKING

import pytest

from prefork._version import __version__
from tests.support.client import dial, exchange, read_to_end, talkback_reply
from tests.support.processes import thread_count
from tests.support.server import run
from tests.support.tls import TLS

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import AppWriter, Serve

pytestmark = pytest.mark.slow

BAD_USAGE, CANNOT_BOOT, CANNOT_LOAD = 2, 3, 4


def with_environment(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return run(*args, env=environment)


@pytest.mark.smoke
def test_each_value_is_shown_with_its_source(tmp_path: Path) -> None:
    file = tmp_path / "prefork.toml"
    file.write_text("threads = 2\nworkers = 5\ntimeout = '2m'\nmax-memory = '64m'\nlog-level = 'debug'\n")
    args = ("config", "-c", str(file), "echo", "--log-level", "error", "--umask", "27", "-b", "[::1]:80")
    args += ("-b", "unix:/run/a.sock,mode=660", "--admin", "unix:/run/b.sock,mode=600")
    done = with_environment(*args, "--json", PREFORK_WORKERS="3")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    expected = {
        "app": {"value": "echo", "source": "app"},
        "bind": {"value": ["[::1]:80", "unix:/run/a.sock,mode=660"], "source": "--bind"},
        "admin": {"value": "unix:/run/b.sock,mode=600", "source": "--admin"},
        "workers": {"value": 3, "source": "PREFORK_WORKERS"},
        "threads": {"value": 2, "source": f"{file}:1"},
        "timeout": {"value": 120.0, "source": f"{file}:3"},
        "max-memory": {"value": 64 << 20, "source": f"{file}:4"},
        "log-level": {"value": "error", "source": "--log-level"},
        "umask": {"value": "027", "source": "--umask"},
        "preload": {"value": False, "source": "default"},
    }
    assert {name: found[name] for name in expected} == expected

    table = with_environment(*args, PREFORK_WORKERS="3").stdout.splitlines()
    assert table[0].split() == ["option", "value", "source"]
    assert len(table) == len(found) + 2
    rows = {tuple(line.split()) for line in table}
    assert {("workers", "3", "PREFORK_WORKERS"), ("timeout", "120s", f"{file}:3"), ("preload", "no", "default")} <= rows


def test_a_switch_of_the_file_can_be_turned_off_by_a_flag(tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text("preload = true\n")
    done = run("config", "-c", "p.toml", "--no-preload", "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["preload"] == {"value": False, "source": "--preload"}


@pytest.mark.smoke
def test_a_server_is_what_its_file_says(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text('app = "nap"\nworkers = 2\nthreads = 3\nlog-format = "json"\n')
    server = serve("--config", "p.toml", "-w", "1", cwd=tmp_path, ready=False)
    ready = json.loads(server.wait_log(r'^.*"event": "ready".*$')[0])
    assert (ready["workers"], ready["kind"], ready["engine"]) == (1, "stream", "blocking")
    listening = json.loads(server.wait_log(r"^.*\"event\": \"listening\".*$")[0])
    assert exchange(listening["address"]) == talkback_reply(b"hello")
    (worker,) = server.worker_pids()
    assert thread_count(worker) == 3 + 1


def test_a_server_takes_the_table_of_a_pyproject(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "x"\n[tool.prefork]\napp = "nap"\nworkers = 1\n')
    server = serve("-c", "pyproject.toml", cwd=tmp_path)
    assert exchange(server.address) == talkback_reply(b"hello")


def test_the_port_and_the_workers_of_a_platform(serve: Serve) -> None:
    done = with_environment("config", "--json", PORT="8080", WEB_CONCURRENCY="3")
    found = json.loads(done.stdout)
    assert found["bind"] == {"value": ["0.0.0.0:8080"], "source": "PORT"}
    assert found["workers"] == {"value": 3, "source": "WEB_CONCURRENCY"}
    done = with_environment("serve", PORT="http")
    assert (done.returncode, done.stderr.splitlines()) == (
        BAD_USAGE, ["prefork: PORT=http: '0.0.0.0:http': 'http' is not a port (0 to 65535)"],
    )  # fmt: skip
    server = serve("hello", bind=None, env={"PORT": "0", "WEB_CONCURRENCY": "1"})
    assert server.address.startswith("0.0.0.0:")
    assert len(server.worker_pids()) == 1


def test_a_variable_that_nothing_reads_is_named_once(serve: Serve) -> None:
    for command in ("config", "check"):
        done = with_environment(command, "hello", PREFORK_TREADS="8")
        assert done.stderr == "prefork: PREFORK_TREADS is no option: did you mean PREFORK_THREADS?\n"
        assert done.returncode == 0
    server = serve("hello", "-w", "2", env={"PREFORK_TREADS": "8"})
    assert server.log.count("TREADS") == 1
    assert "WARNING" in server.wait_log(r'^.*name=PREFORK_TREADS hint="did you mean PREFORK_THREADS\?"$')[0]


# --- what a server says when it starts


def test_the_first_line_says_what_is_started_and_the_ready_line_how_it_is_served(serve: Serve) -> None:
    server = serve("hello", "-w", "1")
    first = server.log.splitlines()[0]
    assert re.search(rf"starting prefork={re.escape(__version__)} app=hello python=3\.\d+\.\d+$", first)
    (ready,) = re.findall(r"^.* ready .*$", server.log, re.MULTILINE)
    assert ready.endswith(f" kind=wsgi engine=reactor url=http://{server.address}")
    assert "talkback" not in server.log


@pytest.mark.parametrize(
    ("args", "bind", "end"),
    [
        (["ahello"], "0.0.0.0:0", r"kind=asgi engine=aio loop=uvloop url=http://127\.0\.0\.1:\d+"),
        (["hello"], ":0", r"kind=wsgi engine=reactor url=http://localhost:\d+"),
        (["hello", *TLS], "127.0.0.1:0", r"engine=reactor url=https://127\.0\.0\.1:\d+"),
        (["echo"], "127.0.0.1:0", "kind=stream engine=blocking"),
        (["hello"], "unix:s", "kind=wsgi engine=reactor"),
    ],
    ids=["asgi", "every-address", "tls", "stream", "unix"],
)
def test_the_ready_line_has_the_url_of_http(serve: Serve, tmp_path: Path, args: list[str], bind: str, end: str) -> None:
    server = serve(*args, "-w", "1", bind=bind, cwd=tmp_path)
    server.wait_log(rf" ready workers=1 in=\d+\.\d\ds .*{end}$")


def test_a_server_without_an_app_says_what_it_serves_and_how_to_serve_another(serve: Serve) -> None:
    server = serve("-w", "1")
    lines = server.log.splitlines()
    assert "app=talkback" in lines[0]
    assert "no APP was given" in lines[1]
    assert 'your_own="prefork serve shop.wsgi:application"' in lines[1]
    assert exchange(server.address) == talkback_reply(b"hello")


def test_every_line_of_a_start_that_fails_is_json_if_so_asked(app: AppWriter) -> None:
    done = run("serve", app("1 / 0"), "-b", "127.0.0.1:0", "--log-format", "json")
    entries = [json.loads(line) for line in done.stderr.splitlines()]
    assert done.returncode == CANNOT_LOAD
    (failed,) = [entry for entry in entries if entry["event"] == "cannot start"]
    assert (failed["level"], failed["exit_code"]) == ("error", CANNOT_LOAD)
    assert failed["reason"].startswith("cannot load ")
    assert "ZeroDivisionError" in failed["detail"]


@pytest.mark.parametrize("command", ["serve", "config", "check"])
@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("\nwokers = 4", "p.toml:2: there is no option 'wokers'; did you mean 'workers'?"),
        ("threads = yes", "p.toml:1: this is not TOML"),
        ("threads = 0", "p.toml:1: threads: '0' is too small"),
    ],
    ids=["key", "syntax", "value"],
)
def test_a_mistake_in_the_file_ends_every_command_alike(tmp_path: Path, command: str, text: str, sentence: str) -> None:
    (tmp_path / "p.toml").write_text(text)
    done = run(command, "-c", "p.toml", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (BAD_USAGE, "")
    assert done.stderr.startswith(f"prefork: {sentence}")
    assert len(done.stderr.splitlines()) == 1


def test_the_folder_comes_before_all_else(serve: Serve, tmp_path: Path) -> None:
    """File, app, socket, pid file and log: what is relative stands in the folder of --chdir."""
    folder = tmp_path / "service"
    folder.mkdir()
    (folder / "p.toml").write_text('app = "shop:handle"\npid = "shop.pid"\nlog = "shop.log"\n')
    (folder / "shop.py").write_text("def handle(conn): conn.sendall(b'open')\n")
    server = serve("--chdir", str(folder), "-c", "p.toml", "-w", "1", bind="unix:shop.sock", ready=False)
    server.wait_workers(1)
    with dial(f"unix:{folder}/shop.sock") as client:
        assert read_to_end(client) == b"open"
    assert (folder / "shop.pid").read_text() == f"{server.pid}\n"
    assert "listening address=unix:shop.sock" in (folder / "shop.log").read_text()
    server.stop()
    assert not (folder / "shop.pid").exists()
    assert not (folder / "shop.sock").exists()


def test_a_folder_that_does_not_exist_is_named() -> None:
    done = run("serve", "--chdir", "/no/such/folder")
    assert done.returncode == BAD_USAGE
    assert done.stderr == "prefork: --chdir: cannot change to '/no/such/folder': No such file or directory\n"


# --- check


@pytest.mark.smoke
def test_check_says_what_the_app_is(app: AppWriter) -> None:
    stream = app("def handle(conn): ...")
    done = run("check", stream)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", f"{stream} kind=stream engine=blocking\n")
    classic = app("import socketserver\nclass Handler(socketserver.BaseRequestHandler): ...", attribute="Handler")
    assert "kind=socketserver engine=blocking" in run("check", classic).stdout


@pytest.mark.parametrize(
    ("source", "code", "words"),
    [
        ("def other(conn): ...", CANNOT_LOAD, "has no attribute 'handle'"),
        ("def handle(:", CANNOT_LOAD, "it raised SyntaxError"),
        ("import sys; sys.exit('no database')", CANNOT_LOAD, "it raised SystemExit: no database"),
        ("import os; os._exit(7)", CANNOT_BOOT, "the process ended, by exit code 7"),
        ("import os; os.kill(os.getpid(), 11)", CANNOT_BOOT, "Segmentation fault"),
        ("import threading; threading.Event().wait()", CANNOT_BOOT, "not done within --boot-timeout 0.5 s"),
    ],
    ids=["attribute", "syntax", "exit", "os-exit", "segfault", "hang"],
)
def test_check_says_why_an_app_cannot_be_served(app: AppWriter, source: str, code: int, words: str) -> None:
    timeout = "0.5" if "wait()" in source else "20"
    done = run("check", app(source), "--boot-timeout", timeout)
    assert done.returncode == code
    assert done.stdout == ""
    assert words in done.stderr
    assert "prefork/cli/check.py" not in done.stderr or code == CANNOT_BOOT  # our own frames are no help


def test_check_touches_nothing(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = run("check", "-b", address, "--pid", "x.pid", "--log", "x.log", "-b", "unix:x.sock", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "option", [("--user", "no-such-user"), ("--group", "no-such-group"), ("--workers", "0"), ("--chdir", "/nowhere")]
)
def test_check_finds_bad_options(option: tuple[str, str]) -> None:
    done = run("check", *option)
    assert done.returncode == BAD_USAGE
    assert option[0] in done.stderr
