"""Asks the kernel about listening sockets over netlink, as `ss -lntm` does.

/proc/net/tcp would answer too, but it lists every connection of the machine: after some seconds of a connection per
exchange that is tens of thousands of lines, ten times a second. This question costs microseconds, needs no privilege,
and its answer also has the queue's limit and the drops of this very listener.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

_SOCK_DIAG = 4  # NETLINK_SOCK_DIAG
_BY_FAMILY = 20  # SOCK_DIAG_BY_FAMILY
_REQUEST_DUMP = 0x1 | 0x300  # NLM_F_REQUEST | NLM_F_DUMP
_ERROR, _DONE = 2, 3  # NLMSG_ERROR, NLMSG_DONE
_LISTEN = 1 << 10  # the state TCP_LISTEN
_MEMINFO = 7  # INET_DIAG_SKMEMINFO: nine numbers, the last counts drops
_HEADER = struct.Struct("=IHHII")
_MESSAGE = struct.Struct("=4B48xIIIII")  # family, state, timer, retransmits; expires, queue, limit, uid, inode

_Row = tuple[int, int, int, int]  # queue, limit, drops, inode


@dataclass(frozen=True, slots=True, kw_only=True)
class Listening:
    """All listening sockets of one TCP port together."""

    depth: int  # connections that wait to be accepted
    limit: int  # that many may wait
    drops: int  # connections turned away since the sockets were made
    inodes: frozenset[int]  # by which /proc/PID/fd names the sockets


def listening(port: int) -> Listening | None:
    """The port's accept queues, summed (workers may have one each); None when nobody listens or nobody will say."""
    rows: list[_Row] = []
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            rows += _ask(family, port)
        except OSError:  # a sandbox without netlink
            return None
    if not rows:
        return None
    depths, limits, drops, inodes = zip(*rows, strict=True)
    return Listening(depth=sum(depths), limit=sum(limits), drops=sum(drops), inodes=frozenset(inodes))


def _ask(family: int, port: int) -> list[_Row]:
    question = struct.pack("=BBBxI", family, socket.IPPROTO_TCP, 1 << (_MEMINFO - 1), _LISTEN)
    question += struct.pack("!H", port) + bytes(46)  # any address, any peer
    rows: list[_Row] = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _SOCK_DIAG) as netlink:
        netlink.settimeout(1.0)
        netlink.send(_HEADER.pack(_HEADER.size + len(question), _BY_FAMILY, _REQUEST_DUMP, 1, 0) + question)
        while True:
            data = netlink.recv(65536)
            while data:
                length, kind, *_ = _HEADER.unpack_from(data)
                if kind in (_ERROR, _DONE):
                    return rows
                rows.append(_row(data[_HEADER.size : length]))
                data = data[(length + 3) & ~3 :]


def _row(message: bytes) -> _Row:
    *_, queue, limit, _, inode = _MESSAGE.unpack_from(message)
    drops = 0
    at = _MESSAGE.size
    while at + 4 <= len(message):
        length, kind = struct.unpack_from("=HH", message, at)
        if kind == _MEMINFO and length >= 4 + 36:
            drops = struct.unpack_from("=I", message, at + 4 + 32)[0]
        at += max((length + 3) & ~3, 4)
    return queue, limit, drops, inode
