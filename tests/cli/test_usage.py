"""A user's mistake is one clear line and its exit code, never a traceback."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from prefork.cli.main import cli
from tests.support.client import exchange, talkback_reply
from tests.support.processes import open_fds
from tests.support.server import READY_S, ROOT, clean_environment, run
from tests.support.wait import eventually

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Serve

pytestmark = pytest.mark.slow

BAD_USAGE = 2
CANNOT_BIND = 5


def complain(*args: str, code: int) -> str:
    """Run a command that must fail with `code`, and return what it said: a few lines on stderr, nothing else."""
    done = run(*args)
    return checked(done.returncode, done.stdout, done.stderr, code=code)


def checked(status: int, printed: str, said: str, *, code: int) -> str:
    assert status == code, said
    assert printed == ""
    assert "Traceback" not in said
    assert said.strip()
    assert len(said.strip().splitlines()) <= 6
    return said


FORKS = """
import json, os, sys
from prefork.cli.main import main
for args in json.load(sys.stdin):
    ends = [os.pipe(), os.pipe()]
    pid = os.fork()
    if not pid:
        for fd, (_, end) in enumerate(ends, 1):
            os.dup2(end, fd)
        sys.argv[1:] = args
        main()
        os._exit(0)
    for _, end in ends:
        os.close(end)
    said = [open(end, closefd=True).read() for end, _ in ends]
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), *said]))
"""


def complaints(commands: list[tuple[str, ...]], *, code: int) -> list[str]:
    """The same for many: each is a process that is forked when all has been imported, which is what takes time."""
    done = subprocess.run(
        [sys.executable, "-c", FORKS], input=json.dumps(commands), cwd=ROOT, env=clean_environment(),
        capture_output=True, text=True, timeout=READY_S, check=True,
    )  # fmt: skip
    ends = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(ends) == len(commands), done.stderr
    return [checked(*end, code=code) for end in ends]


BAD_VALUES = [
    ("--workers", "0"),
    ("--workers", "-1"),
    ("--workers", "many"),
    ("--workers", "1.5"),
    ("--workers", "\u00b2"),
    ("--workers", "1_0"),
    ("--workers", ""),
    ("--threads", "0"),
    ("--threads", "few"),
    ("--backlog", "0"),
    ("--timeout", "soon"),
    ("--timeout", "-1"),
    ("--timeout", "nan"),
    ("--timeout", "10 parsecs"),
    ("--idle-timeout", "1e"),
    ("--graceful-timeout", "-5s"),
    ("--log-level", "shout"),
    ("--log-format", "xml"),
    ("--interface", "pigeon"),
]
BAD_ADDRESSES = [
    "nonsense",
    "127.0.0.1:99999",
    "127.0.0.1:-1",
    "127.0.0.1:http",
    "127.0.0.1:1_0",
    "127.0.0.1",
    "[::1]",
    "::1:80",
    "unix:",
    "fd://x",
    "fd://-1",
    "http://127.0.0.1:80",
    "",
]


@pytest.mark.smoke
def test_a_bad_value_names_the_option_and_the_value() -> None:
    all_said = complaints([("serve", option, value) for option, value in BAD_VALUES], code=BAD_USAGE)
    for (option, value), said in zip(BAD_VALUES, all_said, strict=True):
        assert option in said
        assert value in said


def test_a_bad_address_is_named() -> None:
    all_said = complaints([("serve", "--bind", address) for address in BAD_ADDRESSES], code=BAD_USAGE)
    for address, said in zip(BAD_ADDRESSES, all_said, strict=True):
        assert address in said


def test_an_address_of_no_known_form_is_told_the_forms_there_are() -> None:
    addresses = ["nonsense", "127.0.0.1", "", "http://127.0.0.1:80"]
    for said in complaints([("serve", "--bind", address) for address in addresses], code=BAD_USAGE):
        for form in ("HOST:PORT", "[V6]:PORT", "unix:PATH", "fd://N"):
            assert form in said


def test_an_unknown_option_suggests_the_near_one() -> None:
    said = complain("serve", "--worker", "4", code=BAD_USAGE)
    assert "--workers" in said


def test_an_unknown_command_is_named() -> None:
    assert "sevre" in complain("sevre", code=BAD_USAGE)


def test_a_second_app_is_one_too_many() -> None:
    assert "second:app" in complain("serve", "talkback", "second:app", code=BAD_USAGE)


@pytest.mark.smoke
def test_help_and_version_are_no_mistakes() -> None:
    for args in (["--help"], ["serve", "--help"], ["send", "--help"]):
        done = run(*args)
        assert done.returncode == 0
        assert "Usage:" in done.stdout
    version = run("--version")
    assert version.returncode == 0
    assert "prefork" in version.stdout


def test_each_command_has_one_full_line_in_the_help() -> None:
    done = run("--help", env={"COLUMNS": "80"})
    lines = done.stdout.partition("Commands:\n")[2].splitlines()
    assert len(lines) == len(cli.commands)
    assert [line for line in lines if not line.endswith(".") or line.endswith("...") or len(line) > 80] == []


CONTAINER = 'python:3.13-slim sh -c "pip install prefork && prefork serve '


@pytest.mark.parametrize("platform", ["darwin", "win32", "freebsd14"])
@pytest.mark.parametrize(
    "way", ["import runpy; runpy.run_module('prefork', run_name='__main__')", "import prefork.cli.main"]
)
def test_another_system_than_linux_is_told_the_container(platform: str, way: str) -> None:
    script = f"import sys; sys.platform = {platform!r}; sys.argv = ['prefork', 'serve']; {way}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False)
    (line,) = checked(done.returncode, done.stdout, done.stderr, code=1).splitlines()
    assert line.startswith(f"prefork: prefork needs Linux, and this is {platform}. In a container: docker run ")
    assert CONTAINER in line


@pytest.mark.parametrize("way", ["prefork.serve", "from prefork import serve"])
def test_from_python_another_system_than_linux_is_an_error_of_ours(way: str) -> None:
    script = f"""
