"""The plan of a run: which servers, under which load, in which order.

A plan is plain data: it is made from a file (file.py) or from flags (cli.py), kept with the rounds of its run
(store.py), and read back by reports. Every server runs every load. A cycle runs each configuration once, in an order
that is random and balanced (see `_arranged`), so that neither a drift of the machine nor a place in the cycle falls on
one of them alone. With `aa` the baseline runs a second time in every cycle under the name NAME': what differs from one
of them only is no difference. With `until` further cycles follow (see analysis/inference.py).
"""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

Arm = TypeVar("Arm")

SCENARIOS = ("talkback", "echo", "nap", "http", "websocket")
RAW = "tcp"  # the scenario of users of a locustfile that are no HTTP users
OVER_HTTP = ("http", "websocket")
MESSAGES = ("text", "binary")
ENGINES = ("fast", "readable")
ARRIVALS = ("constant", "poisson")
ORDERS = ("sequence", "random")
AA_MARK = "'"
_OF_REQUESTS = ("method", "path", "path_order", "headers", "body", "keep_alive", "retry", "status", "length")
_OF_RATES = ("arrivals", "max_in_flight")
AA_MIN_ROUNDS = 6
WITHIN_S = 1800.0
_SCENARIO = "talkback"
_TIMEOUT_S = 10.0
_MAY_DIFFER = ("name", "rounds", "aa", "until", "within_s", "seed")  # between runs whose rounds lie in one folder


