from __future__ import annotations

import itertools
import re
import textwrap
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loadtest.plan import file as planfile
from loadtest.plan import values
from loadtest.plan.plan import Load, Pin, Plan, PlanError, Server

PLANS = Path(planfile.__file__).parents[1] / "plans"
ONE = Server(name="one", command="serve {port}")
TWO = Server(name="two", command="serve {port}")
NAP = Load(name="nap", scenario="nap")


def read(tmp_path: Path, text: str, **override: object) -> Plan:
    path = tmp_path / "plan.toml"
    path.write_text(text)
    return planfile.read(path, override)


def wrong(tmp_path: Path, text: str) -> str:
    with pytest.raises(PlanError) as caught:
        read(tmp_path, text)
    message = str(caught.value)
    assert "\n" not in message
    return message.removeprefix(str(tmp_path) + "/")


SERVER = '[[server]]\nname = "one"\ncommand = "serve {port}"\n'


def orders(plan: Plan, cycles: range) -> list[list[str]]:
    found = [[slot.configuration for slot in plan.slots([cycle])] for cycle in cycles]
    assert [slot.position for slot in plan.slots(cycles)] == [place for each in found for place in range(len(each))]
    return found


def of(count: int, seed: int = 1, **change: Any) -> Plan:
    servers = tuple(Server(name=f"s{number}", command="serve {port}") for number in range(count))
    return Plan(name="p", **({"servers": servers, "loads": (NAP,), "rounds": 6, "aa": False, "seed": seed} | change))


