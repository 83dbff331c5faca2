"""WORKER. Connections change hands: which of them a worker gives to others, and which it takes.

A new connection goes to a worker that can serve it at once, so a burst may end up with the few that happen to be free.
And a worker that retires has connections whose clients have not done with the server. A connection that is idle between
two requests belongs to the server: it is put into a queue (runtime/transfer.py), and another worker takes it.

- Evenness. The mean is over all workers that serve and take, busy ones too (unless one call has kept them for LATE_NS),
  and counts what waits in the queue. A worker above the mean and its margin gives until it is at the mean; only a
  worker below the mean takes. It gives no more than workers lack that are not busier: with others a request would wait
  for longer. What was given for this stays for STAYS_NS, so nothing goes to and fro. A connection that came within
  JUST_COME_NS and has not asked yet stays as well.
- Retiring. Everything is given as soon as it is idle, as long as another worker takes (`somebody_takes`), but no more
  than others have room for. The worker leaves once the queue is empty: what nobody has taken comes back.
- Any worker with room takes what has waited in the queue for LATE_NS, whatever its share.

While two generations overlap, the newer one takes, and an older one that has not begun to retire only if nobody of the
newer one has room. The same holds for a worker whose threads have all been in calls for LATE_NS. In an upgrade the
workers of the old master give, and only those of the new one take (runtime/orders.py).

An arrival wakes every worker once (EPOLLET), as only they know their shares; one that leaves it to others looks again
with each heartbeat. TLS keeps its state in the process, so there nothing changes hands.
"""

from __future__ import annotations

import heapq
import itertools
import operator
from collections.abc import Callable, Iterable
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Protocol

from prefork.runtime.orders import ANOTHER, IN_USE, STOPPING, TAKING
from prefork.runtime.transfer import TransferMessage
from prefork.status.scoreboard import ACCEPTED, CLOSED, GIVEN, HELD_MOST, RECEIVED

if TYPE_CHECKING:
    import _socket

    from prefork.engines.context import WorkerContext
    from prefork.engines.http_context import HttpContext
    from prefork.engines.peer import Peer
    from prefork.status.scoreboard import Scoreboard

MARGIN_LEAST = 2  # connections above the mean that a worker may hold,
MARGIN_PART = 4  # or that part of the mean, a quarter, whichever is more
STAYS_NS = 10_000_000_000
FRESH_NS = 1_000_000_000  # since it was accepted or served: so long it is not closed to make room
LATE_NS = 1_000_000_000
LOOK_NS = 50_000_000  # between looks of a busy worker at its share, beside those with each heartbeat
JUST_COME_NS = 50_000_000  # since it was accepted: so long a client may take to ask for the first time
GRACE_NS = 5_000_000_000  # for a next request, of what cannot be given by a worker that retires
AGAIN_S = 0.005  # until a worker offers again what the queue had no room for
_RETIRE_S = 0.1  # between looks of a retiring worker whether somebody takes its connections
_RESCAN_NS = 50_000_000  # between two looks at all of them, if the first has found none that is idle
_MOMENT_NS = 200_000_000  # over which it is found out how busy the workers are
_BUSIER = 0.25  # of that: so much more may one be busy that gets connections, as views take this long or that
_STOCK = 64  # connections that one look at all of them finds


class Idle(Protocol):
    """A connection that can be idle. `stays_ns`: until then it is not given for evenness (CLOCK_MONOTONIC).

    `deadline_ns`: when the time for its next request is over, on the clock of its engine.
    """

    stays_ns: int
    deadline_ns: int
    peer: Peer[Any]

    @property
    def idle(self) -> bool:
        """Whether it is between two requests."""

    def since_ns(self, now_ns: int, /) -> int:
        """When its client was last served, or else accepted (CLOCK_MONOTONIC, as `now_ns`)."""

    def has_input(self) -> bool:
        """Whether the client has sent something that was not read."""

    def give(self, now_ns: int, /, *, evened: bool) -> bool:
        """Send it to another worker, and close this descriptor without a shutdown; False if no worker has room."""

    def close(self) -> None:
        """Close it at once."""

    def retire(self) -> None:
        """The worker retires and nobody takes it: answer its request as the last. Called again it changes nothing."""

    def expire(self) -> None:
        """Close it as the end of --keep-alive does."""


