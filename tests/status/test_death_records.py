"""Deaths as documents and as a page, from plain values."""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest

from prefork.core.process import Exit
from prefork.status.deaths import KEPT, DeathRecord, Deaths, deaths_page
from prefork.status.scoreboard import Slow
from prefork.status.server_state import WorkerState

TIME = "2026-11-25T03:12:44.120Z"


def state(**given: Any) -> WorkerState:
    known: dict[str, Any] = {"pid": 4242, "slot": 2, "generation": 3, "group": 7, "spawned_s": 10.0, "ready_s": 11.0}
    return WorkerState(**(known | given))


def died(worker: WorkerState | None = None, end: Exit | None = None, **given: Any) -> DeathRecord:
    killed = Exit(pid=4242, signum=signal.SIGKILL, cpu_ns=1_500_000_000, peak_rss_bytes=64 << 20)
    return DeathRecord(worker=worker or state(), exit=end or killed, time=TIME, age_s=75.0, **given)


def told(death: DeathRecord, respawn_in_s: float | None = 0.0) -> dict[str, Any]:
    kept = Deaths()
    kept.add(death, respawn_in_s)
    document = kept.document(1)
    assert json.loads(json.dumps(document)) == document
    (entry,) = document["deaths"]
    found: dict[str, Any] = entry
    return found


HUNG: dict[str, Any] = {"hung": True, "stacks": "thread Main:\n  at work\n"}


@pytest.mark.parametrize(
    ("death", "cause", "reason"),
    [
        (died(end=Exit(pid=1, signum=signal.SIGSEGV)), "SIGSEGV", None),
        (died(end=Exit(pid=1, code=7)), "exit code 7", None),
        (died(end=Exit(pid=1, code=0)), "exit code 0", "it left by itself"),
        (died(oom=True), "out-of-memory", "out of memory: the kernel killed it, and its control group counts that"),
        (
            died(oom=False),
            "SIGKILL",
            "killed from outside, by a person or a program: the kernel counts no kill for want of memory",
        ),
        (died(), "SIGKILL", "killed from outside: by the kernel, out of memory, or by a person"),
        (died(killed="over --timeout", **HUNG), "timeout", "over --timeout"),
        (died(state(ready_s=None), killed="it lied"), "killed", "it lied"),
        (died(state(ready_s=None), killed="not ready", **HUNG), "boot-timeout", "not ready"),
        (died(state(retiring_s=70.0), killed="still busy"), "killed", "still busy"),
        (died(message={"code": 3, "message": "no database", "detail": ""}), "SIGKILL", "no database"),
    ],
)
def test_causes_and_reasons(death: DeathRecord, cause: str, reason: str | None) -> None:
    entry = told(death)
    assert (entry["cause"], entry["reason"]) == (cause, reason)


def test_a_hung_worker_whole() -> None:
    death = died(
        killed="one unit of work took 30.0 s, over --timeout", **HUNG, fault="not asked",
        serving="10.0.0.9:5000", serving_s=30.25, cut=3, requests=812,
        last=("10.0.0.9:5000",), slow=(Slow(ended_ns=2_000_000_000, took_ns=1_500_000_000, text="a"),),
    )  # fmt: skip
    assert told(death, 0.25) == {
        "time": TIME, "slot": 2, "pid": 4242, "generation": 3, "cause": "timeout", "exit": "SIGKILL",
        "reason": "one unit of work took 30.0 s, over --timeout", "serving": "10.0.0.9:5000", "serving_s": 30.25,
        "last": ["10.0.0.9:5000"], "slow": [{"request": "a", "took_s": 1.5, "ended": "1970-01-01T00:00:02.000Z"}],
        "age_s": 75.0, "cut": 3, "requests": 812, "cpu_s": 1.5, "peak_rss_bytes": 64 << 20, "respawn_in_s": 0.25,
        "detail": "thread Main:\n  at work\n",
    }  # fmt: skip


def test_what_is_not_known_is_null() -> None:
    entry = told(died(end=Exit(pid=1, code=7)), None)
    nothing = {key for key, value in entry.items() if value is None}
    assert nothing == {"reason", "serving", "serving_s", "respawn_in_s", "detail"}


def test_a_long_text_is_cut_and_says_so() -> None:
    detail = told(died(fault="line\n" * 100_000))["detail"]
    assert len(detail) < 17_000
    assert detail.endswith("\n[cut]\n")


def test_the_last_ones_are_kept_and_the_count_goes_on() -> None:
    kept = Deaths()
    assert kept.short() == {"count": 0, "last": None}
    for slot in range(KEPT + 10):
        kept.add(died(state(slot=slot), fault="a stack"), 0.0)
    whole = kept.document(KEPT)
    assert whole["count"] == KEPT + 10
    assert [entry["slot"] for entry in whole["deaths"]] == list(range(10, KEPT + 10))
    assert [entry["slot"] for entry in kept.document(2)["deaths"]] == [KEPT + 8, KEPT + 9]
    short = kept.short()
    assert short["count"] == KEPT + 10
    assert short["last"] == {key: value for key, value in whole["deaths"][-1].items() if key != "detail"}


def test_the_page() -> None:
    kept = Deaths()
    assert deaths_page(kept.document(KEPT)) == "no worker has died unexpectedly since the server started"
    kept.add(died(end=Exit(pid=4242, code=7, cpu_ns=10**9, peak_rss_bytes=2 << 20), requests=1), None)
    assert deaths_page(kept.document(KEPT)).endswith("1 worker has died unexpectedly since the server started")
    kept.add(died(killed="over --timeout", **HUNG, serving="10.0.0.9:5000", serving_s=30.0, requests=812), 0.25)
    first, second, end = deaths_page(kept.document(KEPT)).split("\n\n")
    assert first.split("\n") == [
        f"{TIME}  worker 2  pid 4242  generation 3  exit code 7",
        "  lived    1m 15s, 1 request, 1s CPU, at most 2M of memory",
        "  then     no successor: it was leaving, or the server was",
    ]
    assert second.split("\n") == [
        f"{TIME}  worker 2  pid 4242  generation 3  timeout",
        "  why      over --timeout",
        "  serving  10.0.0.9:5000, for 30s",
        "  lived    1m 15s, 812 requests, 1.5s CPU, at most 64M of memory",
        "  then     its successor was due 0.25s later, as such deaths repeat",
        "    thread Main:",
        "      at work",
    ]
    assert end == "2 workers have died unexpectedly since the server started"
    assert deaths_page(kept.document(1)).endswith(
        "2 workers have died unexpectedly since the server started; the last 1"
    )
