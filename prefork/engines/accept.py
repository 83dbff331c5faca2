"""WORKER. The listeners in an event loop's epoll: when to take connections, how many, and when to stay off.

Open, the listeners are registered; off, they are not, and others take what comes. A worker goes off when it is full,
when it holds its share (AcceptBalance), until those have asked whom it has just taken (AcceptBatch), and for a while
when the system is out of descriptors. Whoever opens again is last in the kernel's order, so each wake-up ends with
that, too.

With a listener of its own (--accept per-worker) there is nobody to share with: it is open unless full or paused.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from select import EPOLLEXCLUSIVE, EPOLLIN, POLLIN, epoll, poll
from time import monotonic_ns
from typing import Any

from prefork.core.listener import Listener
from prefork.engines.error_log import RateLimitedLog
from prefork.engines.timers import NEVER
from prefork.errors import ACCEPT_IGNORED, ACCEPT_PAUSE, ACCEPT_PAUSE_S, QUEUE_EMPTY
from prefork.runtime.orders import IN_USE, Orders
from prefork.status.scoreboard import BYTES_IN, CLOSED, COMPLETED, HELD_MOST, Scoreboard

# --- Who takes the next connection: the event loops' way to share listeners evenly.
#
# Left alone, the kernel asks the first registered worker that waits, and one takes nearly all. Three rules mend it:
#
# - Rotation: after each accept the listener is removed from the worker's epoll and added again, at the tail. With
# EPOLLEXCLUSIVE a connection wakes one worker, and never one that is busy outside epoll_wait. (The epoll of an asyncio
# worker is nested in that of its loop: there every worker that accepts is woken.)
#
# - Balance: a worker that holds more than the mean plus half a connection stays off, for OFF_NS at a time, or for
# REST_NS if one waits (FEW in place of a half at times, see AcceptBatch). The mean is over the workers that could take
# one: not retiring, full or paused, and inside epoll_wait or out of it only just. A loop of asyncio cannot always say
# that it is out. So when connections have waited for PATIENCE_NS, the workers that should have come and have not are
# left out of the mean until they take one.
#
# - Turns: a worker without connections that has accepted more than LEAD_MOST above the mean stays off until the others
# have caught up, unless a connection waits. Otherwise the worker that runs already is faster than those that a
# connection has to wake (measured, 2,000 connections one after the other, 4 workers, busiest over least: WSGI up to
# 1.4, now 1.02 to 1.09). With a lead of 2, other processes have to wake for nearly every connection (measured,
# `ab -c 50`, WSGI with 8 threads: 2.1 times the processor time for a connection, with 8 1.07 times).
#
# What a worker leaves would lie there unnoticed where its arrival has woken only this one. So it wakes another through
# an eventfd that all workers have in their epoll, exclusively as well.


OFF_NS = 5_000_000  # how long a worker that holds too many leaves it to the others to look whether one waits
# After so many looks at which nothing waited, a worker that is off comes back, to be woken: it then goes off again
# (measured, 100 idle connections on 4 workers, one of which holds fewer: the others used 1.5 % of a processor each).
EMPTY_LOOKS = 200
FULL_NS = 10_000_000  # how often a worker that is full looks whether a connection waits, for which it has to make room
ASLEEP_NS = 2_000_000  # out of epoll_wait for longer, a worker does not count as one that could take a connection

# So long connections may wait for workers that hold less; a busy machine needs longer than OFF_NS to give them a
# processor (measured, 4 workers, 400 held: the busiest had 180 of 400 with 5 ms).
PATIENCE_NS = 20_000_000

LEAD_MOST = 8  # connections above the mean that a worker may have taken before it waits for the others to catch up
LAG_MOST = 32  # connections below the mean that others have to wait for: a worker that was away gets no more than these


class AcceptBalance:
    """WORKER. Its own line among those of all workers, in shared memory; each writes its own only.

    `fd`: readable when another worker has left a connection. `may_exceed`: whether it may hold FEW more than the mean
    while requests are quick: what is uneven then changes hands (engines/handover.py), and calls run in the loop, so
    that its turns tell how long they take. `paused`: it can accept none for a while, whatever it holds.
    """

    def __init__(self, board: Scoreboard, orders: Orders, group: int, wake_fd: int, *, may_exceed: bool) -> None:
        self.batch = AcceptBatch(board, group)
        self._open, self._awake, self._orders = board.open_cells, board.awake_cells, orders.cells
        self._taken = board.taken_cells
        self._group = group
        self._may_exceed = may_exceed
        self._held_when_seen: list[int] = []  # what all held when a connection was seen to wait; empty: none was
        self._seen_ns = 0
        self._yields = False  # it was ahead, and the others have not caught up yet
        self._unresponsive: dict[int, tuple[int, int]] = {}  # group: what it held and had taken when it did not come
        self._overdue_until_ns = 0  # at a look a moment ago one waited, and at one PATIENCE_NS before
        self.paused = False
        self.fd = wake_fd

    def publish(self, held: int, *, able: bool) -> None:
        """Publish how many connections this worker holds, and whether it accepts more."""
        self._open[self._group] = held + 1 if able and not self.paused else 0

    def woke(self) -> None:
        """The loop has left epoll_wait."""
        self._awake[self._group] = monotonic_ns()

    def sleeps(self) -> None:
        """The loop is about to enter epoll_wait."""
        if woke_ns := self._awake[self._group]:
            self.batch.end_turn(monotonic_ns() - woke_ns)
        self._awake[self._group] = 0

    def may_take(self, held: int) -> bool:
        """Whether one more is this worker's share."""
        late_ns = monotonic_ns() - ASLEEP_NS
        total = others = 0
        size = self._orders[IN_USE]  # few of many: 0.6 us instead of 3
        cells = self._open[:size].tolist()
        for group, then in [*self._unresponsive.items()]:
            if (cells[group], self._taken[group]) == then:
                cells[group] = 0
            else:
                del self._unresponsive[group]
        for opened, awake_ns in zip(cells, self._awake[:size].tolist(), strict=True):
            if 0 < opened < HELD_MOST and (not awake_ns or awake_ns > late_ns):
                total += opened - 1
                others += 1
        if not others:
            return True
        few = self._overdue_until_ns >= late_ns or (self._may_exceed and self.batch.quick and total > 1)
        return held < total / others + (FEW if few else 0.5)

    @property
    def pending(self) -> bool:
        """Whether a connection waited when this worker looked last."""
        return bool(self._held_when_seen)

    @property
    def has_others(self) -> bool:
        """Whether there are other workers."""
        return self._orders[IN_USE] > 1

    @property
    def others_take(self) -> bool:
        """Whether another worker takes connections, and is not away for long."""
        late_ns = monotonic_ns() - PATIENCE_NS
        size = self._orders[IN_USE]
        cells = zip(self._open[:size].tolist(), self._awake[:size].tolist(), strict=True)
        return any(
            0 < opened < HELD_MOST and (not awake_ns or awake_ns > late_ns) and group != self._group
            for group, (opened, awake_ns) in enumerate(cells)
        )

    def overdue_share(self, held: int, listener: Listener) -> int:
        """Return this worker's share of the queue if connections have waited there for PATIENCE_NS, else 0."""
        if not self._held_when_seen:
            return 0
        self.note_waiting(held, waits=True)
        if self._overdue_until_ns < monotonic_ns():
            return 0
        queue = listener.queue()
        if not queue:
            return FEW
        takers = sum(0 < opened < HELD_MOST for opened in self._open[: self._orders[IN_USE]].tolist())
        return -(-queue[0] // max(1, takers))

    def count_accepted(self) -> None:
        """Count a connection that this worker has taken."""
        self._taken[self._group] = (self._taken[self._group] + 1) % HELD_MOST

    def update_turn(self) -> bool:
        """Return whether it is the turn of others: those that hold none, as this worker, and have taken fewer."""
        late_ns = monotonic_ns() - ASLEEP_NS
        size = self._orders[IN_USE]
        cells = zip(self._open[:size].tolist(), self._awake[:size].tolist(), self._taken[:size].tolist(), strict=True)
        taken = [count for opened, awake_ns, count in cells if opened == 1 and not 0 < awake_ns <= late_ns]
        mean = sum(taken) // len(taken) if taken else 0
        self._taken[self._group] = mine = max(self._taken[self._group], mean - LAG_MOST)
        self._yields = bool(taken) and mine > mean + (0 if self._yields else LEAD_MOST)
        return self._yields

    def wake_another(self) -> None:
        """A connection waits that this worker does not take: wake another."""
        if not self._held_when_seen:
            self._remember()
        try:
            os.eventfd_write(self.fd, 1)
        except BlockingIOError:
            pass  # 2^64 wake-ups that no worker has read

    def note_waiting(self, held: int, *, waits: bool) -> None:
        """Note whether a connection waits now: after PATIENCE_NS, workers that hold less are found unresponsive."""
        if not waits:
            self._held_when_seen, self._overdue_until_ns = [], 0
        elif not self._held_when_seen:
            self._remember()
        elif monotonic_ns() - self._seen_ns >= PATIENCE_NS:
            pairs = enumerate(zip(self._held_when_seen, self._open.tolist(), strict=False))
            still = [group for group, (before, now) in pairs if now == before and 0 < now <= held]
            self._unresponsive = {group: (self._open[group], self._taken[group]) for group in still}
            self._overdue_until_ns = monotonic_ns() + PATIENCE_NS
            self._remember()

    def _remember(self) -> None:
        self._held_when_seen = self._open[: self._orders[IN_USE]].tolist()
        self._seen_ns = monotonic_ns()

    def take_wake_up(self) -> None:
        """Consume one wake-up."""
        try:
            os.eventfd_read(self.fd)
        except BlockingIOError:
            pass  # another was faster


# --- How many connections a worker takes at once.
#
# Those that it takes in one turn wait for each other if the application blocks the loop, or its threads, while another
# worker may be free. Nobody can tell before their clients have asked. So it takes one, and rests for REST_NS, or until
# the loop has had input (measured, 4 workers, one of which holds fewer idle connections than the others, 24 at once for
# a view of 300 ms: the last was answered after 5.1 s, now 1.8 s, and it cannot be less). Two exceptions:
#
# - Requests are quick: it has taken QUICK_STREAK in a row, and a newcomer would have waited less for their calls than
# for another worker to wake. Then it takes FEW in a turn. If it `may_exceed`, and its clients do not come one after the
# other, it may hold FEW more than the mean (measured, `ab`, 4 workers, processor time for a connection: WSGI c50 0.77,
# c8 0.80, c4 0.85, asyncio c50 0.88 times).
#
# - The queue is overdue: some waited PATIENCE_NS ago and some wait now, so nobody is free. Then it takes an equal part
# of them, as if all calls took equally long, and may hold FEW more than the mean, as workers that all block for long
# may come back together. Otherwise clients that are here and ask again and again would keep new ones out (measured, 32
# at once that stay, 2 loops that block for 300 ms: the last had its first answer after 67 s, now 5 to 20 s). To take as
# many as let all workers hold the same would be quicker for these, but idle connections count then as well: of 24 at
# once, the worker that holds 20 fewer idle ones took nearly all (the last was answered after 5.7 s in place of 1.8 s).

MOST_A_TURN = 64  # of a worker that shares with nobody, so that its clients have a turn as well
FEW = 8  # the processor time of a connection falls little with more, and a call that is slow all the same delays these
QUICK_STREAK = 64
STREAK_NS = 100_000_000  # between two turns that take some; after longer, a streak begins anew
# What a newcomer waits for, a turn or full threads, may take so long for each request. A busy machine adds to that, so
# only so much more counts, and is remembered for so long (measured, views of 1 and 5 ms, `ab -c 3`: taken as quick, 8 %
# less in a second, and p99 11 ms in place of 6).
QUICK_NS = 250_000
SLOW_NS = 20_000_000
SLOW_FOR_NS = 1_000_000_000
REST_NS = 1_000_000


class AcceptBatch:
    """WORKER. How many connections to take in a turn of the loop, and whether to rest then.

    A turn may take QUICK_NS for itself, and for each request that is completed. So one that moves many messages of
    WebSockets, say, counts as slow, too.
    """

    def __init__(self, board: Scoreboard, group: int) -> None:
        self._cells = board.row(group).cells  # where the loop counts, and its first thread
        self._delays, self._group = board.delay_cells, group
        self._delay_ns = 0  # that newcomers would have had, in all
        self._delayed_since_ns = 0  # and have now, beside turns; 0: none
        self._completed = 0  # requests, when the last turn ended
        self._behind_ns = 0  # of what QUICK_NS would have allowed
        self._slow_until_ns = 0
        self._streak = 0
        self._began_ns = 0  # when a turn last began to take
        self._activity: int | None = 0  # of clients, until then: input, and ends; None: the rest lasts in any case

    def end_turn(self, took_ns: int) -> None:
        """Note that a turn has ended that took so long."""
        completed = self._cells[COMPLETED]
        self.add_delay(took_ns, completed - self._completed + 1)
        self._completed = completed

    def add_delay(self, ns: int, requests: int) -> None:
        """Note that a newcomer would have waited so long, while so many requests were completed."""
        self._delay_ns += ns
        self._delays[self._group] = self._delay_ns - self._delayed_since_ns
        self._behind_ns += ns - QUICK_NS * requests
        if self._behind_ns < 0:
            self._behind_ns = 0
        elif self._behind_ns > SLOW_NS:
            self._behind_ns = 0
            self._slow_until_ns = monotonic_ns() + SLOW_FOR_NS
            self._streak = 0

    def delay_since(self, ns: int) -> None:
        """Note that a newcomer has had to wait since then, and does so until this is called again; 0: it has not."""
        self._delayed_since_ns = ns
        self._delays[self._group] = self._delay_ns - ns  # below 0, as clocks of the system began long before

    def begin(self) -> int:
        """Return how many connections to take at most."""
        now_ns = monotonic_ns()
        if now_ns - self._began_ns > STREAK_NS or now_ns < self._slow_until_ns:
            self._streak = 0
        self._began_ns, self._activity = now_ns, self._clients_activity()
        return FEW if self.quick else 1

    def rest_regardless(self) -> None:
        """Rest for all of REST_NS: who asks or leaves may be only the first of many, or a client from before."""
        self._activity = None

    @property
    def quick(self) -> bool:
        """Whether requests are quick, so that what it takes will hardly have to wait."""
        return self._streak >= QUICK_STREAK

    def end(self, count: int) -> bool:
        """Note that so many were taken; return whether to rest."""
        self._streak += count
        return count > 0 and not self.quick

    @property
    def resting(self) -> bool:
        """Whether what was taken a moment ago has not asked or left yet."""
        return monotonic_ns() - self._began_ns < REST_NS and self._activity in (None, self._clients_activity())

    def _clients_activity(self) -> int:
        return self._cells[BYTES_IN] + self._cells[CLOSED]


_PAUSE_NS = round(ACCEPT_PAUSE_S * 1e9)
_EXCLUSIVELY = EPOLLIN | EPOLLEXCLUSIVE

Admit = Callable[[int, Any, Listener], None]


class EpollAcceptor:
    """WORKER. `admit(descriptor, sockaddr, listener)` gets each connection; `held()` says how many there are.

    `room()`: whether one more may come. `make_room(accept)` gives an idle one away, or ends it once `accept()` has told
    that it has taken one: other full workers may want the same. It returns that, and is called when one waits.
    `check_ns` is when the loop has to call `maintain`, on its own clock.
    """

    def __init__(
        self,
        listeners: Sequence[Listener],
        *,
        epoll: epoll,
        balance: AcceptBalance,
        errors: RateLimitedLog,
        admit: Admit,
        room: Callable[[], bool],
        make_room: Callable[[Callable[[], bool]], bool],
        held: Callable[[], int],
    ) -> None:
        self._listeners = {listener.sock.fileno(): listener for listener in listeners}
        self._shared = any(listener.slot is None for listener in listeners)
        self._epoll = epoll
        self._balance = balance
        self._errors = errors
        self._admit = admit
        self._room = room
        self._make_room = make_room
        self._held = held
        self._readable = poll()  # whether anything waits
        for fd in self._listeners:
            self._readable.register(fd, POLLIN)
        self._fds = [*self._listeners, balance.fd] if self._shared else [*self._listeners]
        self._open = False
        self._looks = 0  # at which nothing waited, since it is off
        self._queued = list(self._listeners.values())  # that may still have a queue when the server stops
        self.check_ns = NEVER

    def handlers(self) -> dict[int, Callable[[int, int], None]]:
        """What to call with (descriptor, now_ns) when one of these is readable."""
        return dict.fromkeys(self._listeners, self._take) | (
            {self._balance.fd: self._woken_by_another} if self._shared else {}
        )

    def open(self) -> None:
        """Begin to accept."""
        for listener in self._listeners.values():
            listener.sock.setblocking(False)
        self._enter(0)

    def maintain(self, now_ns: int) -> None:
        """Accept again if the reason for the pause is gone. Call it in each turn while `check_ns` is not NEVER."""
        due = now_ns >= self.check_ns
        if not due and (self._balance.paused or (self._shared and self._balance.batch.resting) or self._must_yield()):
            return
        looks = due or (self._shared and self._balance.pending)
        waits = looks and self.waits()
        if looks and self._shared and (self._room() or not waits):
            self._balance.note_waiting(self._held(), waits=waits)
        if self._wanted() or (due and waits and not self._room()):
            self._enter(now_ns)  # in the second case, it may have an idle one to replace
        elif due:
            self._end_pause()
            self._looks = 0 if waits else self._looks + 1
            if self._looks < EMPTY_LOOKS:
                self.check_ns = now_ns + self._off_ns(waits=waits)
            else:
                self._enter(now_ns)  # to be woken when something comes

    def waits(self) -> bool:
        """Whether a connection waits to be accepted now."""
        return bool(self._readable.poll(0))

    @property
    def alone(self) -> bool:
        """Whether nobody else could take what waits now."""
        return not (self._shared and self._balance.others_take)

    def stop_accepting(self) -> None:
        """Stop accepting for good."""
        self._leave()
        self.check_ns = NEVER

    def drain(self) -> bool:
        """Accept all connections in the queues of a server that stops; False if it has to be called again."""
        while self._queued:
            try:
                self._accept(self._queued[-1])
            except OSError as error:
                if error.errno in QUEUE_EMPTY:
                    self._queued.pop()
                elif error.errno in ACCEPT_PAUSE:
                    return False
                elif error.errno not in ACCEPT_IGNORED:
                    raise
        return True

    # --- inside

    def _take(self, fd: int, now_ns: int) -> None:
        """Accept from one listener, up to this worker's share."""
        if not self._open:
            return
        listener, balance = self._listeners[fd], self._balance
        shares = self._shared and balance.has_others
        most = balance.batch.begin() if shares else MOST_A_TURN
        if most == 1 and self._room() and (share := balance.overdue_share(self._held(), listener)):
            balance.batch.rest_regardless()
            most = min(MOST_A_TURN, share)
        count = self._accept_some(listener, most, now_ns)
        if balance.paused:
            return
        wanted, rests = self._wanted(), shares and balance.batch.end(count)
        left = self._shared and (rests or not wanted or len(self._listeners) > 1) and self.waits()
        if rests or (wanted and count < most):  # in the second case, this queue is empty
            balance.note_waiting(self._held(), waits=left)
        if not wanted:
            self._leave()
            self.check_ns = now_ns + self._off_ns(waits=left)
            if left:
                balance.wake_another()
        elif rests:
            self._leave()
            self.check_ns = now_ns + REST_NS
        elif self._shared:
            self._epoll.unregister(fd)
            self._epoll.register(fd, _EXCLUSIVELY)
            self._recheck_later(now_ns)

    def _accept_some(self, listener: Listener, most: int, now_ns: int) -> int:
        """Accept so many, if they are this worker's share; return how many there were."""

        def accept() -> bool:
            for _ in range(MOST_A_TURN):
                try:
                    self._accept(listener)
                except OSError as error:
                    if error.errno in QUEUE_EMPTY:
                        return False
                    if error.errno in ACCEPT_PAUSE:
                        self._pause(error, now_ns)
                        return False
                    if error.errno not in ACCEPT_IGNORED:
                        raise
                else:
                    return True
            return False

        count = 0
        while count < most and (accept() if self._wanted() else self._replaces(accept)):
            count += 1
        return count

    def _woken_by_another(self, _fd: int, now_ns: int) -> None:
        if not self._open:  # it has closed in this turn: what waits is for another worker
            if self.waits():
                self._balance.wake_another()
            return
        self._balance.take_wake_up()
        ready = dict(self._readable.poll(0))
        for fd in [fd for fd in self._fds if fd in ready]:
            self._take(fd, now_ns)

    def _accept(self, listener: Listener) -> None:
        fd, sockaddr = listener.sock._accept()  # type: ignore[attr-defined] # below accept(): the bare descriptor
        self._balance.count_accepted()
        self._admit(fd, sockaddr, listener)

    def _wanted(self) -> bool:
        return self._room() and (not self._shared or self._balance.may_take(self._held()))

    def _off_ns(self, *, waits: bool) -> int:
        """Return when to look again; soon if a connection waits, as the next one may be this worker's share."""
        if not self._room():
            return FULL_NS
        # Measured, 32 at once on 2 loops: 16 and 16 after 4 ms. With OFF_NS they wait for each other, for 20 ms.
        return REST_NS if waits else OFF_NS

    def _must_yield(self) -> bool:
        """Whether this worker, whose last client has left, stays off, as it has taken more than the others."""
        return self._shared and not self._held() and self._balance.update_turn() and not self.waits()

    def _replaces(self, accept: Callable[[], bool]) -> bool:
        """Accept one that waits in the place of an idle one, if a lack of room is all that keeps it from that."""
        return not self._room() and self.waits() and self._make_room(accept)

    def _pause(self, error: OSError, now_ns: int) -> None:
        self._errors.note("accept paused", reason=error.strerror, pause=f"{ACCEPT_PAUSE_S:g}s")
        self._leave()
        self._balance.paused = True
        if self._shared:
            self._balance.publish(self._held(), able=False)
            self._balance.wake_another()
        self.check_ns = now_ns + _PAUSE_NS

    def _enter(self, now_ns: int) -> None:
        self._end_pause()
        self._recheck_later(now_ns)
        if not self._open:
            self._open = True
            self._fds.append(self._fds.pop(0))  # each listener is the first one in its turn
            for fd in self._fds:
                self._epoll.register(fd, _EXCLUSIVELY if self._shared else EPOLLIN)

    def _end_pause(self) -> None:
        if self._balance.paused:
            self._balance.paused = False
            self._balance.publish(self._held(), able=self._room())

    def _recheck_later(self, now_ns: int) -> None:
        """Look again if a connection waited, to forget it: if another worker takes it, nobody is woken."""
        self.check_ns = now_ns + OFF_NS if self._shared and self._balance.pending else NEVER

    def _leave(self) -> None:
        if self._open:
            self._open = False
            self._looks = 0
            for fd in self._fds:
                self._epoll.unregister(fd)
