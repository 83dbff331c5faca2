"""Pid file, user and group, umask: who serves, as whom, and that what the worker is given up stays given up."""

from __future__ import annotations

import os
import pwd
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.client import dial, exchange, read_to_end, talkback_reply
from tests.support.processes import alive, open_fds, session_members
from tests.support.server import run
from tests.support.users import as_root
from tests.support.wait import eventually

if TYPE_CHECKING:
    from tests.conftest import Serve
    from tests.support.control import Place

pytestmark = pytest.mark.slow

BAD_USAGE, RUNS_ALREADY, CANNOT_BOOT = 2, 1, 3
SOMEBODY = next(entry for entry in pwd.getpwall() if entry.pw_uid not in (0, os.geteuid()))
WHO = """
import os
SEEN_AT_IMPORT = os.geteuid()
def handle(conn):
    home, user = os.environ["HOME"], os.environ["USER"]
    conn.sendall(f"{os.getresuid()} {os.getresgid()} {sorted(os.getgroups())} {home} {user} {SEEN_AT_IMPORT}".encode())
"""
GROUP, OTHER = 54321, 54322  # numbers of nobody's


def owner_of(path: Path) -> tuple[int, int, int]:
    """User, group and mode of a file."""
    found = path.stat()
    return found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)


def expected_identity() -> bytes:
    uid, gid = SOMEBODY.pw_uid, SOMEBODY.pw_gid
    groups = sorted(os.getgrouplist(SOMEBODY.pw_name, gid))
    return f"{(uid,) * 3} {(gid,) * 3} {groups} {SOMEBODY.pw_dir} {SOMEBODY.pw_name} {uid}".encode()


# --- pid file


