"""USR2: a new master takes over the sockets, and nobody notices; or it fails, and nobody notices either."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest

from tests.master.test_stop import wait_heard
from tests.master.test_systemd import Manager
from tests.support.client import Hammer, Outcome, attempt, collect, crowd, dial, exchange, read_to_end, talkback_reply
from tests.support.processes import alive, children, open_fds
from tests.support.server import APPS, ROOT
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import AppWriter, Serve
    from tests.support.gate import Gate
    from tests.support.server import RunningServer

pytestmark = pytest.mark.slow

HI = talkback_reply(b"hi")
GATED = f"{APPS / 'gated.py'}:handle"
SLOT = f"{APPS / 'identity.py'}:slot"
SAYS = "def handle(conn):\n    conn.readline()\n    conn.sendall(b'{}')\n"
SAYS_HI = f"import sys\nsys.path.insert(0, {str(APPS)!r})\nimport gated\nhandle = gated.handle\n"  # once past the gate
AT_THE_GATE = f"{SAYS_HI}gated.pass_gate()\n"
SOON_S = 20.0


class Line:
    """A server and the masters that follow each other in it: `master` is the pid of the one in office."""

    def __init__(self, server: RunningServer) -> None:
        self.server = server
        self.master = server.pid

    def usr2(self) -> int:
        """Ask for an upgrade; return where in the log it begins."""
        mark = len(self.server.log)
        os.kill(self.master, signal.SIGUSR2)
        return mark

    def successor(self, mark: int) -> int:
        """The pid of the new master that was started."""
        return int(self.server.wait_log(r"upgrading successor=(\d+)", after=mark)[1])

    def upgrade(self) -> None:
        """Upgrade, and wait until the new master is in office and the old one has gone."""
        old, mark = self.master, self.usr2()
        self.server.wait_log(rf"took over predecessor={old}\b", after=mark, within_s=SOON_S)
        self.master = self.successor(mark)
        self._wait_gone(old)

    def failed(self, mark: int) -> str:
        """Wait for the end of an upgrade that fails; return its reason."""
        return self.server.wait_log(r"upgrade failed .*reason=(.*) serving=", after=mark, within_s=SOON_S)[1]

    def stop(self) -> None:
        """End the master in office and whoever else is left of the line."""
        if alive(self.master):
            os.kill(self.master, signal.SIGTERM)
            self._wait_gone(self.master)

    def _wait_gone(self, pid: int) -> None:
        """The exit code of the first one is judged with the test's end."""
        gone = (lambda: not self.server.running) if pid == self.server.pid else (lambda: not alive(pid))
        eventually(gone, within_s=SOON_S, what=f"the end of master {pid}")


class Start(Protocol):
    def __call__(self, *args: str, **kwargs: object) -> Line: ...


@pytest.fixture
def start(serve: Serve) -> Iterator[Start]:
    """Start a server whose last master is ended with the test."""
    lines: list[Line] = []

    def make(*args: str, **kwargs: object) -> Line:
        lines.append(Line(serve(*args, **kwargs)))
        return lines[-1]

    yield make
    for line in lines:
        line.stop()


def half_way(start: Start, app: AppWriter, gate: Gate, *options: str) -> tuple[Line, int]:
    """Begin an upgrade whose new version stands at the gate; return with it where in the log it begins."""
    line = start(app(SAYS.format("old")), "--workers", "1", *options, env=gate.env)
    app(AT_THE_GATE)
    mark = line.usr2()
    gate.wait_entered(1)
    return line, mark


def said(address: str) -> bytes:
    """What the server says to a client that says nothing."""
    with dial(address) as sock:
        sock.shutdown(socket.SHUT_WR)
        return read_to_end(sock)


# --- an upgrade that succeeds


@pytest.mark.smoke
def test_the_new_master_serves_and_the_old_one_leaves(start: Start) -> None:
    line = start(SLOT, "--workers", "2")
    old = line.server.worker_pids()
    line.upgrade()
    assert line.master != line.server.pid
    assert len(children(line.master)) == 2
    assert not children(line.master) & old
    slot, generation, pid = map(int, said(line.server.address).split())
    assert (generation, pid in children(line.master)) == (2, True), slot
    line.upgrade()
    assert said(line.server.address).split()[1] == b"3", "generations are counted on"