@pytest.mark.parametrize("count", range(2, 13))
def test_the_order_is_balanced(count: int) -> None:
    """In every block of cycles each arm has each place equally often, and each other arm equally often before it."""
    block = count * (1 + count % 2)
    for first in (0, block):
        order = orders(of(count), range(first, first + block))
        assert {tuple(sorted(each)) for each in order} == {tuple(sorted(order[0]))}
        places = Counter((place, name) for each in order for place, name in enumerate(each))
        assert set(places.values()) == {block // count}
        assert len(places) == count**2
        before = Counter(pair for each in order for pair in itertools.pairwise(each))
        assert set(before.values()) == {block // count}
        assert len(before) == count * (count - 1)
        assert all(after == each[::-1] for each, after in zip(order[::2], order[1::2], strict=True))


def test_the_order_is_drawn_by_the_seed_and_block_by_block() -> None:
    """The baseline, a candidate and the baseline again have all six orders in six cycles, in any sequence."""
    six = [orders(of(2, seed, aa=True), range(6)) for seed in range(40)]
    assert all(sorted(each) == sorted(map(list, itertools.permutations(["s0", "s0'", "s1"]))) for each in six)
    assert len({str(each) for each in six}) > 20
    assert {each[0][1] for each in six} == {"s0", "s0'", "s1"}
    assert orders(of(2, 7, aa=True), range(6)) == orders(of(2, 7, aa=True), range(6))
    long = orders(of(2, aa=True), range(60))
    assert len({str(long[at : at + 6]) for at in range(0, 60, 6)}) > 5


def test_every_server_runs_every_load_and_the_servers_of_a_load_stay_together() -> None:
    plan = of(3, loads=(NAP, Load(name="echo", scenario="echo")))
    firsts = set()
    for cycle in range(8):
        slots = list(plan.slots([cycle]))
        assert {slot.cycle for slot in slots} == {cycle}
        loads = [slot.load.name for slot in slots]
        assert loads in (["nap"] * 3 + ["echo"] * 3, ["echo"] * 3 + ["nap"] * 3)
        assert {slot.configuration for slot in slots[:3]} == {"s0", "s1", "s2"}
        firsts.add(loads[0])
    assert firsts == {"nap", "echo"}


def test_a_seed_that_is_not_given_is_drawn() -> None:
    plan = of(2, aa=True)
    free = replace(plan, seed=None)
    assert plan.seeded(5) == plan
    assert free.seeded(5).seed == 5
    assert len({free.seeded().seed for _ in range(20)}) > 10
    assert free.fingerprint() == plan.fingerprint() == replace(plan, seed=9).fingerprint()


def test_what_a_load_does_by_chance_is_the_same_for_all_servers_of_a_cycle() -> None:
    plan = of(3, loads=(Load(name="due", rate_per_s=9.0, arrivals="poisson"), NAP), aa=True)
    seeds = [{slot.seed for slot in plan.slots([cycle]) if slot.load.name == "due"} for cycle in range(9)]
    assert all(len(each) == 1 for each in seeds)
    assert len(set().union(*seeds)) == 9
    assert min(set().union(*seeds)) > 0
    assert [slot.seed for slot in plan.slots()] == [slot.seed for slot in replace(plan, rounds=6).slots()]


@pytest.mark.parametrize(
    ("servers", "rounds", "aa"), [((ONE, TWO), 6, True), ((ONE, TWO), 5, False), ((ONE,), 9, False)]
)
def test_the_noise_is_measured_from_six_rounds_if_there_is_something_to_compare(
    servers: tuple[Server, ...], rounds: int, aa: bool
) -> None:
    assert Plan(name="p", servers=servers, loads=(NAP,), rounds=rounds).runs_aa is aa


def test_only_what_is_measured_makes_a_fingerprint() -> None:
    plan = Plan(name="p", servers=(ONE, TWO), loads=(NAP,), pin=Pin(server=(0,), load=(1,)), baseline="two")
    more = Plan(name="q", servers=(ONE, TWO), loads=(NAP,), pin=plan.pin, baseline="two", rounds=20, aa=False)
    assert more.fingerprint() == plan.fingerprint()
    patient = replace(plan, servers=(replace(ONE, ready_s=90.0, grace_s=1.0), TWO))
    assert patient.fingerprint() == plan.fingerprint()
    other = Plan(name="p", servers=(ONE, TWO), loads=(NAP,), baseline="two")
    assert other.fingerprint() != plan.fingerprint()


RICH = Plan(
    name='a "name" of several\nlines: \\ \t \x00 \x7f ü \U0001f600 #',
    servers=(
        Server(name="here", command="serve '{port}'", cwd="../apps", env={"A.B": "1", "": 'x="2"'}),
        Server(name="there", attach="[::1]:80"),
    ),
    loads=(
        NAP,
        Load(
            name="all",
            scenario="http",
            generators=2,
            connections=7,
            rate_per_s=1 / 3,
            arrivals="poisson",
            max_in_flight=5,
            duration_s=0.2000000001,
            warmup_s=1e-9,
            payload=0,
            exchanges=3,
            method="POST",
            path=("/x?y=%20", "@paths"),
            path_order="random",
            retry=False,
            headers=("A: 1", "A: 2"),
            body="@body.json",
            keep_alive=False,
            status="200,404",
            length=0,
            tls=True,
            ca="ca.pem",
            message="binary",
        ),
    ),
    rounds=3,
    pin=Pin(server=(0,), load=(1, 2, 5)),
    baseline="there",
    aa=False,
    until=1e-7,
    within_s=100_000,
    seed=0,
)


@pytest.mark.parametrize(
    "plan", [RICH, *(planfile.read(path, {}) for path in PLANS.glob("*.toml"))], ids=lambda plan: plan.name[:12]
)
def test_a_plan_that_is_written_is_read_as_it_was(tmp_path: Path, plan: Plan) -> None:
    assert read(tmp_path, planfile.written(plan)) == plan


def test_a_written_plan_has_what_is_not_the_default_and_what_a_reader_asks_first() -> None:
    plan = Plan(name="p", servers=(ONE,), loads=(Load(name="nap", scenario="nap", path="/é", rate_per_s=20),))
    assert planfile.written(plan) == (
        'name = "p"\nrounds = 6\n\n[[server]]\nname = "one"\ncommand = "serve {port}"\n\n[[load]]\nname = "nap"\n'
        'scenario = "nap"\nconnections = 64\nrate = 20\nduration = 5\nwarmup = 1\npath = "/é"\n'
    )


def test_a_plan_in_another_folder_names_the_same_files(tmp_path: Path) -> None:
    server = Server(name="u", attach="unix:run/it.sock")
    plan = Plan(
        name="p",
        servers=(replace(ONE, cwd="../apps"), TWO, server),
        loads=(Load(name="l", body="@b", path=("/a", "@p")),),
    )
    (tmp_path / "plans").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "plans")
    moved = planfile.moved(plan, tmp_path / "link", tmp_path / "a" / "run")
    assert [server.cwd for server in moved.servers] == ["../../apps", "", ""]
    assert moved.servers[2].attach == "unix:../../plans/run/it.sock"
    assert moved.loads[0].body == "@../../plans/b"
    assert moved.loads[0].path == ("/a", "@../../plans/p")
    assert planfile.moved(moved, tmp_path / "a" / "run", tmp_path / "plans") == plan
    assert planfile.moved(RICH, tmp_path, tmp_path / "run").loads[1].ca == "../ca.pem"
    absolute = replace(RICH, loads=(Load(name="n", scenario="http", body="@/b", ca="/c", tls=True),), pin=None)
    assert planfile.moved(absolute, tmp_path, tmp_path / "x").loads == absolute.loads


def test_a_file_sets_what_the_flags_set_and_flags_win(tmp_path: Path) -> None:
    text = 'name = "n"\nscenario = "nap"\nduration = "500ms"\nwarm_up = 1\n'.replace("warm_up", "warmup")
    text += 'rounds = 3\npin = "0-1:2,4"\nattach = "[::1]:80"\n' + SERVER
    text += '[[load]]\nname = "few"\nconnections = 2\n[[load]]\nname = "many"\nconnections = 200\nduration = 9\n'
    plan = read(tmp_path, text, rounds=4, warmup_s=0.25)
    assert [server.name for server in plan.servers] == ["one", "[::1]:80"]
    assert plan.rounds == 4
    assert plan.pin == Pin(server=(0, 1), load=(2, 4))
    few, many = plan.loads
    assert (few.connections, few.duration_s, few.warmup_s, few.scenario) == (2, 0.5, 0.25, "nap")
    assert (many.connections, many.duration_s, many.warmup_s) == (200, 9.0, 0.25)


def test_a_load_by_schedule(tmp_path: Path) -> None:
    text = SERVER + "[[load]]\nname = 'l'\nrate = 12.5\narrivals = 'poisson'\nmax-in-flight = 7\nconnections = 3\n"
    (load,) = read(tmp_path, text).loads
    assert (load.rate_per_s, load.arrivals, load.max_in_flight, load.engine) == (12.5, "poisson", 7, "fast")
    assert load.describe() == "talkback, 3 connections, 12.5/s (poisson), 5 s after 1 s of warm-up"


@pytest.mark.parametrize("path", sorted(PLANS.glob("*.toml")), ids=lambda path: path.stem)
def test_the_plans_that_ship_can_be_read(path: Path) -> None:
    plan = planfile.read(path, {})
    assert plan.name == path.stem
    for server in plan.servers:
        assert (PLANS / server.cwd).is_dir()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n" + SERVER, "plan.toml:1: 'x' is not a key of a plan; there are name, attach, rounds"),
        (
            "\nconections = 3\n" + SERVER,
            "plan.toml:2: 'conections' is not a key of a plan (did you mean 'connections'?)",
        ),
        ("[[servers]]\nname = 'a'\n", "plan.toml:1: 'servers' is not a key of a plan (did you mean 'server'?)"),
        (
            SERVER + SERVER.replace("name", "nmae"),
            "plan.toml:5: 'nmae' is not a key of [[server]] (did you mean 'name'?)",
        ),
        (SERVER + "[[server]]\nname = 'b'\n", "plan.toml:4: this [[server]] has no command"),
        (SERVER + "attach = 'h:1'\n", "plan.toml:1: this [[server]] has both a command and attach"),
        (SERVER + "rounds = 0\n", "plan.toml:4: 'rounds' is not a key of [[server]]"),
        ("rounds = 0\n" + SERVER, "plan.toml:1: rounds: 0 is not a whole number from 1"),
        ("duration = '5 years'\n" + SERVER, "plan.toml:1: duration: '5 years' is not a length of time; write seconds,"),
        (
            "scenario = 'talkbak'\n" + SERVER,
            "plan.toml:1: scenario: 'talkbak' is not a scenario (did you mean 'talkback'?)",
        ),
        ("pin = '0'\n" + SERVER, "plan.toml:1: pin: '0' is not SERVER_CPUS:LOAD_CPUS; for example 0:1"),
        ("engine = 'quick'\n" + SERVER, "plan.toml:1: engine: 'quick' is not an engine; there are fast, readable"),
        ("rate = 0\n" + SERVER, "plan.toml:1: rate: 0 is not a rate; write a number per second, such as 200 or 0.5"),
        ("rate = 9\nengine = 'readable'\n" + SERVER, "plan.toml: load 'talkback': a rate needs the fast engine"),
        ("rate = 9\narrivals = 'posson'\n" + SERVER, "plan.toml:2: arrivals: 'posson' is not a way to arrive (did you"),
        (SERVER.replace("{port}", "80"), "plan.toml:3: command: 'serve 80' says nowhere which port to serve on"),
        (SERVER + SERVER, "plan.toml: server 'one' is there twice"),
        ("baseline = 'two'\n" + SERVER, "plan.toml: baseline 'two' is not one of the servers: one"),
        ("rounds = 2\n", "plan.toml: nothing to measure: name at least one server"),
        ("rounds = \n", "plan.toml: is not TOML: Invalid value (at line 1, column 10)"),
        ("server = 3\n", "plan.toml:1: write each server under its own [[server]]"),
    ],
)
def test_a_mistake_in_a_plan_is_one_line_that_says_where(tmp_path: Path, text: str, message: str) -> None:
    assert wrong(tmp_path, text).startswith(message)


