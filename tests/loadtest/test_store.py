from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from loadtest.plan import Load, Plan, Server
from loadtest.store import Store, StoreError

from .records import failed, measured

if TYPE_CHECKING:
    from pathlib import Path

PLAN = Plan(name="p", servers=(Server(name="one", command="x {port}"),), loads=(Load(name="nap"),))
OTHER = Plan(name="q", servers=(Server(name="one", command="y {port}"),), loads=(Load(name="nap"),))


def test_rounds_come_back_as_they_were_kept(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "run", PLAN)
    kept = [measured("one", 0, number=0, notes=("odd",)), failed("one", 1, number=1)]
    for done in kept:
        assert store.room()[0] == done.number
        store.add(done)
    again = Store.open(tmp_path / "run")
    assert again.plan == Plan.from_json(PLAN.to_json())
    assert [done.to_json() for done in again.rounds()] == [done.to_json() for done in kept]
    assert not list((tmp_path / "run").rglob("*.part"))


def test_the_same_plan_is_extended_and_another_is_refused(tmp_path: Path) -> None:
    Store.create(tmp_path / "run", PLAN).add(measured("one", 0, number=7))
    assert Store.create(tmp_path / "run", PLAN).room()[0] == 8
    with pytest.raises(StoreError, match="holds rounds of another plan"):
        Store.create(tmp_path / "run", OTHER)


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(StoreError, match="is not empty and holds no run"):
        Store.create(tmp_path, PLAN)
    with pytest.raises(StoreError, match="holds no run of the lab"):
        Store.open(tmp_path)
    with pytest.raises(StoreError, match="cannot write to"):
        Store.create(tmp_path / "mine.txt" / "below", PLAN)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (b"{", "000.json is not JSON"),
        (b"[]", "is not a file of the lab"),
        (b"{}", "not a round of this version: 'schema'"),
        (b'{"schema": 99}', "schema 99; this version reads 1"),
    ],
)
def test_a_round_that_cannot_be_read_is_named(tmp_path: Path, change: bytes, message: str) -> None:
    store = Store.create(tmp_path, PLAN)
    store.add(measured("one", 0))
    (tmp_path / "rounds" / "000.json").write_bytes(change)
    with pytest.raises(StoreError, match=message):
        store.rounds()


def test_a_garbled_result_of_the_generator_is_named(tmp_path: Path) -> None:
    store = Store.create(tmp_path, PLAN)
    store.add(measured("one", 0))
    path = tmp_path / "rounds" / "000.json"
    document = json.loads(path.read_text())
    del document["client"]["busy_s"]
    path.write_text(json.dumps(document))
    with pytest.raises(StoreError, match=r"000\.json cannot be read: the generator's result lacks or garbles 'busy_s'"):
        store.rounds()
