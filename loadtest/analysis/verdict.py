"""What bounded a round: pure rules over its figures, the first that applies, with the number that decided.

Order: first whether the figures can be believed at all (INVALID; in the open model that includes whether its rate was
reached), then whether the lab itself was the limit (GENERATOR: its lag behind the schedule, or its CPU; SHARED-CPU),
then the server's accept queue where it overflowed, its CPU, and the accept queue where exchanges spend their time in it
although CPU is left (too few workers for handlers that wait). A queue in front of a busy CPU is the CPU's doing, hence
SERVER-CPU comes before that last rule.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from loadtest.data import figures
from loadtest.data.records import Client, Signals, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

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
KEPT = 0.99  # of the exchanges that come due: so many at least must end well
CHANCE = 3.0  # roots of the number in flight, by which that may have grown in the window
STEADY = 5  # parts of the window, in each of which what was in flight has grown: no chance either
LAG_SHARE = 0.1  # of the median latency, by which 1 in 100 arrivals may be seen late
LAG_NS = 1_000_000  # and that much in any case


def judge(client: Client, signals: Signals, server_cpus: int) -> Verdict:
    """Return the verdict on a round whose server could use `server_cpus` CPUs."""
    for name, rule in _RULES:
        if reason := rule(client, signals, server_cpus):
            return Verdict(name=name, reason=reason)
    return Verdict(name="OK", reason="nothing in the lab or in the kernel held the server back")


def _nothing(client: Client, _signals: Signals, _cpus: int) -> str:
    return "" if client.completed else f"no exchange completed; {_causes(client) or 'none failed either'}"


def _errors(client: Client, _signals: Signals, _cpus: int) -> str:
    lost = client.failed + client.censored
    share = lost / (lost + client.completed)
    return f"{share:.1%} of the exchanges failed; {_causes(client)}" if share > FAILED_SHARE else ""


def _offered(client: Client, _signals: Signals, _cpus: int) -> str:
    """Check the offered rate (open model): when it was not kept, the latencies are those of another load.

    It is kept if nearly all that came due in the window has a counterpart that ended in it. What is in flight at the
    window's edges is a matter of chance: of n exchanges that do not know of each other, by some times the root of n.
    """
    arrivals = client.arrivals
    if arrivals is None:
        return ""
    lost = arrivals.missed + client.ended_failed
    chance = CHANCE * math.sqrt(client.busy_s / client.duration_s) + 1
    grew = client.growth if client.growth > chance or _steadily(client) else 0
    if lost + grew <= (1 - KEPT) * arrivals.offered:
        return ""
    reached = client.rate_per_s
    text = f"{figures.digits(reached)}/s of {figures.digits(arrivals.offered / client.duration_s)}/s"
    if grew:
        text += f"; in flight grew by {figures.digits(grew / client.duration_s)}/s"
    if arrivals.missed:
        text += f"; {arrivals.missed:,} of {arrivals.offered:,} were missed"
    return text


def _steadily(client: Client) -> bool:
    """Return whether what is in flight grew in every part of the window: a backlog that is large already still does."""
    grew = [second.completed + second.failed - second.ended for second in client.seconds]
    return len(grew) >= STEADY and min(grew) > 0


def _lag(client: Client, _signals: Signals, _cpus: int) -> str:
    """Check the generator's lag (open model), which it adds to each latency."""
    if client.arrivals is None:
        return ""
    lag_ns = client.arrivals.lag.quantile(0.99)
    median_ns = client.latency.quantile(0.5)
    if lag_ns <= max(LAG_NS, LAG_SHARE * median_ns):
        return ""
    return f"1 in 100 exchanges began {lag_ns / 1e6:.1f} ms late or more, at a median of {median_ns / 1e6:.1f} ms"