def test_a_plan_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="cannot read the plan: No such file"):
        planfile.read(tmp_path / "none.toml", {})
    (tmp_path / "latin.toml").write_bytes(b"name = '\xe9'\n")
    with pytest.raises(PlanError, match="not UTF-8 text"):
        planfile.read(tmp_path / "latin.toml", {})


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("10s", 10),
        ("500ms", 0.5),
        ("2m", 120),
        ("1.5", 1.5),
        (3, 3),
        (0, 0),
        ("1h", 3600),
        ("1m30s", 90),
        ("90m", 5400),
        ("1h30m", 5400),
        ("1.5h", 5400),
        ("1h2m3s4ms", 3723.004),
    ],
)
def test_lengths_of_time(written: object, seconds: float) -> None:
    assert values.pause_s(written) == seconds


@pytest.mark.parametrize("written", ["", "-1", "1h30", "30s1m", "1h ", "m", "1e3", "٣", "1d", True, None, -2])
def test_what_is_no_length_of_time(written: object) -> None:
    with pytest.raises(ValueError, match=r"is not a length of time; write seconds, or 500ms, 10s, 1m30s, 2h"):
        values.pause_s(written)


@pytest.mark.parametrize(
    ("seconds", "written"), [(0.5, "0.5s"), (59, "59s"), (90, "1m30s"), (3600, "1h"), (5400, "1h30m"), (3601, "1h1s")]
)
def test_a_length_of_time_is_written_as_it_is_read(seconds: float, written: str) -> None:
    assert values.span(seconds) == written
    assert values.pause_s(written) == seconds


