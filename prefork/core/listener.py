"""Listeners: create, bind, listen, with every failed step named; adopt what others made; tell how full the queue is.

A listener is made once, by the master, and inherited by every worker. O_NONBLOCK and SO_RCVTIMEO belong to the socket
that all processes share, so nobody may rely on how another one left them.

With --accept per-worker an address has one socket for each slot, a SO_REUSEPORT group. The master makes them and keeps
them all, so that the queue of a worker that died waits for its successor in the slot: closing one would reset it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import stat
import struct
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from prefork.core.address import Address, format_sockaddr, plain_host
from prefork.errors import BindError, ConfigError

# --- A stop that loses no connection: new ones are held off while the accept queue drains.
#
# close(2) on a listener resets every connection that waits in its queue, and under constant new connections a queue is
# never empty. listen(2) with a smaller backlog resets as well. What works, without privileges, on TCP:
#
# 1. At the start, between bind() and listen(), give the listener a SO_REUSEPORT group with a classic BPF program that
# always picks member 0, itself, and bind a second socket to the address, the spare, which stays idle (socket(7),
# SO_REUSEPORT, SO_ATTACH_REUSEPORT_CBPF). Then take the option off again, so that no other program can join.
# 2. At the stop, put the option back and let the spare listen with a backlog of 0: it joins as member 1 and gets
# nothing.
# 3. Switch the program: one source port to member 1, all others to member 0. Connect from that port. The spare is full.
# 4. Switch the program: everything to member 1. A SYN for a full queue is dropped, so newcomers wait in their own
# connect(); when the sockets close at last, their next SYN is refused cleanly.
#
# At no moment can a client be in the spare's queue. Where a step fails, the stop falls back to a plain drain.
# With a socket for each of N workers the group exists anyway: its program picks one of 0..N-1 at random, the spare is
# member N, and the option has to stay on, as without it the kernel would find only one of the sockets.
# A Unix listener needs none of it: shutdown(SHUT_RD) refuses new connects and keeps the queue acceptable.


_SO_ATTACH_REUSEPORT_CBPF = 51  # asm-generic/socket.h; the socket module has no name for it
# linux/bpf_common.h: LD|W|ABS, LD|H|ABS, LD|B|ABS, ALU|RSH|K, ALU|MOD|K, JMP|JEQ|K, RET|K, RET|A
_LOAD_WORD, _LOAD_HALF, _LOAD_BYTE, _SHIFT_RIGHT, _MODULO = 0x20, 0x28, 0x30, 0x74, 0x94
_JUMP_EQUAL, _RETURN, _RETURN_RESULT = 0x15, 0x06, 0x16
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
                v6_only = listener.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
                spare.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6_only)
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
        """Fill the only place in the spare socket's queue."""
        host, port = listener.getsockname()[:2]
        self._filler, host = self._bound_filler(listener, host)
        source = self._filler.getsockname()[1]
        by_ipv4 = self._filler.family == socket.AF_INET or plain_host(host) != host
        version, header = (4, 20) if by_ipv4 else (6, 40)
        _steer(
            listener,
            [
                (_LOAD_BYTE, 0, 0, _NETWORK_HEADER),  # a listener of both families gets both kinds of header
                (_SHIFT_RIGHT, 0, 0, 4),
                (_JUMP_EQUAL, 0, 3, version),
                (_LOAD_HALF, 0, 0, _NETWORK_HEADER + header),  # the TCP header begins with the source port
                (_JUMP_EQUAL, 0, 1, source),
                *self._to_spare(),
                *self._spread(),
            ],
        )
        self._filler.connect((host, port))

    @staticmethod
    def _bound_filler(listener: socket.socket, host: str) -> tuple[socket.socket, str]:
        """Make a socket that can connect to the listener; return it and the host to connect to. Raises OSError.

        A listener of both families may be all that this machine has of IPv6.
        """
        ways = [(listener.family, {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host))]  # noqa: S104 - compared, not bound
        if host == "::":
            ways.append((socket.AF_INET, "127.0.0.1"))
        for last, (family, near) in enumerate(ways, 1 - len(ways)):
            filler = socket.socket(family, socket.SOCK_STREAM)
            filler.settimeout(_CONNECT_S)
            try:
                filler.bind((near, 0))
            except OSError:
                filler.close()
                if not last:
                    raise
                continue
            return filler, near
        raise AssertionError  # the last one has returned or raised

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


# --- From an address to a bound socket: resolve, create, bind, each failed step with its reason and what to do.


BIND_RETRY_S = 2.0  # a predecessor that is still dying holds the port
_RETRY_STEP_S = 0.05