def test_the_new_master_runs_the_new_code(start: Start, app: AppWriter) -> None:
    line = start(app(SAYS.format("old")), "--workers", "1")
    assert said(line.server.address) == b"old"
    app(SAYS.format("new"))
    line.upgrade()
    assert said(line.server.address) == b"new"


def test_three_upgrades_under_load_lose_nothing(start: Start) -> None:
    line = start("talkback", "--workers", "2")
    with Hammer(line.server.address, clients=4) as hammer:
        for _ in range(3):
            hammer.wait_more(50)
            line.upgrade()
        hammer.wait_more(50)
    assert not hammer.failures


@pytest.mark.parametrize("options", [(), ("--preload",), ("--accept", "per-worker")], ids=["plain", "preload", "own"])
def test_twenty_upgrades_under_load_lose_nothing(start: Start, options: tuple[str, ...]) -> None:
    line = start("talkback", "--workers", "2", *options)
    with Hammer(line.server.address, clients=6) as hammer:
        for _ in range(20):
            hammer.wait_more(20)
            line.upgrade()
        hammer.wait_more(50)
    assert not hammer.failures


def test_clients_in_hand_are_served_to_the_end_and_the_queue_by_the_new_master(start: Start, gate: Gate) -> None:
    line = start(GATED, "--workers", "2", env=gate.env)
    inside = crowd(line.server.address, 2)
    gate.wait_entered(2)
    waiting = crowd(line.server.address, 10)
    old, mark = line.master, line.usr2()
    line.server.wait_log(rf"took over predecessor={old}\b", after=mark, within_s=SOON_S)
    assert alive(old), "it waits for its clients"
    gate.wait_entered(2)  # the new workers have taken two of those that waited
    gate.open()
    assert collect(inside + waiting, HI) == {Outcome.OK: 12}
    line.master = line.successor(mark)


def test_a_stop_right_after_the_hand_over_cuts_no_client_of_the_old_master(
    start: Start, app: AppWriter, gate: Gate
) -> None:
    """The new master ends the listener while a thread of the old master's worker still waits there."""
    line = start(app(SAYS_HI), "--workers", "1", "--threads", "2", env=gate.env)
    inside = crowd(line.server.address, 1)
    gate.wait_entered(1)
    app("async def handle(reader, writer): pass")  # an engine that leaves at once
    mark = line.usr2()
    line.server.wait_log("took over predecessor=", after=mark, within_s=SOON_S)
    line.master = line.successor(mark)
    os.kill(line.master, signal.SIGTERM)
    eventually(lambda: not alive(line.master), within_s=SOON_S, what="the end of the new master")
    gate.open()
    assert collect(inside, HI) == {Outcome.OK: 1}


@pytest.mark.parametrize("again", [False, True], ids=["INT", "INT again"])
def test_an_interrupt_after_the_hand_over_is_the_first_one(start: Start, gate: Gate, *, again: bool) -> None:
    line = start(GATED, "--workers", "2", env=gate.env)
    clients = crowd(line.server.address, 2)
    gate.wait_entered(2)
    mark = line.usr2()
    line.server.wait_log("took over predecessor=", after=mark, within_s=SOON_S)
    line.server.wait_log("handed over", after=mark)
    line.master = line.successor(mark)
    line.server.signal(signal.SIGINT)
    wait_heard(line.server)
    if again:
        line.server.signal(signal.SIGINT)
    else:
        gate.open()
    assert collect(clients, HI)[Outcome.OK] == (0 if again else 2)
    assert line.server.wait_exit() == 0


def test_after_an_upgrade_a_stop_drains_and_holds_off_as_ever(start: Start, gate: Gate) -> None:
    line = start(GATED, "--workers", "2", env=gate.env)
    line.upgrade()
    clients = crowd(line.server.address, 52)
    gate.wait_entered(2)
    mark = len(line.server.log)
    os.kill(line.master, signal.SIGTERM)
    line.server.wait_log("SIGTERM", after=mark)
    gate.open()
    assert collect(clients, HI) == {Outcome.OK: 52}
    line.stop()


