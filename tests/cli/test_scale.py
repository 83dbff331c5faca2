"""`prefork scale`: up, down, to nothing and back."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.support.client import Outcome, collect, crowd, talkback_reply
from tests.support.control import Place

if TYPE_CHECKING:
    from tests.conftest import Serve

pytestmark = pytest.mark.slow


def test_scale_up_down_to_nothing_and_back(serve: Serve, place: Place) -> None:
    server = serve("talkback", "--workers", "2", env=place.env)
    for count in (4, 1, 0):
        place.ok("scale", str(count))
        assert len(server.worker_pids()) == count
        assert place.status()["server"]["workers"] == count
    (waiting,) = crowd(server.address, 1)
    assert place.ok("scale", "1").startswith("scaled: 1 worker (before: 0)")
    assert collect([waiting], talkback_reply(b"hi"))[Outcome.OK] == 1
    refused = place.run("scale", "9999")
    assert refused.returncode == 1
    assert re.fullmatch(r"prefork: cannot scale to 9999: from 0 to \d+, .*\n", refused.stderr)
    assert place.run("scale", "-1").returncode == 2
    assert place.run("scale", "many").returncode == 2
    assert len(server.worker_pids()) == 1
