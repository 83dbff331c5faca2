"""The log on real descriptors: what a line says, that nothing can forge one, and that a lost one is counted."""

from __future__ import annotations

import datetime
import json
import logging
import os
import re
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from textwrap import dedent
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.core.log import LEVELS, LogWriter, open_log, utc
from tests.support.stuck import fill
from tests.support.users import as_root

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
FIELD = re.compile(r' ([a-z_]+)=("(?:[^"\\]|\\.)*"|[^ "=]+)')
ANY_TEXT = st.one_of(
    st.text(max_size=30),
    st.text("a=[]:{}'\\", max_size=6),
    st.text(st.sampled_from(' "=\\\n\r\x1b\x85\u2028\udcff[]a:{}'), max_size=12),
)
NAMES = st.sampled_from(["peer", "reason", "path"])


class Written:
    """A pipe that takes a log, and what has arrived there."""

    def __init__(self, style: str, level: str) -> None:
        self._read_end, self.fd = os.pipe()
        os.set_blocking(self._read_end, False)
        self.log = open_log(style=style, level=level, fd=self.fd)
        self.sink = self.log.handler.crash_fd  # its own description of the pipe

    def text(self) -> str:
        """What was written since the last call."""
        pieces = []
        try:
            while piece := os.read(self._read_end, 65536):
                pieces.append(piece)
        except BlockingIOError:
            pass
        return b"".join(pieces).decode()

    def close(self) -> None:
        for fd in (self._read_end, self.fd):
            os.close(fd)


@contextmanager
def written(style: str = "text", level: str = "debug") -> Iterator[Written]:
    """Log into a pipe; afterwards the process's logging is as it was."""
    logger = logging.getLogger("prefork")
    before = logger.handlers[:], logger.level, logger.propagate
    pipe = Written(style, level)
    try:
        yield pipe
    finally:
        pipe.close()
        logger.handlers[:], level_, logger.propagate = before
        logger.setLevel(level_)


def fields_of(line: str, event: str) -> dict[str, str]:
    """The fields behind the event of a text line; fails if the line is anything else."""
    head = re.match(rf"{TIME} [A-Z]+ {re.escape(event)}", line)
    assert head, line
    rest, found = line[head.end() :].removesuffix("\n"), {}
    while rest:
        field = FIELD.match(rest)
        assert field, rest
        assert field[1] not in found
        found[field[1]] = json.loads(field[2]) if field[2].startswith('"') else field[2]
        rest = rest[field.end() :]
    return found


# --- what a line says


def test_a_line_of_text() -> None:
    with written() as out:
        out.log.info("ready", workers=4, took="0.12s", why="because it is", nothing=None, empty="")
        assert re.fullmatch(rf'{TIME} INFO ready workers=4 took=0\.12s why="because it is" empty=""\n', out.text())


def test_a_line_of_json() -> None:
    with written("json") as out:
        out.log.identify(worker=2, gen=1, pid=4242)
        out.log.warning("connections cut", count=3, peer='a "b"\n', nothing=None, address=os.fsencode("x"))
        line = out.text()
    assert line.count("\n") == 1
    entry = json.loads(line)
    assert re.fullmatch(TIME, entry.pop("time"))
    assert entry == {
        "level": "warning", "worker": 2, "gen": 1, "pid": 4242, "event": "connections cut", "count": 3,
        "peer": 'a "b"\n', "address": "b'x'",
    }  # fmt: skip


def test_who_writes_is_said_in_one_form() -> None:
    with written() as out:
        out.log.identify(worker=2, gen=1, pid=4242)
        out.log.error("worker died")
        assert re.fullmatch(rf"{TIME} ERROR \[worker=2 gen=1 pid=4242\] worker died\n", out.text())


@pytest.mark.parametrize("level", LEVELS)
def test_only_lines_of_the_level_and_above_are_written(level: str) -> None:
    with written(level=level) as out:
        for name in LEVELS:
            getattr(out.log, name)(name)
        assert re.findall(r"([a-z]+)\n", out.text()) == list(LEVELS[LEVELS.index(level) :])


def failure() -> Exception:
    try:
        raise LookupError("no such client")
    except LookupError as error:
        return error


def test_a_traceback_and_a_detail_stand_below_the_line() -> None:
    with written() as out:
        out.log.error("handler failed", exc=failure(), peer="unix:")
        out.log.error("worker died", detail="Fatal Python error\n\nThread 1:\n  File")
        lines = out.text().splitlines()
    starts = [number for number, line in enumerate(lines) if re.match(TIME, line)]
    assert starts[0] == 0
    assert len(starts) == 2
    assert lines[0].endswith("handler failed peer=unix:")
    assert lines[1] == "    Traceback (most recent call last):"
    assert lines[starts[1] - 1] == "    LookupError: no such client"
    assert [line for line in lines[starts[1] + 1 :] if line.strip()] == [
        "    Fatal Python error", "    Thread 1:", "      File",
    ]  # fmt: skip


