"""How much one client may send before it is refused. Everything that comes from the network has its bound here."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Sizes in bytes, line ends included; the status that answers what passes them."""

    request_line_bytes: int = 8192  # 414
    fields: int = 100  # 431; the same for trailers
    header_bytes: int = 65536  # 431; all field lines of a head, or of the trailers
    body_bytes: int = 1 << 30  # 413; decoded
    chunk_line_bytes: int = 1024  # 400; a chunk's size with its extensions
    extension_bytes: int = 16384  # 400; chunk extensions of one body, all together
    # A head of so many bytes, its last CRLF CRLF not counted, is within both limits of bytes, however it is divided.
    whole_head_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "whole_head_bytes", min(self.request_line_bytes, self.header_bytes) - 4)
