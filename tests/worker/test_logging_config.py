"""--log-config: the application logs as the file says, in each worker, and prefork's own log stays."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.server import run
from tests.support.wait import eventually
from tests.support.web import fetch

if TYPE_CHECKING:
    from tests.conftest import Serve

pytestmark = pytest.mark.slow

APP = """
import logging
log = logging.getLogger("shop.views")
logging.getLogger("shop.views").debug("imported")
class Loud(logging.Formatter):
    def format(self, record): return "LOUD " + super().format(record).upper()
def app(environ, start_response):
    log.debug("asked %s", environ["PATH_INFO"])
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""
AIO = """
import logging
logging.getLogger("shop.views").debug("imported")
async def app(scope, receive, send):
    logging.getLogger("shop.views").debug("asked %s", scope["path"])
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})
"""
INI = """
[loggers]
keys=root,shop
[handlers]
keys=file
[formatters]
keys=line
[logger_root]
level=WARNING
handlers=
[logger_shop]
level=DEBUG
handlers=file
qualname=shop
[handler_file]
class=FileHandler
formatter=line
args=('%(here)s/app.log',)
[formatter_line]
format=one %(name)s %(message)s
"""


def settings(folder: Path, word: str = "one", **more: object) -> dict[str, object]:
    """What logging.config.dictConfig takes."""
    return {
        "version": 1,
        "formatters": {"line": {"format": f"{word} %(name)s %(message)s"}},
        "handlers": {"file": {"class": "logging.FileHandler", "filename": f"{folder}/app.log", "formatter": "line"}},
        "loggers": {"shop": {"level": "DEBUG", "handlers": ["file"]}},
        **more,
    }


def as_toml(folder: Path) -> str:
    lines = ["version = 1", "[formatters.line]", 'format = "one %(name)s %(message)s"', "[handlers.file]"]
    lines += ['class = "logging.FileHandler"', f'filename = "{folder}/app.log"', 'formatter = "line"']
    return "\n".join([*lines, "[loggers.shop]", 'level = "DEBUG"', 'handlers = ["file"]'])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(APP)
    (tmp_path / "aio.py").write_text(AIO)
    return tmp_path


def expect(folder: Path, *lines: str) -> None:
    log = folder / "app.log"
    eventually(lambda: log.exists() and log.read_text().splitlines() == list(lines), within_s=15)


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("log.json", ("shop:app",)),
        ("log.yaml", ("shop:app", "--threads", "2")),
        ("log.toml", ("aio:app",)),
        ("log.INI", ("shop:app",)),
        ("log.json", ("aio:app", "--loop", "asyncio", "--preload")),
    ],
)
def test_the_application_logs_as_the_file_says(serve: Serve, folder: Path, name: str, way: tuple[str, ...]) -> None:
    text = {"toml": as_toml(folder), "INI": INI}.get(name.partition(".")[2]) or json.dumps(settings(folder))  # is YAML
    (folder / name).write_text(text)
    server = serve(*way, "--workers", "1", "--log-config", name, cwd=folder)
    fetch(server, "/a")
    expect(folder, "one shop.views imported", "one shop.views asked /a")
    assert run("check", *way, "--log-config", name, cwd=folder).returncode == 0


def test_preforks_own_log_stays_whatever_the_file_says(serve: Serve, folder: Path) -> None:
    own = {"level": "CRITICAL", "handlers": [], "propagate": True}
    said = settings(folder, disable_existing_loggers=True, root={"level": "DEBUG", "handlers": ["file"]})
    said["loggers"] = {"prefork": own, **said["loggers"]}  # type: ignore[dict-item]
    (folder / "log.json").write_text(json.dumps(said))
    (folder / "shop.py").write_text(f"{APP}\ndef fail(environ, start_response): raise ValueError('x')\n")
    server = serve(
        "shop:fail", "--workers", "1", "--log-config", "log.json", "--log-level", "debug", cwd=folder,
        expect_traceback=True,
    )  # fmt: skip
    fetch(server, "/a")
    server.wait_log(r"ERROR \[worker=0 .*\] handler failed .*error=ValueError")
    assert "handler failed" not in (folder / "app.log").read_text()


