"""A user class of a team's own locustfile as the load of a run."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.loadtest.locust_process import LOCUSTFILE, Generator
from tests.loadtest.records import rounds_in
from tests.loadtest.stand_in import web

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.loadtest.lab import Lab
    from tests.loadtest.stand_in import Behaviour, StandIn

pytestmark = pytest.mark.slow

# As a team would write it: a login, two requests with weights, one of which sometimes fails, a data file of the current
# folder, options and a shape that the lab has its own idea of.
SHOP = """
    import random
    from locust import FastHttpUser, HttpUser, LoadTestShape, User, constant, task

    NUMBERS = open("numbers.txt").read().split()
    print("a locustfile may print")

    class Shopper(FastHttpUser):
        host = "http://127.0.0.1:1"
        wait_time = constant(0.01)

        def on_start(self):
            self.token = self.client.post("/login", json={"user": "one"}).json()["token"]

        @task(3)
        def browse(self):
            number = random.choice(NUMBERS)
            self.client.get(f"/items/{number}", name="/items/[number]", headers={"X-Token": self.token})

        @task(1)
        def buy(self):
            with self.client.post("/buy", headers={"X-Token": self.token}, catch_response=True) as response:
                if response.text == "sold out":
                    response.failure("sold out")

    class Visitor(HttpUser):
        wait_time = constant(0.01)
        fixed_count = 1

        @task
        def look(self):
            self.client.get("/nothing")
            self.client.get("http://127.0.0.1:1/", name="nobody")

    class WebUser(User):  # the lab has a class of that name, too
        wait_time = constant(0.01)

        @task
        def think(self):
            assert self.host.startswith("tcp://127.0.0.1:"), self.host
            fire = self.environment.events.request.fire
            fire(request_type="X", name="x", response_time=3.5, response_length=0, exception=None, context={})

    class Shape(LoadTestShape):
        def tick(self):
            return 1, 1