def test_the_pid_file_names_the_master_and_a_second_start_says_so(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "pid"
    server = serve("--pid", str(path), "--workers", "2")
    assert path.read_text() == f"{server.pid}\n"
    second = run("serve", "--pid", str(path), "--bind", server.address)
    assert second.returncode == RUNS_ALREADY
    said = f"prefork: pid {server.pid} runs already and holds {str(path)!r}; stop it, or choose another --pid"
    assert said in second.stderr.splitlines()
    assert path.read_text() == f"{server.pid}\n"
    assert exchange(server.address) == talkback_reply(b"hello")
    for worker in server.worker_pids():
        assert str(path) not in open_fds(worker).values(), "a worker could keep the lock"
    server.stop()
    assert not path.exists()


def test_the_pid_file_of_a_killed_master_is_taken_over(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "pid"
    first = serve("--pid", str(path), "--workers", "1")
    first.expected_exit = -signal.SIGKILL
    first.stop(signal.SIGKILL)
    assert path.read_text() == f"{first.pid}\n"
    second = serve("--pid", str(path), "--workers", "1")
    assert path.read_text() == f"{second.pid}\n"


def test_a_pid_file_that_cannot_be_is_named_before_anything_is_bound(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("precious\n")
    for path, reason in (("no/folder/pid", "No such file or directory"), ("notes", "holds something else than a pid")):
        done = run("serve", "--pid", path, "--bind", "unix:s", cwd=tmp_path)
        assert done.returncode == BAD_USAGE
        assert f"cannot write the pid file {path!r}" in done.stderr
        assert reason in done.stderr
        assert "listening" not in done.stderr
    assert (tmp_path / "notes").read_text() == "precious\n"


# --- user and group


@as_root
@pytest.mark.parametrize("preload", [False, True], ids=["plain", "preload"])
def test_the_app_runs_as_the_user_from_its_import_on_and_the_master_does_not(
    serve: Serve, open_folder: Path, preload: bool
) -> None:
    (open_folder / "who.py").write_text(WHO)
    args = ["--preload"] if preload else []
    server = serve(f"{open_folder}/who.py:handle", "--workers", "1", "--user", SOMEBODY.pw_name, *args, cwd=open_folder)
    assert exchange(server.address, b"") == expected_identity()
    assert Path(f"/proc/{server.pid}/status").stat().st_uid == 0
    for pid in server.worker_pids():  # the template too
        status = Path(f"/proc/{pid}/status").read_text()
        assert f"Uid:\t{SOMEBODY.pw_uid}\t{SOMEBODY.pw_uid}\t{SOMEBODY.pw_uid}" in status
    server.signal(signal.SIGHUP)
    server.wait_log("reloaded generation=2")
    assert exchange(server.address, b"") == expected_identity()


@as_root
@pytest.mark.parametrize("preload", [False, True], ids=["plain", "preload"])
def test_a_stopped_worker_of_another_user_does_not_outlive_the_master(
    serve: Serve, open_folder: Path, preload: bool
) -> None:
    """A change of uid clears PR_SET_PDEATHSIG, and a stopped process does not see the lifeline's end."""
    (open_folder / "who.py").write_text(WHO)
    args = ["--preload"] if preload else []
    server = serve(f"{open_folder}/who.py:handle", "--workers", "1", "--user", SOMEBODY.pw_name, *args, cwd=open_folder)
    server.expected_exit = -signal.SIGKILL
    pids = server.worker_pids()
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    server.stop(signal.SIGKILL)
    eventually(lambda: not any(map(alive, pids)), within_s=15)
    assert not session_members(server.pid)


@as_root
def test_an_app_that_the_user_may_not_read_says_so(serve: Serve, open_folder: Path) -> None:
    secret = open_folder / "secret.py"
    secret.write_text(WHO)
    secret.chmod(0o600)
    server = serve(
        f"{secret}:handle",
        "--workers",
        "1",
        "--user",
        SOMEBODY.pw_name,
        cwd=open_folder,
        ready=False,
        expected_exit=4,
        expect_traceback=True,
    )
    assert server.wait_exit() == 4
    assert "PermissionError" in server.log
    assert run("check", f"{secret}:handle", "--user", SOMEBODY.pw_name, cwd=open_folder).returncode == 4


@pytest.mark.parametrize("option", [("--user", "no-such-user"), ("--group", "no-such-group")])
def test_a_user_that_does_not_exist_ends_the_start(option: tuple[str, str]) -> None:
    done = run("serve", *option, "--bind", "127.0.0.1:0")
    assert done.returncode == BAD_USAGE
    assert done.stderr.startswith(f"prefork: {option[0]}: there is no ")
    assert len(done.stderr.splitlines()) == 1


# --- Unix sockets: whose they are, and who may connect


ASK = """
import os, socket, sys
uid, gid = map(int, sys.argv[2:])
os.setgroups([]), os.setgid(gid), os.setuid(uid)
client = socket.socket(socket.AF_UNIX)
client.connect(sys.argv[1])
print(client.recv(99))
"""


def ask_as(uid: int, gid: int, path: Path) -> str:
    """What a client of this user and group is answered; or the last line of its traceback."""
    args = [sys.executable, "-c", ASK, str(path), str(uid), str(gid)]
    done = subprocess.run(args, capture_output=True, text=True, timeout=20, check=False)
    return (done.stdout or done.stderr).splitlines()[-1]


@as_root
def test_a_proxy_of_the_group_may_connect_and_others_may_not(serve: Serve, open_folder: Path, place: Place) -> None:
    open_folder.chmod(0o755)
    (open_folder / "hello.py").write_text("def handle(conn): conn.sendall(b'hello')\n")
    app, admin = open_folder / "app.sock", open_folder / "admin.sock"
    server = serve(
        f"{open_folder}/hello.py:handle", "--workers", "2", "--user", "nobody", "--group", str(GROUP),
        "--admin", f"unix:{admin},mode=600", bind=f"unix:{app},mode=660", cwd=open_folder, env=place.env,
    )  # fmt: skip
    nobody = pwd.getpwnam("nobody").pw_uid
    assert owner_of(app) == (nobody, GROUP, 0o660)
    assert owner_of(admin) == (nobody, GROUP, 0o600)
    assert owner_of(place.socket_of(server.pid)) == (0, 0, 0o600)  # what it takes are orders
    assert server.address == f"unix:{app}"
    assert ask_as(OTHER, GROUP, app) == ask_as(nobody, GROUP, app) == "b'hello'"
    assert "PermissionError" in ask_as(OTHER, OTHER, app)
    server.signal(signal.SIGHUP)
    server.wait_log("reloaded generation=2")
    assert ask_as(OTHER, GROUP, app) == "b'hello'"
    assert owner_of(app) == (nobody, GROUP, 0o660)
    assert server.stop() == 0
    assert not app.exists()
    assert not admin.exists()


# --- umask


@pytest.mark.parametrize(("mask", "mode"), [("077", 0o700), ("000", 0o777), ("117", 0o660)])
def test_the_mask_holds_for_sockets_files_and_workers(serve: Serve, tmp_path: Path, mask: str, mode: int) -> None:
    source = "import os\ndef handle(conn): mask = os.umask(0); os.umask(mask); conn.sendall(b'%03o' % mask)\n"
    (tmp_path / "mask.py").write_text(source)
    args = ("--workers", "1", "--umask", mask, "--pid", f"{tmp_path}/pid")
    serve(f"{tmp_path}/mask.py:handle", *args, bind=f"unix:{tmp_path}/s")
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == mode
    assert stat.S_IMODE((tmp_path / "pid").stat().st_mode) == 0o644 & ~int(mask, 8)
    with dial(f"unix:{tmp_path}/s") as client:
        assert read_to_end(client) == mask.encode()
