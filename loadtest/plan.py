"""The plan of a run: which servers, under which load, in which order.

A plan is plain data: it is made from a file (planfile.py) or from flags (cli.py), kept in session.json, and read back
by reports. Every server runs every load. A cycle runs each configuration once; odd cycles run in reverse (A B, B A,
...), so that a drift of the machine falls on all alike. With `aa` the baseline runs a second time in every cycle
under the name NAME': the difference of two identical things is the noise floor.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

SCENARIOS = ("talkback", "echo", "nap", "http")
ENGINES = ("fast", "readable")
ARRIVALS = ("constant", "poisson")
AA_MARK = "'"
AA_MIN_ROUNDS = 6


class PlanError(Exception):
    """A plan that cannot be run; the message says where and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A configuration to measure: a command line, or the address of a server that runs already."""

    name: str
    command: str = ""  # placeholders: {address} {host} {port} {python}; empty with attach
    attach: str = ""  # HOST:PORT
    cwd: str = ""  # relative to the plan file's folder; empty: where the lab was started
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What the clients do, and for how long."""

    name: str
    scenario: str = "talkback"
    engine: str = "fast"  # of the generator: fast, or readable, with a locust user for each client
    connections: int = 64  # all clients together
    rate_per_s: float = 0.0  # exchanges that come due, whatever the server does; 0: clients begin when they are done
    arrivals: str = "constant"  # how the rate spreads them
    max_in_flight: int = 10_000  # with a rate: under way or waiting for a connection; what comes due beyond is missed
    duration_s: float = 5.0  # the measured window
    warmup_s: float = 1.0  # before it, not counted
    payload: int = 64  # bytes of a line, or of a request's body
    exchanges: int = 10  # on one connection before it closes, where the scenario keeps connections

    def __post_init__(self) -> None:
        if self.rate_per_s and self.engine != "fast":
            raise PlanError(f"load {self.name!r}: a rate needs the fast engine; leave out engine = {self.engine!r}")

    def describe(self) -> str:
        """One line for the report."""
        times = f"{self.duration_s:g} s after {self.warmup_s:g} s of warm-up"
        rate = f", {self.rate_per_s:g}/s ({self.arrivals})" if self.rate_per_s else ""
        engine = "" if self.engine == "fast" else f", {self.engine} engine"
        return f"{self.scenario}, {self.connections} connections{rate}, {times}{engine}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """Which CPUs the server's processes may use, and which the load generator's."""

    server: tuple[int, ...]
    load: tuple[int, ...]

    def __str__(self) -> str:
        return ":".join(",".join(map(str, cpus)) for cpus in (self.server, self.load))


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One place in the order of a run: this server under this load, now."""

    cycle: int
    position: int
    configuration: str  # the server's name, or NAME' for the baseline's second run
    server: Server
    load: Load


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Servers, loads and how to compare them."""

    name: str
    servers: tuple[Server, ...]
    loads: tuple[Load, ...]
    rounds: int = 6
    pin: Pin | None = None
    baseline: str = ""  # empty: the first server
    aa: bool | None = None  # None: from six rounds, when there is something to compare

    def __post_init__(self) -> None:
        names = [server.name for server in self.servers]
        for kind, found in (("server", names), ("load", [load.name for load in self.loads])):
            if not found:
                raise PlanError(f"nothing to measure: name at least one {kind}")
            for name in found:
                if not name or name.endswith(AA_MARK):
                    raise PlanError(f"{kind} {name!r}: a name has at least one letter and does not end with {AA_MARK}")
                if found.count(name) > 1:
                    raise PlanError(f"{kind} {name!r} is there twice; give each its own name")
        if self.baseline and self.baseline not in names:
            raise PlanError(f"baseline {self.baseline!r} is not one of the servers: {', '.join(names)}")

    @property
    def reference(self) -> str:
        """The name of the server that the others are compared with."""
        return self.baseline or self.servers[0].name

    @property
    def runs_aa(self) -> bool:
        """Whether every cycle runs the baseline twice."""
        return self.aa if self.aa is not None else self.rounds >= AA_MIN_ROUNDS and len(self.servers) > 1

    def slots(self, first_cycle: int = 0) -> Iterator[Slot]:
        """The order of `rounds` cycles, numbered from first_cycle (a run that is extended goes on counting)."""
        arms = [(server.name, server) for server in self.servers]
        if self.runs_aa:
            arms += [(name + AA_MARK, server) for name, server in arms if name == self.reference]
        for cycle in range(first_cycle, first_cycle + self.rounds):
            order = [(name, server, load) for load in self.loads for name, server in arms]
            if cycle % 2:
                order.reverse()
            for position, (name, server, load) in enumerate(order):
                yield Slot(cycle=cycle, position=position, configuration=name, server=server, load=load)

    def fingerprint(self) -> str:
        """Equal for plans whose rounds may lie in one folder: their number may differ, what is measured may not."""
        same = {key: value for key, value in self.to_json().items() if key not in ("name", "rounds", "aa")}
        return hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """As plain data, for session.json."""
        return asdict(self) | {"baseline": self.reference}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """The inverse of to_json. Raises KeyError or TypeError for data of another shape."""
        pin = data["pin"]
        return cls(
            name=data["name"],
            servers=tuple(Server(**server) for server in data["servers"]),
            loads=tuple(Load(**load) for load in data["loads"]),
            rounds=data["rounds"],
            pin=Pin(server=tuple(pin["server"]), load=tuple(pin["load"])) if pin else None,
            baseline=data["baseline"],
            aa=data["aa"],
        )