Sockaddr = tuple[object, ...] | str
Owner = tuple[int, int]  # uid and gid


def bound_socket(
    address: Address, sockaddr: Sockaddr, *, join: bool = False, owner: Owner | None = None
) -> socket.socket:
    """A socket bound to `sockaddr`, which is where `address` leads. Raises BindError.

    EADDRINUSE is tried again for BIND_RETRY_S. With `join` the port may be one that this user has sockets on, if they
    allow it (socket(7), SO_REUSEPORT); without, it must be free. `owner`: whose the file of a Unix socket is to be.
    """
    try:
        sock = socket.socket(address.family, socket.SOCK_STREAM)
    except OSError as error:
        raise BindError(f"cannot create a socket for {address}: {error.strerror}") from None
    try:
        _set_options(sock, v6_only=address.v6_only)
        if join:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if sock.family == socket.AF_UNIX:
            _remove_stale(address)
            _bind_path(sock, address, owner)
        else:
            _bind(sock, sockaddr, address)
    except BaseException:
        sock.close()
        raise
    return sock


def resolve(address: Address) -> Sockaddr:
    """What to bind for an address. Raises BindError."""
    if address.family == socket.AF_UNIX:
        return address.path
    try:
        host = address.host or None
        found = socket.getaddrinfo(host, address.port, address.family, socket.SOCK_STREAM, 0, socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise BindError(f"cannot resolve {address.host!r} of {address}: {reason}") from None
    return found[0][4]


def _set_options(sock: socket.socket, *, v6_only: bool) -> None:
    if sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a predecessor's TIME_WAITs do not hold the port
    # Accepted sockets inherit it. Without it a greeting and a reply wait 40 ms for the client's delayed ACK.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6_only)


def _remove_stale(address: Address) -> None:
    """Remove the socket of a killed server, where connect fails. Live sockets and other files are not removed."""
    try:
        if not stat.S_ISSOCK(os.stat(address.path).st_mode):
            raise BindError(f"cannot bind {address}: there is a file of that name that is not a socket")
    except FileNotFoundError:
        return
    except OSError as error:
        raise BindError(f"cannot bind {address}: {error.strerror}") from None
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a live server with a full queue answers EAGAIN
        try:
            probe.connect(address.path)
        except ConnectionRefusedError:
            os.unlink(address.path)
        except OSError:
            pass  # alive, or not ours to judge: bind() will say


_HINTS = {
    errno.EADDRINUSE: "another process listens there (`ss -ltnp` shows which); stop it or choose another address",
    errno.EACCES: "ports below 1024 need root or CAP_NET_BIND_SERVICE; choose a higher port or pass a listener as fd://N",
    errno.EADDRNOTAVAIL: "no interface of this machine has that address; `ip address` lists them",
}
_PATH_HINTS = {
    errno.EADDRINUSE: "another process listens there (`ss -lxp` shows which); stop it or choose another address",
    errno.EACCES: "this user may not write to its directory",
    errno.ENOENT: "its directory does not exist; create it first",
}


def _bind(sock: socket.socket, sockaddr: Sockaddr, address: Address) -> None:
    give_up = time.monotonic() + BIND_RETRY_S
    while True:
        try:
            sock.bind(sockaddr)
            return
        except OSError as error:
            if error.errno == errno.EADDRINUSE and sock.family != socket.AF_UNIX and time.monotonic() < give_up:
                time.sleep(_RETRY_STEP_S)
                continue
            hint = (_PATH_HINTS if sock.family == socket.AF_UNIX else _HINTS).get(error.errno or 0)
            raise BindError(f"cannot bind {address}: {error.strerror}" + (f"; {hint}" if hint else "")) from None


def _bind_path(sock: socket.socket, address: Address, owner: Owner | None) -> None:
    """Make the file of a Unix socket: never wider open than it is to be, and its owner's before anyone can connect."""
    if address.mode is None:
        _bind(sock, address.path, address)
    else:
        before = os.umask(0o777 & ~address.mode)  # chmod() behind bind() would come too late
        try:
            _bind(sock, address.path, address)
        finally:
            os.umask(before)
    if owner is None:
        return
    try:
        _give(address.path, owner)
    except OSError as error:
        with suppress(OSError):
            os.unlink(address.path)
        whom = f"user {owner[0]}, group {owner[1]}"
        raise BindError(f"cannot give {address} to {whom} (--user, --group): {error.strerror}") from None


def _give(path: str, owner: Owner) -> None:
    """Change the owner of the file that bind() has just made. Raises OSError.

    Whoever may write to its folder could put a link in its place meanwhile. So the file is held (O_PATH), looked at,
    and changed as what is held: fchown() of the socket itself does not reach the file (unix(7)).
    """
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        if not stat.S_ISSOCK(found.st_mode) or found.st_uid != os.geteuid() or found.st_nlink != 1:
            raise OSError(errno.EEXIST, "another file took its place")
        os.chown(f"/proc/self/fd/{fd}", *owner)
    finally:
        os.close(fd)


# How long an accept() that nobody answers holds a worker that has been told to retire (socket(7), SO_RCVTIMEO).
ACCEPT_WAIT_S = 0.5

_SO_MEMINFO = 55  # asm-generic/socket.h; the socket module has no name for it
_DROPS = 8  # linux/sock_diag.h, SK_MEMINFO_DROPS: index of a 32-bit number


class Listener:
    """MASTER makes it, workers inherit it. `address` is the real one: port 0 has become a number. `server`: the same as
    host and port; the path and None of a Unix socket.

    `bind` is how it was asked for, `slot` whose it is (None: every worker's). `owned`: made by us, so that on a stop
    its queue is ours to drain. `borrowed`: during an upgrade it is still the other master's.
    """

    def __init__(
        self,
        sock: socket.socket,
        address: str,
        *,
        hold: SynHold | None = None,
        bind: str = "",
        slot: int | None = None,
        owned: bool = False,
    ) -> None:
        self.sock = sock
        self.address = address
        self.bind = bind or address
        self.slot = slot
        self.owned = owned
        self.borrowed = False
        self.hold = hold  # of a group, the first one has it
        address_of: Any = sock.getsockname()
        unix = sock.family == socket.AF_UNIX
        self.server: tuple[str, int | None] = (os.fsdecode(address_of), None) if unix else address_of[:2]
        self._inode = _inode(address.removeprefix("unix:")) if self.owned and sock.family == socket.AF_UNIX else None

    def queue(self) -> tuple[int, int] | None:
        """Connections that wait for accept() and how many may (tcp(7), TCP_INFO: tcpi_unacked, tcpi_sacked).

        None where the kernel does not tell: for a Unix socket, and what else is not TCP.
        """
        if self.sock.family == socket.AF_UNIX:
            return None
        try:
            info = self.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
        except OSError:
            return None
        waiting, limit = struct.unpack_from("=II", info, 24)
        return waiting, limit

    def drops(self) -> int | None:
        """Connections and requests for one that the kernel dropped, mostly as the queue was full; their clients retry.

        None for a Unix socket: there the client is told at once.
        """
        if self.sock.family == socket.AF_UNIX:
            return None
        info = self.sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 4 * (_DROPS + 1))
        return int(struct.unpack_from("=I", info, 4 * _DROPS)[0])

    def waiting(self) -> bool:
        """True if connections of ours to serve are known to wait for accept()."""
        queue = self.queue() if self.owned and not self.borrowed else None
        return queue is not None and queue[0] > 0

    def close(self) -> None:
        """Close this process's copy. Not shutdown(), which would reset the queue of every process."""
        self.sock.close()
        self.close_hold()

    def end(self) -> None:
        """MASTER, after the last worker. Free the port, also if a process that a C library has forked holds a copy."""
        if self.owned and not self.borrowed and self.sock.family != socket.AF_UNIX:
            with suppress(OSError):  # it does not listen any more
                self.sock.shutdown(socket.SHUT_RDWR)
        self.close()

    def copy(self) -> socket.socket:
        """Another descriptor of the same socket. Not `socket.dup()`: that makes it blocking for a moment, for all
        processes, and one whose connection another took at that moment would sleep in accept()."""
        return socket.socket(fileno=os.dup(self.sock.fileno()))

    def close_hold(self) -> None:
        """Close this process's copy of what only the master needs."""
        if self.hold is not None:
            self.hold.close()

    def hold_off(self) -> None:
        """MASTER, at the stop. Newcomers wait, then are refused; the queue stays for the workers to drain."""
        if self.owned and not self.borrowed:
            self.sock.setblocking(False)  # for all processes: none may sleep in accept() any more
            if self.hold is not None:
                self.hold.engage(self.sock)

    def unlink(self) -> None:
        """MASTER, at the end. Remove the path of a Unix socket, unless it is another one's by now."""
        path = self.address.removeprefix("unix:")
        if self._inode is not None and not self.borrowed and _inode(path) == self._inode:
            os.unlink(path)

    # --- to the next master, in an upgrade

    def export(self) -> dict[str, Any]:
        """All that `inherit` needs, as JSON can carry it; -1 is no descriptor."""
        return {
            "bind": self.bind,
            "address": self.address,
            "slot": self.slot,
            "owned": self.owned,
            "inode": self._inode,
            "fd": self.sock.fileno(),
            "hold": self.hold.export() if self.hold is not None else None,
        }

    @classmethod
    def inherit(cls, entry: dict[str, Any]) -> Listener:
        """NEXT MASTER. Its copy. Borrowed, until the master before has handed over. Raises OSError: no such socket."""
        sock = socket.socket(fileno=entry["fd"])
        sock.set_inheritable(False)
        hold = None if entry["hold"] is None else SynHold.inherit(entry["hold"])
        listener = cls(sock, entry["address"], hold=hold, bind=entry["bind"], slot=entry["slot"], owned=entry["owned"])
        listener._inode = tuple(entry["inode"]) if entry["inode"] else None
        listener.borrowed = True
        return listener