def _little(client: Client, _signals: Signals, _cpus: int) -> str:
    """Check Little's law, exchanges in flight = rate x latency: when the client's two counts disagree, trust neither.

    The law is about long times. An exchange that an edge of the window cuts is whole in one count and not in the other:
    as many as are in flight, by the longest latency at most.
    """
    counted = client.busy_s / client.duration_s
    derived = client.completed / client.duration_s * client.latency.mean_ns / 1e9
    off = abs(counted - derived) / max(counted, derived)
    if off <= LITTLE + client.latency.max_ns / 1e9 / client.duration_s:
        return ""
    return f"Little's law is off by {off:.0%}: {counted:.1f} in flight counted, {derived:.1f} by rate x latency"


def _generator(client: Client, signals: Signals, _cpus: int) -> str:
    if signals.generator is None:
        return ""
    busy = signals.generator.busiest_ns / (client.duration_s * 1e9)
    if busy < GENERATOR_BUSY:
        return ""
    return f"a process of the generator used {busy:.0%} of a core; the server may be faster: try more --generators"


def _shared_cpu(client: Client, signals: Signals, _cpus: int) -> str:
    if signals.server is None or signals.generator is None:
        return ""
    sides = (signals.server, signals.generator)
    if min((side.wait_ns or 0) / (client.duration_s * 1e9) for side in sides) < WAIT_CORES:
        return ""
    server, load = (side.wait_share() for side in sides)
    if min(server, load) < WAIT_SHARE:
        return ""
    return f"both sides waited for a CPU, the server {server:.0%} and the generator {load:.0%} of their time"


def _drops(_client: Client, signals: Signals, _cpus: int) -> str:
    if signals.queue is None or not signals.queue.drops:
        return ""
    return f"{signals.queue.drops} connections found the accept queue full (limit {signals.queue.limit})"


def _queue_full(_client: Client, signals: Signals, _cpus: int) -> str:
    queue = signals.queue
    if queue is None or queue.depth_max < QUEUE_FULL * queue.limit:
        return ""
    return f"the accept queue held {queue.depth_max} of at most {queue.limit} connections"


def _server_cpu(client: Client, signals: Signals, cpus: int) -> str:
    if signals.server is None:
        return ""
    cores = signals.server.cores(client.duration_s)
    busiest = signals.server.busiest_ns / (client.duration_s * 1e9)
    if cores >= SERVER_BUSY * cpus:
        return f"the server used {cores:.2f} of its {cpus} cores"
    return f"the server's busiest process used {busiest:.0%} of a core" if busiest >= SERVER_BUSY else ""


def _queueing(client: Client, signals: Signals, _cpus: int) -> str:
    """Check the accept queue by Little's law: mean depth / rate = mean time that a connection waited to be accepted."""
    if signals.queue is None:
        return ""
    per_connection = client.latency.mean_ns / 1e6
    waited = 1e3 * signals.queue.depth_mean / client.rate_per_s
    if waited < QUEUE_SHARE * per_connection:
        return ""
    depth = signals.queue.depth_mean
    return f"{depth:.1f} connections stood in the accept queue: about {waited:.1f} of {per_connection:.1f} ms"


def _idle(client: Client, signals: Signals, _cpus: int) -> str:
    if signals.server is None or signals.generator is None or client.arrivals is not None:
        return ""  # an open model that asks for little is no limit of the lab
    server = signals.server.cores(client.duration_s)
    load = signals.generator.cores(client.duration_s)
    if max(server, load) >= IDLE:
        return ""
    return f"neither side was busy (server {server:.0%}, generator {load:.0%} of a core); try more --connections"


def _causes(client: Client) -> str:
    causes = [f"{count} {cause}" for cause, count in sorted(client.failures.items())]
    return ", ".join(causes + [f"{client.censored} cut off by the end"] * bool(client.censored))


_RULES: tuple[tuple[str, Rule], ...] = (
    ("INVALID", _nothing),
    ("INVALID", _errors),
    ("INVALID", _offered),
    ("INVALID", _little),
    ("GENERATOR", _lag),
    ("GENERATOR", _generator),
    ("SHARED-CPU", _shared_cpu),
    ("BACKLOG-DROP", _drops),
    ("SERVER-QUEUE", _queue_full),
    ("SERVER-CPU", _server_cpu),
    ("SERVER-QUEUE", _queueing),
    ("IDLE-LIMITED", _idle),
)
