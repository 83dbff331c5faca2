r"""The corpus: one file a case, under valid/ and invalid/. This module reads the files.

    # why it is right or wrong
    request {"method": "POST", "body": "hello"}      expected, in order; what is not named has its usual value
    refused 400 bare LF                              expected at the end: the status, and words of the reason
    eof 400                                          expected if the client ends here
    ---
    POST / HTTP/1.1\r\n                              the bytes: line ends of the file do not count, \r \n \t \\ and
    Host: example.com\r\n                            \x00 are escapes, and \{3*ab} stands for ababab

Text stands for bytes by Latin-1. The usual request is `GET /` of HTTP/1.1 for example.com, kept alive, without a body;
`path` is the target up to its question mark; `fields` are compared only where they are named. A body that does not
come to its end is "unfinished".
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.http.outcome import Outcome, Seen

FOLDER = Path(__file__).parent
_REPEATED = re.compile(r"\\\{(\d+)\*([^{}]*)\}")
_ESCAPE = re.compile(r"\\(?:x([0-9a-f]{2})|([rnt\\]))")
_NAMED = {"r": "\r", "n": "\n", "t": "\t", "\\": "\\"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One file: the bytes, and what is expected of them."""

    name: str
    data: bytes
    expected: Outcome

    def check(self, seen: Outcome, way: str) -> None:
        """Fail unless what was seen is what is expected."""
        wanted = self.expected
        assert (seen.status, wanted.reason in seen.reason) == (wanted.status, True), f"{way}: {seen}"
        assert seen.at_eof == wanted.at_eof, way
        assert len(seen.requests) == len(wanted.requests), f"{way}: {seen}"
        for found, request in zip(seen.requests, wanted.requests, strict=True):
            assert found.attributes == request.attributes, way
            assert (found.body, found.finished) == (request.body, request.finished), way
            if request.fields:
                assert found.fields == request.fields, way


def read_case(path: Path) -> Case:
    text, _, raw = path.read_text("utf-8").partition("\n---\n") if path.stat().st_size else ("", "", "")
    expected = Outcome()
    for line in text.splitlines():
        word, _, rest = line.partition(" ")
        if word == "request":
            expected.requests.append(_request(json.loads(_repeat(rest))))
        elif word == "refused":
            status, _, expected.reason = rest.partition(" ")
            expected.status = int(status)
        elif word == "eof":
            expected.at_eof = int(rest)
        else:
            assert word == "#", f"{path}: {line!r}"
    return Case(name=path.stem, data=unescape(raw), expected=expected)


def _repeat(text: str) -> str:
    while (shorter := _REPEATED.sub(lambda found: found[2] * int(found[1]), text)) != text:
        text = shorter
    return text


def unescape(raw: str) -> bytes:
    text = _ESCAPE.sub(
        lambda found: chr(int(found[1], 16)) if found[1] else _NAMED[found[2]], _repeat(raw.replace("\n", ""))
    )
    return text.encode("latin-1")


def _request(said: dict[str, object]) -> Seen:
    target = str(said.get("target", "/"))
    body = said.pop("body", None)
    unfinished = said.pop("unfinished", False)
    fields = said.pop("fields", [])
    assert isinstance(fields, list)
    attributes = {
        "method": "GET", "target": target, "path": target.partition("?")[0], "query": "", "authority": "example.com",
        "minor": 1, "content_length": None, "chunked": False, "keep_alive": True, "expects_continue": False,
        "upgrade": "", "complete": body is None,
    }  # fmt: skip
    assert said.keys() <= attributes.keys(), said
    attributes |= said
    for name in ("target", "path", "query", "authority", "upgrade"):
        attributes[name] = str(attributes[name]).encode("latin-1")
    return Seen(
        attributes=attributes,
        fields=[(name.encode("latin-1"), value.encode("latin-1")) for name, value in fields],
        body=str(body or "").encode("latin-1"),
        finished=not unfinished,
    )


@functools.cache
def read_cases(kind: str) -> Sequence[Case]:
    """Read the cases of one folder, in the order of their names."""
    return [read_case(path) for path in sorted((FOLDER / kind).glob("*.http"))]
