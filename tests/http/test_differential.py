"""Our parser beside llhttp and h11: what we accept, they accept and cut at the same places, or there is a reason.

`python -m pytest tests/http/test_differential.py -s -k lets_pass` shows what the others let pass and we do not.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest
from hypothesis import given

from tests.http.cases import read_cases
from tests.http.grammar import Writing, pipelines
from tests.http.outcome import outcome
from tests.http.peers import KNOWN, PEERS, difference, known_reason, laxity
from tests.support.examples import examples

if TYPE_CHECKING:
    from collections.abc import Sequence

VALID = read_cases("valid")
INVALID = read_cases("invalid")


def check(peer: str, data: bytes, what: str = "") -> str:
    """Fail on a difference without a reason; returns the reason of one that has it."""
    found = difference(peer, data, outcome([data]))
    if not found:
        return ""
    reason = known_reason(peer, found, data)
    assert reason, f"{what}: {found}"
    return reason


@pytest.mark.parametrize("peer", PEERS)
def test_the_corpus(peer: str) -> None:
    for case in [*VALID, *INVALID]:
        check(peer, case.data, case.name)


def test_every_known_reason_has_a_case() -> None:
    """A list of excuses is no longer than it must be."""
    assert {check(peer, case.data) for peer in PEERS for case in VALID} - {""} == set(KNOWN)


@pytest.mark.parametrize("peer", PEERS)
@given(writings=pipelines())
@examples(80)
def test_generated_requests(peer: str, writings: Sequence[Writing]) -> None:
    check(peer, b"".join(writing.data for writing in writings))


def test_what_the_others_let_pass() -> None:
    """More than one case in five each; by the first words of our reason."""
    for peer in PEERS:
        found = [seen for case in INVALID if laxity(peer, case.data, seen := outcome([case.data]))]
        assert len(INVALID) / 5 < len(found) < len(INVALID)
        print(f"\n{peer} lets {len(found)} of {len(INVALID)} cases pass:")
        for (status, reason), count in Counter((seen.status, words(seen.reason)) for seen in found).most_common():
            print(f"  {count:4} {status} {reason}")


def words(reason: str) -> str:
    """The words of a reason that come before what it quotes."""
    return reason.partition(":")[0]
