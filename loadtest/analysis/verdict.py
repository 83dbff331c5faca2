"""What bounded a round: pure rules over its figures, the first that applies, with the number that decided and the cure.

The order is that of the cures: what a rule says must be true while those behind it may be true as well.
1. INVALID: the figures cannot be believed (in the open model that includes whether the rate was reached).
2. The lab or the machine was the limit, whatever the server did: GENERATOR (its CPU, its lag behind the schedule),
   BUSY-MACHINE (a CPU was wanted and other processes had it), SHARED-CPU (both sides waited for each other).
3. The accept queue overflowed: BACKLOG-DROP, SERVER-QUEUE. It does whatever the reason behind it is.
4. UNEVEN: one worker holds the connections and the others have room. It comes before SERVER-CPU, as it may be the CPU
   of that one worker that is used up.
5. SERVER-CPU. All threads are busy too when a CPU is, and connections queue, hence it comes before these:
6. LOOP-BLOCKED (a loop that is asleep does not accept either); SERVER-QUEUE, where exchanges spend their time in the
   accept queue although CPU is left; SERVER-THREADS. They differ in where the wait is: in the event loop, before the
   server, or for a thread.
7. IDLE-LIMITED: nobody was busy, and an exchange took no longer than that of a client alone. Only here do more
   connections bring more.

How long an exchange of a client alone takes (Signals.alone_ns) is what tells a server that is idle from one in which
clients wait: rate x that time = exchanges that were served at a time (Little's law).
"""

from __future__ import annotations

import math
from statistics import fmean
from typing import TYPE_CHECKING

from loadtest.analysis.sharing import CONNECTION_EACH, unevenly_held
from loadtest.data import figures
from loadtest.data.records import Client, Signals, Verdict
from prefork.status.histogram import estimable

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadtest.data.records import Usage

    Rule = Callable[[Client, Signals, int], str]

FAILED_SHARE = 0.001  # of all exchanges: more than one in a thousand
LITTLE = 0.05  # concurrency counted against rate x latency
GENERATOR_BUSY = 0.85  # of a core: a Python generator is one thread at a time
WAIT_SHARE = 0.2  # of the time that a side wanted a CPU
WAIT_CORES = 0.1  # and at least this much all the time: a side that wants little waits for little
QUEUE_FULL = 0.9  # of the accept queue's limit
QUEUE_SHARE = 0.25  # of an exchange that was spent waiting to be accepted
SERVER_BUSY = 0.9  # of the server's CPUs, or of one core for its busiest process
IDLE = 0.5  # of a core, both sides
ALONE = 1.5  # times a client alone, below which an exchange counts as undelayed
DELAYED = 2.0  # the same, from which on exchanges wait inside the server; the median, and 1 in 10 at least
LOCKSTEP = 0.67  # of a core, both sides' busiest: if more, one side may just be waiting for the other
TAKEN = 0.9  # of the threads
BLOCKED = 0.5  # of the looks at main threads
OTHERS = 0.1  # of the server's CPUs: others used more
STARVED = 0.8  # of the time its busiest thread wanted a CPU
STARVED_SHARE = 0.25  # of the exchanges served at a time, a thread each, waited for a CPU
ROOM = 0.6  # of the work of the worker that holds most: others that did less had room
KEPT = 0.99  # of the exchanges that come due: so many at least must end well
# What is in flight grew in each of so many parts of the window: by up to so many standard deviations it may be chance.
CHANCE = ((5, 0.0), (3, 2.0), (0, 3.0))
LAG_SHARE = 0.1  # of the median latency, by which 1 in 100 arrivals may be seen late
LAG_NS = 1_000_000  # and that much in any case


def judge(client: Client, signals: Signals, server_cpus: int) -> Verdict:
    """Return the verdict on a round whose server could use `server_cpus` CPUs."""
    for name, rule in _RULES:
        if reason := rule(client, signals, server_cpus):
            return Verdict(name=name, reason=reason)
    return Verdict(name="OK", reason="nothing in the lab or in the kernel held the server back")


def _nothing(client: Client, _signals: Signals, _cpus: int) -> str:
    if not client.completed:
        return f"no exchange completed; {_causes(client) or 'none failed either: try a longer --duration'}"
    return "" if client.rate_per_s else "no exchange ended in the window; try a longer --warmup and --duration"


def _errors(client: Client, _signals: Signals, _cpus: int) -> str:
    lost = client.failed + client.censored
    share = lost / (lost + client.completed)
    return f"{share:.1%} of the exchanges failed; {_causes(client)}" if share > FAILED_SHARE else ""