"""
SHOP_SERVER = """
    import itertools, json, os, sys
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
    bought = itertools.count(1)
    seen = os.open("seen", os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_TRUNC)
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1
        def answer(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.path == "/login":
                status, body = 200, b'{"token": "secret"}'
            elif self.headers.get("X-Token") != "secret":
                status, body = 404, b""
            else:
                status, body = 200, b"sold out" if self.path == "/buy" and next(bought) % 20 == 0 else b"yes"
            os.write(seen, f"{self.command} {self.path} {status}\\n".encode())
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        do_GET = do_POST = answer
        def log_message(self, *_):
            pass
    class Server(ThreadingHTTPServer):
        request_queue_size = 100
    Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
QUICK = ("--rounds", "1", "--duration", "1", "--warmup", "0.5", "--connections", "6")


@pytest.fixture
def shop(lab: Lab) -> str:
    """The server's flag; the locustfile is shop.py in the folder of the lab."""
    (lab.folder / "numbers.txt").write_text("1 2 3")
    lab.script("shop.py", SHOP)
    return f"shop={{python}} {lab.script('server.py', SHOP_SERVER)} {{port}}"


@pytest.mark.parametrize("generators", [1, 2])
def test_users_log_in_and_send_several_requests_by_weight(lab: Lab, shop: str, generators: int) -> None:
    load = ("--locustfile", "shop.py:Shopper", "--generators", str(generators))
    done = lab.run("--server", shop, *load, *QUICK, "--duration", "3")
    *_, kept = lab.rounds()  # with that many failures a round is measured again
    assert kept["error"] == "", done.stderr
    client = kept["client"]
    assert (client["connections"], client["scenario"]) == (6, "Shopper")
    assert client["generator"]["engine"] == "readable"
    seen = (lab.folder / "seen").read_text().splitlines()
    assert seen[0] == "GET / 404"  # the server is ready: it answers, and what, is none of the lab's business
    assert seen[1:].count("POST /login 200") == 6
    browsed = sum(line.startswith("GET /items/") and line.endswith(" 200") for line in seen)
    bought = seen.count("POST /buy 200")
    assert 1.8 < browsed / bought < 5
    assert len(seen) == 1 + 6 + browsed + bought
    sent = client["completed"] + sum(client["failures"].values())
    outside = sum(client["outside"].values())
    assert sent + outside == len(seen) - 1
    assert 0 < sent < outside * 20
    assert set(client["failures"]) == {"sold out"}
    assert client["failures"]["sold out"] == pytest.approx(bought / 20, rel=0.7, abs=2)
    assert len(client["generator"]["processes"]) == generators
    several = ", 2 generators" if generators == 2 else ""
    assert f"plan Shopper: Shopper of shop.py, 6 users, 3 s after 0.5 s of warm-up{several}\n" in done.stdout
    assert "/items/[number]" in (lab.out / "logs" / "000" / "generator.log").read_text()


def test_failures_of_users_are_named_like_those_of_the_labs_own(lab: Lab, shop: str) -> None:
    lab.run("--server", shop, "--locustfile", "shop.py:Visitor", *QUICK)
    *_, kept = lab.rounds()
    assert kept["client"]["connections"] == 6
    failures = kept["client"]["failures"]
    assert set(failures) == {"status 404", "refused"}
    assert min(failures.values()) > 20


def test_users_that_are_no_http_users_get_the_address_and_the_server_is_not_asked(lab: Lab, shop: str) -> None:
    done = lab.run("--server", shop, "--locustfile", "shop.py:WebUser", *QUICK)
    *_, kept = lab.rounds()
    assert kept["error"] == "", done.stderr
    assert kept["client"]["latency"]["max_ns"] == pytest.approx(3.5e6, rel=0.01)
    assert (lab.folder / "seen").read_text() == ""
    assert 'scenario = "tcp"\nlocustfile = "../shop.py:WebUser"\n' in (lab.out / "plan.toml").read_text()


def test_a_plan_names_its_locustfile_from_its_own_folder_and_its_copy_runs_again(lab: Lab, shop: str) -> None:
    (lab.folder / "plans").mkdir()
    (lab.folder / "shop.py").rename(lab.folder / "plans" / "one.py")
    plan = lab.script(
        "plans/plan.toml",
        f"""
        locustfile = "one.py:Shopper"
        connections = 2
        rounds = 1
        duration = 0.5
        warmup = 0.2
        [[server]]
        name = "shop"
        command = "{shop.partition("=")[2]}"
        """,
    )
    lab.run(str(plan))
    assert 'locustfile = "../plans/one.py:Shopper"' in (lab.out / "plan.toml").read_text()
    lab.run(str(lab.out / "plan.toml"))
    kept = rounds_in(lab.out)
    assert {one["cycle"] for one in kept} == {0, 1}
    assert {one["error"] for one in kept} == {""}


@pytest.mark.parametrize(
    ("source", "flags", "said"),
    [
        (SHOP, ["x.py"], "x.py has several user classes; write one: x.py:Shopper, x.py:Visitor, x.py:WebUser"),
        (SHOP, ["x.py:Shoper"], "no user class 'Shoper' (did you mean 'Shopper'?); there are Shopper, Visitor"),
        ("import nothing_like_this", ["x.py"], "x.py cannot be loaded: ModuleNotFoundError: No module named"),
        ("import sys\nsys.exit('no licence')", ["x.py"], "x.py cannot be loaded: SystemExit: no licence (line 2)"),
        ("import os\nos._exit(7)", ["x.py"], "x.py cannot be loaded: its import ended with status 7"),
        ("def (", ["x.py"], "x.py cannot be loaded: SyntaxError: invalid syntax"),
        ("x = 1", ["x.py"], "locustfile x.py has no user class that is not abstract"),
        (SHOP, ["y.py"], "locustfile y.py: no such file"),
        (SHOP, ["x.py:Shopper", "--rate", "5"], "users of a locustfile set their own pace; leave out rate"),
        (SHOP, ["x.py:Shopper", "--engine", "fast"], "a locustfile has users of its own; leave out engine = 'fast'"),
        (SHOP, ["x.py:Shopper", "--scenario", "nap"], "have a scenario of their own; leave out 'nap'"),
        (SHOP, ["x.txt"], "'x.txt' is not a locustfile; write FILE.py, or FILE.py:Class for one of its classes"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_one_line_before_anything_starts(
    lab: Lab, source: str, flags: list[str], said: str
) -> None:
    (lab.folder / "numbers.txt").write_text("1")
    lab.script("x.py", source)
    done = lab.run("--server", "x=touch {port}", "--locustfile", *flags, *QUICK)
    assert done.returncode == 2
    assert said in done.stderr.splitlines()[-1]
    assert not lab.out.exists()


def test_http_users_cannot_go_to_a_unix_socket(lab: Lab, shop: str) -> None:
    done = lab.run("--server", "u=x {unix}", "--server", shop, "--locustfile", "shop.py:Shopper", *QUICK)
    assert done.returncode == 2
    assert "server 'u' is on a Unix socket, where locust's HTTP users cannot go" in done.stderr.splitlines()[-1]


def test_a_flag_names_a_file_from_the_current_folder_whatever_the_plan(lab: Lab, shop: str) -> None:
    done = lab.run("demo", "--locustfile", "shop.py:Shopper", *QUICK, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "Shopper of shop.py, 6 users" in done.stdout


def test_a_class_that_is_alone_needs_no_name(lab: Lab, shop: str) -> None:
    only = lab.folder / "only.py"
    only.write_text(re.sub(r"class Visitor.*", "", (lab.folder / "shop.py").read_text(), flags=re.DOTALL))
    done = lab.run("--server", shop, "--locustfile", "only.py", *QUICK, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "load only: Shopper of only.py, 6 users" in done.stdout


def test_by_hand_a_file_beside_the_labs_own_has_its_users_and_their_host(
    generate: Callable[..., Generator], stand_in: Callable[[Behaviour], StandIn], tmp_path: Path
) -> None:
    beside = tmp_path / "beside.py"
    beside.write_text(
        "from locust import FastHttpUser, constant, task\n"
        "class Visitor(FastHttpUser):\n    wait_time = constant(0.01)\n    protocol = 3\n"
        "    @task\n    def look(self):\n        self.client.get('/')\n"
    )
    server = stand_in(web)
    address = f"http://{server.address}"
    made = generate(
        "--host", address, "--users", "2", "--run-time", "1s", "Visitor", locustfile=f"{LOCUSTFILE},{beside}"
    )
    result = made.wait().result()
    assert result["scenario"] == "Visitor"
    assert 0 < result["completed"] <= server.answered
