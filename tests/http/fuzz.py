"""Feeds the parser what nobody should send: `make fuzz`, or `python -m tests.http.fuzz --inputs 1000000 --seconds 600`.

An input is a case of the corpus, or a request put together from pieces, changed in a few places. For each: nothing is
raised, the events keep their grammar, and it does not take long. For some: it gives the same however it is cut, and
llhttp and h11 do not read it otherwise (peers.py). The first failure ends the run with status 1 and the input.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import time
import traceback
from collections import Counter
from typing import TYPE_CHECKING

from prefork.http.fields import FieldTable
from prefork.http.forwarded import Trusted, find_origin
from prefork.http.limits import Limits
from prefork.http.proxy_protocol import ProxyProtocolError
from prefork.http.proxy_protocol import parse as parse_proxy_header
from tests.http.cases import read_cases
from tests.http.outcome import Outcome, cut, cut_at_random, outcome
from tests.http.peers import PEERS, difference, known_reason

if TYPE_CHECKING:
    from collections.abc import Callable

SLOW_S = 0.05
LIMITS = (
    Limits(),
    Limits(request_line_bytes=60, fields=4, header_bytes=120, body_bytes=20, chunk_line_bytes=16, extension_bytes=24),
)
TRUSTED = Trusted(["0.0.0.0/1"])
LARGE = 4000  # bytes: of a case that is used seldom
LINES = [
    *[b"GET / HTTP/1.1"] * 4, *[b"POST /a?b HTTP/1.1"] * 4, b"GET / HTTP/1.0", b"OPTIONS * HTTP/1.1",
    b"HEAD http://a/ HTTP/1.1", b"CONNECT a:1 HTTP/1.1", b"X / HTTP/1.1", b"GET / HTTP/2.0",
    b"PUT  /", b"GET /%zz#f HTTP/1.1",
]  # fmt: skip
FIELDS = [
    b"Host: a", b"Host: [::1]:1", b"Host:", b"Content-Length: 0", b"Content-Length: 3", b"Content-Length: 30",
    b"Content-Length: 3, 3", b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip, chunked",
    b"Transfer-Encoding:chunked\t", b"Connection: close", b"Connection: keep-alive", b"Connection: Upgrade",
    b"Upgrade: websocket", b"Expect: 100-continue", b"Expect: x", b"Content-Type: a", b"X_Y: z", b"Cookie: a=b; c=d",
    b"Forwarded: for=1.1.1.1;proto=https, for=2.2.2.2", b"X-Forwarded-For: 1.1.1.1, 2.2.2.2",
    b"X-Forwarded-Proto: https", b"User-Agent: x/1", b"Accept: */*", b"x: " + b"y" * 100, b" folded", b"Name : x",
]  # fmt: skip
BODIES = [
    b"",
    b"abc",
    b"3\r\nabc\r\n0\r\n\r\n",
    b'1;a="b"\r\nx\r\n0\r\nT: u\r\n\r\n',
    b"0\r\n\r\n",
    b"0\n\n",
    b"a" * 30,
]
TOKENS = [
    b"\r\n", b"\r\n\r\n", b"\n", b"\r", b"\x00", b" ", b"\t", b":", b";", b",", b'"', b"\\", b"%", b"#", b"*", b"@",
    b"0", b"-1", b"0x", b"_", b"+", b"ffffffffffffffff", b"99999999999999999999", b"chunked", b"HTTP/1.1", b"\x80",
    b"\xff", b"\x0b", b"\x7f", b"\xe2\x84\xaa", b"\x16\x03\x01", b"[", b"]", b"/", b"?", b"http://", b"close",
    b"PROXY ", b"\r\n\r\n\x00\r\nQUIT\n!\x11\x00\x0c",
    *(line + b"\r\n" for line in (*LINES, *FIELDS)), *BODIES,
]  # fmt: skip


class Inputs:
    """An endless supply, the same for the same seed."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        cases = [case.data for kind in ("valid", "invalid") for case in read_cases(kind)]
        self._small = [data for data in cases if len(data) <= LARGE]
        self._large = [data for data in cases if len(data) > LARGE]
        self._changes: list[Callable[[bytes, int], bytes]] = [
            self._insert, self._replace, self._delete, self._repeat, self._splice, self._recase, self._byte,
            self._cut_off,
        ]  # fmt: skip

    def next(self) -> bytes:
        rng = self._rng
        if rng.random() < 0.4:
            data = self._written()
        else:
            data = rng.choice(self._large if rng.random() < 0.002 else self._small)
        for _ in range(rng.choice((0, 0, 1, 1, 1, 1, 2, 2, 3, 6))):
            data = rng.choice(self._changes)(data, rng.randrange(len(data) + 1))
        return data

    def _written(self) -> bytes:
        rng = self._rng
        requests = [
            b"\r\n".join([rng.choice(LINES), b"Host: example.com", *rng.choices(FIELDS, k=rng.randrange(4)), b"", b""])
            for _ in range(rng.choice((1, 1, 1, 2, 3)))
        ]
        return b"".join(request + rng.choice(BODIES) for request in requests)

    def _insert(self, data: bytes, at: int) -> bytes:
        return data[:at] + self._rng.choice(TOKENS) + data[at:]

    def _replace(self, data: bytes, at: int) -> bytes:
        return data[:at] + self._rng.choice(TOKENS) + data[at + self._rng.randrange(1, 12) :]

    def _delete(self, data: bytes, at: int) -> bytes:
        return data[:at] + data[at + self._rng.randrange(1, 12) :]

    def _repeat(self, data: bytes, at: int) -> bytes:
        end = at + self._rng.randrange(1, 40)
        return data[:end] + data[at:end] * self._rng.choice((1, 1, 2, 30)) + data[end:]

    def _splice(self, data: bytes, at: int) -> bytes:
        other = self._rng.choice(self._small)
        return data[:at] + other[self._rng.randrange(len(other) + 1) :]

    def _recase(self, data: bytes, at: int) -> bytes:
        return data[:at] + data[at : at + 20].swapcase() + data[at + 20 :]

    def _byte(self, data: bytes, at: int) -> bytes:
        return data[:at] + bytes([self._rng.randrange(256)]) + data[at + 1 :]

    def _cut_off(self, data: bytes, at: int) -> bytes:
        return data[:at]


