"""The command line where no load is needed: help, mistakes, a dry run, and reports from files alone."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from loadtest.cli import main
from loadtest.data.store import Store
from loadtest.plan.plan import Load, Plan, Server
from prefork._version import __version__
from tests.loadtest.records import measured
from tests.support.server import ROOT

SERVER = "one={python} -m prefork serve --bind {address}"


def lab(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def run_of(folder: Path, rate: float) -> Path:
    plan = Plan(name="p", servers=(Server(name="one", command="x {port}"),), loads=(Load(name="nap"),))
    store = Store.create(folder, plan)
    for cycle in range(6):
        store.add(measured("one", cycle, number=cycle, rate=rate))
    return folder


@pytest.mark.parametrize("command", [[], ["run"], ["compare"], ["report"]])
def test_help_teaches_with_examples(command: list[str]) -> None:
    result = lab(*command, "--help")
    assert result.exit_code == 0
    assert f"\n    loadtest {command[0] if command else 'run'} " in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "nothing to measure: give a plan, --server NAME=COMMAND or --attach HOST:PORT"),
        (["run", "--server", "one"], "'one' is not NAME=COMMAND"),
        (["run", "--server", "one="], "'one=' is not NAME=COMMAND"),
        (
            ["run", "--server", "one=x {port}", "--path", "/items"],
            "path is for scenario http; talkback sends no request; write scenario http, or leave it out",
        ),
        (
            ["run", "--server", "one=x {port}", "--scenario", "nap", "--no-keep-alive"],
            "load 'nap': keep-alive is for scenario http; nap sends no request",
        ),
        (["run", "--server", "one=serve"], "says nowhere which port to serve on"),
        (["run", "--server", "one=serve '{port}"], "is not a command line: No closing quotation"),
        (["run", "--server", SERVER, "--rounds", "0"], "'0' is not a whole number from 1"),
        (["run", "--server", SERVER, "--duration", "0.1"], "too short to measure anything in"),
        (["run", "--server", SERVER, "--scenario", "eco"], "is not a scenario (did you mean 'echo'?)"),
        (["run", "--server", SERVER, "--baseline", "two"], "baseline 'two' is not one of the servers: one"),
        (["run", "--server", SERVER, "--pin", "0:4095"], "this process may not use CPU 4095"),
        (["run", "--attach", "1935"], "'1935' is not HOST:PORT"),
        (["run", "no-such-plan.toml"], "no-such-plan.toml: cannot read the plan: No such file or directory"),
        (["run", "no-such-plan.toml", "--server", SERVER], "the servers are in the plan"),
        (["run", "--server", SERVER, "--until", "2"], "'2' is not a part of a whole; write 2% or 0.02"),
        (["run", "--server", SERVER, "--until", "2%"], "until is about a comparison: name a second server"),
        (["run", "--server", SERVER, "--within", "soon"], "'soon' is not a length of time"),
        (["run", "--server", SERVER, "--fail-if", "p99"], "in quotes, as the shell takes > and < for itself"),
        (["run", "--server", SERVER, "--fail-if", "p98>5ms"], "'p98' is not a figure (did you mean 'p99'?)"),
        (["run", "--server", SERVER, "--fail-if", "ratio<1"], "nothing is compared with one"),
        (["run", "--server", SERVER, "--fail-if", "on: p50>1s"], "nothing is called 'on'; there are one (talkback)"),
        (["run", "--server", SERVER, "--arrivals", "poisson"], "arrivals is for a rate; add a rate, or leave it out"),
        (["run", "--server", SERVER, "--max-in-flight", "5"], "max-in-flight is for a rate"),
        (["run", "--server", SERVER, "--within", "5m"], "within is for until; add until, or leave it out"),
        (["run", "--server", SERVER, "--scenario", "htp"], "there are talkback, echo, nap, http, websocket"),
        (["run", "--server", SERVER, "--ready", "soon"], "'soon' is not a length of time"),
        (["run", "--server", SERVER, "--timeout", "0"], "'0' is no time to wait; write seconds, or 500ms, 10s"),
        (["run", "http://127.0.0.1:8000/"], "is an address, and not a plan; to measure a server that is running write"),
        (
            ["run", "dmo"],
            "'dmo' is not a built-in plan (did you mean 'demo'?); there are accept, backlog, behind-nginx, calibrate,",
        ),
        (["run", "./demo"], "demo: cannot read the plan: No such file or directory"),
        (["report", "no-such-run"], "no-such-run holds no run of the lab"),
        (["compare", "no-such-run", "nor-this"], "no-such-run holds no run of the lab"),
    ],
)
def test_a_mistake_is_one_clear_line_and_status_2(arguments: list[str], message: str) -> None:
    result = lab(*arguments)
    assert result.exit_code == 2
    assert message in result.output.splitlines()[-1]


def test_a_dry_run_shows_the_order_and_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "run"
    plan = ROOT / "loadtest" / "plans" / "demo.toml"
    result = lab("run", plan, "--rounds", "2", "--aa", "--dry-run", "--out", out)
    assert result.exit_code == 0
    lines = dict(line.strip().split(": ", 1) for line in result.output.splitlines() if line.startswith("  cycle "))
    first, second = (lines[f"cycle {number}"].split(", ") for number in (1, 2))
    assert sorted(first) == ["1 worker (nap)", "1 worker' (nap)", "4 workers (nap)"]
    assert second == first[::-1]
    seed = next(line.split()[-1] for line in result.output.splitlines() if "--seed" in line)
    assert lab("run", plan, "--rounds", "2", "--aa", "--dry-run", "--seed", seed.rstrip(":")).output == result.output
    assert "6 rounds, 18 s of load" in result.output
    assert not out.exists()
    soak = lab("run", plan, "--rounds", "2", "--duration", "1h30m", "--aa", "--dry-run")
    assert "6 rounds, 32406 s (9h6s) of load" in soak.output


def test_a_built_in_plan_has_a_name_and_a_file_of_the_current_folder_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "accept").mkdir()
    assert lab("run", "demo", "--dry-run").output.startswith("demo: compared with 1 worker\n")
    assert lab("run", "accept", "--dry-run").output.startswith("accept: compared with shared\n")
    (tmp_path / "demo").write_text('name = "mine"\n[[server]]\nname = "x"\ncommand = "x {port}"\n')
    assert lab("run", "demo", "--dry-run").output.startswith("mine: compared with x\n")


def test_the_built_in_plans_are_listed_with_question_and_time() -> None:
    listed = lab("plans").output.splitlines()
    for path in (ROOT / "loadtest" / "plans").glob("*.toml"):
        (line,) = [line for line in listed if line.startswith(f"{path.stem} ")]
        assert "? " in line
        assert " minutes" in line
        assert ("`make peers` in a clone" in line) is ("{peers}" in path.read_text())


def test_the_version_and_the_locustfile_say_where_the_lab_is() -> None:
    assert lab("--version").output == f"loadtest, of prefork {__version__}, in {ROOT / 'loadtest'}\n"
    assert lab("locustfile").output == f"{ROOT / 'loadtest' / 'locustfile.py'}\n"


def test_a_dry_run_says_until_when_it_would_go_on() -> None:
    two = ("--server", SERVER, "--server", SERVER.replace("one", "two"))
    result = lab("run", *two, "--rounds", "1", "--until", "2.5%", "--within", "10m", "--dry-run")
    assert result.exit_code == 0
    assert "one' (talkback)" in result.output  # the baseline's second run must be narrow, too
    assert result.output.splitlines()[-1] == (
        "then further cycles until every ratio of requests/s is known to ±2.5%, "
        "but none that would end later than 600 s after the start"
    )


def test_another_plan_does_not_touch_the_folder(tmp_path: Path) -> None:
    folder = run_of(tmp_path / "run", 1000)
    before = sorted(path.name for path in folder.rglob("*"))
    result = lab("run", "--server", SERVER, "--out", folder)
    assert result.exit_code == 2
    assert "holds rounds of another plan ('p'); choose another --out" in result.output
    assert sorted(path.name for path in folder.rglob("*")) == before


def test_reports_come_from_files_alone(tmp_path: Path) -> None:
    run_of(tmp_path / "here", 1000)
    moved = Path(shutil.move(tmp_path / "here", tmp_path / "elsewhere"))
    assert lab("report", moved).output.splitlines()[2].startswith("one")
    document = json.loads(lab("report", moved, "--format", "json").output)
    assert document["configurations"][0]["rate_per_s"] == 1000
    assert lab("compare", moved, "--format", "csv").output.startswith("name,load,rounds,invalid,rate_per_s,")


def test_two_runs_are_compared(tmp_path: Path) -> None:
    result = lab("compare", run_of(tmp_path / "before", 1000), run_of(tmp_path / "after", 800))
    assert result.exit_code == 0
    line = next(line for line in result.output.splitlines() if line.startswith("after: one"))
    assert "0.80x (n=6)" in line
    assert "no difference is claimed; that needs one baseline in both runs, beside other servers" in result.output
    document = json.loads(lab("compare", tmp_path / "before", tmp_path / "after", "--format", "json").output)
    assert document["contrasts"][0]["ratios"]["rate"]["differs"] is False


def test_two_runs_are_compared_by_the_baseline_that_both_have(tmp_path: Path) -> None:
    """The machine was 10 % slower on the second day, and `two` lost a fifth."""
    folders = [tmp_path / day for day in ("monday", "tuesday")]
    plan = Plan(
        name="p",
        servers=(Server(name="one", command="x {port}"), Server(name="two", command="y {port}")),
        loads=(Load(name="nap"),),
    )
    for folder, machine, two in zip(folders, (1.0, 0.9), (1.0, 0.8), strict=True):
        store = Store.create(folder, plan)
        for cycle in range(6):
            for name, factor in (("one", 1.0), ("two", two), ("one'", 1.0)):
                store.add(measured(name, cycle, number=len(store.rounds()), rate=1000 * machine * factor))
    result = lab("compare", *folders)
    rows = {line.split("  ")[0]: line for line in result.output.splitlines()}
    assert "0.800x [0.800x, 0.800x]" in rows["tuesday: two"]
    assert "0.90x (n=6)" in rows["tuesday: one"]
    assert "the ratios to one, which both runs have; of one itself no difference is claimed" in result.output
    Store.create(tmp_path / "other", replace(plan, servers=(Server(name="one", command="z {port}"), plan.servers[1])))
    for cycle in range(6):
        Store.open(tmp_path / "other").add(measured("two", cycle, number=cycle, rate=800))
    assert "needs one baseline in both runs" in lab("compare", folders[0], tmp_path / "other").output


def test_what_is_to_fail_ends_with_status_3_after_the_report(tmp_path: Path) -> None:
    before, after = run_of(tmp_path / "before", 1000), run_of(tmp_path / "after", 800)
    for command, conditions, wrong in (
        (["report", before], ["rate<900", "errors>0"], []),
        (["report", after], ["rate<900"], ["one (nap): rate is 800.0"]),
        (["report", after, "--format", "csv"], ["cpu>1us"], ["one (nap): cpu is 625.0 us"]),
        (["compare", after], ["p50>1s"], []),
        (
            ["compare", before, after],
            ["ratio<0.95"],
            ["after: one (nap): ratio is 0.8000 (n=6: no interval, so no difference is shown)"],
        ),
        (["compare", before, after], ["after: one: rate<900"], ["after: one (nap): rate is 800.0"]),
    ):
        result = lab(*command, *(word for condition in conditions for word in ("--fail-if", condition)))
        assert result.exit_code == (3 if wrong else 0)
        assert result.stderr.splitlines() == [f'--fail-if "{conditions[0]}": {line}' for line in wrong]
        assert result.stdout == lab(*command).stdout


def test_a_condition_about_what_a_run_has_not_is_a_mistake(tmp_path: Path) -> None:
    result = lab("report", run_of(tmp_path / "run", 1000), "--fail-if", "two: p50>1s")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "nothing is called 'two'; there are one (nap)" in result.stderr


def test_a_file_is_no_run_and_the_message_says_what_to_do(tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    result.write_text("{}")
    said = lab("report", result)
    assert said.exit_code == 2
    assert "result.json is a file, and a run of the lab is a folder; a result file of locust (--result)" in said.output
    assert "`loadtest run` makes tables" in said.output
    run = run_of(tmp_path / "run", 1000)
    assert f"rounds.jsonl is a file, and a run of the lab is a folder; give {run}" in lab(
        "report", run / "rounds.jsonl"
    ).output.replace("\n", " ")


def test_two_runs_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    folders = [run_of(tmp_path / day / "run", 1000) for day in ("monday", "tuesday")]
    assert "\nmonday/run: one " in lab("compare", *folders).output
    assert "\nrun again: one " in lab("compare", folders[0], folders[0]).output


def test_two_runs_that_share_nothing(tmp_path: Path) -> None:
    other = Store.create(
        tmp_path / "b", Plan(name="p", servers=(Server(name="two", command="x {port}"),), loads=(Load(name="nap"),))
    )
    other.add(measured("two", 0))
    result = lab("compare", run_of(tmp_path / "a", 1000), tmp_path / "b")
    assert result.exit_code == 2
    assert "share no configuration" in result.output


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    result = lab("run", "--server", SERVER, "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert "cannot write to" in result.output
