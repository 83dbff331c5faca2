"""--reload: a developer saves files, breaks them and mends them, and never has to start the server again."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.client import exchange
from tests.support.processes import alive
from tests.support.server import run
from tests.support.wait import eventually

if TYPE_CHECKING:
    from tests.conftest import Serve
    from tests.support.server import RunningServer

pytestmark = pytest.mark.slow

MAIN = "import words\ndef handle(conn): conn.sendall(words.WORD.encode())\n"
RELOADED_S = 20.0


class Project:
    """A folder with an app of two files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.save("main.py", MAIN)

    def save(self, name: str, text: str) -> None:
        """Write a file in one step, as editors do."""
        new = self.folder / f".{name}.new"
        new.write_text(text)
        new.replace(self.folder / name)

    def word(self, word: str) -> None:
        self.save("words.py", f"WORD = {word!r}\n")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def start(serve: Serve, project: Project, *args: str, **kwargs: object) -> RunningServer:
    return serve("main:handle", "--reload", *args, cwd=project.folder, expect_traceback=True, **kwargs)


def expect(server: RunningServer, word: str) -> None:
    eventually(lambda: exchange(server.address, b"") == word.encode(), within_s=RELOADED_S)


def pid_of(server: RunningServer, title: str) -> int:
    def look() -> list[int]:
        return [pid for pid in server.worker_pids() if title in Path(f"/proc/{pid}/cmdline").read_text()]

    (found,) = eventually(look, within_s=15)
    return found


def test_a_change_of_an_imported_file_is_served(serve: Serve, project: Project) -> None:
    project.word("one")
    server = start(serve, project)
    assert exchange(server.address, b"") == b"one"
    for word in ("two", "six", "ten"):  # of one length, within a second: bytecode must not hide them
        project.word(word)
        expect(server, word)
    assert "changed file=words.py" in server.log
    project.save("main.py", MAIN.replace("WORD.", "WORD.upper()."))
    expect(server, "TEN")


def test_a_file_that_is_written_in_place_is_seen_as_well(serve: Serve, project: Project) -> None:
    project.word("one")
    server = start(serve, project)
    (project.folder / "words.py").write_text("WORD = 'in place'\n")
    expect(server, "in place")


def test_a_broken_file_leaves_the_old_generation_and_is_explained(serve: Serve, project: Project) -> None:
    project.word("one")
    server = start(serve, project)
    project.save("words.py", "WORD = = 2\n")
    server.wait_log("reload abandoned .*SyntaxError", within_s=RELOADED_S)
    assert "WORD = = 2" in server.log
    assert exchange(server.address, b"") == b"one"
    project.word("mended")
    expect(server, "mended")


def test_a_start_with_a_broken_app_waits_for_the_mending(serve: Serve, project: Project) -> None:
    project.save("words.py", "def f(:\n")
    server = start(serve, project, ready=False)
    server.wait_log("reload abandoned .*SyntaxError.*until a file changes")
    assert server.log.count("worker died") == 1, "it waits, and does not try again and again"
    project.save("words.py", "WORD = 1 / 0\n")
    server.wait_log("reload abandoned .*ZeroDivisionError", within_s=RELOADED_S)
    project.word("mended")
    server.wait_ready(within_s=RELOADED_S)
    assert exchange(server.address, b"") == b"mended"


@pytest.mark.parametrize("source", ["import os; os._exit(3)", "import sys; sys.exit('stop')"])
def test_an_app_that_ends_its_process_is_waited_for_too(serve: Serve, project: Project, source: str) -> None:
    project.save("words.py", source)
    server = start(serve, project, ready=False)
    server.wait_log("reload abandoned")
    project.word("mended")
    server.wait_ready(within_s=RELOADED_S)
    assert exchange(server.address, b"") == b"mended"


def test_a_file_that_did_not_exist_mends_the_import_of_it(serve: Serve, project: Project) -> None:
    server = start(serve, project, ready=False)
    server.wait_log("reload abandoned .*No module named 'words'")
    (project.folder / "words").mkdir()
    (project.folder / "words" / "__init__.py").write_text("WORD = 'a package'\n")
    server.wait_ready(within_s=RELOADED_S)
    assert exchange(server.address, b"") == b"a package"