def own_share(listeners: Sequence[Listener], slot: int, *, everything: bool) -> list[Listener]:
    """WORKER. The listeners that a worker of the slot accepts on; the others are closed here.

    `everything` is for a worker that was forked to empty the queues of a server that stops.
    """
    for listener in listeners:
        if not everything and listener.slot not in (None, slot):
            listener.close()
    return [listener for listener in listeners if listener.sock.fileno() >= 0]


def open_listener(address: Address, *, backlog: int, owner: Owner | None = None) -> Listener:
    """Create, bind and listen, or adopt an inherited descriptor. Raises BindError.

    EADDRINUSE is tried again for BIND_RETRY_S; with port 0 the kernel picks one. `owner`: as of bound_socket.
    """
    if address.family == socket.AF_UNSPEC:
        return _adopt(address)
    listener = _create(address, backlog, 1, owner)[0]
    listener.slot = None
    return listener


def open_group(address: Address, *, backlog: int, sockets: int) -> list[Listener]:
    """Create one listener for each slot, all of one address. Raises BindError and ConfigError."""
    if address.family in (socket.AF_UNIX, socket.AF_UNSPEC):
        raise ConfigError(f"--accept per-worker needs addresses of TCP: {address} is one socket; use --accept shared")
    return _create(address, backlog, sockets)