class PlanError(Exception):
    """A plan cannot be run; the message says where the mistake is and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A configuration to measure: a command line, or the address of a server that runs already."""

    name: str
    command: str = ""  # placeholders: {address} {host} {port} {python}; empty with attach
    attach: str = ""  # HOST:PORT or unix:PATH
    cwd: str = ""  # relative to the plan file's folder; empty: where the lab was started
    env: Mapping[str, str] = field(default_factory=dict)
    ready_s: float = 30.0  # from the start to the first answered exchange
    grace_s: float = 10.0  # from SIGTERM to the end


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What the clients do, and for how long."""

    name: str
    scenario: str = _SCENARIO
    locustfile: str = ""  # FILE.py:Class, whose users are the clients; the scenario is then http, or tcp
    engine: str = "fast"  # of the generator: fast, or readable, with a locust user for each client
    generators: int = 1  # its processes, which share the clients and the rate
    connections: int = 64  # all clients together
    rate_per_s: float = 0.0  # exchanges that come due, whatever the server does; 0: clients begin when they are done
    arrivals: str = "constant"  # how the rate spreads them
    max_in_flight: int = 10_000  # with a rate: under way or waiting for a connection; what comes due beyond is missed
    duration_s: float = 5.0  # the measured window
    warmup_s: float = 1.0  # before it, not counted
    timeout_s: float = _TIMEOUT_S  # of one exchange, and of a connect of its own
    payload: int = 64  # bytes of a line or message, or of a request's body where its method wants one without a body
    exchanges: int = 0  # on one connection before it closes; 0: 10 for echo, elsewhere as many as the server allows
    # What follows is for http; path, headers and TLS for websocket, too.
    method: str = "GET"
    path: str | tuple[str, ...] = "/"  # or several, each PATH or @FILE with one in each line
    path_order: str = "sequence"  # in which several are asked for
    headers: tuple[str, ...] = ()  # each "Name: value"
    body: str = ""  # text, or @FILE
    keep_alive: bool = True  # else a connection for every request
    retry: bool = True  # whether a request is sent once more whose kept connection ends before any byte of the answer
    status: str = "2xx"  # of a good response: 200, 2xx, or several with commas between
    length: int | None = None  # of its body, in bytes
    tls: bool = False
    insecure: bool = False  # whether any certificate will do
    ca: str = ""  # a file of certificates to trust, instead of the system's
    message: str = "text"  # for websocket: text or binary

    @classmethod
    def made(cls, **given: Any) -> Load:
        """Make a load of what was given. A locustfile brings its own engine and scenario. Raises PlanError."""
        if file := given.get("locustfile", ""):
            name = given.get("name") or file.rpartition("/")[2].rpartition(":")[2].removesuffix(".py")
            given = {"engine": "readable", "scenario": "http", **given, "name": name}
        return cls(**{"name": given.get("scenario", _SCENARIO), **given})

    def __post_init__(self) -> None:
        if self.locustfile:
            self._check_users()
        elif self.scenario == RAW:
            raise PlanError(f"load {self.name!r}: scenario {RAW} is for users of a locustfile; name one (locustfile)")
        if self.rate_per_s and self.engine != "fast":
            raise PlanError(f"load {self.name!r}: a rate needs the fast engine; leave out engine = {self.engine!r}")
        if self.generators > self.connections:
            raise PlanError(
                f"load {self.name!r}: {self.connections} connections are too few for {self.generators} generators"
            )
        if self.scenario == "websocket" and (len(self.paths) > 1 or self.paths[0].startswith("@")):
            raise PlanError(f"load {self.name!r}: a WebSocket is opened at one path; several are for http")
        if self.tls and self.scenario not in OVER_HTTP:
            raise PlanError(f"load {self.name!r}: tls is for scenario http or websocket; {self.scenario} has none")
        if (self.insecure or self.ca) and not self.tls:
            raise PlanError(f"load {self.name!r}: insecure and ca say how a certificate is verified; add tls")
        if self.insecure and self.ca:
            raise PlanError(f"load {self.name!r}: insecure takes any certificate; leave out ca, or insecure")

    @property
    def paths(self) -> tuple[str, ...]:
        """What `path` names: each PATH or @FILE."""
        return (self.path,) if isinstance(self.path, str) else self.path

    @property
    def unused(self) -> tuple[str, str] | None:
        """The first field that this load would ignore, and why."""
        for field_ in fields(self):
            name = field_.name
            if getattr(self, name) == field_.default:
                continue
            if name in _OF_REQUESTS and self.scenario not in (*OVER_HTTP, RAW):
                why = f"is for scenario http; {self.scenario} sends no request"
                return name, f"{why}; write scenario http, or leave it out"
            if name in _OF_RATES and not self.rate_per_s:
                return name, "is for a rate; add a rate, or leave it out"
        return None

    def _check_users(self) -> None:
        """Check what cannot go with the users of a locustfile. Raises PlanError."""
        if self.rate_per_s:
            raise PlanError(f"load {self.name!r}: users of a locustfile set their own pace; leave out rate")
        if self.engine == "fast":
            raise PlanError(f"load {self.name!r}: a locustfile has users of its own; leave out engine = 'fast'")
        if self.scenario not in ("http", RAW):
            raise PlanError(
                f"load {self.name!r}: users of a locustfile have a scenario of their own; leave out {self.scenario!r}"
            )

    def describe(self) -> str:
        """One line for the report."""
        times = f"{self.duration_s:g} s after {self.warmup_s:g} s of warm-up"
        times += "" if self.timeout_s == _TIMEOUT_S else f", timeout {self.timeout_s:g} s"
        rate = f", {self.rate_per_s:g}/s ({self.arrivals})" if self.rate_per_s else ""
        engine = "" if self.engine == "fast" else f", {self.engine} engine"
        engine += "" if self.generators == 1 else f", {self.generators} generators"
        if self.locustfile:
            file, _, users = self.locustfile.rpartition("/")[2].partition(":")
            several = "" if self.generators == 1 else f", {self.generators} generators"
            who = f"{users} of {file}" if users else file
            return f"{who}, {self.connections} users{', TLS' if self.tls else ''}, {times}{several}"
        return f"{self.scenario}{self._request()}, {self.connections} connections{rate}, {times}{engine}"

    def _request(self) -> str:
        """Describe the request, where it differs from the defaults."""
        if self.scenario not in OVER_HTTP:
            return ""
        tls = ", TLS" if self.tls else ""
        if self.scenario == "websocket":
            return f"{'' if self.path == '/' else f' {self.path}'}, {self.payload} bytes of {self.message}{tls}"
        asked = "" if (self.method, self.path) == ("GET", "/") else f" {self.method} {self._asked()}"
        return f"{asked}{tls}{'' if self.keep_alive else ', a connection per request'}"

    def _asked(self) -> str:
        """Describe the path, or the paths."""
        first, *more = self.paths
        if not more and not first.startswith("@"):
            return first
        files = [path[1:] for path in self.paths if path.startswith("@")]
        few = len(self.paths) - len(files)
        parts = [f"{few} path{'s' * (few > 1)}"] * bool(few) + [f"the paths of {name}" for name in files]
        return " and ".join(parts) + " at random" * (self.path_order == "random")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """Which CPUs the server's processes may use, and which the load generator's."""

    server: tuple[int, ...]
    load: tuple[int, ...]

    def __str__(self) -> str:
        return ":".join(",".join(map(str, cpus)) for cpus in (self.server, self.load))


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One place in the order of a run: a server under a load, in a cycle."""

    cycle: int
    position: int
    configuration: str  # the server's name, or NAME' for the baseline's second run
    server: Server
    load: Load
    seed: int  # of what the load does by chance, the same for all servers in a cycle; above 0
    again: int | None = None  # the number of the round of this cycle that was lost and is measured again


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Servers, loads and how to compare them."""

    name: str
    servers: tuple[Server, ...]
    loads: tuple[Load, ...]
    rounds: int = 6
    pin: Pin | None = None
    baseline: str = ""  # empty: the first server
    aa: bool | None = None  # None: from six rounds or with `until`, when there is something to compare
    until: float = 0.0  # go on until intervals reach this part of their ratio to either side; 0: no further cycles
    within_s: float = (
        WITHIN_S  # with `until`: begin no cycle that would last longer than this from the start of the run
    )
    seed: int | None = None  # of the order, and of what loads do by chance; None: the run's folder draws one (store.py)

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
        most = max(load.generators for load in self.loads)
        if self.pin and most > len(self.pin.load):
            raise PlanError(f"{most} generators need a CPU each; pin {self.pin} gives the load {len(self.pin.load)}")
        if self.until and len(names) == 1 and not self.aa:
            raise PlanError("until is about a comparison: name a second server, or compare this one with itself (aa)")
        unix = [server.name for server in self.servers if "{unix}" in server.command or server.attach[:5] == "unix:"]
        secure = [load.name for load in self.loads if load.tls]
        if unix and secure:
            raise PlanError(f"load {secure[0]!r}: server {unix[0]!r} is on a Unix socket, where there is no TLS")
        if self.baseline and self.baseline not in names:
            raise PlanError(f"baseline {self.baseline!r} is not one of the servers: {', '.join(names)}")

    @property
    def reference(self) -> str:
        """The name of the server that the others are compared with."""
        return self.baseline or self.servers[0].name

    @property
    def runs_aa(self) -> bool:
        """Whether every cycle runs the baseline twice."""
        measurable = self.rounds >= AA_MIN_ROUNDS or self.until > 0
        return self.aa if self.aa is not None else measurable and len(self.servers) > 1

    def seeded(self, seed: int | None = None) -> Plan:
        """Return the plan with a seed: its own, else this one, else one that is drawn."""
        if self.seed is not None:
            return self
        return replace(self, seed=random.SystemRandom().randrange(1, 1_000_000) if seed is None else seed)

    def slots(self, cycles: Iterable[int] | None = None) -> Iterator[Slot]:
        """Yield the slots of these cycles in their order; without cycles, of the first `rounds`.

        The configurations of a load stay together, as they are compared with each other.
        """
        arms = [(server.name, server) for server in self.servers]
        if self.runs_aa:
            arms += [(name + AA_MARK, server) for name, server in arms if name == self.reference]
        for cycle in range(self.rounds) if cycles is None else cycles:
            loads = _arranged(self.loads, cycle, f"{self.seed or 0}")
            seeds = {load.name: self._load_seed(load, cycle) for load in loads}
            order = [(*arm, load) for load in loads for arm in _arranged(arms, cycle, f"{self.seed or 0}/{load.name}")]
            for position, (name, server, load) in enumerate(order):
                yield Slot(
                    cycle=cycle,
                    position=position,
                    configuration=name,
                    server=server,
                    load=load,
                    seed=seeds[load.name],
                )

    def _load_seed(self, load: Load, cycle: int) -> int:
        """Return the seed of the load's chance: with another one for each server, chance would differ between them."""
        return _chance(f"{self.seed or 0}/{load.name}/{cycle}").randrange(1, 1 << 31)

    def fingerprint(self) -> str:
        """Equal for plans whose rounds may lie in one folder: their number may differ, what is measured may not."""
        servers = [asdict(replace(server, ready_s=0.0, grace_s=0.0)) for server in self.servers]
        all_of_it = asdict(self) | {"baseline": self.reference, "servers": servers}
        same = {key: value for key, value in all_of_it.items() if key not in _MAY_DIFFER}
        return hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()[:16]