def test_a_traceback_in_json_is_a_field() -> None:
    with written("json") as out:
        out.log.error("handler failed", exc=failure())
        entry = json.loads(out.text())
    assert entry["detail"].startswith("Traceback")
    assert entry["detail"].endswith("LookupError: no such client")


def test_an_exception_that_cannot_be_printed_is_still_logged() -> None:
    class MuteError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    with written() as out:
        out.log.error("handler failed", exc=MuteError())
        assert "MuteError" in out.text()


@given(seconds=st.floats(0, 4e9))
def test_times_are_utc_with_milliseconds(seconds: float) -> None:
    text = utc(seconds)
    assert re.fullmatch(TIME, text)
    assert datetime.datetime.fromisoformat(text).timestamp() == pytest.approx(seconds, abs=0.0011)


def test_a_fixed_time() -> None:
    assert utc(1795366025.5) == "2026-11-22T16:47:05.500Z"


# --- nothing can forge a line or a field


@given(values=st.dictionaries(NAMES, ANY_TEXT, max_size=3))
def test_a_value_is_one_field_of_one_line(values: dict[str, str]) -> None:
    with written() as out:
        out.log.info("sent", **values)
        text = out.text()
    assert text.count("\n") == 1
    assert text.removesuffix("\n").isprintable()
    assert fields_of(text, "sent") == values


@given(values=st.dictionaries(NAMES, ANY_TEXT, max_size=3), event=ANY_TEXT)
def test_a_value_is_one_field_of_one_object(values: dict[str, str], event: str) -> None:
    with written("json") as out:
        out.log.info(event, **values)
        text = out.text()
    assert text.count("\n") == 1
    assert text.isascii()
    entry = json.loads(text)
    assert {name: entry[name] for name in values} == values
    assert entry["event"] == event


@given(event=ANY_TEXT)
def test_an_event_is_one_line(event: str) -> None:
    with written() as out:
        out.log.info(event)
        text = out.text()
    assert text.endswith("\n")
    assert text[:-1].isprintable()


@given(detail=ANY_TEXT, message=ANY_TEXT)
def test_details_stay_behind_their_margin_and_drive_no_terminal(detail: str, message: str) -> None:
    with written() as out:
        out.log.error("failed", detail=detail, exc=ValueError(message))
        first, *below = out.text().removesuffix("\n").split("\n")
    assert first.endswith(" ERROR failed")
    assert all(line.startswith("    ") and line.isprintable() for line in below)


@given(event=st.just("100% %s %d {}") | ANY_TEXT)
def test_an_event_is_no_format(event: str) -> None:
    with written("json") as out:
        out.log.info(event)
        assert json.loads(out.text())["event"] == event


# --- lines that cannot be written


def test_a_full_disk_loses_lines_and_the_next_one_says_how_many() -> None:
    with written() as out, open("/dev/full", "wb") as full:
        pipe = os.dup(out.sink)
        os.dup2(full.fileno(), out.sink)
        for number in range(1, 4):
            out.log.info("lost")
            assert out.log.dropped == number
        os.dup2(pipe, out.sink)
        os.close(pipe)
        out.log.info("back again")
        lost, back = out.text().splitlines()
        assert re.fullmatch(rf"{TIME} WARNING log lines lost count=3", lost)
        assert back.endswith("INFO back again")
        assert out.log.dropped == 0
        out.log.info("as usual")
        assert out.text().count("\n") == 1


def test_the_loss_is_an_object_in_json() -> None:
    with written("json") as out, open("/dev/full", "wb") as full:
        pipe = os.dup(out.sink)
        os.dup2(full.fileno(), out.sink)
        out.log.identify(pid=7)
        out.log.info("lost")
        os.dup2(pipe, out.sink)
        os.close(pipe)
        out.log.info("back")
        lost, back = map(json.loads, out.text().splitlines())
    assert (lost["level"], lost["event"], lost["count"], lost["pid"]) == ("warning", "log lines lost", 1, 7)
    assert back["event"] == "back"


def test_a_closed_pipe_is_no_error() -> None:
    with written() as out:
        read_end, write_end = os.pipe()
        os.close(read_end)
        os.dup2(write_end, out.sink)
        os.close(write_end)
        for _ in range(5):
            out.log.info("to nobody")
        assert out.log.dropped == 5


