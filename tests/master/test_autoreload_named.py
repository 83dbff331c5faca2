"""--reload-dir, --reload-include, --reload-exclude: which files count, and that their changes reload."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from prefork.config.config import configure
from prefork.errors import ConfigError
from prefork.master.autoreload import Named
from tests.support.client import exchange
from tests.support.server import run
from tests.support.wait import eventually

if TYPE_CHECKING:
    from tests.conftest import Serve

pytestmark = pytest.mark.slow

FILES = (
    "app.py", "a.html", ".env", ".hidden.py", "pages/b.html", "pages/deep/c.html", "pages/c.txt", "build/d.html",
    ".git/e.py", "__pycache__/f.py", "node_modules/x/g.html", "tests/h.py",
)  # fmt: skip
RELOADED_S = 20.0
APP = "def handle(conn): conn.sendall(open('pages/a.html', 'rb').read())\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def named(**flags: object) -> Named:
    given = {name.replace("_", "-"): value for name, value in flags.items()}
    return Named.of(configure("talkback", {"reload": "yes", **given}, None, {}))


def found(**flags: object) -> set[str]:
    return {os.path.relpath(path) for path in named(**flags).changes()}


@pytest.mark.parametrize(
    ("flags", "files"),
    [
        ({}, set()),
        ({"reload_dir": "."}, {"app.py", "tests/h.py"}),
        ({"reload_dir": ("pages", "tests")}, {"tests/h.py"}),
        ({"reload_dir": "pages", "reload_include": "*.html"}, {"pages/b.html", "pages/deep/c.html"}),
        ({"reload_include": "pages/*.*", "reload_exclude": "*.py"}, {"pages/b.html", "pages/c.txt"}),
        ({"reload_include": ("*.html", ".env"), "reload_exclude": ("node_modules", "build", "*.py")},
         {"a.html", ".env", "pages/b.html", "pages/deep/c.html"}),
        ({"reload_include": "*", "reload_exclude": ("node_modules", "*/deep", "tests/*.py")},
         {"app.py", "a.html", "pages/b.html", "pages/c.txt", "build/d.html"}),
        ({"env_file": ".env", "log_config": "a.html"}, {".env", "a.html"}),
    ],
)  # fmt: skip
def test_which_files_count(folder: Path, flags: dict[str, object], files: set[str]) -> None:
    assert found(**flags) == files


def test_what_is_new_or_changed_is_told_once(folder: Path) -> None:
    watched = named(reload_dir=".", reload_include="*.html")
    watched.changes()
    assert watched.changes() == []
    (folder / "new").mkdir()
    (folder / "new" / "i.html").write_text("")
    os.utime("app.py", ns=(1, 1))
    assert [os.path.relpath(path) for path in watched.changes()] == ["app.py", "new/i.html"]
    assert str(folder / "new") in watched.watched
    (folder / "app.py").unlink()
    assert watched.changes() == []


def test_what_is_excluded_is_so_with_all_in_it_but_only_below_the_current_folder(folder: Path) -> None:
    watched = named(reload_exclude=("tests", "*.txt", folder.name))
    told = {name: watched.excluded(str(folder / name)) for name in ("tests/h.py", "tests/a/b.py", "b.txt", "app.py")}
    assert told == {"tests/h.py": True, "tests/a/b.py": True, "b.txt": True, "app.py": False}


def test_a_folder_that_is_none(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--reload-dir: there is no folder 'nowhere'$"):
        named(reload_dir="nowhere")


@pytest.mark.parametrize("name", ["reload-dir", "reload-include", "reload-exclude"])
def test_they_are_for_reload(folder: Path, name: str) -> None:
    done = run("serve", f"--{name}", "pages", cwd=folder)
    assert done.returncode == 2
    assert done.stderr == f"prefork: --{name}: it says what --reload watches, and there is no --reload\n"


def test_a_template_and_the_environment_file_reload_and_what_is_excluded_does_not(serve: Serve, folder: Path) -> None:
    (folder / "main.py").write_text(f"import tests.h\n{APP}")
    (folder / "pages" / "a.html").write_text("one")
    server = serve(
        "main:handle", "--reload", "--env-file", ".env", "--reload-include", "*.html", "--reload-exclude", "build",
        "--reload-exclude", "tests", cwd=folder,
    )  # fmt: skip
    assert exchange(server.address, b"") == b"one"
    for generation, name in enumerate(("pages/a.html", "pages/deep/new/d.html", ".env"), 2):
        (folder / "build" / "d.html").write_text(name)
        (folder / "tests" / "h.py").write_text(f"# {name}\n")
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(f"A={generation}\n")
        server.wait_log(f"changed file={name}$", within_s=RELOADED_S)
        server.wait_log(f"reloaded generation={generation}", within_s=RELOADED_S)
    assert exchange(server.address, b"") == b"A=2\n"
    assert "build" not in server.log
    assert "h.py" not in server.log


def test_a_folder_may_go_and_come_back(serve: Serve, folder: Path) -> None:
    (folder / "main.py").write_text(APP)
    (folder / "pages" / "a.html").write_text("one")
    server = serve("main:handle", "--reload", "--reload-dir", "pages", "--reload-include", "*.html", cwd=folder)
    (folder / "pages").rename(folder / "away")
    (folder / "pages").mkdir()
    (folder / "pages" / "a.html").write_text("two")
    server.wait_log("changed file=pages/a.html", within_s=RELOADED_S)
    eventually(lambda: exchange(server.address, b"") == b"two", within_s=RELOADED_S)
