"""The log: what scripts may rely on, and that its trouble never becomes the service's."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from tests.support.client import Outcome, attempt, exchange, talkback_reply
from tests.support.server import APPS
from tests.support.wait import eventually

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Serve

pytestmark = pytest.mark.slow

HI = talkback_reply(b"hi")
OBEY = f"{APPS / 'obey.py'}:handle"


def test_each_event_is_one_line_with_utc_milliseconds_level_and_who_says_it(serve: Serve) -> None:
    server = serve("--workers", "1")
    assert server.stop() == 0
    for line in server.log.splitlines():
        assert re.match(rf"\d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{{3}}Z [A-Z]+ \[master={server.pid}\] \w+", line), line


def test_json_lines_are_objects_with_the_same_facts(serve: Serve) -> None:
    server = serve(OBEY, "--workers", "2", "--log-format", "json", ready=False, expect_traceback=True)
    server.wait_log("ready")
    records = [json.loads(line) for line in server.log.splitlines()]
    address = next(record["address"] for record in records if "address" in record)
    exchange(address, b'raise quoted "and" broken\\n\n')
    server.wait_log("RuntimeError")
    assert server.stop() == 0
    assert len([json.loads(line) for line in server.log.splitlines()]) >= 4


def test_what_a_client_sends_cannot_forge_a_line(serve: Serve) -> None:
    server = serve(OBEY, "--workers", "1", expect_traceback=True)
    exchange(server.address, b"raise x\r2026-01-01T00:00:00.000Z ERROR forged\x1b[31m\n")
    server.wait_log("RuntimeError")
    exchange(server.address, b"pid\n")
    assert server.stop() == 0
    assert "\x1b" not in server.log
    assert not [line for line in re.split(r"[\r\n]", server.log) if line.startswith("2026-01-01")]


def test_warnings_only_means_silence_while_all_is_well(serve: Serve, tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/s"
    server = serve("--workers", "1", "--log-level", "warning", bind=address, ready=False)
    eventually(lambda: answers(address), within_s=30)
    assert server.stop() == 0
    assert server.log == ""


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_a_log_that_cannot_be_written_fails_no_request(serve: Serve, tmp_path: Path, redirection: str) -> None:
    """With descriptors 0 to 2 closed, the next socket could become number 2, and a client would read the log."""
    address = f"unix:{tmp_path}/s"
    server = serve(
        OBEY, "--workers", "2", bind=address, ready=False, wrapper=["sh", "-c", f'exec "$@" {redirection}', "sh"]
    )
    eventually(lambda: answers(address), within_s=30)
    for _ in range(10):
        assert exchange(address, b"raise nobody hears it\n") == b""
        assert exchange(address, b"work\n") == b"done\n"
    before = server.wait_workers(2)
    exchange(address, b"exit 1\n")
    eventually(lambda: len(server.worker_pids() & before) == 1, within_s=30)  # the client may be first to know
    server.wait_workers(2)
    assert exchange(address, b"work\n") == b"done\n"
    assert server.stop() == 0


def answers(address: str) -> bool:
    try:
        return attempt(address, b"hi\n", HI) is not Outcome.REFUSED
    except FileNotFoundError:
        return False  # not bound yet
