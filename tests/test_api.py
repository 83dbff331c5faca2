"""`prefork.serve` from Python: scripts of users, run as they are."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.support.client import exchange, talkback_reply
from tests.support.processes import open_fds
from tests.support.server import clean_environment
from tests.support.wait import eventually
from tests.support.web import Browser

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Serve
    from tests.support.server import RunningServer

    Start = Callable[..., RunningServer]

pytestmark = pytest.mark.slow

MISTAKE = """
import prefork
try:
    prefork.serve({arguments})
except prefork.PreforkError as error:
    print(type(error).__name__, error.exit_code, error, sep="|")
"""


@pytest.fixture
def start(serve: Serve, tmp_path: Path) -> Start:
    """Run a script that serves, and wait until it does."""

    def run_script(source: str, **kwargs: object) -> RunningServer:
        (tmp_path / "script.py").write_text(source)
        return serve(wrapper=[sys.executable, str(tmp_path / "script.py")], bind=None, cwd=tmp_path, **kwargs)

    return run_script


def output(tmp_path: Path, source: str) -> str:
    """Run a script to its end and return what it printed."""
    (tmp_path / "script.py").write_text(source)
    done = subprocess.run(
        [sys.executable, "script.py"], capture_output=True, text=True, timeout=20, check=False, cwd=tmp_path,
        env=clean_environment({"PREFORK_CONTROL": "none"}),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def mistake(tmp_path: Path, arguments: str, before: str = "") -> str:
    return output(tmp_path, f"import sys\n{before}\n" + MISTAKE.format(arguments=arguments)).strip()


def test_a_function_is_served_and_the_script_goes_on_afterwards(start: Start) -> None:
    server = start(
        """
import os, signal, prefork
mine = signal.signal(signal.SIGUSR1, lambda *_: print("mine", flush=True))
before = (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT), os.getcwd(), os.umask(0o022))
CALLER = os.getpid()
def handle(conn):
    conn.sendall(f"{CALLER} {os.getppid()} {PREPARED}".encode())
PREPARED = "before the fork"
code = prefork.serve(handle, workers=2, bind="127.0.0.1:0", graceful_timeout="10s", timeout=20, umask=0o027, chdir="/")
after = (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT), os.getcwd(), os.umask(0o022))
os.kill(os.getpid(), signal.SIGUSR1)
print("returned", code, before == after, flush=True)
"""
    )
    assert exchange(server.address, b"") == f"{server.pid} {server.pid} before the fork".encode()
    assert len(server.worker_pids()) == 2
    assert server.stop() == 0
    assert server.log.endswith("mine\nreturned 0 True\n")


def test_a_text_names_the_app_as_on_the_command_line(start: Start, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text("def handle(conn): conn.sendall(b'open')")
    server = start("import prefork\nprefork.serve('shop:handle', workers=1, bind=['127.0.0.1:0'])")
    assert exchange(server.address, b"") == b"open"
    (tmp_path / "shop.py").write_text("def handle(conn): conn.sendall(b'closed now')")
    server.signal(signal.SIGHUP)
    server.wait_log("reloaded generation=2")
    assert exchange(server.address, b"") == b"closed now"


def test_a_reload_of_a_function_forks_again_and_imports_nothing(start: Start) -> None:
    server = start(
        """
import os, prefork
print("IMPORTED", flush=True)
class Shop:
    def __call__(self, conn): conn.sendall(os.environ["PREFORK_GENERATION"].encode())
