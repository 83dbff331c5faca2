"""The bytes of the line protocols, as both engines send and expect them."""

from __future__ import annotations

GREETING = b"hello from prefork\n"
PREFIX = b"you said: "


def line(number: int, size: int) -> bytes:
    """The line of this number, `size` bytes without its newline; other numbers give other lines where size allows."""
    return (b"%x " % number)[:size].ljust(size, b".")