def _offered(client: Client, _signals: Signals, _cpus: int) -> str:
    """Check the offered rate (open model): when it was not kept, the latencies are those of another load.

    It is kept if nearly all that came due in the window has a counterpart that ended in it.
    """
    arrivals = client.arrivals
    if arrivals is None:
        return ""
    lost = arrivals.missed + client.ended_failed
    grew = client.growth if client.growth > _chance(client) else 0
    if lost + grew <= (1 - KEPT) * arrivals.offered:
        return ""
    reached = client.rate_per_s
    text = f"{figures.digits(reached)}/s of {figures.digits(arrivals.offered / client.duration_s)}/s"
    if grew:
        text += f"; in flight grew by {figures.digits(grew / client.duration_s)}/s"
    if arrivals.missed:
        text += f"; {arrivals.missed:,} of {arrivals.offered:,} were missed"
    return f"{text}; {_causes(client)}" if _causes(client) else text


def _chance(client: Client) -> float:
    """Return by how much the number in flight may have grown by chance.

    Of exchanges that do not know of each other, n vary by the root of n, and the difference between the window's edges
    by that of 2 n. A backlog, also one that was large already, grows in every part of the window.
    """
    grew = [second.completed + second.failed - second.ended for second in client.seconds]
    steady = len(grew) if min(grew, default=0) > 0 else 0
    deviations = next(deviations for parts, deviations in CHANCE if steady >= parts)
    return deviations * math.sqrt(2 * client.busy_s / client.duration_s) + 1


_LATE = ((0.99, "1 in 100"), (0.9, "1 in 10"), (0.5, "1 in 2"))  # the first that so many arrivals can bear


def _lag(client: Client, signals: Signals, cpus: int) -> str:
    """Check the generator's lag (open model), which it adds to each latency."""
    if client.arrivals is None:
        return ""
    lag = client.arrivals.lag
    share, said = next((found for found in _LATE if estimable(found[0], lag.n)), (0.0, ""))
    lag_ns = lag.quantile(share) if share else 0
    median_ns = client.latency.quantile(0.5)
    if lag_ns <= max(LAG_NS, LAG_SHARE * median_ns):
        return ""
    others = _others(signals, cpus)
    cure = f"{others}; stop them" if others else "try more --generators, or --pin them to CPUs of their own"
    late = f"{said} exchanges began {lag_ns / 1e6:.1f} ms late or more, at a median of {median_ns / 1e6:.1f} ms"
    return f"{late}; {cure}"


def _little(client: Client, signals: Signals, _cpus: int) -> str:
    """Check Little's law, exchanges in flight = rate x latency: when the client's two counts disagree, trust neither.

    The law is about long times. An exchange that an edge of the window cuts is whole in one count and not in the other:
    as many as are in flight, by the longest of them at most, also if that came due in the warm-up.
    """
    counted = client.busy_s / client.duration_s
    derived = client.completed / client.duration_s * client.latency.mean_ns / 1e9
    off = abs(counted - derived) / max(counted, derived)
    if off <= LITTLE + client.longest_ns / 1e9 / client.duration_s:
        return ""
    text = f"Little's law is off by {off:.0%}: {counted:.1f} in flight counted, {derived:.1f} by rate x latency"
    if signals.queue is None or 2 * signals.queue.depth_mean < counted - derived:
        return text
    return f"{text}; {signals.queue.depth_mean:.1f} stood in the accept queue all the time: try a longer --warmup"


def _generator(client: Client, signals: Signals, _cpus: int) -> str:
    if signals.generator is None:
        return ""
    busy = signals.generator.busiest_ns / (client.duration_s * 1e9)
    if busy < GENERATOR_BUSY:
        return ""
    return f"a process of the generator used {busy:.0%} of a core; the server may be faster: try more --generators"


def _busy_machine(client: Client, signals: Signals, cpus: int) -> str:
    """Check whether other processes had the CPU that the server wanted, so much that it matters."""
    server = signals.server
    others = _others(signals, cpus)
    if server is None or not others or not _waits(server, client):
        return ""
    if not _are_most(signals, client) or (signals.alone_ns and _delay(client, signals.alone_ns) < ALONE):
        return ""
    starved = (server.wanted_ns or 0) / (client.duration_s * 1e9) >= STARVED
    waiting = (server.wait_ns or 0) / (client.duration_s * 1e9)
    many = signals.alone_ns is not None and waiting >= STARVED_SHARE * _served(client, signals.alone_ns)
    felt = signals.generator is not None and _waits(signals.generator, client)
    felt |= signals.alone_ns is not None and _delay(client, signals.alone_ns) >= DELAYED
    inside = _threads_taken(client, signals, cpus) or _inside(client, signals, cpus)
    if not (starved or many or (felt and not inside)):
        return ""
    seen = f"the server waited for a CPU {server.wait_share():.0%} of the time that it wanted one; {others}; stop them"
    return f"{seen}; besides, {inside}" if inside else seen