def test_a_reload_reads_the_file_again_and_a_mistake_in_it_leaves_the_old_generation(
    serve: Serve, folder: Path
) -> None:
    file = folder / "log.json"
    file.write_text(json.dumps(settings(folder)))
    server = serve("shop:app", "--workers", "1", "--log-config", "log.json", cwd=folder)
    file.write_text(json.dumps(settings(folder, word="two")))
    server.signal(signal.SIGHUP)
    expect(folder, "one shop.views imported", "two shop.views imported")
    server.wait_log("reload finished|reloaded")
    file.write_text("{")
    server.signal(signal.SIGHUP)
    server.wait_log("reload abandoned .*--log-config: 'log.json': ")
    fetch(server, "/b")
    expect(folder, "one shop.views imported", "two shop.views imported", "two shop.views asked /b")


def test_handlers_and_formatters_may_be_the_applications_own(serve: Serve, folder: Path) -> None:
    (folder / "forms.py").write_text(APP)
    (folder / "log.json").write_text(
        json.dumps(settings(folder, formatters={"line": {"class": "forms.Loud", "format": "%(message)s"}}))
    )
    serve("shop:app", "--workers", "1", "--log-config", "log.json", cwd=folder)
    expect(folder, "LOUD IMPORTED")


@pytest.mark.parametrize(
    ("name", "text", "code", "error"),
    [
        ("none.json", None, 2, r"--log-config: 'none.json': cannot read it: No such file or directory"),
        ("log.json", "{", 2, r"--log-config: 'log.json': Expecting property name .*line 1 column 2"),
        ("log.json", "[]", 2, r"--log-config: 'log.json': it has no `version`, which has to be 1"),
        ("log.toml", "version 1", 2, r"--log-config: 'log.toml': .*line 1"),
        ("log.yaml", "a: [", 2, r"--log-config: 'log.yaml': .*line 1"),
        ("log.ini", "version=1", 2, r"--log-config: 'log.ini': .*line: 1"),
        ("log.ini", "[loggers]", 2, r"--log-config: 'log.ini': it has no section \[handlers\]"),
        ("log.txt", "", 2, r"--log-config: 'log.txt': its name has to end in .ini, "),
        ("log.json", '{"version": 1, "handlers": {"h": {"class": "logging.FileHandler", "filename": "/no/such"}}}', 4,
         r"--log-config: 'log.json': Unable to configure handler 'h': .*No such file or directory: '/no/such'"),
        ("log.json", '{"version": 1, "handlers": {"h": {"class": "shop.Missing"}}}', 4,
         r"--log-config: 'log.json': Unable to configure handler 'h': .*Missing"),
        ("log.ini", INI.replace("keys=file", "keys=gone"), 4, r"--log-config: 'log.ini': it has no 'handler_gone'"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(folder: Path, name: str, text: str | None, code: int, error: str) -> None:
    if text is not None:
        (folder / name).write_text(text)
    for command in (("check",), ("serve", "--bind", "127.0.0.1:0")):
        done = run(*command, "shop:app", "--log-config", name, cwd=folder)
        assert done.returncode == code, done.stderr
        (line,) = (line for line in done.stderr.splitlines() if line.startswith("prefork: "))
        assert re.search(error, line), line
        assert "Traceback" not in done.stderr


def test_without_pyyaml_a_line_says_how_to_install_it(folder: Path) -> None:
    (folder / "absent").mkdir()
    (folder / "absent" / "yaml.py").write_text("raise ModuleNotFoundError('yaml')\n")
    (folder / "log.yml").write_text("version: 1\n")
    done = run("check", "hello", "--log-config", "log.yml", cwd=folder, env={"PYTHONPATH": f"{folder}/absent"})
    assert done.returncode == 2
    assert "YAML needs the package PyYAML: pip install 'prefork[yaml]'" in done.stderr
