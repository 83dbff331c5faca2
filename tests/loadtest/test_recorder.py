"""The pure modules of the users' package: the window's arithmetic, the forms of --host, the causes of failures.

They are loaded by their path, because importing their package imports locust, which monkey-patches the process.
"""

from __future__ import annotations

import errno
import importlib.util
import json
import math
import socket
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.histogram import Histogram

USERS = Path(__file__).resolve().parents[2] / "loadtest" / "users"
SECOND_NS = 1_000_000_000


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"tests_loadtest_{name}", USERS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


address = load("address")
failure = load("failure")
recorder = load("recorder")

# (start, length, outcome) in ns after the first spawn; the outcome is a cause, "" for success or None for censored
EXCHANGES = st.lists(
    st.tuples(
        st.integers(0, 6 * SECOND_NS),
        st.integers(0, 3 * SECOND_NS),
        st.sampled_from(["", "", "refused", "reset", None]),
    ),
    max_size=60,
)
WARMUPS_S = st.sampled_from([0.0, 0.5, 2.0, 7.0])
FIRST_SPAWN_NS = 10**15


def replay(exchanges: list[tuple[int, int, str | None]], warmup_s: float, closes_ns: int) -> Any:
    """Let exchanges end in the order of time, with the window closing between them."""
    made = recorder.Recorder(first_spawn_ns=FIRST_SPAWN_NS, warmup_s=warmup_s)
    ends = [(start + length, 1, start, outcome) for start, length, outcome in exchanges]
    for end, is_exchange, start, outcome in sorted([*ends, (closes_ns, 0, 0, "")], key=lambda found: found[:3]):
        times = FIRST_SPAWN_NS + start, FIRST_SPAWN_NS + end
        if not is_exchange:
            made.close(FIRST_SPAWN_NS + closes_ns)
        elif outcome is None:
            made.censored(*times)
        elif outcome:
            made.failed(*times, outcome)
        else:
            made.completed(*times)
    return made.account(connections=3, cpu_s=0.5, wall_s=2.0)