def test_waits_are_for_all_servers_or_for_one_and_flags_win(tmp_path: Path) -> None:
    text = (
        'ready = "2m"\ntimeout = "30s"\n'
        + SERVER
        + 'grace = 0\n[[server]]\nname = "b"\ncommand = "x {port}"\nready = 5\n'
    )
    plan = read(tmp_path, text)
    assert [(server.ready_s, server.grace_s) for server in plan.servers] == [(120, 0), (5, 10)]
    assert plan.loads[0].timeout_s == 30
    assert plan.loads[0].describe().endswith("5 s after 1 s of warm-up, timeout 30 s")
    forced = read(tmp_path, text, ready_s=1.0, grace_s=2.0, timeout_s=3.0)
    assert [(server.ready_s, server.grace_s) for server in forced.servers] == [(1, 2), (1, 2)]
    assert forced.loads[0].timeout_s == 3
    assert wrong(tmp_path, "timeout = 0\n" + SERVER).startswith("plan.toml:1: timeout: 0 is no time to wait")
    assert read(tmp_path, planfile.written(plan)) == plan


def test_a_load_of_a_locustfile(tmp_path: Path) -> None:
    text = SERVER + "[[load]]\nname = 'l'\nlocustfile = 'a/b.py:Shopper'\nconnections = 3\n"
    plan = read(tmp_path, text)
    (load,) = plan.loads
    assert (load.scenario, load.engine) == ("http", "readable")
    assert load.describe() == "Shopper of b.py, 3 users, 5 s after 1 s of warm-up"
    assert read(tmp_path, planfile.written(plan)) == plan
    assert planfile.moved(plan, tmp_path, tmp_path / "run").loads[0].locustfile == "../a/b.py:Shopper"
    assert "scenario tcp is for users of a locustfile" in wrong(tmp_path, "scenario = 'tcp'\n" + SERVER)
    assert "users of a locustfile set their own pace" in wrong(tmp_path, text + "rate = 3\n")