prefork.serve(Shop(), workers=2, bind="127.0.0.1:0")
"""
    )
    assert exchange(server.address, b"") == b"1"
    server.signal(signal.SIGHUP)
    server.wait_log("reloaded generation=2")
    assert exchange(server.address, b"") == b"2"
    assert server.log.count("IMPORTED") == 1


def test_a_function_cannot_be_upgraded_by_exec(start: Start) -> None:
    server = start("import prefork\nprefork.serve(lambda conn: conn.sendall(b'x'), workers=1, bind='127.0.0.1:0')")
    server.signal(signal.SIGUSR2)
    server.wait_log("upgrade refused|cannot upgrade")
    assert exchange(server.address, b"") == b"x"


def test_a_file_the_environment_and_arguments_have_the_same_order_as_for_the_command(
    start: Start, tmp_path: Path
) -> None:
    (tmp_path / "p.toml").write_text("app = 'echo'\nworkers = 7\nthreads = 5\nbind = '127.0.0.1:0'\nbacklog = 64\n")
    server = start(
        """
import prefork
from pathlib import Path
prefork.serve(workers=1, config=Path("p.toml"))
""",
        env={"PREFORK_THREADS": "2", "PREFORK_WORKERS": "9"},
    )
    server.wait_log("ready workers=1 ")
    assert exchange(server.address, b"twice\n", half_close=True) == b"twice\n"


def test_it_can_serve_again_and_leaves_no_descriptor(tmp_path: Path) -> None:
    said = output(
        tmp_path,
        """
import os, signal, prefork
from pathlib import Path
def stop(conn): os.kill(os.getppid(), signal.SIGTERM)
Path("hooks.py").write_text("import os, signal\\ndef worker_started(w): os.kill(os.getppid(), signal.SIGTERM)")
def count(): return len(os.listdir("/proc/self/fd"))
def once(): return prefork.serve(stop, workers=2, bind="127.0.0.1:0", hooks="hooks.py", pid="pid", log="log")
first, before, second, after = once(), count(), once(), count()
print(first, second, after - before, os.path.exists("pid"))
""",
    )
    assert said == "0 0 0 False\n"
    assert (tmp_path / "log").read_text().count("stopped uptime=") == 2


def test_an_app_that_cannot_be_served_is_an_exception_of_the_same_code(tmp_path: Path) -> None:
    assert mistake(tmp_path, "'talkbak', workers=1, bind='127.0.0.1:0'").startswith(
        "AppLoadError|4|cannot load 'talkbak'"
    )
    assert mistake(tmp_path, "lambda: 0").startswith("AppLoadError|4|cannot tell what '__main__:<lambda>' is")
    assert mistake(tmp_path, "bind='unix:/no/such/folder/s'").startswith("BindError|5|cannot bind unix:/no/such")


MISTAKES = {
    "wokers=4": "serve() has no option 'wokers'; did you mean 'workers'?",
    "workers=0": "serve(workers=0): '0' is too small: at least 1; give a number from 1 up, or auto",
    "workers=True": "serve(workers=True): give a number or a string",
    "timeout='soon'": "serve(timeout='soon'): 'soon' is not a duration: plain seconds, or 500ms, 10s, 2m, 1h",
    "bind=[1]": "serve(bind=[1]): give a string, or several in an array",
    "preload='yes'": "serve(preload='yes'): give true or false",
    "42": "serve(): 42 is not callable, nor the text that names an app",
    "print, preload=True": "serve(preload=): preload imports the app, so serve() needs its name, not the object",
    "print, reload=True": "serve(reload=): reload imports the app, so serve() needs its name, not the object",
    "print, factory=True": "serve(factory=): factory imports the app, so serve() needs its name, not the object",
    "config='none.toml'": "cannot read 'none.toml': No such file or directory",
    "chdir='/no/such/folder'": "serve(chdir=): cannot change to '/no/such/folder': No such file or directory",
}


def test_a_mistake_is_one_sentence(tmp_path: Path) -> None:
    calls = "\n".join(MISTAKE.format(arguments=arguments) for arguments in MISTAKES)
    said = output(tmp_path, f"import sys\n{calls}").splitlines()
    assert said == [f"ConfigError|2|{sentence}" for sentence in MISTAKES.values()]


def test_threads_that_would_be_lost_are_named(tmp_path: Path) -> None:
    threads = (
        "import threading\nstop = threading.Event()\n"
        "for name in ('metrics', 'cache'): threading.Thread(target=stop.wait, name=name, daemon=True).start()"
    )
    said = mistake(tmp_path, "", threads)
    assert said.startswith("ConfigError|2|serve() forks, and these threads run")
    assert "'metrics', 'cache'" in said


def test_it_needs_the_main_thread(tmp_path: Path) -> None:
    said = output(
        tmp_path,
        """
