"""The pid file: a lock says who serves, and nothing but our own file is ever written or removed."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from prefork.core.pidfile import AlreadyRunning, PidFile
from prefork.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HOLD = """
import sys
from prefork.core.pidfile import PidFile
PidFile.claim(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A living process that has claimed tmp_path/pid."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "pid")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_it_holds_the_pid_while_we_run_and_is_gone_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    mine = PidFile.claim(str(path))
    assert path.read_text() == f"{os.getpid()}\n"
    assert path.stat().st_mode & 0o777 == 0o644 & ~current_umask()
    mine.release()
    assert not path.exists()


def test_a_second_one_is_told_who_runs(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(AlreadyRunning, match=rf"^pid {holder.pid} runs already and holds ") as caught:
        PidFile.claim(str(tmp_path / "pid"))
    assert caught.value.exit_code == 1
    assert (tmp_path / "pid").read_text() == f"{holder.pid}\n"


def test_one_that_was_left_behind_is_taken_over(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.wait()
    assert (tmp_path / "pid").read_text() == f"{holder.pid}\n"
    mine = PidFile.claim(str(tmp_path / "pid"))
    assert (tmp_path / "pid").read_text() == f"{os.getpid()}\n"
    mine.release()


def test_the_number_of_a_living_stranger_does_not_matter(tmp_path: Path) -> None:
    """Pids are used again: only the lock says that a server runs."""
    path = tmp_path / "pid"
    path.write_text(f"{os.getppid()}\n")
    mine = PidFile.claim(str(path))
    assert path.read_text() == f"{os.getpid()}\n"
    mine.release()


@pytest.mark.parametrize("content", ["root:x:0:0\n", "12345 67", "-1\n", "1" * 64, "\n" * 200])
def test_a_file_that_holds_something_else_is_left_alone(tmp_path: Path, content: str) -> None:
    path = tmp_path / "precious"
    path.write_text(content)
    with pytest.raises(ConfigError, match="holds something else than a pid"):
        PidFile.claim(str(path))
    assert path.read_text() == content


@pytest.mark.parametrize("place", ["no/such/folder/pid", ".", "fifo", "a\0b"])
def test_a_place_where_none_can_be_is_named(tmp_path: Path, place: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ConfigError, match="cannot write the pid file") as caught:
        PidFile.claim(f"{tmp_path}/{place}")
    assert place in str(caught.value) or "\0" in place


def test_what_another_one_has_put_there_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    mine = PidFile.claim(str(path))
    path.unlink()
    path.write_text("4242\n")
    mine.release()
    assert path.read_text() == "4242\n"


def test_a_folder_that_has_gone_is_no_trouble_at_the_end(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    mine = PidFile.claim(str(folder / "pid"))
    (folder / "pid").unlink()
    folder.rmdir()
    mine.release()


def test_a_file_that_is_removed_while_we_wait_for_it_is_made_again(tmp_path: Path) -> None:
    """The last owner unlinks its file after another has opened it: a lock on that one would protect nothing."""
    path = tmp_path / "pid"
    first = PidFile.claim(str(path))
    late = os.open(path, os.O_RDWR)  # the newcomer has opened it
    first.release()
    fcntl.flock(late, fcntl.LOCK_EX | fcntl.LOCK_NB)
    mine = PidFile.claim(str(path))
    assert path.read_text() == f"{os.getpid()}\n"
    os.close(late)
    mine.release()


def test_the_lock_goes_with_the_descriptor_to_the_next_master(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    old = PidFile.claim(str(path))
    new = PidFile.inherit(str(path), os.dup(old.fd))
    old.close()
    assert not os.get_inheritable(new.fd)
    with pytest.raises(AlreadyRunning):
        PidFile.claim(str(path))
    new.write()
    new.release()
    assert not path.exists()


def test_a_master_that_has_handed_over_does_not_remove_its_successors_file(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    old = PidFile.claim(str(path))
    os.pwrite(old.fd, b"4242\n", 0)
    os.ftruncate(old.fd, 5)
    old.release()
    assert path.read_text() == "4242\n"


def current_umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