def test_what_is_imported_while_it_serves_is_watched_too(serve: Serve, project: Project) -> None:
    project.save("main.py", "def handle(conn):\n    import words\n    conn.sendall(words.WORD.encode())\n")
    project.word("one")
    server = start(serve, project)
    assert exchange(server.address, b"") == b"one"  # from now on words.py is part of the app
    seen = iter(range(1000))

    def another_word() -> bool:
        project.word(f"word {next(seen)}")
        return "changed file=words.py" in server.log

    eventually(another_word, within_s=RELOADED_S)
    server.wait_log("reloaded generation=2", within_s=RELOADED_S)


def test_a_file_that_is_not_part_of_the_app_changes_nothing(serve: Serve, project: Project) -> None:
    project.word("one")
    project.save("notes.py", "x = 1\n")
    server = start(serve, project)
    project.save("notes.py", "x = 2\n")
    project.word("two")
    expect(server, "two")
    assert "notes.py" not in server.log
    assert "others=" not in server.log
    assert server.log.count("INFO [watcher=") == 1


def test_there_is_one_worker_unless_more_are_asked_for(serve: Serve, project: Project) -> None:
    project.word("one")
    server = start(serve, project)
    assert len(server.worker_pids()) == 1 + 1  # and the watcher
    more = start(serve, project, "--workers", "2", "--preload")
    assert len(more.worker_pids()) == 2 + 1, "preload imports the app once, which is the opposite of --reload"


def test_the_watcher_ends_with_the_master(serve: Serve, project: Project) -> None:
    project.word("one")
    server = start(serve, project)
    watcher = pid_of(server, "prefork: watcher")
    server.expected_exit = -signal.SIGKILL
    server.stop(signal.SIGKILL)
    eventually(lambda: not alive(watcher), within_s=15)


def test_a_watcher_that_dies_is_told_and_the_server_serves_on(serve: Serve, project: Project) -> None:
    project.word("one")
    server = start(serve, project)
    os.kill(pid_of(server, "prefork: watcher"), signal.SIGKILL)
    server.wait_log("ERROR .* watcher died .*cause=SIGKILL")
    project.word("two")
    server.signal(signal.SIGHUP)
    expect(server, "two")


# Sends a report of its own to the watcher when it is imported.
SAYS = """
import os, socket

for name in os.listdir("/proc/self/fd"):
    try:
        sock = socket.socket(fileno=os.dup(int(name)))
    except OSError:
        continue  # no socket, or closed by now
    with sock:
        if sock.type == socket.SOCK_SEQPACKET:
            sock.send({!r})
            os.write(1, b"said\\n")
"""
REPORT = b'{"files":{"%s":1},"folders":[],"imported":true,"loaded":true}'
REPORTS = {
    "a path with half a character": REPORT % b"/x\\ud800",
    "a path with the other half": REPORT % b"/x\\udc00",
    "a path with a byte": REPORT % b"/x\\udcff",
    "a path with a zero": REPORT % b"/x\\u0000",
    "a long path": REPORT % (b"/x" * 9999),
    "no path": REPORT % b"",
    "a folder with half a character": b'{"files":{},"folders":["/x\\ud800"],"imported":true,"loaded":true}',
    "a folder with a byte": b'{"files":{},"folders":["/x\\udcff"],"imported":true,"loaded":true}',
    "a folder that is none": b'{"files":{},"folders":[null],"imported":true,"loaded":true}',
    "times that are none": b'{"files":{"main.py":[]},"folders":[],"imported":false,"loaded":true}',
    "too deep": b"[" * 99_999,
    "no text": b"\xff\x00",
}


@pytest.mark.parametrize("report", REPORTS)
def test_a_report_that_is_none_does_not_end_the_watcher(serve: Serve, project: Project, report: str) -> None:
    project.save("main.py", SAYS.format(REPORTS[report]) + MAIN)
    project.word("one")
    server = start(serve, project)
    watcher = pid_of(server, "prefork: watcher")
    server.wait_log("^said$")
    project.word("two")
    expect(server, "two")
    assert pid_of(server, "prefork: watcher") == watcher
    assert "watcher died" not in server.log


def test_ctrl_c_ends_everything(serve: Serve, project: Project) -> None:
    project.word("one")
    server = start(serve, project)
    server.signal_group(signal.SIGINT)
    assert server.wait_exit() == 0
    assert "watcher died" not in server.log


def test_without_the_package_that_watches_one_is_told_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['watchfiles'] = None\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = run("serve", "--reload")
    assert done.returncode == 2
    assert done.stderr == "prefork: --reload needs the package watchfiles: pip install 'prefork[reload]'\n"
