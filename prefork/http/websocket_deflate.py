"""permessage-deflate (RFC 7692): what is agreed on, and the two contexts of a session. Pure.

Messages of one kind resemble each other, so a context that lives on from message to message is worth a lot (measured,
JSON of 150 bytes: 0.3 of its size instead of 0.74). It costs memory in each session, idle ones too, so:

- Windows of 4 KiB (12 bits, memLevel 5): 39 KB for the compressor instead of 155, 12 KB for the decompressor instead
  of 33. A client that cannot keep to that is asked to start anew with each message.
- Contexts are made when there is something to compress.
- Our compressor may forget at any time: what it writes then refers to nothing, which every client understands. So a
  quiet session is left without one (`rest`), and none is ever limited to messages by themselves unless it asks for it.

Level 1: 0.24 of the size of JSON of 4 KiB in 29 us; level 6 would be 0.20 in 52 us.
"""

from __future__ import annotations

import re
import zlib
from typing import Final

from prefork.http.websocket_close import INVALID_DATA, TOO_BIG, ViolationError

_NAME = "permessage-deflate"
_MOST_OFFERED = 1024  # bytes of all offers together; a browser's have 50
_SERVER_ANEW = "server_no_context_takeover"
_CLIENT_ANEW = "client_no_context_takeover"
_SERVER_BITS = "server_max_window_bits"
_CLIENT_BITS = "client_max_window_bits"
_PARAMETERS = frozenset({_SERVER_ANEW, _CLIENT_ANEW, _SERVER_BITS, _CLIENT_BITS})
_SIZES = frozenset(map(str, range(8, 16)))  # of a window, as they may be written (7.1.2)
_CHARACTER = r"[-!#$%&'*+.^_`|~0-9A-Za-z]"
_TOKEN = re.compile(rf"{_CHARACTER}+")
# RFC 6455 9.1: a name, or a name and a value; the value in quotes has to be a token as well.
_PARAMETER = re.compile(rf'({_CHARACTER}+)[ \t]*(?:=[ \t]*(?:({_CHARACTER}+)|"((?:\\?{_CHARACTER})+)"))?')
_WINDOW_BITS = 12
_MEMORY_LEVEL = 5
_LEVEL = 1
_TAIL: Final = b"\x00\x00\xff\xff"  # ends what a sync flush writes; not sent (7.2.1)


class Deflate:
    """The contexts of one session. `anew`: that side starts with a new context for each message."""

    __slots__ = ("_client_anew", "_client_bits", "_compressor", "_decompressor", "_server_anew", "_server_bits")

    def __init__(self, *, server_bits: int, client_bits: int, server_anew: bool, client_anew: bool) -> None:
        self._server_bits = server_bits
        self._client_bits = client_bits
        self._server_anew = server_anew
        self._client_anew = client_anew
        self._compressor: zlib._Compress | None = None
        self._decompressor: zlib._Decompress | None = None

    def compress(self, data: bytes) -> bytes:
        """Return the payload of one whole message."""
        compressor = self._compressor
        if compressor is None:
            compressor = zlib.compressobj(_LEVEL, zlib.DEFLATED, -self._server_bits, _MEMORY_LEVEL)
            self._compressor = None if self._server_anew else compressor
        return (compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]

    def rest(self) -> None:
        """Give the compressor's memory back. The decompressor has to remember what the client may refer to."""
        self._compressor = None

    def decompress(self, data: bytes, room: int, *, last: bool) -> bytes:
        """Return what a frame's payload stands for: at most `room` bytes. Raises ViolationError.

        `last`: the message ends with it.
        """
        decompressor = self._decompressor
        if decompressor is None:
            decompressor = self._decompressor = zlib.decompressobj(-self._client_bits)
        try:
            found = decompressor.decompress(data + _TAIL if last else data, room + 1)
        except zlib.error:
            raise ViolationError(INVALID_DATA, "not deflated data") from None
        if len(found) > room:
            raise ViolationError(TOO_BIG, "message too big")
        if decompressor.eof and len(decompressor.unused_data) > 1 + len(_TAIL):
            # A block can say that it is the last one; zlib stops there, and an empty block may follow (7.2.3.4).
            raise ViolationError(INVALID_DATA, "data behind the last block")
        if last and (self._client_anew or decompressor.eof):
            self._decompressor = None
        return found


def negotiate(offers: str) -> tuple[str, Deflate] | None:
    """Take the first offer that can be taken: its answer, and the session's contexts. Raises ValueError for nonsense.

    `offers`: the value of Sec-WebSocket-Extensions.
    """
    if _NAME not in offers:
        return None
    if len(offers) > _MOST_OFFERED:
        raise ValueError(f"more than {_MOST_OFFERED} bytes")
    for name, parameters in _parse(offers):
        if name == _NAME and (agreed := _accept(parameters)):
            return agreed
    return None


def _parse(offers: str) -> list[tuple[str, list[tuple[str, str | None]]]]:
    """Return the offers with their parameters. Raises ValueError.

    Commas and semicolons separate, also between quotes: no token has one.
    """
    found = []
    for offer in offers.split(","):
        name, *parameters = (part.strip(" \t") for part in offer.split(";"))
        if not name and not parameters:
            continue  # RFC 9110 5.6.1.2: an empty element
        if not _TOKEN.fullmatch(name):
            raise ValueError(f"{name!r} is not a token")
        pairs: list[tuple[str, str | None]] = []
        for parameter in parameters:
            match = _PARAMETER.fullmatch(parameter)
            if match is None:
                raise ValueError(f"{parameter!r} is not a parameter")
            key, value, in_quotes = match.groups()
            pairs.append((key, value if in_quotes is None else in_quotes.replace("\\", "")))
        found.append((name, pairs))
    return found


def _accept(offered: list[tuple[str, str | None]]) -> tuple[str, Deflate] | None:
    """Return the answer to one offer, and the contexts; None if the offer cannot be taken (7.1)."""
    parameters = dict(offered)
    if len(parameters) < len(offered) or not parameters.keys() <= _PARAMETERS:
        return None
    if parameters.get(_SERVER_ANEW) is not None or parameters.get(_CLIENT_ANEW) is not None:
        return None
    wanted = parameters.get(_SERVER_BITS, "15")
    if wanted not in _SIZES or wanted == "8":  # zlib cannot compress with a window of 8 bits
        return None
    server_anew = _SERVER_ANEW in parameters
    client_anew = _CLIENT_ANEW in parameters
    server_bits = min(int(wanted), _WINDOW_BITS)
    client_bits = 15
    answer = [_NAME]
    if _CLIENT_BITS not in parameters:
        client_anew = True
    elif (allowed := parameters[_CLIENT_BITS] or "15") in _SIZES:
        client_bits = min(int(allowed), _WINDOW_BITS)
    else:
        return None
    if server_anew:
        answer.append(_SERVER_ANEW)
    if client_anew:
        answer.append(_CLIENT_ANEW)
    answer.append(f"{_SERVER_BITS}={server_bits}")
    if _CLIENT_BITS in parameters:
        answer.append(f"{_CLIENT_BITS}={client_bits}")
    deflate = Deflate(
        server_bits=server_bits, client_bits=client_bits, server_anew=server_anew, client_anew=client_anew
    )
    return "; ".join(answer), deflate