def test_a_reader_that_does_not_keep_up_costs_whole_lines() -> None:
    """A pipe that takes only a part of a line: what follows must begin on a line of its own, and be told."""
    with written() as out:
        os.set_blocking(out.fd, False)
        for _ in range(4):
            out.log.error("long", detail="x" * 30_000)  # the third fits in part
        dropped = out.log.dropped
        assert dropped
        text = out.text()
        out.log.info("next")
        whole = [line for line in (text + out.text()).splitlines() if re.match(TIME, line)]
    assert [re.sub(rf"{TIME} ", "", line) for line in whole] == [
        *["ERROR long"] * 3,  # the last of them cut short
        f"WARNING log lines lost count={dropped}",
        "INFO next",
    ]


@as_root
def test_a_pipe_of_another_user_does_not_block() -> None:
    """It cannot be opened again, and its description is not ours alone."""
    script = """
        import os
        from prefork.core.log import LogWriter

        os.setuid(65534)
        writer = LogWriter(1)
        for _ in range(3000):
            writer.write(b"x" * 99 + b"\\n")
        assert os.get_blocking(1)
        os.write(2, b"%d" % writer.lost)
    """
    read_end, write_end = os.pipe()
    done = subprocess.run(
        [sys.executable, "-c", dedent(script)], stdout=write_end, stderr=subprocess.PIPE, timeout=60, check=False
    )
    os.close(write_end)
    with open(read_end, "rb") as pipe:
        lines = pipe.read().splitlines()
    assert done.returncode == 0, done.stderr
    assert len(lines) + int(done.stderr) in (3000, 3001), "one may be there in part"
    assert int(done.stderr) > 2000
    assert set(lines[:-1]) == {b"x" * 99}


def test_a_socket_that_nobody_reads_is_not_waited_for_whatever_the_default_timeout() -> None:
    with ExitStack() as stack:
        stack.callback(socket.setdefaulttimeout, socket.getdefaulttimeout())
        ours, theirs = (stack.enter_context(end) for end in socket.socketpair())
        fill(ours.fileno())
        socket.setdefaulttimeout(3.0)
        writer = LogWriter(ours.fileno())
        assert os.get_blocking(ours.fileno()), "for whoever shares it"
        assert socket.getdefaulttimeout() == 3.0
        stack.callback(writer.share)
        began_s = time.monotonic()
        assert [writer.write(b"a line\n") for _ in range(3)] == [False] * 3
        assert time.monotonic() - began_s < 2.0
        assert writer.lost == 3
        theirs.setblocking(False)
        with suppress(BlockingIOError):
            while theirs.recv(1 << 16):
                pass
        assert writer.write(b"the next\n")
        assert theirs.recv(100) == b"the next\n"


def test_a_line_is_one_write(tmp_path: Path) -> None:
    """Long ones too: lines of several processes do not mix in a file opened for appending."""
    path = tmp_path / "log"
    with path.open("ab", buffering=0) as file, path.open("ab", buffering=0) as other, written() as out:
        os.dup2(file.fileno(), out.sink)
        out.log.error("first", detail="x" * 100_000)
        os.write(other.fileno(), b"from another process\n")
        out.log.info("second")
    starts = [line.split(" ")[-1] for line in path.read_text().splitlines() if not line.startswith(" ")]
    assert starts == ["first", "process", "second"]


# --- beside the application's own logging


def test_opening_again_replaces_the_handler() -> None:
    with written() as first:
        with written() as second:
            second.log.info("once")
            assert second.text().count("\n") == 1
        assert first.text() == ""


def test_an_application_can_add_handlers_of_its_own() -> None:
    seen: list[logging.LogRecord] = []

    class Own(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(record)

    with written() as out:
        logging.getLogger("prefork").addHandler(Own())
        out.log.info("ready", workers=4)
        assert out.text().count("\n") == 1
    assert [(record.getMessage(), record.__dict__["fields"]) for record in seen] == [("ready", {"workers": 4})]


def test_an_application_that_sets_up_logging_does_not_silence_the_server() -> None:
    """`dictConfig` disables by default every logger that it does not name. In a process of its own: it is global."""
    script = """
        import logging.config
        from prefork.core.log import open_log

        log = open_log(fd=1)
        logging.config.dictConfig({"version": 1})
        log.error("handler failed")
    """
    done = subprocess.run(
        [sys.executable, "-c", dedent(script)], capture_output=True, text=True, timeout=30, check=True
    )
    assert "ERROR handler failed" in done.stdout


def test_what_is_logged_does_not_go_to_the_applications_root_logger(caplog: pytest.LogCaptureFixture) -> None:
    with written() as out, caplog.at_level(logging.DEBUG):
        out.log.error("ours")
    assert caplog.records == []