@given(exchanges=EXCHANGES, warmup_s=WARMUPS_S, closes_ns=st.integers(1, 6 * SECOND_NS))
def test_an_exchange_belongs_to_the_window_in_which_it_starts(
    exchanges: list[tuple[int, int, str | None]], warmup_s: float, closes_ns: int
) -> None:
    result = replay(exchanges, warmup_s, closes_ns).to_result()
    opens_ns = round(warmup_s * SECOND_NS)
    length_ns = max(0, closes_ns - opens_ns)
    inside = [found for found in exchanges if opens_ns <= found[0] < closes_ns]
    expected = Histogram()
    expected.record_many([length for _, length, outcome in inside if outcome == ""])
    assert Histogram.from_json(result["latency"]) == expected
    assert result["completed"] == expected.n
    assert result["failures"] == Counter(outcome for _, _, outcome in inside if outcome)
    assert result["censored"] == sum(outcome is None for _, _, outcome in exchanges)
    assert result["window_start_ns"] == FIRST_SPAWN_NS + opens_ns
    assert result["duration_s"] == length_ns / 1e9
    overlaps = [min(start + length, closes_ns) - max(start, opens_ns) for start, length, _ in exchanges]
    assert result["busy_s"] == sum(overlap for overlap in overlaps if overlap > 0) / 1e9
    per_second = result["per_second"]
    assert [second["t_s"] for second in per_second] == list(range(math.ceil(length_ns / SECOND_NS)))
    assert sum(second["span_s"] for second in per_second) == pytest.approx(length_ns / 1e9)
    for second in per_second:
        outcomes = [outcome for start, _, outcome in inside if (start - opens_ns) // SECOND_NS == second["t_s"]]
        assert second["completed"] == outcomes.count("")
        assert second["failed"] == sum(bool(outcome) for outcome in outcomes)


@given(parts=st.lists(EXCHANGES, min_size=1, max_size=4), warmup_s=WARMUPS_S)
def test_merged_processes_equal_one_that_did_it_all(
    parts: list[list[tuple[int, int, str | None]]], warmup_s: float
) -> None:
    closes_ns = 4 * SECOND_NS
    accounts = [replay(part, warmup_s, closes_ns) for part in parts]
    sent = [recorder.Account.from_message(json.loads(json.dumps(account.to_message()))) for account in accounts]
    merged = recorder.Account.merged(sent).to_result()
    alone = replay([exchange for part in parts for exchange in part], warmup_s, closes_ns).to_result()
    assert merged.pop("busy_s") == pytest.approx(alone.pop("busy_s"))
    assert merged.pop("connections") == 3 * len(parts)
    del alone["connections"]
    assert merged == alone


@pytest.mark.parametrize(
    ("text", "protocol", "expected"),
    [
        ("127.0.0.1:1935", "tcp", "127.0.0.1:1935"),
        ("127.0.0.1:1935", "http", "127.0.0.1:1935"),
        ("tcp://localhost:1", "tcp", "localhost:1"),
        ("tcp://[::1]:65535/", "tcp", "[::1]:65535"),
        ("unix:/run/a b.sock", "tcp", "unix:/run/a b.sock"),
        ("unix:///run/x", "tcp", "unix:/run/x"),
        ("http://example.org", "http", "example.org:80"),
        ("http://[::1]", "http", "[::1]:80"),
        ("http://h:8080/", "http", "h:8080"),
    ],
)
def test_the_forms_of_an_address(text: str, protocol: str, expected: str) -> None:
    assert str(address.parse(text, protocol)) == expected


@pytest.mark.parametrize(
    ("text", "protocol", "why"),
    [
        ("http://h:1", "tcp", "speaks tcp, not http; write tcp://HOST:PORT, unix:PATH or HOST:PORT"),
        ("tcp://h:1", "http", "speaks http, not tcp; write http://HOST:PORT"),
        ("unix:/run/x", "http", "speaks http, not unix"),
        ("ftp://h:1", "tcp", "not ftp"),
        ("localhost", "tcp", "the port is missing"),
        ("localhost", "http", "the port is missing"),
        ("tcp://[::1]", "tcp", "the port is missing"),
        ("h:0", "tcp", "'0' is no port"),
        ("h:65536", "tcp", "no port"),
        ("h:\N{SUPERSCRIPT TWO}", "tcp", "no port"),
        (":1935", "tcp", "the host is missing"),
        ("::1:1935", "tcp", "in brackets"),
        ("http://h:1/path", "http", "has no path"),
        ("unix:", "tcp", "the path is missing"),
        ("", "http", "the port is missing"),
    ],
)
def test_what_is_no_address_is_refused_with_the_reason(text: str, protocol: str, why: str) -> None:
    with pytest.raises(address.AddressError, match="--host") as caught:
        address.parse(text, protocol)
    assert why in str(caught.value)


def test_an_address_is_resolved_to_what_connect_takes() -> None:
    assert address.parse("127.0.0.1:7", "tcp").resolve() == (socket.AF_INET, ("127.0.0.1", 7))
    assert address.parse("[::1]:7", "tcp").resolve() == (socket.AF_INET6, ("::1", 7))
    assert address.parse("unix:/x", "tcp").resolve() == (socket.AF_UNIX, "/x")


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "x"), "refused"),
        (ConnectionResetError(errno.ECONNRESET, "x"), "reset"),
        (BrokenPipeError(errno.EPIPE, "x"), "reset"),
        (TimeoutError(), "timeout"),
        (OSError(errno.ETIMEDOUT, "x"), "timeout"),
        (FileNotFoundError(errno.ENOENT, "x"), "no socket file"),
        (OSError(errno.EADDRNOTAVAIL, "x"), "no free port"),
        (OSError(errno.EMFILE, "x"), "too many open files"),
        (OSError(errno.ENETUNREACH, "x"), "ENETUNREACH"),
        (socket.gaierror(-2, "x"), "unknown host"),
        (failure.ExchangeError("wrong reply"), "wrong reply"),
        (KeyError("x"), "KeyError"),
    ],
)
def test_errors_have_a_short_cause(error: Exception, cause: str) -> None:
    assert failure.cause_of(error) == cause
    assert repr(failure.ExchangeError(cause)) == cause
