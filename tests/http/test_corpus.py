"""The corpus: each case gives the answer that its file names, however its bytes are cut on their way."""

from __future__ import annotations

import random

from prefork.http.fields import FieldTable
from tests.http.cases import read_cases
from tests.http.outcome import cut, cut_at_random, cuts, outcome

VALID = read_cases("valid")
INVALID = read_cases("invalid")
ALL = [*VALID, *INVALID]
RANDOM_CUTS = 20
# By single bytes, the head of a large case is put together anew for each: what is large is cut coarser.
LARGE = 10_000


def test_there_are_cases_of_both_kinds() -> None:
    assert len(VALID) >= 60
    assert len(INVALID) >= 120
    assert not [case.name for case in VALID if case.expected.status]
    assert not [case.name for case in INVALID if not case.expected.status]
    assert not [case.name for case in INVALID if not case.expected.reason]


def test_the_answer_does_not_depend_on_how_the_bytes_are_cut() -> None:
    for case in ALL:
        rng = random.Random(case.name)
        whole = outcome([case.data])
        case.check(whole, "whole")
        ways = cuts(case.data, rng, random_ones=RANDOM_CUTS)
        if len(case.data) > LARGE:
            ways = iter([("by 97 bytes", cut(case.data, 97)), ("at random", cut_at_random(case.data, rng))])
        for way, pieces in ways:
            assert outcome(pieces) == whole, f"{case.name}, {way}"


def test_the_answer_does_not_depend_on_what_was_asked_before() -> None:
    for case in ALL:
        table = FieldTable()
        first = outcome([case.data], table=table)
        assert outcome([case.data], table=table) == first, case.name
        assert outcome(cut(case.data, 97), table=table) == first, case.name


def test_cases_do_not_disturb_each_other() -> None:
    """With one table for all, as in a worker."""
    table = FieldTable()
    rng = random.Random(1)
    for case in rng.sample(ALL, len(ALL)):
        case.check(outcome([case.data], table=table), case.name)


def test_a_case_can_follow_another_on_its_connection() -> None:
    """What is served leaves nothing behind: the same requests, pipelined, give the same again."""
    for case in VALID:
        alone = outcome([case.data])
        if alone.at_eof or not alone.requests[-1].attributes["keep_alive"]:
            continue
        twice = outcome([case.data * 2])
        assert twice.requests == alone.requests * 2, case.name
        assert twice.status == 0, case.name


def test_nothing_is_understood_after_a_refusal() -> None:
    """A fault at the end of one packet, good requests in the next: they are not served."""
    for case in INVALID:
        wanted = outcome([case.data])
        assert outcome([case.data, b"GET /next HTTP/1.1\r\nHost: example.com\r\n\r\n"]) == wanted, case.name