def test_after_an_upgrade_a_stop_under_load_resets_hardly_anyone(start: Start) -> None:
    line = start("talkback", "--workers", "2")
    line.upgrade()
    with Hammer(line.server.address, clients=8) as hammer:
        hammer.wait_more(200)
        line.stop()
    assert {failure.outcome for failure in hammer.failures} <= {Outcome.REFUSED, Outcome.RESET}
    assert hammer.outcomes[Outcome.RESET] <= 2


def test_the_pid_file_stays_locked_and_names_the_new_master(start: Start, serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "pid"
    line = start("--workers", "1", "--pid", str(path))
    inode = path.stat().st_ino
    line.upgrade()
    assert int(path.read_text()) == line.master
    assert path.stat().st_ino == inode, "it was written in place"
    rival = serve("--pid", str(path), ready=False, expected_exit=1)
    assert rival.wait_exit() == 1
    assert f"pid {line.master} runs already" in rival.log
    line.stop()
    assert not path.exists()


def test_a_unix_socket_keeps_its_path_until_the_last_master_ends(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    line = start("--workers", "1", bind=f"unix:{path}")
    line.upgrade()
    assert exchange(f"unix:{path}", b"hi\n") == HI
    line.stop()
    assert not path.exists()


def test_every_kind_of_listener_is_handed_down(start: Start, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as theirs:
        fd = theirs.fileno()
        binds = ["127.0.0.1:0", ":0", f"unix:{tmp_path}/s", f"fd://{fd}"]
        line = start("--workers", "2", bind=binds, pass_fds=[fd])
        before = line.server.addresses
        line.upgrade()
        assert line.server.addresses == before * 2
        assert [exchange(address, b"hi\n") for address in before] == [HI] * 4


def test_sockets_of_a_service_manager_are_handed_down(start: Start) -> None:
    activate = (
        "import os,sys; os.dup2(int(sys.argv[1]), 3); os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()))"
    )
    with socket.create_server(("127.0.0.1", 0)) as theirs:
        fd = theirs.fileno()
        wrapper = [sys.executable, "-c", f"{activate}; os.execv(sys.argv[2], sys.argv[2:])", str(fd)]
        line = start("--workers", "1", bind=None, wrapper=wrapper, pass_fds=[fd])
        line.upgrade()
        assert exchange(line.server.address, b"hi\n") == HI


def test_the_service_manager_is_told_the_new_main_process_by_the_old_one(start: Start, tmp_path: Path) -> None:
    manager = Manager(tmp_path / "notify")
    line = start("--workers", "1", env=manager.env)
    first = line.master
    assert manager.next()[0] == first
    line.upgrade()
    assert manager.next() == (first, [f"MAINPID={line.master}"])
    pid, (ready, _status, main_pid) = manager.next()
    assert (pid, ready, main_pid) == (line.master, "READY=1", f"MAINPID={line.master}")
    line.stop()
    assert manager.next()[0] == line.master, "the first master did not say that it stops"
    manager.close()


def test_the_new_master_starts_where_the_first_one_did(start: Start, tmp_path: Path) -> None:
    """`--chdir sub` from within sub would fail; the mode of the control socket's folder must not follow --umask."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "app.py").write_text(SAYS.format("here"))
    env = {"PYTHONPATH": str(ROOT)}
    line = start("app.py:handle", "--workers", "1", "--chdir", "sub", "--umask", "077", cwd=tmp_path, env=env)
    line.upgrade()
    line.upgrade()
    assert said(line.server.address) == b"here"


def test_a_deployment_that_moves_a_link_is_followed(start: Start, tmp_path: Path) -> None:
    for release in ("1", "2"):
        (tmp_path / release).mkdir()
        (tmp_path / release / "app.py").write_text(SAYS.format(f"release {release}"))
    current = tmp_path / "current"
    current.symlink_to("1")
    env = {"PYTHONPATH": str(Path(__file__).resolve().parents[2]), "PWD": str(current)}
    line = start("app.py:handle", "--workers", "1", cwd=current, env=env)
    assert said(line.server.address) == b"release 1"
    current.unlink()
    current.symlink_to("2")
    line.upgrade()
    assert said(line.server.address) == b"release 2"


def test_the_new_master_is_like_the_first_in_signals_descriptors_and_environment(start: Start) -> None:
    line = start("--workers", "1")
    before = facts(line.master)
    for _ in range(3):
        line.upgrade()
    eventually(lambda: facts(line.master) == before, within_s=15, what=f"{before}, not {facts(line.master)}")
    (worker,) = children(line.master)
    assert "PREFORK_INHERITED" not in Path(f"/proc/{worker}/environ").read_text().replace("PREFORK_INHERITED={", "")


def facts(pid: int) -> dict[str, object]:
    """What would leak from one master to the next."""
    status = dict(line.split(":\t") for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "Sig" in line)
    kinds = sorted(re.sub(r"\d+", "N", what) for what in open_fds(pid).values())
    return {"blocked": status["SigBlk"], "ignored": status["SigIgn"], "caught": status["SigCgt"], "descriptors": kinds}


def test_what_the_old_master_was_scaled_to_is_kept(start: Start) -> None:
    line = start("--workers", "1")
    line.server.signal(signal.SIGTTIN)
    line.server.wait_workers(2)
    eventually(lambda: len(children(line.master)) == 2, within_s=15)
    line.upgrade()
    assert len(children(line.master)) == 2


def test_the_control_socket_follows(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "control"
    line = start("--workers", "1", "--control", str(path))
    for _ in range(2):
        line.upgrade()
        command = [sys.executable, "-m", "prefork", "status", "--json", "--control", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        assert f'"pid": {line.master}' in done.stdout


# --- another configuration


def test_an_address_more_and_an_address_less(start: Start, tmp_path: Path, gate: Gate) -> None:
    """What nobody listens on any more is drained by the old master."""
    path = tmp_path / "prefork.toml"
    path.write_text("bind = ['127.0.0.1:0', 'localhost:0']\n")
    line = start(GATED, "--workers", "1", "--config", str(path), bind=None, env=gate.env)
    kept, dropped = line.server.addresses
    inside = crowd(kept, 1)
    gate.wait_entered(1)
    waiting = crowd(kept, 3) + crowd(dropped, 3)
    path.write_text(f"bind = ['127.0.0.1:0', 'unix:{tmp_path}/new']\n")
    old, mark = line.master, line.usr2()
    line.server.wait_log(rf"took over predecessor={old}\b", after=mark, within_s=SOON_S)
    line.master = line.successor(mark)
    gate.open()
    assert collect(inside + waiting, HI) == {Outcome.OK: 7}
    eventually(lambda: not alive(old), within_s=SOON_S)
    assert exchange(kept, b"hi\n") == exchange(f"unix:{tmp_path}/new", b"hi\n") == HI
    assert attempt(dropped, b"hi\n", HI) is Outcome.REFUSED


@pytest.mark.parametrize("change", ["workers = 3\naccept = 'per-worker'\n", "workers = 2\naccept = 'shared'\n"])
def test_sockets_of_each_worker_cannot_become_more_or_fewer(start: Start, tmp_path: Path, change: str) -> None:
    path = tmp_path / "prefork.toml"
    path.write_text("workers = 2\naccept = 'per-worker'\n")
    line = start("--config", str(path))
    workers = line.server.worker_pids()
    path.write_text(change)
    assert "cannot take over 127.0.0.1:0: it has 2 sockets, one for each worker" in line.failed(line.usr2())
    assert exchange(line.server.address, b"hi\n") == HI
    assert line.server.worker_pids() == workers


def test_one_workers_socket_becomes_every_workers(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "prefork.toml"
    path.write_text(f"app = {SLOT!r}\nworkers = 1\naccept = 'per-worker'\n")
    line = start("--config", str(path))
    path.write_text(f"app = {SLOT!r}\nworkers = 2\naccept = 'shared'\n")
    line.upgrade()
    slots = set[bytes]()

    def both() -> bool:
        slots.add(said(line.server.address).split()[0])
        return slots == {b"0", b"1"}

    eventually(both, within_s=SOON_S, what="both workers")


def test_another_number_of_workers(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "prefork.toml"
    path.write_text("workers = 1\n")
    line = start("--config", str(path))
    path.write_text("workers = 3\n")
    line.upgrade()
    assert len(children(line.master)) == 3


# --- an upgrade that fails


BROKEN = {
    "syntax": ("this is no Python\n", "cannot load"),
    "leaves": ("import sys\nsys.exit(3)\n", "cannot load"),
    "dies": ("import os\nos._exit(9)\n", "cannot boot: it died of exit code 9"),
    "hangs": ("import threading\nthreading.Event().wait(60)\n", "--boot-timeout"),
}


@pytest.mark.parametrize("kind", ["syntax", "leaves", "dies", "hangs"])
def test_a_broken_version_changes_nothing(start: Start, app: AppWriter, tmp_path: Path, kind: str) -> None:
    source, reason = BROKEN[kind]
    path = tmp_path / "pid"
    target = app(SAYS.format("good"))
    patience = "8" if kind == "hangs" else "60"  # the good version that follows has to boot within it, too
    line = start(target, "--workers", "2", "--boot-timeout", patience, "--pid", str(path))
    line.server.expect_traceback = True
    workers = line.server.worker_pids()
    with Hammer(line.server.address, clients=2, expected=b"good") as hammer:
        hammer.wait_more(20)
        app(source)
        assert reason in line.failed(line.usr2())
        hammer.wait_more(20)
    assert not hammer.failures
    eventually(lambda: line.server.worker_pids() == workers, within_s=15, what="the old workers, and only they")
    assert int(path.read_text()) == line.server.pid
    app(SAYS.format("better"))
    line.upgrade()
    assert said(line.server.address) == b"better"


def test_a_command_line_that_no_longer_works_changes_nothing(start: Start, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    line = start("--workers", "1", "--chdir", str(tmp_path / "sub"))
    (tmp_path / "sub").rmdir()
    assert line.failed(line.usr2()) == '"it died of exit code 2"'
    assert f"cannot change to '{tmp_path}/sub'" in line.server.log
    assert exchange(line.server.address, b"hi\n") == HI


def test_a_folder_that_has_gone_changes_nothing(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "release"
    folder.mkdir()
    env = {"PYTHONPATH": str(ROOT)}
    line = start("--workers", "1", cwd=folder, env=env)
    folder.rmdir()
    assert f"in {folder}: [Errno 2] No such file or directory" in line.failed(line.usr2())
    assert exchange(line.server.address, b"hi\n") == HI


def test_a_new_master_that_is_killed_changes_nothing(start: Start, app: AppWriter, gate: Gate) -> None:
    line, mark = half_way(start, app, gate)
    os.kill(line.successor(mark), signal.SIGKILL)
    assert "SIGKILL" in line.failed(mark)
    assert said(line.server.address) == b"old"


def test_a_new_master_that_dies_at_the_hand_over_changes_nothing(start: Start, app: AppWriter, gate: Gate) -> None:
    """It was ready, and said so, but the old master had no time to answer."""
    line, mark = half_way(start, app, gate)
    successor = line.successor(mark)
    line.server.signal(signal.SIGSTOP)
    gate.open()
    line.server.wait_log("ready workers=1", after=mark)
    os.kill(successor, signal.SIGKILL)
    eventually(lambda: not alive(successor), within_s=15)
    line.server.signal(signal.SIGCONT)
    assert "SIGKILL" in line.failed(mark)
    assert said(line.server.address) == b"old"


def test_clients_of_a_new_version_that_fails_half_way_are_served(start: Start, app: AppWriter, gate: Gate) -> None:
    """One of its workers serves already when another one cannot boot."""
    target = app(SAYS.format("good"))
    line = start(target, "--workers", "2", "--boot-timeout", "60", env=gate.env)
    line.server.expect_traceback = True
    app(
        f"import os, sys\nsys.path.insert(0, {str(APPS)!r})\nimport gated\n"
        "if os.environ['PREFORK_SLOT'] == '1':\n    gated.pass_gate()\n    raise RuntimeError('half way')\n"
        "def handle(conn):\n    conn.readline()\n    gated.pass_gate()\n    conn.sendall(b'good')\n"
    )
    mark = line.usr2()
    gate.wait_entered(1)  # slot 1 is still at its import
    with Hammer(line.server.address, clients=4, expected=b"good") as hammer:
        gate.wait_entered(1, within_s=20)  # slot 0 has taken one of these clients
        gate.open()
        assert "half way" in line.failed(mark)
        hammer.wait_more(20)
    assert not hammer.failures


# --- two things at once


def test_what_is_refused_while_an_upgrade_runs(start: Start, app: AppWriter, gate: Gate) -> None:
    line, mark = half_way(start, app, gate)
    again = line.usr2()
    line.server.wait_log(
        rf"upgrade refused reason=\"an upgrade to pid {line.successor(mark)} is under way\"", after=again
    )
    gate.open()
    line.server.wait_log("took over", after=mark)
    line.master = line.successor(mark)


def test_an_upgrade_is_refused_while_a_reload_runs(start: Start, app: AppWriter, gate: Gate) -> None:
    line = start(app(SAYS.format("old")), "--workers", "1", env=gate.env)
    app(AT_THE_GATE)
    line.server.signal(signal.SIGHUP)
    gate.wait_entered(1)
    mark = line.usr2()
    line.server.wait_log('upgrade refused reason="a reload is under way"', after=mark)
    gate.open()
    line.server.wait_log("reloaded generation=2")
    line.upgrade()


@pytest.mark.parametrize("group", [False, True], ids=["master", "group"])
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_stop_during_an_upgrade_ends_both(
    start: Start, app: AppWriter, gate: Gate, signum: signal.Signals, *, group: bool
) -> None:
    line, mark = half_way(start, app, gate)
    successor = line.successor(mark)
    (line.server.signal_group if group else line.server.signal)(signum)
    assert line.server.wait_exit() == 0
    assert not alive(successor)
    assert attempt(line.server.address, b"", b"old") is Outcome.REFUSED


def test_if_the_old_master_is_killed_on_the_way_the_new_one_takes_over(
    start: Start, app: AppWriter, gate: Gate, tmp_path: Path
) -> None:
    path = tmp_path / "pid"
    line, mark = half_way(start, app, gate, "--pid", str(path))
    line.server.expected_exit = -signal.SIGKILL
    (old_worker,) = line.server.worker_pids() - {line.successor(mark)}
    line.master = line.successor(mark)
    line.server.signal(signal.SIGKILL)
    gate.open()
    line.server.wait_log("took over", after=mark)
    eventually(lambda: not alive(old_worker), within_s=15, what="the end of the killed master's worker")
    assert exchange(line.server.address, b"hi\n") == HI
    assert int(path.read_text()) == line.master


def test_an_app_that_is_no_text_cannot_be_upgraded(start: Start, tmp_path: Path) -> None:
    line = start(bind=None, wrapper=from_python(tmp_path, "lambda conn: conn.sendall(b'here')"))
    mark = line.usr2()
    line.server.wait_log('upgrade refused reason="the app is an object of this process', after=mark)
    assert said(line.server.address) == b"here"


def test_a_program_that_serves_an_app_by_name_is_started_anew(start: Start, tmp_path: Path) -> None:
    line = start(bind=None, wrapper=from_python(tmp_path, "'talkback'"))
    line.upgrade()
    assert exchange(line.server.address, b"hi\n") == HI


def from_python(folder: Path, app: str) -> list[str]:
    """A program that serves the app; what follows it on the command line is not its own."""
    path = folder / "program.py"
    path.write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nimport prefork\n"
        f"sys.exit(prefork.serve({app}, workers=1, bind=['127.0.0.1:0']))\n"
    )
    return [sys.executable, str(path)]


def test_process_1_refuses(serve: Serve) -> None:
    """In a process namespace of its own, as in a container."""
    if os.geteuid() != 0:
        pytest.skip("only root makes namespaces")
    wrapper = ["unshare", "--pid", "--fork", "--kill-child=TERM", "--mount-proc"]
    server = serve("--workers", "1", wrapper=wrapper)
    (master,) = children(server.pid)
    os.kill(master, signal.SIGUSR2)
    server.wait_log('upgrade refused reason="this is process 1')
    assert exchange(server.address, b"hi\n") == HI
    os.kill(master, signal.SIGTERM)
    assert server.wait_exit() == 0
