"""Lines of the access log: the formats, and that no client can forge or colour one."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.http.access_log import FORMATS, AccessLog
from prefork.http.fields import Name
from prefork.http.head import Request
from tests.http.calls import NOW_S, compose, parse

BROWSER = compose("GET", "/a?b", "Referer: http://x/", "USER-AGENT: curl/8.5", "Accept: */*")
COMBINED = re.compile(
    rb'(\S+) - - \[([^\]]+)\] "((?:[^"\\]|\\x[0-9a-f]{2})*)" (\d{3}) (\d+) '
    rb'"((?:[^"\\]|\\x[0-9a-f]{2})*)" "((?:[^"\\]|\\x[0-9a-f]{2})*)" (\d+)\n'
)
PRINTABLE = set(range(0x20, 0x7F))


def line(style: str, data: bytes = BROWSER, client: str = "127.0.0.1") -> bytes:
    return AccessLog(style).line(NOW_S + 0.9, client, parse(data)[0], 200, 13, 412)


def test_the_combined_format() -> None:
    assert line("combined") == (
        b'127.0.0.1 - - [14/Nov/2023:22:13:20 +0000] "GET /a?b HTTP/1.1" 200 13 "http://x/" "curl/8.5" 412\n'
    )


def test_json() -> None:
    assert json.loads(line("json")) == {
        "time": "2023-11-14T22:13:20Z", "client": "127.0.0.1", "method": "GET", "target": "/a?b",
        "protocol": "HTTP/1.1", "status": 200, "bytes": 13, "referer": "http://x/", "agent": "curl/8.5",
        "duration_us": 412, "queue_ms": None,
    }  # fmt: skip


def test_the_first_request_of_a_connection_tells_how_long_that_waited() -> None:
    made = AccessLog("json").line(NOW_S, "::1", None, 400, 16, 9, 12)
    assert json.loads(made)["queue_ms"] == 12
    combined = AccessLog("combined")
    assert combined.line(NOW_S, "::1", None, 400, 16, 9, 12) == combined.line(NOW_S, "::1", None, 400, 16, 9)


@pytest.mark.parametrize("fields", [(), ("Referer:", "User-Agent:")])
def test_what_is_not_there(fields: tuple[str, ...]) -> None:
    data = compose("GET", "/", *fields, minor=0)
    assert line("combined", data, client="").endswith(b'"GET / HTTP/1.0" 200 13 "-" "-" 412\n')
    assert line("combined", data, client="").startswith(b"- - - [")
    entry = json.loads(line("json", data, client=""))
    assert (entry["referer"], entry["agent"], entry["client"], entry["protocol"]) == (None, None, None, "HTTP/1.0")


@pytest.mark.parametrize("client", ["a b", 'a" b', "a\n- - -", "\u2028", "\udcff"])
def test_a_client_is_one_word(client: str) -> None:
    assert COMBINED.fullmatch(line("combined", client=client))
    assert json.loads(line("json", client=client))["client"] == client


def test_what_was_not_understood() -> None:
    assert AccessLog("combined").line(NOW_S, "::1", None, 400, 16, 9) == (
        b'::1 - - [14/Nov/2023:22:13:20 +0000] "-" 400 16 "-" "-" 9\n'
    )
    entry = json.loads(AccessLog("json").line(NOW_S, "::1", None, 400, 16, 9))
    assert (entry["method"], entry["target"], entry["protocol"], entry["status"]) == (None, None, None, 400)


def request_of(target: bytes, referer: bytes, agent: bytes) -> Request:
    """A request as no parser would let it pass: the log is not to depend on that."""
    request = Request("GET", target, target, b"", b"h", 1)
    request.fields = [(Name(b"Referer"), referer), (Name(b"User-Agent"), agent)]
    return request


@pytest.mark.parametrize(
    ("raw", "escaped"),
    [
        (b'a"b', rb"a\x22b"),
        (b"a\\b", rb"a\x5cb"),
        (b"a\x1b[31mb", rb"a\x1b[31mb"),
        (b"a\r\nb", rb"a\x0d\x0ab"),
        (b"\x00\x7f\t", rb"\x00\x7f\x09"),
        (b"caf\xc3\xa9", rb"caf\xc3\xa9"),
        (b"\x9b31m", rb"\x9b31m"),
        (rb"\x22", rb"\x5cx22"),
    ],
)
def test_what_is_escaped(raw: bytes, escaped: bytes) -> None:
    request = request_of(raw, raw, raw)
    wanted = b'"GET %b HTTP/1.1" 200 1 "%b" "%b" 1\n' % (escaped, escaped, escaped)
    assert AccessLog("combined").line(NOW_S, "::1", request, 200, 1, 1).endswith(wanted)
    entry = json.loads(AccessLog("json").line(NOW_S, "::1", request, 200, 1, 1))
    assert [entry[key].encode("latin1") for key in ("target", "referer", "agent")] == [raw] * 3


@pytest.mark.parametrize("style", FORMATS)
@given(raw=st.tuples(st.binary(), st.binary(), st.binary()), client=st.text(max_size=20))
def test_no_bytes_make_a_second_line_or_field(style: str, raw: tuple[bytes, bytes, bytes], client: str) -> None:
    made = AccessLog(style).line(NOW_S, client, request_of(*raw), 200, 13, 412)
    assert made[-1:] == b"\n"
    assert set(made[:-1]) <= PRINTABLE
    if style == "combined":
        found = COMBINED.fullmatch(made)
        assert found
        assert found.groups()[3:5] == (b"200", b"13")
        restored = re.sub(rb"\\x(..)", lambda m: bytes([int(m[1], 16)]), found[7])
        assert restored == (raw[2] or b"-")
    else:
        entry = json.loads(made)
        assert list(entry) == [
            "time", "client", "method", "target", "protocol", "status", "bytes", "referer", "agent", "duration_us",
            "queue_ms",
        ]  # fmt: skip
        assert (entry["agent"] or "").encode("latin1") == raw[2]


def test_the_time_goes_on() -> None:
    log = AccessLog()
    times = [log.line(NOW_S + later, "c", None, 200, 0, 0).split(b"[")[1][:20] for later in (0, 0.99, 1, 60, 86400, 0)]
    assert times == [
        b"14/Nov/2023:22:13:20", b"14/Nov/2023:22:13:20", b"14/Nov/2023:22:13:21", b"14/Nov/2023:22:14:20",
        b"15/Nov/2023:22:13:20", b"14/Nov/2023:22:13:20",
    ]  # fmt: skip