class HandOver:
    """WORKER. `connections()` are those that the worker has, and may give.

    `adopt(sock, message)` gets each connection that is taken; the socket is non-blocking.
    """

    def __init__(
        self,
        worker: WorkerContext,
        *,
        connections: Callable[[], Iterable[Idle]],
        adopt: Callable[[_socket.socket, TransferMessage], None],
    ) -> None:
        self._queue = worker.transfer
        self._serving, self._awake = worker.board.serving_cells, worker.board.awake_cells
        self._orders = worker.orders.cells
        self._cells = worker.rows[0].cells
        self._group = worker.group
        self._generation = worker.generation
        self._master = worker.master
        self._link = worker.link
        self._log = worker.log
        self._most = worker.config.max_connections
        self._connections = connections
        self._adopt = adopt
        self._longest_idle = LongestIdle(connections)
        self._serves = False  # this worker has not begun to retire
        self._able = True  # it could serve one now
        self._stuck = False  # it could not for long
        self._busy = BusyShares(worker.board)
        self._left = False  # it has left some that waited, as it could not
        self._alone_ns = 0  # since when a worker that retires has found nobody who takes; 0: somebody does
        self._came_back = False  # what it has given, as it retires, and nobody took
        self._full_at = 0  # connections in the queue when it had no room for another; 0: it always had
        self._giving = False  # this worker has held too many, and is not at the mean yet
        self.possible = worker.inherited.tls is None
        self.fd = self._queue.fds[1]

    def publish(self, held: int, *, serves: bool, able: bool = True, stuck: bool = False) -> None:
        """Tell the others how many connections this worker holds, and whether it takes more.

        `able`: it could serve one now. While it could not, it takes none, as it takes none within the application.
        `stuck`: it could not for LATE_NS.
        """
        self._serves, self._able, self._stuck = serves, able, stuck
        has_room = serves and held < self._most and self._orders[TAKING] > 0
        takes = self.possible and not stuck and self._orders[TAKING] <= self._generation
        cell = held + 1 if takes else -(held + 1 + stuck * HELD_MOST)
        self._serving[self._group] = cell if has_room else 0

    def even_out(self, held: int, now_ns: int, first: Iterable[Idle] = ()) -> bool:
        """Give away what is above this worker's share, or take what is below it. `first`: what to give first.

        Return whether to come again after AGAIN_S, as the queue had room for some of them only.
        """
        # It may be another generation's turn to take.
        self.publish(held, serves=self._serves, able=self._able, stuck=self._stuck)
        self._busy.look(self._orders[IN_USE], now_ns)
        excess = self.excess(held)
        if not excess or self._late():
            self.take(held)  # also who has too many: those who should take what is late are stuck
            return False
        long = now_ns - (self._awake[self._group] or now_ns) >= JUST_COME_NS  # this turn: the clients' clock may stand
        given = 0
        for connection in itertools.chain(first, list(self._connections())):
            stays = connection.stays_ns > now_ns or (not long and self._has_just_come(connection, now_ns))
            if connection.idle and not stays:
                if not connection.give(now_ns, evened=True):
                    return given > 0 or self._queue.waiting() > 0
                given += 1
                if given == excess:
                    break
        return False

    @staticmethod
    def _has_just_come(connection: Idle, now_ns: int) -> bool:
        """Whether its client is about to ask, and perhaps to leave then: to give it would not even out for long.

        On its way it would wait for a taker (measured, `ab -c 50` without `-k`: 1 of 10,000 for 250 ms).
        """
        return not connection.peer.served and now_ns - connection.since_ns(now_ns) < JUST_COME_NS

    def give_all(self, context: HttpContext) -> float:
        """Give every idle connection away, as the worker retires. If nobody takes any, end each with a last response.

        While others are in calls, it is served here. Return after how many seconds to come again.
        """
        now_ns = monotonic_ns()
        if self._late(2 * LATE_NS if self._orders[ANOTHER] else LATE_NS):
            self._came_back = True
            self._take_back()
        taken = self.somebody_takes()
        context.drain(last=not taken)
        if not taken:
            self._take_back()  # nobody else will
        room = self._room_now(now_ns)
        self._alone_ns = 0 if taken else self._alone_ns or now_ns
        for connection in list(self._connections()):
            if not connection.idle:
                if not taken:
                    connection.retire()
            elif taken:
                if room <= 0 or not connection.give(now_ns, evened=False):
                    return self._retire_again_s()
                room -= 1
            elif now_ns - max(self._alone_ns, connection.since_ns(now_ns)) >= GRACE_NS and not connection.has_input():
                connection.expire()
        return self._retire_again_s()

    def give_one(self, connection: Idle, now_ns: int) -> None:
        """Give a connection that has just become idle, as the worker retires, if others have room for it."""
        if self._room_now(now_ns) > 0:
            connection.give(now_ns, evened=False)

    @property
    def done(self) -> bool:
        """Whether nothing waits to be taken, so that a worker that retires may leave."""
        return not self.possible or not self._queue.waiting()

    def _retire_again_s(self) -> float:
        return _RETIRE_S if self.done else AGAIN_S

    def _take_back(self) -> None:
        while self.possible and self.take_one() is not None:
            pass

    def _room_now(self, now_ns: int) -> int:
        """How many connections a worker that retires may put into the queue now.

        What goes to workers whose calls go on waits in the queue, so this worker keeps it until it has to leave itself.
        """
        if self._orders[ANOTHER] or self._link.leave_by_s * 1e9 - now_ns < LATE_NS:
            return HELD_MOST
        return self._room_elsewhere(now_ns - LATE_NS) - self._queue.waiting()

    def make_room(self, now_ns: int, accept: Callable[[], bool]) -> bool:
        """Accept a connection in the place of the one that has been idle for the longest; return whether there was one.

        That one is given away; if all are full, it is closed, unless another worker was faster to accept. One that came
        or was served just now is not closed: its client may be about to send a request.
        """
        if not self.possible and self._room_elsewhere(monotonic_ns() - LATE_NS):
            return False  # it goes to those
        gives = self.others()
        connection = self._longest_idle.take(now_ns, rested_ns=0 if gives else FRESH_NS)
        if connection is None:
            return False
        if gives:
            return connection.give(now_ns, evened=False) and accept()
        if not accept():
            return False
        connection.close()
        return True

    def somebody_takes(self) -> bool:
        """Whether anybody takes what this worker, which retires, gives."""
        if not self.possible or self._orders[ANOTHER]:  # nothing is known of the workers of another master
            return self.possible and not self._came_back
        return not self._orders[STOPPING] and self._room_elsewhere() > 0

    def others(self) -> bool:
        """Whether another worker has room, and is not stuck."""
        return self.possible and not self._late() and self._room_elsewhere(monotonic_ns() - LATE_NS) > 0

    def _room_elsewhere(self, late_ns: int = 0) -> int:
        """For how many connections other workers have room, of whichever generation.

        One that is stuck has none if `late_ns` is given; nor has one that is in the application since then.
        """
        size = self._orders[IN_USE]
        cells = zip(self._serving[:size].tolist(), self._awake[:size].tolist(), strict=True)
        return sum(
            max(0, self._most + 1 - abs(serving) % HELD_MOST)
            for group, (serving, since_ns) in enumerate(cells)
            if serving and group != self._group and not (late_ns and (serving < -HELD_MOST or 0 < since_ns < late_ns))
        )

    def excess(self, held: int) -> int:
        """Return how many connections this worker is to give for the sake of evenness."""
        holds = self._takers(held)
        total, takers = sum(holds.values()), len(holds)
        if self._group not in holds or takers < 2 or not (self._giving or _above_margin(held, total, takers)):
            return 0
        waiting = self._queue.waiting()
        total += waiting
        mean = -(-total // takers)
        self._giving = held > mean and (self._giving or _above_margin(held, total, takers))
        if not self._giving:
            return 0
        most = self._busy.of(self._group) + _BUSIER
        lacking = sum(max(0, mean - count) for group, count in holds.items() if self._busy.of(group) <= most)
        return min(held - mean, max(0, lacking - waiting))

    def give(self, fd: int, peer: Peer[Any], since_ns: int, *, evened: bool) -> bool:
        """Give an idle connection away; False if nobody can take it now. Then it is still here.

        `since_ns`: when its client was last served, or else accepted (CLOCK_MONOTONIC). `evened`: for evenness.
        """
        message = TransferMessage(
            server=peer.server,
            client=(peer.text, peer.address, peer.port),
            since_ns=since_ns,
            served=peer.served,
            queue_ms=peer.queue_ms,
            evened=evened,
            master=self._master,
            sent_ns=monotonic_ns(),
        )
        data = message.encode()
        if 0 < self._full_at <= self._queue.waiting():
            return False  # without a count that is taken back: who reads it meanwhile keeps it, as counts never fall
        self._cells[GIVEN] += 1  # before it can be taken, so that no connection is counted twice
        if self._queue.give(fd, data):
            return True
        self._cells[GIVEN] -= 1
        self._full_at = max(1, self._queue.waiting())
        return False

    def take(self, held: int) -> None:
        """Take what is this worker's share."""
        if not self.possible:
            return
        if not self._able and not self._late():
            self._left = True
            return
        if self._serving[self._group] <= 0:
            self._take_late(held)
            return
        waiting = self._queue.waiting()
        while waiting and held < self._most:
            if not self._able and not self._late():
                self._left = True
                return
            holds = self._takers(held)
            if held * len(holds) >= sum(holds.values()) + waiting and not self._late():
                return
            came = self.take_one()
            if came is None:
                return
            held += came
            waiting = self._queue.waiting()

    def on_thread_free(self, held: int) -> None:
        """Take what was left while this worker could serve none: for a moment it can, whatever is next."""
        if self._left:
            self._left, self._able = False, True
            self.take(held)

    def _take_late(self, held: int) -> None:
        """Take what is not for this worker: what has waited for long, as those for whom it is are stuck, or full.

        After LATE_NS, or at once if nobody of those has room. After two if this worker is stuck itself, as who gave it
        may take it back first; after three if it is full: in the place of who has been idle for the longest.
        """
        longest = None
        while self._serves and self._orders[TAKING] and self._queue.waiting():
            full = held >= self._most
            rank = 3 if full else 2 if self._stuck else 1
            nobody_else = rank == 1 and max(self._serving[: self._orders[IN_USE]].tolist()) <= 0
            if not nobody_else and not self._late(rank * LATE_NS):
                return
            if full and longest is None:
                longest = self._longest_idle.take(monotonic_ns(), rested_ns=FRESH_NS)
                if longest is None:
                    return
            came = self.take_one()
            if came is None:
                return
            if came and longest is not None:
                longest.close()
                longest = None
            else:
                held += came

    def take_one(self) -> bool | None:
        """Take one whatever the share; None if there is none, or no descriptor for it; False if it has ended."""
        try:
            taken = self._queue.take()
        except ValueError as error:
            self._cells[RECEIVED] += 1
            self._cells[CLOSED] += 1
            self._log.debug("connection lost on its way", reason=str(error))
            return False
        if taken is None:
            return None
        sock, message = taken
        self._cells[RECEIVED if message.master == self._master else ACCEPTED] += 1
        if sock is None:
            self._cells[CLOSED] += 1
            self._log.debug("connection ended on its way", client=message.client[0])
            return False
        sock.setblocking(False)
        self._adopt(sock, message)
        return True

    def _late(self, after_ns: int = LATE_NS) -> bool:
        """Whether something has waited for so long in the queue."""
        return self._queue.waiting() > 0 and 0 < self._queue.oldest_ns() <= monotonic_ns() - after_ns

    def _takers(self, held: int) -> dict[int, int]:
        """How many connections each worker holds that serves and takes, by group; without those stuck for LATE_NS."""
        size = self._orders[IN_USE]
        late_ns = monotonic_ns() - LATE_NS
        cells, awake = self._serving[:size].tolist(), self._awake[:size].tolist()
        cells = [0 if 0 < since_ns < late_ns else cell for cell, since_ns in zip(cells, awake, strict=True)]
        if self._group < size and self._serving[self._group] > 0:
            cells[self._group] = held + 1
        return {group: cell - 1 for group, cell in enumerate(cells) if 0 < cell < HELD_MOST}


def _above_margin(held: int, total: int, takers: int) -> bool:
    return held * takers > total + max(MARGIN_LEAST * takers, total // MARGIN_PART)


class BusyShares:
    """WORKER. For which part of a moment ago each worker would have kept a newcomer waiting: 0 to 1.

    Left out, evenness harms (measured, 2 workers, one client that repeats a call of 0.3 s, 20 for a view of 1 ms: four
    of them sat with the busy worker, p90 0.33 s, now 1 ms).
    """

    def __init__(self, board: Scoreboard) -> None:
        self._delays, self._awake = board.delay_cells, board.awake_cells
        self._then_ns = 0
        self._then: list[int] = []
        self._shares: list[float] = []

    def look(self, size: int, now_ns: int) -> None:
        """Find out anew, of so many workers, if it is time."""
        took_ns = now_ns - self._then_ns
        if took_ns < _MOMENT_NS:
            return
        cells = zip(self._delays[:size].tolist(), self._awake[:size].tolist(), strict=True)
        delays = [
            delay_ns + (now_ns if delay_ns < 0 else 0) + (now_ns - since_ns if since_ns else 0)
            for delay_ns, since_ns in cells
        ]
        found = ((now - then) / took_ns for then, now in zip(self._then, delays, strict=False))
        self._shares = [min(max(0.0, share), 1.0) for share in found]
        self._then, self._then_ns = delays, now_ns

    def of(self, group: int) -> float:
        """Return the share of the worker with these rows; 0 if it is new."""
        return self._shares[group] if group < len(self._shares) else 0.0


class LongestIdle:
    """WORKER. Finds the connection that has been idle for the longest, for a worker that is full to make room.

    Nothing is kept in order while connections come and go: one look at all of them finds some, for the next calls.
    """

    def __init__(self, connections: Callable[[], Iterable[Idle]]) -> None:
        self._connections = connections
        self._found: list[tuple[int, int, Idle]] = []  # since when, its deadline; the longest idle one last
        self._again_ns = 0  # when to look again, if there was none

    def take(self, now_ns: int, *, rested_ns: int = 0) -> Idle | None:
        """Return it; None if all are busy, or their clients have sent something, or it is not idle for so long."""
        found = self._next(now_ns - rested_ns)
        if found is None and not self._found and now_ns >= self._again_ns:
            idle = [(each.since_ns(now_ns), each.deadline_ns, each) for each in self._connections() if each.idle]
            self._found = heapq.nsmallest(_STOCK, idle, key=operator.itemgetter(0))[::-1]
            found = self._next(now_ns - rested_ns)
            self._again_ns = 0 if found else now_ns + _RESCAN_NS
        return found

    def _next(self, until_ns: int) -> Idle | None:
        while self._found and self._found[-1][0] <= until_ns:
            _since_ns, deadline_ns, connection = self._found.pop()
            if connection.idle and connection.deadline_ns == deadline_ns and not connection.has_input():
                return connection
        return None