class Fuzzer:
    """One run: what it did, in numbers."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.inputs = Inputs(self.rng)
        self.table = FieldTable()  # one for all, as in a worker
        self.statuses: Counter[int] = Counter()
        self.reasons: Counter[str] = Counter()
        self.done = self.requests = self.cut = self.compared = 0
        self.slowest_s = 0.0

    def one(self, data: bytes) -> None:
        """Raises whatever is wrong, AssertionError among it."""
        limits = LIMITS[self.done % 8 == 0]
        self.done += 1
        seen = self._timed(data, limits)
        self.statuses[seen.status] += 1
        self.requests += len(seen.requests)
        if self.done % 8 in (1, 2):  # one of them with each kind of limits
            self._check_cuts(data, limits, seen)
        if self.done % 16 == 2:
            self._compare(data, seen)
        if self.done % 16 == 3:
            self._check_header(data)

    def _timed(self, data: bytes, limits: Limits) -> Outcome:
        """What seems slow is tried again: on a busy machine others take from our time."""
        best_s = math.inf
        for _ in range(5):
            began = time.thread_time()
            seen = outcome([data], limits=limits, table=self.table)
            for request in seen.requests:
                find_origin([self.table[b"%b: %b" % pair] for pair in request.fields], "1.1.1.1", 0, TRUSTED)
            best_s = min(best_s, time.thread_time() - began)
            if best_s < SLOW_S / 20:
                break
        self.slowest_s = max(self.slowest_s, best_s)
        assert best_s < SLOW_S, f"took {best_s:.3f} s"
        return seen

    def _check_cuts(self, data: bytes, limits: Limits, seen: Outcome) -> None:
        self.cut += 1
        size = 1 if len(data) < LARGE else 97
        assert outcome(cut(data, size), limits=limits) == seen, f"cut by {size} it gives another outcome"
        assert outcome(cut_at_random(data, self.rng), limits=limits) == seen, "cut at random it gives another outcome"

    def _compare(self, data: bytes, seen: Outcome) -> None:
        self.compared += 1
        for peer in PEERS:
            if found := difference(peer, data, seen):
                reason = known_reason(peer, found, data)
                assert reason, found
                self.reasons[f"{peer}: {reason}"] += 1

    def _check_header(self, data: bytes) -> None:
        try:
            header = parse_proxy_header(data[self.rng.randrange(len(data) + 1) :])
        except ProxyProtocolError:
            return
        assert header is None or header.consumed <= len(data)

    def summary(self, took_s: float) -> str:
        refused = self.done - self.statuses[0]
        statuses = ", ".join(f"{status}: {count:,}" for status, count in sorted(self.statuses.items()) if status)
        lines = [
            f"{self.done:,} inputs in {took_s:.0f} s ({self.done / took_s:,.0f}/s)",
            f"{self.requests:,} requests understood, {refused:,} inputs refused ({statuses})",
            f"{self.cut:,} cut in other ways with the same outcome",
            f"{self.compared:,} compared with {' and '.join(PEERS)}",
            *(f"  {count:,} times {reason}" for reason, count in self.reasons.most_common()),
            f"slowest input {self.slowest_s * 1000:.1f} ms, lines remembered {len(self.table)}",
        ]
        return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 1 if an input did harm."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0] if __doc__ else None)
    options.add_argument("--inputs", type=int, default=1_000_000, help="how many (default: %(default)s)")
    options.add_argument("--seconds", type=float, default=0, help="stop after that long (default: 0, no limit)")
    options.add_argument("--seed", type=int, default=random.randrange(1 << 32), help="default: another one each time")
    chosen = options.parse_args(arguments)
    print(f"seed {chosen.seed}", flush=True)
    fuzzer = Fuzzer(chosen.seed)
    began = shown = time.monotonic()
    while fuzzer.done < chosen.inputs:
        data = fuzzer.inputs.next()
        try:
            fuzzer.one(data)
        except Exception:  # noqa: BLE001 - whatever it is, it is what we look for
            traceback.print_exc()
            print(f"input {fuzzer.done}, to be kept as a case: {data!r}", file=sys.stderr)
            return 1
        now = time.monotonic()
        if now - shown > 5:
            shown = now
            print(f"{fuzzer.done:,} inputs, {fuzzer.done / (now - began):,.0f}/s", flush=True)
        if chosen.seconds and now - began > chosen.seconds:
            break
    print(fuzzer.summary(time.monotonic() - began))
    return 0


if __name__ == "__main__":
    sys.exit(main())
