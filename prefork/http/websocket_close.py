"""How a WebSocket ends: codes, the payload of a Close frame, what a client did wrong (RFC 6455 5.5.1, 7.4). Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

NORMAL: Final = 1000
GOING_AWAY: Final = 1001  # retire: whoever connects again finds another worker
PROTOCOL_ERROR: Final = 1002
NO_STATUS: Final = 1005  # never sent: the client's Close frame was empty
ABNORMAL: Final = 1006  # never sent: the connection broke without a Close frame
INVALID_DATA: Final = 1007
TOO_BIG: Final = 1009
INTERNAL_ERROR: Final = 1011
SERVICE_RESTART: Final = 1012  # reload

_MOST_REASON = 123  # bytes: a control frame's 125 without the code
# 1004, 1005, 1006 and 1015 never stand in a frame; 1016 to 2999 are not given out (IANA's registry).
_REGISTERED = frozenset({1000, 1001, 1002, 1003, *range(1007, 1015)})


@dataclass(frozen=True, slots=True)
class Closed:
    """An event, the last one: nothing comes from this client any more.

    `code`: what the client gave, NO_STATUS if it gave none; or, if the client did wrong, what it was told.
    """

    code: int
    reason: str


class ViolationError(Exception):
    """Raised where a client breaks the protocol; the session closes with this code and reason."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


class WebSocketError(Exception):
    """What an application wants to send cannot be sent. The text says why, for the log."""


def payload(code: int, reason: str) -> bytes:
    """Return what a Close frame carries; the reason as far as it fits. Raises WebSocketError."""
    if not _may_be_sent(code):
        raise WebSocketError(f"the close code {code} cannot be sent: 1000 to 1003, 1007 to 1014, 3000 to 4999 can")
    text = reason.encode(errors="replace")[:_MOST_REASON]
    return code.to_bytes(2, "big") + text.decode(errors="ignore").encode()


def read(data: bytes) -> Closed:
    """Read what a client's Close frame carries. Raises ViolationError, and UnicodeDecodeError for the reason."""
    if not data:
        return Closed(NO_STATUS, "")
    code = int.from_bytes(data[:2], "big")
    if len(data) < 2 or not _may_be_sent(code):
        raise ViolationError(PROTOCOL_ERROR, "invalid close code")
    return Closed(code, data[2:].decode())


def _may_be_sent(code: int) -> bool:
    return code in _REGISTERED or 3000 <= code <= 4999
