"""permessage-deflate (RFC 7692): what is agreed on, and the two contexts of a session. Pure.

Messages of one kind resemble each other, so a context that lives on from message to message is worth a lot (measured,
JSON of 150 bytes: 0.3 of its size instead of 0.74). It costs memory in each session, idle ones too, so:

- Windows of 4 KiB (12 bits, memLevel 5): 39 KB for the compressor instead of 155, 12 KB for the decompressor instead
  of 33. A client that cannot keep to that is asked to start anew with each message.
- Contexts are made when there is something to compress.
- Our compressor may forget at any time: what it writes then refers to nothing, which every client understands. So a
  quiet session is left without one (`rest`), and none is ever limited to messages by themselves unless it asks for it.

Level 1: 0.24 of the size of JSON of 4 KiB in 29 us; level 6 would be 0.20 in 52 us.

Negotiation is by `websockets`, which is imported with the first offer.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Final

from prefork.http.websocket_close import INVALID_DATA, TOO_BIG, ViolationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from websockets.typing import ExtensionParameter

_NAME = "permessage-deflate"
_MOST_OFFERED = 1024  # bytes of all offers together; a browser's have 50
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
    from websockets.exceptions import InvalidHeaderFormat  # noqa: PLC0415 - 30 ms that not every worker needs
    from websockets.headers import build_extension, parse_extension  # noqa: PLC0415 - as above

    try:
        found = parse_extension(offers)
    except InvalidHeaderFormat as error:
        raise ValueError(str(error)) from None
    for name, parameters in found:
        if name == _NAME and (agreed := _accept(parameters)):
            answer, deflate = agreed
            return build_extension([(name, answer)]), deflate
    return None


def _accept(offered: Sequence[ExtensionParameter]) -> tuple[list[ExtensionParameter], Deflate] | None:
    from websockets.exceptions import NegotiationError  # noqa: PLC0415 - as above
    from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory  # noqa: PLC0415 - as above

    for factory in (
        ServerPerMessageDeflateFactory(
            server_max_window_bits=_WINDOW_BITS,
            client_max_window_bits=_WINDOW_BITS,
            require_client_max_window_bits=True,
        ),
        ServerPerMessageDeflateFactory(server_max_window_bits=_WINDOW_BITS, client_no_context_takeover=True),
    ):
        try:
            answer, terms = factory.process_request_params(offered, [])
        except (NegotiationError, ValueError):  # ValueError: a window of 8 bits, which zlib has not, before 17.4
            continue
        return answer, Deflate(
            server_bits=terms.local_max_window_bits,
            client_bits=terms.remote_max_window_bits,
            server_anew=terms.local_no_context_takeover,
            client_anew=terms.remote_no_context_takeover,
        )
    return None
