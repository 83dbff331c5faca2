from __future__ import annotations

import inspect
import json
import os
import resource
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import click
import pytest
import tabulate

from loadtest.data.records import Client, RecordError, Round, Worker
from loadtest.data.store import Store, StoreError
from loadtest.plan import file as planfile
from loadtest.plan.plan import Load, Plan, Server
from tests.loadtest.records import arrivals, failed, generator_file, measured, signals
from tests.support.server import ROOT

PLAN = Plan(name="p", servers=(Server(name="one", command="x {port}"),), loads=(Load(name="nap"),), seed=7)
OTHER = Plan(name="q", servers=(Server(name="one", command="y {port}"),), loads=(Load(name="nap"),))


def test_rounds_come_back_as_they_were_kept(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "run", PLAN)
    kept = [measured("one", 0, number=0, notes=("odd",)), failed("one", 1, number=1)]
    for done in kept:
        store.add(done)
    again = Store.open(tmp_path / "run")
    assert again.plan == PLAN
    assert [done.to_json() for done in again.rounds()] == [done.to_json() for done in kept]
    assert sorted(os.listdir(tmp_path / "run")) == ["plan.toml", "rounds.jsonl"]


def test_what_was_seen_of_workers_and_machine_comes_back(tmp_path: Path) -> None:
    """And of a run before these figures were there it is not known."""
    figures = {"cpu_ns": 1, "accepted": None, "requests": None, "connections": 2.0}
    seen = Worker(slot=0, **figures, threads=4, busy=3.5, loop=False, blocked=0.5)
    known = signals(workers=(seen,), alone_ns=5, others_cores=0.5, cpus=2)
    store = Store.create(tmp_path / "run", PLAN)
    store.add(measured("one", 0, signals=known))
    assert Store.open(tmp_path / "run").rounds()[0].signals == known
    document = json.loads((tmp_path / "run" / "rounds.jsonl").read_text())
    for name in ("alone_ns", "others_cores", "cpus"):
        del document["signals"][name]
    document["signals"]["workers"] = [{"slot": 0, **figures}]
    (tmp_path / "run" / "rounds.jsonl").write_text(json.dumps(document) + "\n")
    before = Store.open(tmp_path / "run").rounds()[0].signals
    assert before is not None
    assert (before.alone_ns, before.others_cores, before.workers) == (None, None, (Worker(slot=0, **figures),))


def test_the_same_plan_is_extended_and_another_is_refused(tmp_path: Path) -> None:
    Store.create(tmp_path / "run", PLAN).add(measured("one", 0, number=7))
    again = Store.create(tmp_path / "run", PLAN)
    again.add(measured("one", 1, number=8))
    assert [done.number for done in again.rounds()] == [7, 8]
    before = (tmp_path / "run" / "plan.toml").read_bytes()
    with pytest.raises(StoreError, match="holds rounds of another plan"):
        Store.create(tmp_path / "run", OTHER)
    assert (tmp_path / "run" / "plan.toml").read_bytes() == before


def test_an_extension_says_what_is_wanted_now(tmp_path: Path) -> None:
    Store.create(tmp_path / "run", PLAN).add(measured("one", 0))
    wanted = replace(PLAN, rounds=9, aa=True, until=0.02)
    Store.create(tmp_path / "run", wanted)
    assert Store.open(tmp_path / "run").plan == wanted


def test_a_folder_has_a_seed_and_keeps_it(tmp_path: Path) -> None:
    free = replace(PLAN, seed=None)
    drawn = Store.create(tmp_path / "run", free).plan.seed
    assert drawn is not None
    assert Store.open(tmp_path / "run").plan.seed == drawn
    again = Store.create(tmp_path / "run", replace(free, rounds=9))
    assert again.plan.seed == Store.open(tmp_path / "run").plan.seed == drawn
    given = Store.create(tmp_path / "run", PLAN)  # the same plan, whose next cycles are in another order
    assert given.plan.seed == Store.open(tmp_path / "run").plan.seed == 7


def test_the_plan_that_is_kept_can_be_run_and_extended_from_where_it_lies(tmp_path: Path) -> None:
    plan = replace(PLAN, servers=(Server(name="one", command="x {port}", cwd="apps"),))
    assert Store.create(tmp_path / "run", plan, tmp_path / "plans").plan == plan
    kept = planfile.read(tmp_path / "run" / "plan.toml", {})
    assert kept.servers[0].cwd == "../plans/apps"
    assert Store.create(tmp_path / "run", kept, tmp_path / "run").plan == kept
    with pytest.raises(StoreError, match="holds rounds of another plan"):
        Store.create(tmp_path / "run", plan, tmp_path)


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text("# precious")
    with pytest.raises(StoreError, match="is not empty and holds no run"):
        Store.create(tmp_path, PLAN)
    with pytest.raises(StoreError, match="holds no run of the lab"):
        Store.open(tmp_path)
    with pytest.raises(StoreError, match="cannot write to"):
        Store.create(tmp_path / "plan.toml" / "below", PLAN)
    assert (tmp_path / "plan.toml").read_text() == "# precious"


