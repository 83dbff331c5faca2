"""One control client at a time, over a socket pair and with a clock of ours; and the places where sockets are."""

from __future__ import annotations

import json
import os
import select
import socket
from typing import TYPE_CHECKING, Any

import pytest

from prefork.control.path import candidates, directories, fault, is_alive, new_path
from prefork.control.protocol import (
    CLIENT_S,
    HEARTBEAT_S,
    REQUEST_MOST,
    CommandSteps,
    Conversation,
    Peer,
    Progress,
    RefusedError,
    Request,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PEER = Peer(pid=1, uid=2)
NEVER = float("inf")


class Talk:
    """A conversation whose commands the test steers: `script` is what the next one yields, returns or raises."""

    def __init__(self, *, send_buffer: int | None = None) -> None:
        self.client, theirs = socket.socketpair()
        self.client.settimeout(5)
        if send_buffer:
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        self.now_s = 1000.0
        self.served = Conversation(theirs, PEER, self.now_s)
        self.requests: list[Request] = []
        self.script: list[Any] = []
        self.ended = False

    def _obey(self, request: Request, peer: Peer) -> CommandSteps:
        assert peer is PEER
        self.requests.append(request)
        try:
            while True:
                match self.script[0]:
                    case Progress() as progress:
                        yield progress
                    case Exception() as error:
                        raise error
                    case answer:
                        return answer  # type: ignore[no-any-return]
        finally:
            self.ended = True

    def say(self, data: bytes) -> None:
        """Send bytes and let the master read them."""
        self.client.sendall(data)
        self.served.receive(self._obey, self.now_s)

    def half_close(self) -> None:
        """End the client's half and let the master see it."""
        self.client.shutdown(socket.SHUT_WR)
        self.served.receive(self._obey, self.now_s)

    def step(self, after_s: float = 0.0) -> None:
        """Take the turn of the master's loop that comes so much later."""
        self.now_s += after_s
        self.served.step(self.now_s)

    def heard(self) -> list[dict[str, Any]]:
        """Return the lines that have arrived at the client."""
        return [json.loads(line) for line in self.heard_bytes().splitlines()]

    def heard_bytes(self) -> bytes:
        """Return all that has arrived at the client."""
        self.client.setblocking(False)
        data = b""
        try:
            while chunk := self.client.recv(1 << 20):
                data += chunk
        except BlockingIOError:
            pass
        return data

    def close(self) -> None:
        self.client.close()
        self.served.close()


@pytest.fixture
def talk() -> Iterator[Talk]:
    made = Talk()
    yield made
    made.close()


@pytest.fixture
def narrow() -> Iterator[Talk]:
    """A client whose socket takes little at a time."""
    made = Talk(send_buffer=4096)
    yield made
    made.close()


def test_a_command_is_answered_and_the_conversation_is_over(talk: Talk) -> None:
    talk.script = [{"workers": 3}]
    talk.say(b'{"command": "scale", "workers": 3}\n')
    assert talk.requests == [{"command": "scale", "workers": 3}]
    assert talk.heard() == [{"ok": True, "answer": {"workers": 3}}]
    assert talk.served.over


def test_a_line_may_come_in_pieces(talk: Talk) -> None:
    talk.script = [{}]
    for piece in (b'{"comm', b'and": "sta', b'tus"}'):
        talk.say(piece)
        assert talk.requests == []
        assert talk.served.interest == select.EPOLLIN
    talk.say(b"\n")
    assert talk.requests == [{"command": "status"}]


def test_the_end_of_the_clients_half_ends_the_line(talk: Talk) -> None:
    talk.script = [{}]
    talk.say(b'{"command": "status"}')
    talk.half_close()
    assert talk.heard() == [{"ok": True, "answer": {}}]


def test_a_client_that_says_nothing_and_leaves_is_forgotten(talk: Talk) -> None:
    talk.half_close()
    assert talk.served.over
    assert talk.heard() == []


def test_one_connection_is_one_command(talk: Talk) -> None:
    talk.script = [Progress("wait")]
    talk.say(b'{"n": 1}\n{"n": 2}\n')
    talk.say(b'{"n": 3}\n')
    assert talk.requests == [{"n": 1}]
    assert talk.served.interest == 0, "what else it says is not read: the kernel holds it back"


def test_progress_is_told_when_it_changes_and_as_a_heartbeat(talk: Talk) -> None:
    talk.script = [Progress("1 of 2")]
    talk.say(b"{}\n")
    for _ in range(5):
        talk.step(0.1)
    assert talk.heard() == [{"progress": "1 of 2"}]
    talk.script = [Progress("2 of 2")]
    talk.step(0.1)
    assert talk.heard() == [{"progress": "2 of 2"}]
    assert talk.served.wake_s == talk.now_s + HEARTBEAT_S
    talk.step(HEARTBEAT_S)
    assert talk.heard() == [{"progress": "2 of 2"}]
    assert not talk.served.over
    talk.script = [{"took_s": 6}]
    talk.step()
    assert talk.heard() == [{"ok": True, "answer": {"took_s": 6}}]
    assert talk.served.over


def test_a_command_has_no_deadline_but_its_own(talk: Talk) -> None:
    talk.script = [Progress("on and on")]
    talk.say(b"{}\n")
    for _ in range(1000):
        talk.step(100.0)
        talk.heard()
    assert not talk.served.over


def test_the_loop_wakes_when_the_command_wants_to_be_asked_again(talk: Talk) -> None:
    talk.script = [Progress("soon", talk.now_s + 0.25)]
    talk.say(b"{}\n")
    assert talk.served.wake_s == talk.now_s + 0.25


def test_a_refusal_is_told(talk: Talk) -> None:
    talk.script = [RefusedError("the server is stopping")]
    talk.say(b"{}\n")
    assert talk.heard() == [{"ok": False, "error": "the server is stopping"}]
    assert talk.served.over


def test_a_line_without_end_is_refused(talk: Talk) -> None:
    for _ in range(REQUEST_MOST // 1024):
        talk.say(b"x" * 1024)
        assert not talk.served.over
    talk.say(b"x")
    (answer,) = talk.heard()
    assert answer == {"ok": False, "error": f"the request is longer than {REQUEST_MOST} bytes"}
    assert talk.requests == []
    assert talk.served.over


def test_a_line_that_is_not_finished_in_time_ends_the_conversation(talk: Talk) -> None:
    talk.say(b'{"command"')
    talk.step(CLIENT_S - 0.1)
    assert not talk.served.over
    talk.step(0.1)
    assert talk.served.over
    assert talk.heard() == [{"ok": False, "error": "no request came within 10 s"}]


def test_a_client_that_drips_bytes_gains_no_time(talk: Talk) -> None:
    for _ in range(9):
        talk.say(b" ")
        talk.step(1.0)
    assert not talk.served.over
    talk.say(b" ")
    talk.step(1.0)
    assert talk.served.over


def test_a_client_that_does_not_read_its_answer_is_dropped(narrow: Talk) -> None:
    narrow.script = [{"text": "x" * 1_000_000}]
    narrow.say(b"{}\n")
    assert narrow.served.interest == select.EPOLLOUT
    narrow.step(CLIENT_S - 0.1)
    assert not narrow.served.over
    narrow.step(0.1)
    assert narrow.served.over


def test_a_client_that_reads_slowly_gets_all_of_its_answer(narrow: Talk) -> None:
    narrow.script = [{"text": "x" * 1_000_000}]
    narrow.say(b"{}\n")
    data = b""
    narrow.client.setblocking(False)
    while not narrow.served.over:
        narrow.step(CLIENT_S / 2)  # each piece within its time, all together far beyond
        try:
            data += narrow.client.recv(100_000)
        except BlockingIOError:
            raise AssertionError("nothing was sent, and it is not over") from None
    data += b"".join(
        iter(lambda: narrow.client.recv(100_000) if select.select([narrow.client], [], [], 0)[0] else b"", b"")
    )
    assert json.loads(data)["answer"] == narrow.script[0]


def test_a_client_that_reads_no_progress_does_not_pile_it_up_nor_spin_the_loop(narrow: Talk) -> None:
    narrow.script = [Progress("x" * 10_000)]
    narrow.say(b"{}\n")
    for n in range(20):
        narrow.script = [Progress(f"{n}" + "x" * 10_000)]
        narrow.step(0.1)
    if narrow.served.interest == select.EPOLLOUT:
        assert narrow.served.wake_s > narrow.now_s, "or the master would turn without a pause"
        narrow.step(CLIENT_S)
        narrow.step(CLIENT_S)
        assert narrow.served.over
        assert len(narrow.heard_bytes()) < 20_000, "at most two lines of twenty"
    else:
        pytest.fail("the socket took everything: the test shows nothing")


def test_a_client_that_has_gone_ends_the_watching_but_not_the_deed(talk: Talk) -> None:
    talk.script = [Progress("1 of 2")]
    talk.say(b"{}\n")
    talk.client.close()
    talk.script = [Progress("2 of 2")]
    talk.step()
    assert talk.served.over
    assert not talk.ended
    talk.served.close()
    assert talk.ended, "the generator was closed: its finally has run"


@pytest.mark.parametrize("line", [b"", b"status", b"[]", b"1", b"null", b'"x"', b"[" * 50_000, b"\xff", b"{" * 9999])
def test_what_is_not_an_object_is_no_request(talk: Talk, line: bytes) -> None:
    talk.say(line + b"\n")
    (answer,) = talk.heard()
    assert answer["ok"] is False
    assert "one line of JSON" in answer["error"]
    assert talk.requests == []
    assert talk.served.over


# --- places


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    for name in ("run", "tmp"):
        (tmp_path / name).mkdir(mode=0o700)
    return {"XDG_RUNTIME_DIR": str(tmp_path / "run"), "TMPDIR": str(tmp_path / "tmp")}


def test_a_new_socket_goes_to_the_runtime_dir_and_clients_look_in_both_places(environ: dict[str, str]) -> None:
    uid = os.geteuid()
    path = new_path(environ, uid, 4242)
    assert path == f"{environ['XDG_RUNTIME_DIR']}/prefork/4242.sock"
    elsewhere = new_path({"TMPDIR": environ["TMPDIR"]}, uid, 4343)
    assert elsewhere == f"{environ['TMPDIR']}/prefork-{uid}/4343.sock"
    for made in (path, elsewhere):
        assert fault(os.path.dirname(made), uid) is None
        with open(made, "w"):
            pass
    assert candidates(environ, uid) == [path, elsewhere]


def test_a_runtime_dir_of_another_user_is_not_used(environ: dict[str, str]) -> None:
    """As under sudo, which may keep the variable."""
    other = os.geteuid() + 1
    assert directories(environ, other) == [f"{environ['TMPDIR']}/prefork-{other}"]


def test_a_missing_runtime_dir_is_not_made(environ: dict[str, str], tmp_path: Path) -> None:
    environ["XDG_RUNTIME_DIR"] = str(tmp_path / "none")
    assert new_path(environ, os.geteuid(), 1).startswith(environ["TMPDIR"])
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("kind", ["open", "file", "link", "foreign"])
def test_a_folder_that_others_could_write_to_is_not_trusted(environ: dict[str, str], kind: str, tmp_path: Path) -> None:
    uid = os.geteuid()
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    del environ["XDG_RUNTIME_DIR"]
    folder = tmp_path / "tmp" / f"prefork-{uid}"
    match kind:
        case "open":
            folder.mkdir()
            folder.chmod(0o770)
        case "file":
            folder.write_text("")
        case "link":
            folder.symlink_to(private)
        case "foreign":
            if uid != 0:
                pytest.skip("only root can give a folder away")
            folder.mkdir(mode=0o700)
            os.chown(folder, 1, 1)
    with pytest.raises(OSError, match=str(folder)):
        new_path(environ, uid, 1)
    assert candidates(environ, uid) == []


def dead_pid() -> int:
    """Return a number that no process has."""
    pid = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(pid, 0)
    return pid


def test_a_dead_socket_is_removed_only_if_its_process_is_gone(tmp_path: Path) -> None:
    gone, living, named = tmp_path / f"{dead_pid()}.sock", tmp_path / f"{os.getpid()}.sock", tmp_path / "mine.sock"
    for path in (gone, living, named):
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(path))
        assert not is_alive(str(path))
    assert [path.exists() for path in (gone, living, named)] == [False, True, True]
    assert not is_alive(str(gone)), "gone already"


def test_a_socket_with_a_full_queue_is_alive(tmp_path: Path) -> None:
    path = tmp_path / f"{dead_pid()}.sock"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(str(path))
        listener.listen(0)
        first.connect(str(path))
        assert is_alive(str(path))
        assert is_alive(str(path))
    assert path.exists()
