"""MASTER. A stop that loses no connection: new ones are held off while the accept queue drains.

close(2) on a listener resets every connection that waits in its queue, and under constant new connections a queue is
never empty. listen(2) with a smaller backlog resets as well. What works, without privileges, on TCP:

1. At the start, between bind() and listen(), give the listener a SO_REUSEPORT group with a classic BPF program that
   always picks member 0, itself, and bind a second socket to the address, the spare, which stays idle (socket(7),
   SO_REUSEPORT, SO_ATTACH_REUSEPORT_CBPF). Then take the option off again, so that no other program can join.
2. At the stop, put the option back and let the spare listen with a backlog of 0: it joins as member 1 and gets nothing.
3. Switch the program: one source port to member 1, all others to member 0. Connect from that port. The spare is full.
4. Switch the program: everything to member 1. A SYN for a full queue is dropped, so newcomers wait in their own
   connect(); when the sockets close at last, their next SYN is refused cleanly.

At no moment can a client be in the spare's queue. Where a step fails, the stop falls back to a plain drain.
With a socket for each of N workers the group exists anyway: its program picks one of 0..N-1 at random, the spare is
member N, and the option has to stay on, as without it the kernel would find only one of the sockets.
A Unix listener needs none of it: shutdown(SHUT_RD) refuses new connects and keeps the queue acceptable.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from typing import Any

_SO_ATTACH_REUSEPORT_CBPF = 51  # asm-generic/socket.h; the socket module has no name for it
# linux/bpf_common.h: LD|W|ABS, LD|H|ABS, ALU|MOD|K, JMP|JEQ|K, RET|K, RET|A
_LOAD_WORD, _LOAD_HALF, _MODULO, _JUMP_EQUAL, _RETURN, _RETURN_RESULT = 0x20, 0x28, 0x94, 0x15, 0x06, 0x16
_NETWORK_HEADER = 0xFFF00000  # linux/filter.h, SKF_NET_OFF: offsets count from the IP header
_RANDOM = 0xFFFFF000 + 56  # linux/filter.h, SKF_AD_OFF + SKF_AD_RANDOM: loads a random number
_CONNECT_S = 1.0

_Instruction = tuple[int, int, int, int]  # struct sock_filter: code, jt, jf, k


class SynHold:
    """MASTER. One per address that we bound: `prepare` between bind() and listen(), `engage` when the stop begins.

    `members` is how many sockets listen on the address.
    """

    def __init__(self, *, members: int = 1) -> None:
        self._members = members
        self._spare: socket.socket | None = None
        self._filler: socket.socket | None = None

    def prepare(self, listener: socket.socket) -> None:
        """Make the listener ready; no effect until `engage`. Never raises: where it fails, a stop is a plain drain."""
        if listener.family == socket.AF_UNIX:
            return
        spare = socket.socket(listener.family, socket.SOCK_STREAM)
        try:
            for sock in (listener, spare):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if spare.family == socket.AF_INET6:
                spare.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            spare.bind(listener.getsockname())
            _steer(listener, self._spread())
            self._spare = spare
        except OSError:
            spare.close()  # an old kernel: no group with a program before listen()

    def prepared(self, listener: socket.socket) -> None:
        """Just before listen(): let no other program join. listen() asks for the port anew, and forgets the option."""
        if listener.family != socket.AF_UNIX and self._members == 1:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 0)

    def engage(self, listener: socket.socket) -> bool:
        """Hold off new connections; those in the queue stay acceptable. Returns False where that cannot be done."""
        try:
            if listener.family == socket.AF_UNIX:
                listener.shutdown(socket.SHUT_RD)
                return True
            if self._spare is None:
                return False
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            self._spare.listen(0)
            self._fill(listener)
            _steer(listener, self._to_spare())
        except OSError:
            return False
        return True

    def _fill(self, listener: socket.socket) -> None:
        """Take the spare's only place in its queue ourselves."""
        host, port = listener.getsockname()[:2]
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
        self._filler = socket.socket(listener.family, socket.SOCK_STREAM)
        self._filler.settimeout(_CONNECT_S)
        self._filler.bind((host, 0))
        source = self._filler.getsockname()[1]
        header = 20 if listener.family == socket.AF_INET else 40
        _steer(
            listener,
            [
                (_LOAD_HALF, 0, 0, _NETWORK_HEADER + header),  # the TCP header begins with the source port
                (_JUMP_EQUAL, 0, 1, source),
                *self._to_spare(),
                *self._spread(),
            ],
        )
        self._filler.connect((host, port))

    def _spread(self) -> list[_Instruction]:
        """New connections to the listeners, each as often."""
        if self._members == 1:
            return [(_RETURN, 0, 0, 0)]
        return [(_LOAD_WORD, 0, 0, _RANDOM), (_MODULO, 0, 0, self._members), (_RETURN_RESULT, 0, 0, 0)]

    def _to_spare(self) -> list[_Instruction]:
        return [(_RETURN, 0, 0, self._members)]

    def close(self) -> None:
        """Connections that were held off are refused as soon as the listener is closed too."""
        for sock in (self._spare, self._filler):
            if sock is not None:
                sock.close()

    def export(self) -> dict[str, Any]:
        """All that `inherit` needs, as JSON can carry it; -1 is no descriptor."""
        return {"members": self._members, "fd": self._spare.fileno() if self._spare is not None else -1}

    @classmethod
    def inherit(cls, entry: dict[str, Any]) -> SynHold:
        """NEXT MASTER. The same sockets."""
        hold = cls(members=entry["members"])
        if entry["fd"] >= 0:
            hold._spare = socket.socket(fileno=entry["fd"])
            hold._spare.set_inheritable(False)
        return hold


def _steer(sock: socket.socket, program: list[_Instruction]) -> None:
    """Attach a program that returns the group member for a new connection (struct sock_fprog)."""
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    fprog = struct.pack("@HP", len(program), ctypes.addressof(buffer))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, fprog)