import sys
sys.platform = "darwin"
import prefork
try:
    {way}
except prefork.PreforkError as error:
    print(prefork.__version__, error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True)
    assert CONTAINER in done.stdout


def test_a_port_that_stays_in_use_ends_with_the_address_and_the_reason() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = run("serve", "--bind", f"127.0.0.1:{port}", "--workers", "1")
    assert done.returncode == CANNOT_BIND
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert f"127.0.0.1:{port}" in last
    assert "in use" in last


def test_a_port_that_becomes_free_while_it_is_retried_is_taken(serve: Serve) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        server = serve("--workers", "1", bind=address, ready=False)
        eventually(lambda: tries_to_bind(server.pid), within_s=30)
    server.wait_ready()
    assert exchange(server.address) == talkback_reply(b"hello")


def tries_to_bind(pid: int) -> bool:
    return any(target.startswith("socket:") for target in open_fds(pid).values())


def test_a_unix_socket_of_a_living_server_is_not_taken(serve: Serve, tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/s"
    server = serve("--workers", "1", bind=address)
    done = run("serve", "--bind", address)
    assert done.returncode == CANNOT_BIND
    assert address in done.stderr
    assert exchange(server.address) == talkback_reply(b"hello")


@pytest.mark.parametrize(
    "address", ["203.0.113.1:80", "no-such-host.invalid:80", "unix:/no/such/folder/s", "unix:/tmp", "fd://77"]
)
def test_an_address_that_cannot_be_bound_is_named(address: str) -> None:
    done = run("serve", "--bind", address)
    assert done.returncode == CANNOT_BIND, done.stderr
    assert address in done.stderr
    assert "Traceback" not in done.stderr


def test_a_unix_path_that_is_a_file_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "precious"
    file.write_text("data")
    done = run("serve", "--bind", f"unix:{file}")
    assert done.returncode == CANNOT_BIND
    assert str(file) in done.stderr
    assert file.read_text() == "data"


def test_a_unix_path_beyond_the_kernels_limit_says_so(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 120)
    done = run("serve", "--bind", f"unix:{path}")
    assert done.returncode in (BAD_USAGE, CANNOT_BIND)
    assert "107" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_descriptor_that_is_no_listening_socket_is_named(serve: Serve) -> None:
    with socket.socket() as unbound:
        server = serve(
            bind=f"fd://{unbound.fileno()}", pass_fds=[unbound.fileno()], ready=False, expected_exit=CANNOT_BIND
        )
        assert server.wait_exit() == CANNOT_BIND
        assert f"fd://{unbound.fileno()}" in server.log