def _create(address: Address, backlog: int, sockets: int, owner: Owner | None = None) -> list[Listener]:
    """Only the sockets after the first may share its port: if another program listens there, the first one fails."""
    asked, hold = str(address), SynHold(members=sockets)
    if address.family == socket.AF_INET6 and not address.host and not _has_ipv6():
        address = replace(address, family=socket.AF_INET, host="0.0.0.0")  # noqa: S104 - every address is what was asked
    socks: list[socket.socket] = []
    try:
        socks.append(bound_socket(address, resolve(address), owner=owner))
        hold.prepare(socks[0])
        while len(socks) < sockets:
            socks.append(bound_socket(address, socks[0].getsockname(), join=True))
        try:
            hold.prepared(socks[0])
            for sock in socks:
                sock.listen(backlog)
        except OSError as error:
            raise BindError(f"cannot listen on {address}: {error.strerror}") from None
    except BaseException:
        for sock in socks:
            sock.close()
        hold.close()
        raise
    where = format_sockaddr(address.family, socks[0].getsockname())
    listeners = [Listener(sock, where, bind=asked, slot=slot, owned=True) for slot, sock in enumerate(socks)]
    listeners[0].hold = hold
    return listeners


def _has_ipv6() -> bool:
    """Whether the kernel has IPv6, which it may have been started without."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::", 0))
    except OSError:
        return False
    return True


def _inode(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _adopt(address: Address) -> Listener:
    """Take over a listener that another program made: it is not changed, and not shut down."""
    try:
        sock = socket.socket(fileno=os.dup(address.fd))
    except OSError as error:
        raise BindError(f"cannot use {address}: {error.strerror}; no socket is open there") from None
    try:
        listening = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError:
        listening = 0
    if not listening or sock.type != socket.SOCK_STREAM:
        sock.close()
        raise BindError(f"cannot use {address}: it is not a listening stream socket")
    os.set_inheritable(address.fd, False)  # programs that handlers start must not hold it
    return Listener(sock, format_sockaddr(sock.family, sock.getsockname()), bind=str(address))


def timeval(seconds: float) -> bytes:
    """`struct timeval` for SO_RCVTIMEO and SO_SNDTIMEO. 0 means no limit there, so that nothing rounds down to it."""
    micros = max(1, round(seconds * 1_000_000))
    return struct.pack("@ll", micros // 1_000_000, micros % 1_000_000)
