"""The bytes of the line protocols, as both engines send and expect them."""

from __future__ import annotations

GREETING = b"hello from prefork\n"
PREFIX = b"you said: "


def numbered(number: int, size: int) -> bytes:
    """A line of `size` bytes and its newline; other numbers give other lines, where the size allows it."""
    return (b"%x " % number)[:size].ljust(size, b".") + b"\n"