def _waits(side: Usage, client: Client) -> bool:
    waited = (side.wait_ns or 0) / (client.duration_s * 1e9)
    return waited >= WAIT_CORES and side.wait_share() >= WAIT_SHARE


def _are_most(signals: Signals, client: Client) -> bool:
    """Return whether other processes used more of the server's CPUs than either side did."""
    sides = [side.cores(client.duration_s) for side in (signals.server, signals.generator) if side]
    return signals.others_cores is not None and signals.others_cores >= max(sides, default=0.0)


def _others(signals: Signals, cpus: int) -> str:
    """Say what other processes used of the server's CPUs, if it was much."""
    if signals.others_cores is None or signals.others_cores <= OTHERS * cpus:
        return ""
    return f"other processes used {signals.others_cores:.1f} of its {'core' if cpus == 1 else f'{cpus} cores'}"


def _shared_cpu(client: Client, signals: Signals, _cpus: int) -> str:
    sides = (signals.server, signals.generator)
    if _are_most(signals, client) or not all(side is not None and _waits(side, client) for side in sides):
        return ""
    server, load = (side.wait_share() for side in sides if side)
    return (
        f"both sides waited for a CPU, the server {server:.0%} and the generator {load:.0%} of their time; "
        "pin them (--pin), or load from another machine"
    )


def _drops(_client: Client, signals: Signals, _cpus: int) -> str:
    if signals.queue is None or not signals.queue.drops:
        return ""
    seen = f"{signals.queue.drops} connections found the accept queue full (limit {signals.queue.limit})"
    return f"{seen}; try a larger --backlog, or more --workers"


def _queue_full(_client: Client, signals: Signals, _cpus: int) -> str:
    queue = signals.queue
    if queue is None or queue.depth_max < QUEUE_FULL * queue.limit:
        return ""
    return f"the accept queue held {queue.depth_max} of at most {queue.limit} connections; try more --workers"


def _server_cpu(client: Client, signals: Signals, cpus: int) -> str:
    if signals.server is None:
        return ""
    cores = signals.server.cores(client.duration_s)
    busiest = signals.server.busiest_ns / (client.duration_s * 1e9)
    if cores >= SERVER_BUSY * cpus:
        return f"the server used {cores:.2f} of its {cpus} cores; more workers or threads do not help"
    if busiest < SERVER_BUSY:
        return ""
    return f"the server's busiest process used {busiest:.0%} of a core; try more --workers, as long as cores are left"


def _queueing(client: Client, signals: Signals, _cpus: int) -> str:
    """Check the accept queue by Little's law: mean depth / rate = mean time that a connection waited to be accepted."""
    if signals.queue is None:
        return ""
    per_connection = client.latency.mean_ns / 1e6
    waited = min(1e3 * signals.queue.depth_mean / client.rate_per_s, per_connection)  # those that stay wait for longer
    if waited < QUEUE_SHARE * per_connection:
        return ""
    seen = f"{signals.queue.depth_mean:.1f} connections stood in the accept queue"
    asleep = _asleep(signals)
    cure = _where(signals) if asleep is not None and asleep >= BLOCKED else "try more --workers or --threads"
    return f"{seen}: about {waited:.1f} of {per_connection:.1f} ms; {cure}"


def _uneven(client: Client, signals: Signals, _cpus: int) -> str:
    """Check whether one worker holds the connections while others have room, and exchanges take longer for it."""
    workers = signals.workers or ()
    found = unevenly_held(workers) if client.scenario not in CONNECTION_EACH else ""
    if not found or signals.alone_ns is None or _delay(client, signals.alone_ns) < ALONE:
        return ""
    most = max(workers, key=lambda worker: worker.connections or 0)
    work = [worker.cpu_ns if most.requests is None else worker.requests for worker in workers if worker is not most]
    mine = most.cpu_ns if most.requests is None else most.requests
    if None in work or mine is None or fmean(share or 0 for share in work) > ROOM * mine:
        return ""
    cure = "connections that end after some requests (nginx: keepalive_requests) are spread anew"
    return f"{found}, and the others had room; {cure}"


def _loop_blocked(client: Client, signals: Signals, _cpus: int) -> str:
    asleep = _asleep(signals) if any(worker.loop for worker in signals.workers or ()) else None
    if asleep is None or asleep < BLOCKED or (signals.alone_ns and _delay(client, signals.alone_ns) < ALONE):
        return ""
    return (
        f"the event loop was asleep in the application {asleep:.0%} of the time, not in its wait for clients: "
        "a blocking call in `async def`; await it, or run it in a thread"
    )