import threading, prefork
def elsewhere():
    try:
        prefork.serve()
    except prefork.PreforkError as error:
        print(error)
thread = threading.Thread(target=elsewhere, name="side")
thread.start()
thread.join()
""",
    )
    assert said == "serve() was called in the thread 'side': it needs the main thread, for its signals\n"


def test_it_does_not_run_within_an_event_loop(tmp_path: Path) -> None:
    said = output(
        tmp_path,
        """
import asyncio, prefork
async def main():
    try:
        prefork.serve()
    except prefork.PreforkError as error:
        print(error)
asyncio.run(main())
""",
    )
    assert said.startswith("serve() was called from a coroutine")


def test_the_package_offers_little_and_loads_it_late(tmp_path: Path) -> None:
    said = output(
        tmp_path,
        "import sys, prefork\n"
        "print(sorted(prefork.__all__), 'prefork.master.loop' in sys.modules, prefork.serve.__name__)\n"
        "try: prefork.serv\n"
        "except AttributeError as error: print(error)\n",
    )
    names = "['PreforkError', '__version__', 'serve']"
    assert said == f"{names} False serve\nmodule 'prefork' has no attribute 'serv'\n"


def test_a_worker_never_returns_into_the_script(start: Start) -> None:
    server = start(
        """
import atexit, os, prefork
atexit.register(lambda: print("AT EXIT OF", os.getpid(), flush=True))
try:
    prefork.serve("talkback", workers=3, bind="127.0.0.1:0")
finally:
    print("FINALLY OF", os.getpid(), flush=True)
"""
    )
    assert exchange(server.address) == talkback_reply(b"hello")
    victim = min(server.worker_pids())
    os.kill(victim, signal.SIGKILL)
    server.wait_workers(3, without={victim})
    assert all(target != "script.py" for target in open_fds(server.pid).values())
    server.stop()
    assert server.log.count("FINALLY OF") == server.log.count("AT EXIT OF") == 1
    assert f"AT EXIT OF {server.pid}" in server.log


IMPATIENT = """
import socket
socket.setdefaulttimeout(5)  # as for its own clients
import prefork
{app}
prefork.serve(app, workers=2, bind="127.0.0.1:0")
"""
OF_WSGI = """
def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "2")])
    return [b"hi"]
"""
OF_ASGI = """
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        for phase in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{phase}.complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"hi"})
"""


@pytest.mark.parametrize("app", [OF_WSGI, OF_ASGI], ids=["wsgi", "asgi"])
def test_a_default_timeout_of_sockets_cuts_nobody_off(start: Start, app: str) -> None:
    server = start(IMPATIENT.replace("{app}", app))
    with ExitStack() as stack:
        browsers = [stack.enter_context(Browser(server)) for _ in range(20)]
        assert [browser.get("/").status for browser in browsers] == [200] * 20
        server.signal(signal.SIGHUP)
        for _ in range(3):  # while they change hands
            assert [browser.get("/").closes for browser in browsers] == [False] * 20
        server.wait_log("reloaded generation=2")
        assert [browser.get("/").closes for browser in browsers] == [False] * 20
        server.signal(signal.SIGTERM)
        for browser in browsers:
            eventually(lambda each=browser: each.get("/").closes, within_s=5, what="a last answer")
            assert browser.ended()
    assert server.wait_exit() == 0
    assert "worker died" not in server.log
    server.wait_log(r"stopped .*accepted=20 closed=20 cut=0 ")