@pytest.mark.parametrize("written", ["localhost", ":80", "::1:80", "h:0", "h:65536", "h:x"])
def test_what_is_no_endpoint(written: str) -> None:
    with pytest.raises(ValueError, match="is not HOST:PORT"):
        values.endpoint(written)


def test_a_load_may_have_its_own_scenario(tmp_path: Path) -> None:
    file = tmp_path / "plan.toml"
    file.write_text(
        textwrap.dedent("""
            scenario = "http"
            [[server]]
            name = "one"
            command = "serve {port}"
            [[load]]
            name = "hello"
            [[load]]
            name = "talk"
            scenario = "websocket"
            path = "/ws"
            message = "binary"
            tls = true
            """)
    )
    hello, talk = planfile.read(file, {}).loads
    assert (hello.scenario, talk.scenario, talk.message) == ("http", "websocket", "binary")
    assert talk.describe().startswith("websocket /ws, 64 bytes of binary, TLS, 64 connections, ")


@pytest.mark.parametrize(
    ("keys", "path", "described"),
    [
        ('path = ["/a"]', "/a", "http GET /a, 64"),
        ('path = ["/"]', "/", "http, 64"),
        ('path = ["/a", "/b"]', ("/a", "/b"), "http GET 2 paths, 64"),
        ('path = "@p.txt"\npath-order = "random"', "@p.txt", "http GET the paths of p.txt at random, 64"),
        ('path = ["/a", "@p", "@q"]', ("/a", "@p", "@q"), "http GET 1 path and the paths of p and the paths of q, 64"),
    ],
)
def test_a_load_of_several_paths(tmp_path: Path, keys: str, path: object, described: str) -> None:
    (load,) = read(tmp_path, SERVER + "[[load]]\nname = 'l'\nscenario = 'http'\n" + keys).loads
    assert load.path == path
    assert load.describe().startswith(described)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("path = []", "[] has no path; write ['/items/1', '/items/2'], or '@FILE'"),
        ("path = ['/a', 'b']", "'b' is not a path"),
        ("path = '@'", "'@' is not a path"),
        ("path = [['/a']]", "['/a'] is not a text"),
        ("path = ['/a']\npath-order = 'any'", "'any' is not an order of paths; there are sequence, random"),
        ("path = ['/a', '/b']\nscenario = 'websocket'", "a WebSocket is opened at one path; several are for http"),
        ("path = '@a'\nscenario = 'websocket'", "a WebSocket is opened at one path; several are for http"),
    ],
)
def test_paths_that_cannot_be_asked_for(tmp_path: Path, keys: str, message: str) -> None:
    with pytest.raises(PlanError, match=re.escape(message)):
        read(tmp_path, SERVER + "[[load]]\nname = 'l'\n" + keys)