def _threads_taken(client: Client, signals: Signals, _cpus: int) -> str:
    """Check, where the server says so, whether all its threads were in the application and exchanges waited for one."""
    known = [(worker.busy, worker.threads) for worker in signals.workers or ()]
    busy = sum(taken or 0.0 for taken, _ in known)
    threads = sum(there or 0 for _, there in known)
    if not threads or None in [there for _, there in known] or busy < TAKEN * threads:
        return ""
    if client.busy_s / client.duration_s <= threads:
        return ""  # each exchange had a thread of its own: with more threads there would not be more to do
    return f"{busy:.1f} of {threads} threads were in the application at a time; try more --threads or --workers"


def _inside(client: Client, signals: Signals, _cpus: int) -> str:
    """Check by the time of a client alone whether exchanges wait inside a server that is not busy (closed model)."""
    alone_ns = signals.alone_ns
    if signals.server is None or client.arrivals is not None or alone_ns is None:
        return ""
    if min(_delay(client, alone_ns), client.latency.quantile(0.9) / alone_ns) < DELAYED:
        return ""
    sides = (signals.server, *([signals.generator] if signals.generator else []))
    if sum(max(side.busiest_ns, side.wanted_ns or 0) for side in sides) >= LOCKSTEP * client.duration_s * 1e9:
        return ""
    in_flight = client.busy_s / client.duration_s
    return (
        f"an exchange took {client.latency.mean_ns / 1e6:,.0f} ms, that of a client alone {alone_ns / 1e6:,.1f} ms: "
        f"about {_served(client, alone_ns):.1f} of {in_flight:.0f} were served at a time; {_where(signals)}"
    )


def _where(signals: Signals) -> str:
    """Say what the exchanges wait for, as far as it can be told from where the workers' main threads were."""
    asleep = _asleep(signals)
    if asleep is not None and asleep < BLOCKED:
        return (
            "its main threads waited for clients meanwhile, so the threads of a pool were all taken, or a pool behind "
            "them: try more --threads or --workers, or a larger pool"
        )
    if any(worker.loop is False for worker in signals.workers or ()):
        return "try more --threads or --workers, or a larger pool behind them"
    return (
        "its threads were all taken (try more --threads or --workers, or a larger pool), "
        "or, if it has an event loop, a blocking call in `async def` held it"
    )


def _asleep(signals: Signals) -> float | None:
    """Return the part of the looks that found main threads asleep in the application; None: not known."""
    looks = [worker.blocked for worker in signals.workers or () if worker.blocked is not None]
    return fmean(looks) if looks else None


def _idle(client: Client, signals: Signals, _cpus: int) -> str:
    if signals.server is None or signals.generator is None or client.arrivals is not None:
        return ""  # an open model that asks for little is no limit of the lab
    server = signals.server.cores(client.duration_s)
    load = signals.generator.cores(client.duration_s)
    if max(server, load) >= IDLE or signals.alone_ns is None or _delay(client, signals.alone_ns) >= ALONE:
        return ""
    return (
        f"neither side was busy (server {server:.0%}, generator {load:.0%} of a core), and an exchange took "
        f"{client.latency.mean_ns / 1e6:,.1f} ms, that of a client alone {signals.alone_ns / 1e6:,.1f} ms; "
        "try more --connections"
    )


def _delay(client: Client, alone_ns: int) -> float:
    """Return how many times as long as a client alone an exchange took: both medians, as a few may always be slow."""
    return client.latency.quantile(0.5) / alone_ns


def _served(client: Client, alone_ns: int) -> float:
    """Return how many exchanges were served at a time, those that waited not included."""
    return client.rate_per_s * alone_ns / 1e9


def _causes(client: Client) -> str:
    causes = [f"{count} {cause}" for cause, count in sorted(client.failures.items())]
    return ", ".join(causes + [f"{client.censored} cut off by the end"] * bool(client.censored))


_RULES: tuple[tuple[str, Rule], ...] = (
    ("INVALID", _nothing),
    ("INVALID", _offered),
    ("INVALID", _errors),
    ("INVALID", _little),
    ("GENERATOR", _lag),
    ("GENERATOR", _generator),
    ("BUSY-MACHINE", _busy_machine),
    ("SHARED-CPU", _shared_cpu),
    ("BACKLOG-DROP", _drops),
    ("SERVER-QUEUE", _queue_full),
    ("UNEVEN", _uneven),
    ("SERVER-CPU", _server_cpu),
    ("LOOP-BLOCKED", _loop_blocked),
    ("SERVER-QUEUE", _queueing),
    ("SERVER-THREADS", _threads_taken),
    ("SERVER-THREADS", _inside),
    ("IDLE-LIMITED", _idle),
)