def _chance(seed: str) -> random.Random:
    return random.Random(seed)  # noqa: S311  # to be had again, not to be secret


def _arranged(arms: Sequence[Arm], cycle: int, seed: str) -> list[Arm]:
    """Return the arms in the order in which a cycle runs them, by a design of Williams (1949) that the seed draws.

    Over a whole block of n cycles (2 n if n is odd) each of the n arms has each place equally often, and each other arm
    equally often before it. Every second cycle is the one before in reverse, so that a steady drift falls on all alike
    in two cycles already. By chance are: which arm has which part in the design, the order of the pairs of cycles, and
    which of a pair is first. Each block is drawn anew.
    """
    count = len(arms)
    pairs = count if count % 2 else count // 2
    block, at = divmod(cycle, 2 * pairs)
    chance = _chance(f"{seed}/{block}")
    drawn = chance.sample(arms, count)
    shift = chance.sample(range(pairs), pairs)[at // 2]
    turned = [chance.random() < 0.5 for _ in range(pairs)][at // 2]
    zigzag = [-(place // 2) if place % 2 == 0 else (place + 1) // 2 for place in range(count)]  # 0, 1, -1, 2, -2, ...
    order = [drawn[(step + shift) % count] for step in zigzag]
    return order[::-1] if (at % 2 == 1) != turned else order