def test_a_plan_that_is_damaged_or_cannot_be_written_is_named(tmp_path: Path) -> None:
    Store.create(tmp_path / "run", PLAN)
    (tmp_path / "run" / "plan.toml").write_text("name = 3")
    with pytest.raises(StoreError, match=r"plan\.toml:1: name: 3 is not a text"):
        Store.open(tmp_path / "run")
    with pytest.raises(StoreError, match=r"plan\.toml cannot be written: a name in it is not Unicode"):
        Store.create(tmp_path / "other", replace(PLAN, name="\udcff"))
    assert os.listdir(tmp_path / "other") == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (b"{", r"rounds\.jsonl:2 is not JSON"),
        (b"\xff", r"rounds\.jsonl:2 is not JSON"),
        (b"[]", r"rounds\.jsonl:2 cannot be read: not a round of this version"),
        (b'"text"', r"rounds\.jsonl:2 cannot be read: not a round of this version"),
        (b"{}", r"rounds\.jsonl:2 cannot be read: not a round of this version: 'schema'"),
        (b'{"schema": 99}', "schema 99; this version reads 1"),
    ],
)
def test_a_round_that_cannot_be_read_is_named(tmp_path: Path, change: bytes, message: str) -> None:
    store = Store.create(tmp_path, PLAN)
    store.add(measured("one", 0))
    path = tmp_path / "rounds.jsonl"
    path.write_bytes(path.read_bytes() + change + b"\n")
    with pytest.raises(StoreError, match=message):
        store.rounds()
    with pytest.raises(StoreError, match=message):
        Store.create(tmp_path, PLAN)


def test_a_garbled_result_of_the_generator_is_named(tmp_path: Path) -> None:
    store = Store.create(tmp_path, PLAN)
    store.add(measured("one", 0))
    path = tmp_path / "rounds.jsonl"
    document = json.loads(path.read_text())
    del document["client"]["busy_s"]
    path.write_text(json.dumps(document) + "\n")
    with pytest.raises(StoreError, match=r":1 cannot be read: the generator's result lacks or garbles 'busy_s'"):
        store.rounds()


@pytest.mark.parametrize("left", [1, 2, 100, -2, -1])
def test_a_line_that_a_killed_run_left_half_written_is_no_round_and_is_cut_off(tmp_path: Path, left: int) -> None:
    store = Store.create(tmp_path, PLAN)
    path = tmp_path / "rounds.jsonl"
    for number in range(2):
        store.add(measured("one", number, number=number))
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + second[:left])
    assert [done.number for done in Store.create(tmp_path, PLAN).rounds()] == [0]
    with store.writing():
        store.add(measured("one", 1, number=1))
    assert path.read_bytes() == first + second


def test_one_run_at_a_time_writes_to_a_folder(tmp_path: Path) -> None:
    store, other = Store.create(tmp_path, PLAN), Store.create(tmp_path, PLAN)
    with store.writing():
        store.add(measured("one", 0))
        refused = rf"another run \(pid {os.getpid()}\) is writing to .*choose another --out"
        with pytest.raises(StoreError, match=refused), other.writing():
            pass
        assert len(other.rounds()) == 1, "who reads need not wait"
        with pytest.raises(StoreError, match="is writing to"):
            Store.create(tmp_path, replace(PLAN, rounds=9))
        assert Store.open(tmp_path).plan == PLAN, "who is refused changes nothing"
    with other.writing():
        other.add(measured("one", 1, number=1))
    assert [done.number for done in store.rounds()] == [0, 1]


def test_of_two_runs_that_begin_together_one_gets_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Store.write

    def meanwhile(store: Store, name: str, text: str) -> None:
        monkeypatch.undo()
        with pytest.raises(StoreError, match=f"{tmp_path} holds no run of the lab"):
            Store.create(tmp_path, OTHER)
        write(store, name, text)

    monkeypatch.setattr(Store, "write", meanwhile)
    Store.create(tmp_path, PLAN)
    assert Store.open(tmp_path).plan == PLAN


def test_counts_of_failures_whose_paths_were_cut_are_added(tmp_path: Path) -> None:
    store = Store.create(tmp_path, PLAN)
    done = measured("one", 0)
    assert done.client is not None
    failures = {"cannot open /a/x": 1, "cannot open /b/x": 2}
    store.add(replace(done, client=replace(done.client, raw={**done.client.raw, "failures": failures})))
    (done,) = store.rounds()
    assert done.client is not None
    assert done.client.failures == {"cannot open .../x": 3}


