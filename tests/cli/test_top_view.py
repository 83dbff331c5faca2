"""What `prefork top` makes of samples and keys: rates, rows, a screen of lines, orders."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import termios
from typing import Any

import pytest

from prefork.cli.top.command import Keyboard, names
from prefork.cli.top.interval import Document, Interval, Rates, between
from prefork.cli.top.view import (
    COLUMNS,
    HELP,
    SORTS,
    Line,
    Order,
    Queues,
    View,
    heading,
    listeners,
    paint,
    rate,
    row,
    rows,
    sparkline,
)
from prefork.status.histogram import ARRAY_DIGITS, Histogram

MS = 1_000_000


def worker(slot: int, **given: Any) -> Document:
    known: Document = {
        "slot": slot, "pid": 100 + slot, "generation": 1, "state": "IDLE", "age_s": 60.0, "connections": 0,
        "requests": 0, "errors": 0, "p50_us": 111, "p99_us": 222, "cpu_s": 1.0, "pss_bytes": 8 << 20,
        "serving": None, "serving_s": None, "deadline_in_s": None,
    }  # fmt: skip
    return known | given


def sample(*workers: Document, uptime_s: float = 100.0, **given: Any) -> Document:
    server = {
        "pid": 7, "uptime_s": uptime_s, "app": "shop.py:handle", "kind": "stream", "engine": "blocking",
        "generation": 1, "workers": len(workers), "ready": True, "unready": None, "reloading": False, "stopping": False,
    }  # fmt: skip
    totals = {key: sum(each[key] for each in workers) for key in ("requests", "errors")}
    return {
        "server": server,
        "listeners": [{"address": "127.0.0.1:1935", "queue": 3, "limit": 128, "drops": 0}],
        "workers": list(workers),
        "totals": {**totals, "p50_us": 333, "p99_us": None},
        "deaths": {"count": 0, "last": None},
        **given,
    }


def buckets(*values_ms: int) -> list[list[int]]:
    made = Histogram(ARRAY_DIGITS)
    for value in values_ms:
        made.record(value * MS)
    found = made.to_json()["buckets"]
    assert isinstance(found, list)
    return found


def plain(lines: list[Line]) -> list[str]:
    return ["".join(text for text, _style in line) for line in lines]


# --- intervals


def test_without_an_earlier_sample_there_are_no_rates_and_the_quantiles_of_the_whole_life() -> None:
    interval = between(None, sample(worker(0, requests=5)))
    assert interval.total == Rates(quantiles={"p50_us": 333, "p99_us": None}, old=frozenset({"p50_us", "p99_us"}))
    assert interval.workers[100].requests_per_s is None
    assert interval.workers[100].quantiles == {"p50_us": 111, "p99_us": 222}


def test_rates_are_differences_in_the_servers_own_time() -> None:
    before = sample(worker(0, requests=10, errors=1, cpu_s=1.0), worker(1), uptime_s=100.0)
    now = sample(worker(0, requests=30, errors=2, cpu_s=2.0), worker(1, cpu_s=None), uptime_s=102.0)
    interval = between(before, now)
    rates = interval.workers[100]
    assert (rates.requests_per_s, rates.errors_per_s, rates.cpu_ratio) == (10.0, 0.5, 0.5)
    assert interval.workers[101].cpu_ratio is None
    assert (interval.total.requests_per_s, interval.total.errors_per_s) == (10.0, 0.5)


def test_of_a_worker_that_has_come_meanwhile_everything_is_new_also_with_a_pid_that_was_anothers() -> None:
    before = sample(worker(0, requests=1000, pid=500), uptime_s=100.0)
    now = sample(worker(1, requests=4, cpu_s=0.5, pid=500), uptime_s=101.0)
    assert between(before, now).workers[500].requests_per_s == 4.0


def test_another_server_is_not_compared_with() -> None:
    before, now = sample(worker(0, requests=9)), sample(worker(0, requests=1), uptime_s=3.0)
    now["server"]["pid"] = 8
    assert between(before, now).total.requests_per_s is None
    assert between(now, now).total.requests_per_s is None, "no time has passed"


def test_quantiles_are_of_the_units_between_the_samples_where_there_are_enough() -> None:
    old = [1] * 1000
    before = sample(worker(0), worker(1), uptime_s=100.0, latencies={"100": buckets(*old), "101": []})
    new = [50] * 10
    now = sample(worker(0), worker(1), uptime_s=101.0, latencies={"100": buckets(*old, *new), "101": buckets(*[9] * 5)})
    interval = between(before, now)
    many, few = interval.workers[100], interval.workers[101]
    assert many.quantiles["p50_us"] == pytest.approx(50_000, rel=0.01)
    assert many.quantiles["p99_us"] == 222
    assert many.old == {"p99_us"}
    assert few.quantiles == {"p50_us": 111, "p99_us": 222}
    assert few.old == {"p50_us", "p99_us"}
    assert interval.total.quantiles["p50_us"] == pytest.approx(50_000, rel=0.01)
    assert interval.total.old == {"p99_us"}


def test_many_units_bound_both_quantiles() -> None:
    before = sample(worker(0), uptime_s=100.0, latencies={})
    now = sample(worker(0), uptime_s=101.0, latencies={"100": buckets(*range(1, 1001))})
    rates = between(before, now).workers[100]
    assert rates.old == frozenset()
    assert rates.quantiles["p50_us"] == pytest.approx(500_000, rel=0.02)
    assert rates.quantiles["p99_us"] == pytest.approx(990_000, rel=0.02)


# --- keys


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("q", ["q"]), ("jj+", ["j", "j", "+"]), ("\x1b[A\x1b[B", ["up", "down"]), ("\x1bOA", ["up"]),
        ("\x1b[5~\x1b[6~ ", ["page up", "page down", "page down"]), ("\x1b", ["escape"]), ("\x1b[99~q", ["q"]),
        ("\x1b[1;5Cq", ["q"]), ("\x01\x00", []), ("\r", ["enter"]), ("", []), ("\x1b[H\x1bOF", ["home", "end"]),
    ],
)  # fmt: skip
def test_the_names_of_keys(text: str, keys: list[str]) -> None:
    assert names(text) == keys


def test_a_keyboard_restores_its_terminal_and_tells_of_its_end() -> None:
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    with Keyboard(slave) as keyboard:
        assert not termios.tcgetattr(slave)[3] & (termios.ICANON | termios.ECHO)
        os.write(master, b"\x1b[Ax")
        assert keyboard.read() == ["up", "x"]
        os.close(master)
        assert keyboard.read() is None
    os.close(slave)
    master, slave = pty.openpty()
    with pytest.raises(ZeroDivisionError), Keyboard(slave):
        raise ZeroDivisionError
    assert termios.tcgetattr(slave)[3] == before[3]
    os.close(slave)
    os.close(master)


# --- the view


@pytest.fixture
def interval() -> Interval:
    return between(
        sample(*(worker(slot) for slot in range(5)), uptime_s=100.0),
        sample(*(worker(slot, requests=slot % 3) for slot in range(5)), uptime_s=101.0),
    )


def press(view: View, interval: Interval, *keys: str) -> Order | None:
    view.follow(interval)
    order = None
    for key in keys:
        order = view.press(key, interval)
    return order


def test_orders(interval: Interval) -> None:
    assert press(View(), interval, "q") == Order("quit")
    assert press(View(), interval, "j", "s") == Order("stack", 1)
    assert press(View(), interval, "d") == Order("deaths")
    assert press(View(), interval, "+") == Order("scale", 6)
    assert press(View(), interval, "+", "+", "-", "+") == Order("scale", 7)
    assert press(View(), interval, "r") is None
    assert press(View(), interval, "r", "y") == Order("reload")
    assert press(View(), interval, "r", "n") is None
    assert press(View(), interval, "r", "q") is None, "not yes is no, and does nothing else"
    assert press(View(), interval, "x") is None


def test_the_last_worker_is_not_scaled_away_by_a_key() -> None:
    view = View()
    assert press(view, between(None, sample(worker(0))), "-") is None
    assert "prefork scale 0" in view.message


def test_without_workers_nothing_is_selected(interval: Interval) -> None:
    view, nobody = View(), between(None, sample())
    assert press(view, nobody, "j", "k", "end", "s") is None
    assert view.message == "there is no worker"
    assert view.follow(interval)[0]["slot"] == 0
    assert view.selected == (0, 100)


def test_the_selection_stays_with_its_worker_and_goes_to_its_successor(interval: Interval) -> None:
    view = View()
    press(view, interval, "j", "j")
    assert view.selected == (2, 102)
    press(view, interval, "t")
    assert [each["slot"] for each in view.follow(interval)] == [2, 1, 4, 0, 3]
    assert view.selected == (2, 102)
    press(view, interval, "down")
    assert view.selected == (1, 101)
    view.follow(between(None, sample(worker(0), worker(1, pid=900))))
    assert view.selected == (1, 900)


def test_the_orders_of_rows_go_round_and_what_is_not_known_comes_last(interval: Interval) -> None:
    view = View()
    press(view, interval, *["t"] * len(SORTS))
    assert view.sort == "SLOT"
    press(view, interval, "T")
    assert view.sort == "FOR"
    served = between(None, sample(worker(0), worker(1, serving_s=2.0), worker(2, serving_s=0.0)))
    assert [each["slot"] for each in rows(served, "FOR")] == [1, 2, 0]


def test_a_text_is_moved_and_closed(interval: Interval) -> None:
    view = View()
    press(view, interval, "s")
    assert view.pager
    view.pager.text = "\n".join(map(str, range(100)))
    press(view, interval, "j", "page down", "k")
    assert view.pager.first == view.room
    press(view, interval, "end")
    assert view.pager.first == 100 - view.room
    assert press(view, interval, "home", "s") == Order("stack", 0), "asks anew"
    assert press(view, interval, "q") is None
    assert view.pager is None
    press(view, interval, "h")
    assert view.pager.text == HELP
    press(view, interval, "?")
    assert view.pager is None


# --- the screen


def shown(
    interval: Interval, view: View, columns: int = 80, lines: int = 24, queues: Queues | None = None
) -> list[str]:
    return plain(paint(interval, view, queues or Queues(), (columns, lines), unicode=True))


@pytest.mark.parametrize("size", [(80, 24), (200, 60), (40, 12), (20, 5), (1, 1)])
def test_a_screen_has_as_many_lines_as_it_has(interval: Interval, size: tuple[int, int]) -> None:
    assert len(shown(interval, View(), *size)) == size[1]
    view = View()
    press(view, interval, "h")
    assert len(shown(interval, view, *size)) == size[1]


def test_eighty_columns_are_enough(interval: Interval) -> None:
    busy = worker(3, state="DRAINING", serving="203.0.113.77:64999", serving_s=29.9, deadline_in_s=0.1, pid=4194304)
    lines = shown(between(None, sample(busy)), View())
    assert all(len(line) <= 80 for line in lines[3:])
    assert "DRAINING" in lines[4]
    assert "29.9s 203.0.113.77:6" in lines[4]
    assert all(len(line) < 80 for line in HELP.split("\n"))


def test_wide_screens_have_every_column(interval: Interval) -> None:
    titles = "".join(text for text, _ in heading(160, "SLOT")).split()
    assert titles == [column.title for column in COLUMNS]


def test_sixty_four_workers_scroll_with_the_selection() -> None:
    many = between(None, sample(*(worker(slot) for slot in range(64))))
    view = View()
    assert shown(many, view)[-1].endswith(" 1-18 of 64")
    press(view, many, *["j"] * 20)
    lines = shown(many, view)
    assert lines[-1].endswith(" 4-21 of 64")
    assert [line for line in lines if line.startswith(">20 ")]
    press(view, many, "end")
    assert shown(many, view)[-1].endswith(" 47-64 of 64")
    shown(between(None, sample(worker(0))), view)
    assert view.first == 0


def test_the_head_says_what_is_wrong() -> None:
    document = sample(worker(0, state="BUSY"), worker(1, state="STARTING"), uptime_s=3725.0)
    document["server"] |= {"reloading": True}
    document["deaths"]["count"] = 2
    lines = shown(between(None, document), View())
    assert lines[0] == " prefork ready, reloading  pid 7  generation 1  up 1h 2m  shop.py:handle (stream, blocking)"
    assert lines[1] == " workers 1/2, 1 busy   - req/s   p50 333us   p99 -   errors 0   deaths 2"
    document["server"] |= {"ready": False, "unready": "no worker serves"}
    assert shown(between(None, document), View())[0].startswith(
        " prefork not ready: no worker serves, reloading  pid 7"
    )
    view = View(trouble="waiting for the server: gone")
    assert shown(between(None, document), view)[-2] == " waiting for the server: gone"


def test_queues_are_drawn_and_sockets_of_one_address_are_one() -> None:
    document, queues = sample(worker(0)), Queues()
    document["listeners"] = [
        {"address": "a:1", "queue": 1, "limit": 8, "drops": 2}, {"address": "a:1", "queue": 4, "limit": 8, "drops": 0},
        {"address": "unix:/s", "queue": None, "limit": None, "drops": None},
    ]  # fmt: skip
    assert listeners(document) == {"a:1": (5, 16, 2), "unix:/s": (None, None, None)}
    for _ in range(100):
        queues.note(document)
    lines = shown(between(None, document), View(), queues=queues)
    assert lines[2].startswith(" a:1  queue 5 of 16  drops 2  ████")
    assert len(lines[2]) <= 80
    assert lines[3] == " unix:/s  queue - of -  drops -"


def test_of_many_listeners_the_fullest_are_shown() -> None:
    document = sample(worker(0))
    document["listeners"] = [{"address": f"a:{n}", "queue": n, "limit": 99, "drops": 0} for n in range(7)]
    lines = shown(between(None, document), View())
    assert [line.split()[0] for line in lines[2:6]] == ["a:3", "a:4", "a:5", "a:6"]
    assert lines[6] == " and 3 more listeners"


def test_sparklines() -> None:
    assert sparkline([], unicode=True) == ""
    assert sparkline([0, 0], unicode=True) == "▁▁"
    assert sparkline([0, 1, 50, 100], unicode=True) == "▁▂▅█"
    assert sparkline([0, 1, 100], unicode=False) == ".:#"


def test_cells_of_a_row() -> None:
    rates = Rates(requests_per_s=12.34, cpu_ratio=0.5, quantiles={"p50_us": 5, "p99_us": 6}, old=frozenset({"p99_us"}))
    line = row(worker(1), rates, 90, selected=True)
    assert "".join(text for text, _ in line).split()[:8] == [">1", "101", "IDLE", "12.3", "5us", "6us", "50%", "8M"]
    styles = {text.strip(): style for text, style in line}
    assert styles["6us"].startswith("dim")
    assert "dim" not in styles["5us"]
    assert [rate(value) for value in (None, 0, 0.46, 99.96, 58_800.4, 2.5e6)] == [
        "-", "0", "0.5", "100", "58800", "2.5M",
    ]  # fmt: skip


def test_starting_a_server_does_not_load_what_only_top_needs() -> None:
    code = "import sys, prefork.cli.main; print([name for name in ('rich', 'tabulate') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
