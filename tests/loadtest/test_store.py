from __future__ import annotations

import inspect
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import click
import pytest
import tabulate

from loadtest.plan import Load, Plan, Server
from loadtest.store import Store, StoreError

from .records import failed, measured

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


def test_an_extension_says_what_is_wanted_now(tmp_path: Path) -> None:
    Store.create(tmp_path / "run", PLAN).add(measured("one", 0))
    wanted = replace(PLAN, rounds=9, aa=True, until=0.02)
    Store.create(tmp_path / "run", wanted)
    assert Store.open(tmp_path / "run").plan == Plan.from_json(wanted.to_json())
    older = json.loads((tmp_path / "run" / "session.json").read_text())
    del older["plan"]["until"], older["plan"]["within_s"]
    (tmp_path / "run" / "session.json").write_text(json.dumps(older))
    assert Store.open(tmp_path / "run").plan.until == 0


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
    with pytest.raises(StoreError, match=message):
        Store.create(tmp_path, PLAN)


def test_a_garbled_result_of_the_generator_is_named(tmp_path: Path) -> None:
    store = Store.create(tmp_path, PLAN)
    store.add(measured("one", 0))
    path = tmp_path / "rounds" / "000.json"
    document = json.loads(path.read_text())
    del document["client"]["busy_s"]
    path.write_text(json.dumps(document))
    with pytest.raises(StoreError, match=r"000\.json cannot be read: the generator's result lacks or garbles 'busy_s'"):
        store.rounds()


# --- from files alone


REPORTS = """
import contextlib, sys
from loadtest.cli import main
here, there = sys.argv[1:]
for form in ("text", "github", "csv", "json", "html"):
    for arguments in (["report", here], ["compare", here, there]):
        with contextlib.suppress(SystemExit):
            main([*arguments, "--format", form])
"""
ROOT = Path(__file__).parents[2]


def python(minor: int) -> str:
    """The Python of that version; skips the test where there is none."""
    if minor == sys.version_info.minor:
        return sys.executable
    kept = sorted(map(str, Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/python")))
    for found in [*kept, shutil.which(f"python3.{minor}")]:
        if found and not subprocess.run([found, "-c", ""], check=False, capture_output=True).returncode:
            return found
    pytest.skip(f"there is no Python 3.{minor}")


def reports(interpreter: str, here: Path, there: Path, *, cwd: Path, env: dict[str, str]) -> bytes:
    """All reports about the two runs, by a process that has nothing but these folders and the code."""
    path = {"PYTHONPATH": str(cwd / "code"), "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [interpreter, "-c", REPORTS, str(here), str(there)],
        check=False,
        cwd=cwd,
        env=path | env,
        capture_output=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("minor", [11, 12, 13])
def test_a_run_is_reported_the_same_elsewhere(tmp_path: Path, minor: int) -> None:
    """Another folder, home, locale, time zone and Python, which gets what it needs by links: it may have nothing."""
    for place in ("here", "there"):
        (tmp_path / place / "code").mkdir(parents=True)
        for package in (click, tabulate):
            folder = Path(inspect.getfile(package)).parent
            (tmp_path / place / "code" / folder.name).symlink_to(folder)
        for name in ("loadtest", "prefork"):
            (tmp_path / place / "code" / name).symlink_to(ROOT / name)
    before, after = tmp_path / "here" / "before", tmp_path / "here" / "after"
    shutil.copytree(ROOT / "results" / "demo", before)
    shutil.copytree(before, after)
    (after / "rounds" / "000.json").unlink()
    usual = {"HOME": str(Path.home()), "LC_ALL": "C.UTF-8", "TZ": "UTC"}
    here = reports(sys.executable, before, Path("after"), cwd=tmp_path / "here", env=usual)
    shutil.move(before, tmp_path / "there" / "before")
    shutil.move(after, tmp_path / "there" / "after")
    (tmp_path / "here").rename(tmp_path / "gone")
    other = {"HOME": "/nonexistent", "LC_ALL": "C", "PYTHONUTF8": "0", "TZ": "Pacific/Auckland", "PYTHONHASHSEED": "7"}
    there = reports(python(minor), Path("before"), Path("after"), cwd=tmp_path / "there", env=other)
    assert here.count(b'"schema": 1') == 2
    assert "µs".encode() in here
    assert there.split(b"\n") == here.split(b"\n")
