"""What the system says of a process, and how seldom it is asked for what is costly."""

from __future__ import annotations

import mmap
import os
import time

from prefork.core.proc import PSS_BUDGET_S, PSS_EVERY_S, PssCache, cpu_s, pss_bytes, rss_bytes

MIB = 1 << 20
NOBODY = 2**22 + 1  # above the largest pid that Linux gives out


def test_pss_is_never_more_than_rss_and_both_see_what_was_just_touched() -> None:
    pid = os.getpid()
    rss, pss = rss_bytes(pid), pss_bytes(pid)
    assert rss is not None
    assert pss is not None
    assert MIB < pss <= rss + MIB, "another thread may have touched a page between the two"
    with mmap.mmap(-1, 64 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        for offset in range(0, 64 * MIB, mmap.PAGESIZE):
            memory[offset] = 1
        assert 60 * MIB < (rss_bytes(pid) or 0) - rss < 80 * MIB
        assert 60 * MIB < (pss_bytes(pid) or 0) - pss < 80 * MIB


def test_cpu_time_grows_with_work() -> None:
    before = cpu_s(os.getpid())
    assert before is not None
    until = time.process_time() + 0.05
    while time.process_time() < until:
        pass
    after = cpu_s(os.getpid())
    assert after is not None
    assert 0.02 < after - before < 5


def test_a_process_that_is_not_there_has_no_figures() -> None:
    assert (rss_bytes(NOBODY), pss_bytes(NOBODY), cpu_s(NOBODY)) == (None, None, None)


def test_the_name_of_a_process_cannot_shift_the_fields() -> None:
    """A name may hold blanks and brackets."""
    pid = os.posix_spawn(
        "/bin/sh", ["a) R 1 (b", "-c", "printf 'x) 9 9 (' > /proc/self/comm; sleep 60"], {"PATH": "/bin"}
    )
    try:
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            with open(f"/proc/{pid}/comm") as file:
                if file.read() == "x) 9 9 (\n":
                    break
        else:
            raise AssertionError("the name was not changed")
        found = cpu_s(pid)
        assert found is not None
        assert 0 <= found < 5
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


class Meter:
    """Counts what is asked; each measurement takes `cost_s` on a clock of its own."""

    def __init__(self, cost_s: float = 0.0) -> None:
        self.now_s = 100.0
        self.cost_s = cost_s
        self.asked: list[int] = []

    def measure(self, pid: int) -> int | None:
        self.asked.append(pid)
        self.now_s += self.cost_s
        return None if pid == NOBODY else pid * 1000 + len(self.asked)

    def cache(self) -> PssCache:
        return PssCache(measure=self.measure, clock=lambda: self.now_s)


def test_a_sample_is_good_for_ten_seconds() -> None:
    meter = Meter()
    cache = meter.cache()
    first = cache.read([1, 2])
    meter.now_s += PSS_EVERY_S - 0.1
    assert cache.read([1, 2]) == first
    assert meter.asked == [1, 2]
    meter.now_s += 0.2
    assert cache.read([1, 2]) != first
    assert sorted(meter.asked) == [1, 1, 2, 2]


def test_a_call_ends_when_its_time_is_used_up_and_the_next_goes_on_with_who_was_left_out() -> None:
    meter = Meter(cost_s=PSS_BUDGET_S * 0.7)
    cache = meter.cache()
    assert [pid for pid, pss in sorted(cache.read(range(1, 6)).items()) if pss is not None] == [1, 2]
    assert [pid for pid, pss in sorted(cache.read(range(1, 6)).items()) if pss is not None] == [1, 2, 3, 4]
    assert all(cache.read(range(1, 6)).values())
    assert meter.asked == [1, 2, 3, 4, 5]


def test_who_has_gone_is_forgotten_and_a_new_process_of_its_number_is_measured() -> None:
    meter = Meter()
    cache = meter.cache()
    cache.read([1, NOBODY])
    assert cache.read([NOBODY]) == {NOBODY: None}
    cache.read([1, NOBODY])
    assert meter.asked == [1, NOBODY, 1]