def test_a_full_disk_leaves_the_rounds_as_they_were(tmp_path: Path) -> None:
    """The limit of this process for files stands for the disk: what fits is written, then an error comes."""
    store = Store.create(tmp_path, PLAN)
    store.add(measured("one", 0))
    store.write("report.md", "x")
    before = (tmp_path / "rounds.jsonl").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 50, limits[1]))
    try:
        with pytest.raises(StoreError, match=r"report\.md cannot be written: File too large"):
            store.write("report.md", "y" * len(before) * 2)
        with pytest.raises(StoreError, match=r"round 1 is not kept: .*rounds\.jsonl cannot be written: File too large"):
            store.add(measured("one", 1, number=1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "rounds.jsonl").read_bytes() == before
    assert (tmp_path / "report.md").read_text() == "x"
    assert sorted(os.listdir(tmp_path)) == ["plan.toml", "report.md", "rounds.jsonl"]
    store.add(measured("one", 1, number=1))
    assert [done.number for done in store.rounds()] == [0, 1]


def test_the_logs_of_a_round_begin_in_an_empty_folder(tmp_path: Path) -> None:
    store = Store.create(tmp_path, PLAN)
    (store.logs(12) / "generator.json").write_text("of a round that was never kept")
    assert (store.logs(12), os.listdir(tmp_path / "logs" / "012")) == (tmp_path / "logs" / "012", [])
    (tmp_path / "logs" / "013").write_text("")
    with pytest.raises(StoreError, match=r"logs/013 cannot be made: Not a directory"):
        store.logs(13)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("/home/me/.venv/bin/python", ".../python"),
        (
            '  File "/home/me/an app/x", line 3\nFile /srv/x.py:3',
            '  File ".../an app/x", line 3\nFile .../x.py:3',
        ),
        ("--out=/tmp/x/", "--out=.../x"),
        ("it wrote nothing to ~/runs/logs/000/server.log", "it wrote nothing to .../server.log"),
        ("unix:/tmp/loadtest-1/server", "unix:.../server"),
        ("@/home/me/body", "@.../body"),
        ("('/var/lib/a',)", "('.../a',)"),
        ("http://127.0.0.1:80/a/b is 2/3 of results/a/b, ../a/b and 1 / 2 / 3", None),
        ("GET /large", None),
        ("GET /shop/cart?x=/1/2 answered 404", None),
    ],
)
def test_a_round_that_is_kept_names_no_folder_of_the_machine(tmp_path: Path, text: str, kept: str | None) -> None:
    store = Store.create(tmp_path, replace(PLAN, loads=(Load(name="nap", path="/shop/cart?x=/1/2"),)))
    store.add(failed("one", 0, error=text))
    (done,) = store.rounds()
    assert (done.error, done.verdict.reason) == (kept or text, (kept or text).partition("\n")[0])
    assert str(tmp_path) not in (tmp_path / "rounds.jsonl").read_text()


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
    rounds = (after / "rounds.jsonl").read_bytes()
    (after / "rounds.jsonl").write_bytes(rounds[rounds.index(b"\n") + 1 :])
    usual = {"HOME": str(Path.home()), "LC_ALL": "C.UTF-8", "TZ": "UTC"}
    here = reports(sys.executable, before, Path("after"), cwd=tmp_path / "here", env=usual)
    shutil.move(before, tmp_path / "there" / "before")
    shutil.move(after, tmp_path / "there" / "after")
    (tmp_path / "here").rename(tmp_path / "gone")
    other = {"HOME": "/nonexistent", "LC_ALL": "C", "PYTHONUTF8": "0", "TZ": "Pacific/Auckland", "PYTHONHASHSEED": "7"}
    there = reports(python(minor), Path("before"), Path("after"), cwd=tmp_path / "there", env=other)
    assert here.count(b'"schema": 2') == 2
    assert "µs".encode() in here
    assert there.split(b"\n") == here.split(b"\n")


def test_a_round_of_before_is_read_with_what_it_has() -> None:
    now = generator_file(busy_s=30.0, connections=200)
    old = {name: now[name] for name in now.keys() - {"rate_per_s", "ended", "ended_failed", "longest_ns"}}
    read = Client.from_json(old | {"schema": 1})
    assert read.rate_per_s == pytest.approx(30 / 0.016 / 2)  # in flight over latency: whole exchanges do not matter
    assert Client.from_json(old | {"schema": 1, "connections": 16}).rate_per_s == 1000  # of so many they never do
    assert (read.ended, read.longest_ns, read.raw["schema"]) == (2000, 16_000_000, 1)
    failed = Client.from_json(old | {"schema": 1, "failures": {"reset": 1}})
    assert failed.rate_per_s == 1000
    with pytest.raises(RecordError, match="measure it again"):
        Client.from_json(old | {"schema": 1, "arrivals": arrivals()})
    assert Client.from_json({name: now[name] for name in now.keys() - {"longest_ns"}}).longest_ns == 16_000_000


def test_a_round_that_cannot_be_converted_leaves_the_others_readable() -> None:
    line = measured("one", 0).to_json()
    line["client"] = line["client"] | {"schema": 1, "arrivals": arrivals()}
    read = Round.from_json(line)
    assert (read.client, read.signals, read.verdict.name) == (None, None, "INVALID")
    assert "measure it again" in read.error == read.verdict.reason
