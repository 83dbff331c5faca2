"""Lines of the access log: the formats, and that no client can forge or colour one."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.http.access_log import FORMATS, AccessLog, check_format
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


# --- a format of one's own

HEAD = b"HTTP/1.1 201 Created\r\nContent-Type: text/plain\r\nX-User: ann\r\nSet-Cookie: a=1\r\nset-cookie: b=2\r\n"
ENVIRON = {"REQUEST_METHOD": "POST", "HTTP_HOST": "shop", "shop.user_id": 7, "wsgi.url_scheme": "https"}
POST = compose(
    "POST", "/a%20b/c?x=1&y", "Referer: http://x/", "User-Agent: curl/8.5", "X-Forwarded-For: ::2",
    "X-Forwarded-For: ::3", "Authorization: Basic YW5uOnNlY3JldA==", "Content-Length: 0",
)  # fmt: skip
# What gunicorn's documentation says of each atom (setting access_log_format), of this request.
ATOMS: dict[str, Any] = {
    "h": "::1", "l": "-", "u": "ann", "t": "[14/Nov/2023:22:13:20 +0000]", "r": "POST /a%20b/c?x=1&y HTTP/1.1",
    "m": "POST", "U": "/a%20b/c", "q": "x=1&y", "H": "HTTP/1.1", "s": 201, "B": 13, "b": 13, "f": "http://x/",
    "a": "curl/8.5", "T": 1, "M": 1234, "D": 1234567, "L": "1.234567", "p": "<4242>",
    "{host}i": "example.org", "{Host}i": "example.org", "{x-forwarded-for}i": "::2, ::3", "{X-None}i": "-",
    "{authorization}i": "Basic YW5uOnNlY3JldA==", "{x-user}o": "ann", "{Content-Type}o": "text/plain",
    "{set-cookie}o": "a=1, b=2", "{date}o": "-", "{REQUEST_METHOD}e": "POST", "{http_host}e": "shop",
    "{shop.user_id}e": 7, "{wsgi.url_scheme}e": "https", "{NO}e": "-",
}  # fmt: skip


def own(style: str, data: bytes = POST, client: str = "::1", response: object = None) -> bytes:
    answer: Any = response or SimpleNamespace(head=HEAD, environ=ENVIRON)
    return AccessLog(style, 4242).line(NOW_S + 0.9, client, parse(data)[0], 201, 13, 1234567, 9, answer)


@pytest.mark.parametrize(
    "style",
    [
        *(f"%({name})s" for name in ATOMS),
        '%(h)s %(l)s %(u)s %(t)s "%(r)s" %(s)s %(b)s "%(f)s" "%(a)s"',  # gunicorn's default
        '%({x-forwarded-for}i)s %(l)s %(t)s "%(r)s" %(s)s %(b)s "%(f)s" "%(a)s" %(D)s',
        '%({Host}i)s %(h)s %(l)s "%({x-user}o)s" %(t)s "%(r)s" %(s)s %(b)s "%(f)s" "%(a)s" in %(M)sms pid=%(p)s',
        '{"ip": "%(h)s", "path": "%(U)s", "query": "%(q)s", "status": %(s)s, "seconds": %(L)s}',
        "100%% of %(s)s%%",
        "%(h)s\t%(s)s\t\u00e9",
    ],
)
def test_gunicorns_atoms(style: str) -> None:
    assert check_format(style) == style
    assert own(style) == (style % ATOMS).encode() + b"\n"


def test_what_atoms_say_of_a_request_that_was_not_understood() -> None:
    style = " ".join(f"%({name})s" for name in ATOMS)
    made = AccessLog(style, 1).line(NOW_S, "", None, 400, 16, 0)
    told = dict(zip(ATOMS, made.decode().replace("[14/Nov/2023:22:13:20 +0000]", "[]").split(), strict=True))
    there = {name: value for name, value in told.items() if value != "-"}
    assert there == {
        "t": "[]", "s": "400", "B": "16", "b": "16", "T": "0", "M": "0", "D": "0", "L": "0.000000", "p": "<1>"
    }  # fmt: skip


def test_an_empty_query_and_a_response_without_an_environment() -> None:
    data = compose("GET", "/", minor=0)
    assert own("[%(q)s] %(H)s", data) == b"[] HTTP/1.0\n"
    assert own("%({REQUEST_METHOD}e)s", data, response=SimpleNamespace(head=b"")) == b"-\n"


@pytest.mark.parametrize(
    ("value", "user"),
    [("Basic YW5uOg==", "ann"), ("basic  YW5uOg==", "ann"), ("Basic x", "-"), ("Basic", "-"), ("Bearer YTpi", "-")],
)
def test_the_user_of_basic_authentication(value: str, user: str) -> None:
    assert own("%(u)s", compose("GET", "/", f"Authorization: {value}")).decode() == f"{user}\n"


@pytest.mark.parametrize(
    ("style", "error"),
    [
        ("%h %l", r"^'%h' is no atom; did you mean '%\(h\)s'\?$"),
        ("%(h)s %(S)s", r"^'%\(S\)s' is no atom; did you mean '%\(s\)s'\?$"),
        ("%(h)d", r"did you mean '%\(h\)s'"),
        ("%(h)", r"did you mean '%\(h\)s'"),
        ("%{User-Agent}i", r"^'%\{User-Agent\}i' is no atom; did you mean '%\(\{User-Agent\}i\)s'\?$"),
        ("%({Host})s", r"did you mean '%\(\{Host\}i\)s'"),
        ("%({Host}x)s", r"did you mean '%\(\{Host\}i\)s'"),
        ("%(xyz)s", r"^'%\(xyz\)s' is no atom: there are h l u t "),
        ("100% %(s)s", r"^'% ' is no atom: .* a percent sign is '%%'$"),
        ("%(s)s %", r"^'%' is no atom"),
        ("jsn", r"^'jsn' is no format: did you mean 'json'\?$"),
        ("combine", r"^'combine' is no format: did you mean 'combined'\?$"),
        ("plain", r"^'plain' is no format: give combined, json, or a text with atoms such as %\(h\)s$"),
        ("", r"is no format"),
        ("%(h)s\n%(s)s", "has a control character: a request is one line of the log"),
    ],
)
def test_what_is_no_format(style: str, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        check_format(style)


@given(raw=st.tuples(st.binary(), st.binary(), st.binary()), client=st.text(max_size=20), value=st.text(max_size=20))
def test_no_value_makes_a_second_line_or_leaves_its_quotes(
    raw: tuple[bytes, bytes, bytes], client: str, value: str
) -> None:
    response: Any = SimpleNamespace(
        head=b"HTTP/1.1 200 OK\r\nX: %b\r\n" % raw[2].replace(b"\r\n", b""), environ={"X": value}
    )
    atoms = ("h", "r", "U", "a", "f", "{x}o", "{x}e")
    style = " ".join(f'"%({name})s"' for name in atoms)
    made = AccessLog(style).line(NOW_S, client, request_of(*raw), 200, 13, 412, None, response)
    assert set(made[:-1]) <= PRINTABLE
    assert re.fullmatch(rb'"[^"\\]*(?:\\x[0-9a-f]{2}[^"\\]*)*"(?: "[^"\\]*(?:\\x[0-9a-f]{2}[^"\\]*)*"){6}\n', made)
    style = "{" + ", ".join(f'"{name}": "%({name})s"' for name in atoms) + "}"
    entry = json.loads(AccessLog(style).line(NOW_S, client, request_of(*raw), 200, 13, 412, None, response))
    assert list(entry) == list(atoms)
    assert entry["a"].encode("latin1") == (raw[2] or b"-")
