"""What a round leaves behind: plain records that are measured, stored, compared and rendered, and know nothing of how.

A round that could not be measured has an `error` and neither client nor signals: there is no such thing as a row of
zeros.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from prefork.status.histogram import Histogram

if TYPE_CHECKING:
    from collections.abc import Mapping

SCHEMA = 1
CLIENT_SCHEMA = 2  # of the generator's file
_FEW = 20  # exchanges of each connection
_BEFORE = 1  # its schema when throughput was of what came due in the window; only the closed model can be converted


class RecordError(Exception):
    """A file of another shape than this version writes; the message says what is wrong with it."""


class UnconvertibleError(RecordError):
    """A round of an earlier version that lacks what this version needs of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrivals:
    """The arrivals of the open model in the window, and how well their schedule was kept."""

    offered: int  # exchanges that came due in the window
    missed: int  # those of them that never started
    lag: Histogram  # how late the generator saw each

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Arrivals:
        """Read that part of the generator's file."""
        return cls(offered=data["offered"], missed=data["missed"], lag=Histogram.from_json(data["lag"]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Second:
    """A second of the window, or one of several parts of more seconds, or its last part."""

    t_s: int  # since the window began
    span_s: float
    ended: int  # exchanges that ended well in it
    completed: int  # came due in it, and ended well some time
    failed: int  # came due in it, and failed
    p50_ns: int | None  # None when none completed
    p99_ns: int | None

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Second:
        """Read one second of the generator's series."""
        return cls(**{name: data[name] for name in cls.__slots__})


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """What the load generator measured in one window (the file that users/adapter.py writes)."""

    scenario: str
    connections: int
    start_ns: int  # of the window, CLOCK_MONOTONIC, which all processes of a machine share
    duration_s: float
    rate_per_s: float  # throughput: what ended in the window, or of the closed model what was done in it
    ended: int  # exchanges that ended well in the window, whenever they came due
    ended_failed: int  # failed in the window
    completed: int  # came due in the window, and ended well some time
    failures: Mapping[str, int]  # cause -> exchanges that came due in the window and failed
    censored: int  # came due in the window, and were given up when the run ended
    retried: int  # exchanges that were sent once more, on a new connection
    busy_s: float  # time that connections spent inside exchanges, cut at the window's edges
    longest_ns: int  # the longest of these exchanges
    latency: Histogram
    service_time: Histogram
    arrivals: Arrivals | None  # None in the closed model
    seconds: tuple[Second, ...]  # in their order
    raw: Mapping[str, Any]  # the file as it was

    @property
    def done(self) -> float:
        """The exchanges that the server did in the window; the closed model has parts of some."""
        return self.rate_per_s * self.duration_s

    @property
    def growth(self) -> int:
        """The exchanges in flight when the window closed, less those when it opened; of the open model."""
        came = self.arrivals.offered - self.arrivals.missed if self.arrivals else self.ended + self.ended_failed
        return came - self.ended - self.ended_failed

    @property
    def lost(self) -> int:
        """Number of generator processes that ended without a report of what they measured."""
        return len(self.raw.get("generator", {}).get("lost", ()))

    @property
    def failed(self) -> int:
        """Number of exchanges that failed, whatever the cause."""
        return sum(self.failures.values())

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Client:
        """Read the generator's file. Raises RecordError when it is not one."""
        try:
            raw = data
            data = _converted(data) if data["schema"] == _BEFORE else data
            if data["schema"] != CLIENT_SCHEMA:
                known = f"this version reads {CLIENT_SCHEMA}"
                raise RecordError(f"the generator's result has schema {data['schema']!r}; {known}")
            latency = Histogram.from_json(data["latency"])
            return cls(
                scenario=data["scenario"],
                connections=data["connections"],
                start_ns=data["window_start_ns"],
                duration_s=data["duration_s"],
                rate_per_s=data["rate_per_s"],
                ended=data["ended"],
                ended_failed=data["ended_failed"],
                completed=data["completed"],
                failures=dict(data["failures"]),
                censored=data["censored"],
                retried=data.get("retried", 0),
                busy_s=data["busy_s"],
                longest_ns=data.get("longest_ns", latency.max_ns),
                latency=latency,
                service_time=Histogram.from_json(data["service_time"]),
                arrivals=Arrivals.from_json(found) if (found := data.get("arrivals")) else None,
                seconds=tuple(Second.from_json(second) for second in data.get("per_second", ())),
                raw=raw,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise RecordError(f"the generator's result lacks or garbles {error}") from None


def _converted(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a file of the schema before as one of now, with what it has: rate x latency is what was in flight.

    Raises UnconvertibleError for one of the open model, which does not have what ended in its window.
    """
    if data.get("arrivals"):
        raise UnconvertibleError("it has a rate, and not what ended in the window: measure it again with this version")
    mean_s = Histogram.from_json(data["latency"]).mean_ns / 1e9
    rate = data["completed"] / data["duration_s"] if data["duration_s"] else 0.0
    few = data["completed"] < _FEW * data["connections"]  # whole numbers of exchanges matter, and long ones are no tail
    if few and mean_s and not data["failures"] and not data["censored"]:
        rate = data["busy_s"] / data["duration_s"] / mean_s
    ended = {"ended": data["completed"], "ended_failed": sum(data["failures"].values()), "rate_per_s": rate}
    seconds = [{**second, "ended": second["completed"]} for second in data.get("per_second", ())]
    return {**data, **ended, "schema": CLIENT_SCHEMA, "per_second": seconds}


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a process and its descendants used during the window."""

    cpu_ns: int  # user and system, of all its processes, dead children included
    busiest_ns: int  # the same, of the process that used most
    wait_ns: int | None  # time its threads were ready to run and had no CPU; None where the kernel does not say
    switches_voluntary: int
    switches_involuntary: int
    processes: int  # the most that were seen at once
    covered: float  # the part of the window between the first and the last sample; the rest is taken to be alike
    wanted_ns: int | None = None  # time in which its busiest thread ran or waited for a CPU; None like wait_ns

    def cores(self, duration_s: float) -> float:
        """Return the CPU time per second: 1.0 is one busy core."""
        return self.cpu_ns / (duration_s * 1e9)

    def wait_share(self) -> float:
        """Return the part of the time, from 0 to 1, in which threads that wanted to run waited for a CPU."""
        wanted = self.cpu_ns + (self.wait_ns or 0)
        return (self.wait_ns or 0) / wanted if wanted else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """The accept queue of the server's listeners during the window."""

    depth_max: int
    depth_mean: float
    limit: int
    drops: int  # connections that found it full


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """One process that serves, during the window.

    Counts that only the server has are None when it did not give them.
    """

    slot: int  # the server's number for it; without one, its place by pid
    cpu_ns: int | None
    accepted: int | None  # connections taken from the kernel, between the first and the last look inside the window
    requests: int | None  # the server's units of work done, alike: connections of a stream handler, HTTP requests
    connections: float | None  # open at a time, the mean of all looks
    threads: int | None = None  # that can be in the application at once; None too for an event loop
    busy: float | None = None  # of those, in the application at a time, the mean of all looks
    loop: bool | None = None  # whether it is an event loop, as the server says
    blocked: float | None = None  # part of the looks that found its main thread asleep, and not to wait for clients


@dataclass(frozen=True, slots=True, kw_only=True)
class Signals:
    """What the lab saw of both sides through the kernel. None means "could not be seen", never zero."""

    server: Usage | None  # None for processes that could not be found: of another machine, or another user
    generator: Usage | None
    queue: Queue | None
    pss_bytes: int | None  # the server's memory after the load, shared pages divided among those who share them
    series: tuple[tuple[float, float, int | None], ...]  # (s since the window began, server's cores, accept queue)
    workers: tuple[Worker, ...] | None = None  # None: which processes serve is not known
    alone_ns: int | None = None  # an exchange of a client that is alone: the median of a few before the load
    others_cores: float | None = None  # of the CPUs that the server may use: what neither side, nor the lab, used
    cpus: int | None = None  # how many these are

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Signals:
        """Read what dataclasses.asdict made of Signals."""
        server = data["server"]
        generator = data["generator"]
        queue = data["queue"]
        return cls(
            server=Usage(**server) if server else None,
            generator=Usage(**generator) if generator else None,
            queue=Queue(**queue) if queue else None,
            pss_bytes=data["pss_bytes"],
            series=tuple((t_s, cores, depth) for t_s, cores, depth in data["series"]),
            workers=tuple(Worker(**worker) for worker in found) if (found := data.get("workers")) else None,
            alone_ns=data.get("alone_ns"),
            others_cores=data.get("others_cores"),
            cpus=data.get("cpus"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What limited a round, with the number that decided."""

    name: str
    reason: str

    @property
    def valid(self) -> bool:
        """Whether the round is used in comparisons."""
        return self.name not in ("INVALID", "LEFT-OUT")


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One measurement of one server under one load."""

    number: int
    cycle: int
    position: int
    configuration: str
    load: str
    started: str  # UTC, ISO 8601
    verdict: Verdict
    provenance: Mapping[str, Any]
    error: str = ""  # why there are no figures
    client: Client | None = None
    signals: Signals | None = None
    notes: tuple[str, ...] = ()  # what was odd but did no harm
    seed: int | None = None  # of what the load did by chance, the same for all servers in the cycle; None: not known
    again: int | None = None  # the number of the lost round that this one stands for

    def to_json(self) -> dict[str, Any]:
        """As plain data, for its line of the run's file."""
        plain = {name: getattr(self, name) for name in self.__slots__ if name not in ("verdict", "client", "signals")}
        return (
            {"schema": SCHEMA}
            | plain
            | {
                "verdict": asdict(self.verdict),
                "client": self.client.raw if self.client else None,
                "signals": asdict(self.signals) if self.signals else None,
            }
        )

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Round:
        """The inverse of to_json. Raises RecordError for data of another shape.

        A round that cannot be converted is as one that came to nothing, so that the others of its run can be read.
        """
        try:
            rest = dict(data)
            if rest.pop("schema") != SCHEMA:
                raise RecordError(f"schema {data['schema']!r}; this version reads {SCHEMA}")
            try:
                client = Client.from_json(found) if (found := rest.pop("client")) else None
            except UnconvertibleError as error:
                rest |= {"verdict": {"name": "INVALID", "reason": str(error)}, "error": str(error), "signals": None}
                client = None
            return cls(
                verdict=Verdict(**rest.pop("verdict")),
                client=client,
                signals=Signals.from_json(signals) if (signals := rest.pop("signals")) else None,
                notes=tuple(rest.pop("notes")),
                **rest,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise RecordError(f"not a round of this version: {error}") from None
