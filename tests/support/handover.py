"""Workers in one process that give and take connections, with the real scoreboard, orders, queue, sockets."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from time import monotonic_ns
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from prefork.engines.handover import STAYS_NS, HandOver
from prefork.engines.peer import Peer
from prefork.runtime.orders import Orders
from prefork.runtime.transfer import TransferQueue
from prefork.status.scoreboard import Scoreboard

if TYPE_CHECKING:
    import pytest

    from prefork.engines.context import WorkerContext
    from prefork.engines.http_context import HttpContext
    from prefork.runtime.transfer import TransferMessage

NOW_NS = 1_000_000_000_000
PEER: Peer[None] = Peer(("127.0.0.1", 80), "192.0.2.7:1", "192.0.2.7", 1, None, trusted=False)


@dataclass
class Server:
    """The parts that workers share."""

    board: Scoreboard = field(default_factory=lambda: Scoreboard(groups=16, threads=1))
    orders: Orders = field(default_factory=lambda: Orders(16))
    transfer: TransferQueue = field(default_factory=TransferQueue)
    sockets: list[Any] = field(default_factory=list)  # all that were ever made

    def __post_init__(self) -> None:
        self.orders.take_over(1)

    def close(self) -> None:
        self.transfer.close()
        self.orders.close()
        for sock in self.sockets:
            sock.close()


@dataclass(eq=False)
class Waiting:
    """A connection that is idle since then."""

    since: int
    idle: bool = True
    sent: bool = False
    peer: Peer[None] = PEER

    @property
    def deadline_ns(self) -> int:
        return self.since_ns(0) + 75_000_000_000

    def since_ns(self, _now_ns: int) -> int:
        return self.since * 1_000_000_000

    def has_input(self) -> bool:
        return self.sent


@dataclass(eq=False)
class Kept(Waiting):
    """The same, as a worker that retires sees it."""

    done: str = ""
    stays_ns: int = 0

    def give(self, _now_ns: int, *, evened: bool) -> bool:
        return not evened

    def close(self) -> None:
        self.done = "closed"

    def retire(self) -> None:
        self.done = "retired"

    def expire(self) -> None:
        self.done = "ended"


@dataclass(eq=False, kw_only=True)
class Held(Kept):
    """One end of a socket pair, which its worker gives as the engines give theirs."""

    worker: Worker
    sock: Any

    def give(self, now_ns: int, *, evened: bool) -> bool:
        given = self.worker.handover.give(self.sock.fileno(), PEER, self.since_ns(now_ns), evened=evened)
        if given:
            self.close()
        return given

    def close(self) -> None:
        self.worker.connections.remove(self)
        self.sock.close()
        self.worker.publish()


class Worker:
    """A worker as far as it gives and takes. Its connections are ends of socket pairs."""

    def __init__(self, server: Server, group: int, *, generation: int = 1, tls: bool = False, most: int = 1000) -> None:
        server.orders.begin(group)
        context = SimpleNamespace(
            transfer=server.transfer,
            board=server.board,
            orders=server.orders,
            rows=[server.board.row(group)],
            group=group,
            generation=generation,
            master=1,
            log=SimpleNamespace(debug=lambda *_, **__: None),
            inherited=SimpleNamespace(tls=object() if tls else None),
            config=SimpleNamespace(max_connections=most),
            link=SimpleNamespace(leave_by_s=monotonic_ns() / 1e9 + 30),
        )
        self.sockets = server.sockets
        self.connections: list[Held] = []
        self.context = cast("WorkerContext", context)
        self.handover = HandOver(self.context, connections=lambda: self.connections, adopt=self.adopt)
        self.serves = True
        self.last = False  # every response says that its connection ends

    def adopt(self, sock: Any, message: TransferMessage) -> None:
        stays_ns = message.sent_ns + STAYS_NS if message.evened else 0
        self.connections.append(Held(message.since_ns // 1_000_000_000, stays_ns=stays_ns, worker=self, sock=sock))
        self.sockets.append(sock)

    def open(self, count: int) -> None:
        """Accept so many."""
        for _ in range(count):
            ours, theirs = socket.socketpair()
            self.connections.append(Held(1, worker=self, sock=ours))
            self.sockets += [ours, theirs]
        self.publish()

    def publish(self) -> None:
        """Tell the others."""
        self.handover.publish(len(self.connections), serves=self.serves)

    def give(self, *, evened: bool) -> bool:
        """Give one."""
        return self.connections[-1].give(0, evened=evened)

    def look(self, *, after_s: float = 0.0) -> bool:
        """Give or take what is to be, as if so much later; whether anything was."""
        before = len(self.connections)
        self.handover.even_out(before, monotonic_ns() + round(after_s * 1e9))
        self.publish()
        return before != len(self.connections)

    def give_all(self) -> None:
        """Retire, and give away what can be given."""
        self.serves = False
        self.publish()
        self.handover.give_all(cast("HttpContext", SimpleNamespace(drain=self._drain)))
        self.publish()

    def _drain(self, *, last: bool) -> None:
        self.last = last


def pass_s(seconds: float, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let so much time pass since the first message in the queue was sent."""
    later_ns = server.transfer.oldest_ns() + round(seconds * 1e9)
    monkeypatch.setattr("prefork.engines.handover.monotonic_ns", lambda: later_ns)


def held(workers: list[Worker]) -> list[int]:
    return [len(worker.connections) for worker in workers]
