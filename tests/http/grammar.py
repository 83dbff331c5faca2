"""Requests as the grammar allows them, with what a parser has to make of each: strategies for hypothesis.

The writing varies in what must not matter: the case of names, blanks around values, the form of the target, how the
body is cut into chunks, extensions, trailers.
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hypothesis import strategies as st

from tests.http.outcome import Seen

if TYPE_CHECKING:
    from collections.abc import Sequence

TCHARS = string.ascii_letters + string.digits + "!#$%&'*+-.^_`|~"
HOSTS = st.sampled_from([b"example.com", b"127.0.0.1:8000", b"[::1]:80", b"a", b"my_app:", b"xn--nxa.example"])
PATH_CHARS = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in "?#")
TEXT = "\t" + "".join(chr(code) for code in range(0x20, 0x100) if code != 0x7F)
METHODS = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "PROPFIND", "REPORT"]
TAKEN = {  # names that mean something to a parser, so that a made-up one must not hit them
    "host", "content-length", "transfer-encoding", "connection", "expect", "upgrade", "content-type",
    "proxy-connection", "keep-alive", "trailer", "te",
}  # fmt: skip
blanks = st.sampled_from([b"", b" ", b"\t", b"  \t "])


@dataclass(frozen=True, slots=True, kw_only=True)
class Writing:
    """The bytes of one request, and what is to be seen of it."""

    data: bytes
    seen: Seen


@st.composite
def names(draw: st.DrawFn) -> bytes:
    name = draw(st.text(TCHARS, min_size=1, max_size=20).filter(lambda text: text.lower() not in TAKEN))
    return name.encode()


@st.composite
def values(draw: st.DrawFn) -> bytes:
    return draw(st.text(TEXT, max_size=30)).encode("latin-1").strip(b" \t")


@st.composite
def targets(draw: st.DrawFn, method: str) -> tuple[bytes, bytes, bytes, bytes]:
    """Target, path, query, and the authority that it names."""
    path = b"/" + draw(st.text(PATH_CHARS, max_size=20)).encode()
    query = draw(st.none() | st.text(PATH_CHARS + "?", max_size=20).map(str.encode))
    tail = path if query is None else path + b"?" + query
    form = draw(st.sampled_from(["origin"] * 5 + ["absolute"] + ["asterisk"] * (method == "OPTIONS")))
    if form == "asterisk":
        return b"*", b"*", b"", b""
    if form == "absolute":
        host = draw(HOSTS)
        return draw(st.sampled_from([b"http://", b"https://"])) + host + tail, path, query or b"", host
    return tail, path, query or b"", b""


@st.composite
def chunked(draw: st.DrawFn, body: bytes) -> bytes:
    """The body in chunks of any size, with extensions and trailers now and then."""
    out = b""
    extensions = st.sampled_from([b""] * 4 + [b";a", b";a=b", b';a="b;\\"c"', b";a=1;b"])
    while body:
        size = draw(st.integers(1, len(body)))
        digits = draw(st.sampled_from([b"%x", b"%X", b"%04x"])) % size
        out += digits + draw(extensions) + b"\r\n" + body[:size] + b"\r\n"
        body = body[size:]
    out += draw(st.sampled_from([b"0", b"000"])) + draw(extensions) + b"\r\n"
    for _ in range(draw(st.integers(0, 2))):
        out += b"x-" + draw(names()) + b": " + draw(values()) + b"\r\n"
    return out + b"\r\n"


@st.composite
def writings(draw: st.DrawFn, *, last: bool = True) -> Writing:
    """One request; one that is not the last of its connection keeps it alive."""
    method = draw(st.sampled_from(METHODS))
    target, path, query, authority = draw(targets(method))
    host = draw(HOSTS)
    authority = authority or host
    minor = draw(st.sampled_from([1, 1, 1, 0])) if last else 1
    fields = draw(st.lists(st.tuples(names(), values()), max_size=6))
    fields.insert(draw(st.integers(0, len(fields))), (b"Host", host))
    kind = draw(st.sampled_from(["none", "sized", "chunked"] if minor else ["none", "sized"]))
    body = draw(st.binary(max_size=80)) if kind != "none" else b""
    if kind == "sized":
        fields.append((b"Content-Length", draw(st.sampled_from([b"%d", b"%05d"])) % len(body)))
    elif kind == "chunked":
        fields.append((b"Transfer-Encoding", draw(st.sampled_from([b"chunked", b"CHUNKED"]))))
    connection = draw(st.sampled_from([b"", b"", b"keep-alive", b"x, Keep-Alive"] + [b"close", b"foo ,CLOSE"] * last))
    if connection:
        fields.insert(draw(st.integers(0, len(fields))), (b"Connection", connection))
    expects = kind != "none" and draw(st.booleans())
    if expects:
        fields.append((b"Expect", b"100-continue"))
    case = draw(st.sampled_from([bytes, bytes.lower, bytes.upper, bytes.title]))
    data = method.encode() + b" " + target + b" HTTP/1.%d\r\n" % minor
    for name, value in fields:
        data += case(name) + b":" + draw(blanks) + value + draw(blanks) + b"\r\n"
    data += b"\r\n" + (draw(chunked(body)) if kind == "chunked" else body)
    close = b"close" in connection.lower()
    has_body = kind == "chunked" or bool(body)
    attributes: dict[str, object] = {
        "method": method, "target": target, "path": path, "query": query, "authority": authority, "minor": minor,
        "content_length": len(body) if kind == "sized" else None, "chunked": kind == "chunked",
        "keep_alive": not close and (bool(minor) or b"keep-alive" in connection.lower()),
        "expects_continue": expects and bool(minor) and has_body, "upgrade": b"", "complete": not has_body,
    }  # fmt: skip
    shown = [(name.lower(), authority if name == b"Host" else value) for name, value in fields]
    return Writing(data=data, seen=Seen(attributes=attributes, fields=shown, body=body, finished=True))


@st.composite
def pipelines(draw: st.DrawFn) -> Sequence[Writing]:
    """Up to four requests of one connection."""
    return [*(draw(writings(last=False)) for _ in range(draw(st.integers(0, 3)))), draw(writings())]
