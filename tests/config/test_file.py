"""The configuration file: what it gives, and that each mistake names file, line and what to do."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.config.config import configure, read
from prefork.config.options import OPTIONS
from prefork.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TEXT_OPTIONS = sorted(option.name for option in OPTIONS if not option.switch)


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str | bytes], str]:
    """Write prefork.toml and return its path."""

    def write(text: str | bytes) -> str:
        path = tmp_path / "prefork.toml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return str(path)

    return write


def complaint(path: str) -> str:
    with pytest.raises(ConfigError) as caught:
        configure(None, {}, path, {})
    assert caught.value.exit_code == 2
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_each_key_gives_its_value_and_its_line(file: Callable[[str], str]) -> None:
    path = file(
        """# how this service runs
app = "echo"

workers = 3
bind = [
    "127.0.0.1:0",  # where clients come in
    "unix:/run/app.sock",
]
graceful_timeout = 2.5
idle-timeout = "2m"
max-memory = 1048576
preload = true
user = 65534
hooks = '''
some_module'''
"""
    )
    config = configure(None, {}, path, {})
    assert (config.app, config.workers, config.graceful_timeout_s, config.idle_timeout_s) == ("echo", 3, 2.5, 120)
    assert (config.max_memory, config.preload, config.user, config.hooks) == (1 << 20, True, "65534", "some_module")
    assert [str(address) for address in config.bind] == ["127.0.0.1:0", "unix:/run/app.sock"]
    lines = {name: source.removeprefix(path + ":") for name, source in config.sources.items() if source != "default"}
    assert lines == {
        "app": "2", "workers": "4", "bind": "5", "graceful-timeout": "9", "idle-timeout": "10", "max-memory": "11",
        "preload": "12", "user": "13", "hooks": "14",
    }  # fmt: skip


def test_a_file_is_read_only_if_it_is_named(
    file: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file("workers = 77")
    monkeypatch.chdir(tmp_path)
    assert configure(None, {}, None, {}).sources["workers"] == "default"
    assert configure(None, {}, "prefork.toml", {}).sources["workers"] == "prefork.toml:1"


def test_an_empty_file_gives_nothing(file: Callable[[str], str]) -> None:
    assert read(file("\n# nothing\n")) == {}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("wokers = 4", "1: there is no option 'wokers'; did you mean 'workers'?"),
        ("app = 'x'\n\ntime_out = 4", "3: there is no option 'time_out'; did you mean 'timeout'?"),
        ("zzz = 4", "1: there is no option 'zzz'; `prefork config` lists all"),
        ("\n\nworkers = true", "3: workers is a boolean; give a number or a string"),
        ("preload = 'yes'", "1: preload is a string; give true or false"),
        ("reload = 1", "1: reload is a number; give true or false"),
        ("bind = 1935", "1: bind is a number; give a string, or several in an array"),
        ("bind = ['127.0.0.1:0', 1]", "1: bind is an array that holds a number; give a string, or several in an array"),
        ("bind = []", "1: bind: it is empty"),
        ("umask = 27", "1: umask is a number; give a string"),
        ("timeout = 1979-05-27", "1: timeout is a date or a time; give a number or a string"),
        ("# first\ntimeout = inf", "2: timeout: 'inf' is not a duration"),
        ("workers = 0", "1: workers: '0' is too small: at least 1"),
        ("log_level = 'loud'", "1: log_level: 'loud' is not one of debug, "),
        ("app = ''", "1: app: it is empty; give module:attribute"),
        ("[server]\nworkers = 4", "1: server is a table; options stand at the top level, as `workers = 4`"),
        ("server.workers = 4", "1: server is a table; options stand at the top level"),
        ("threads = 2\nthreads = 3", "2: this is not TOML: Cannot overwrite a value"),
        ("graceful-timeout = 1\n\ngraceful_timeout = 2", "3: graceful-timeout was given before, at "),
        ("threads = 2\nworkers 4", "2: this is not TOML: "),
        ("threads = 2\nbind = [\n  'x',", "3: this is not TOML: "),
        ("threads = " + "9" * 5000, "1: "),
        ("worker_class = 'uvloop'", "1: No such option --worker-class (gunicorn, hypercorn). Not needed: APP shows"),
        ("threads = 2\nlimit_max_requests = 9", "2: No such option --limit-max-requests (uvicorn). Use --max-requests"),
        ("bind = " + "[" * 5000, "1: this is not TOML: "),
    ],
)  # fmt: skip
def test_a_mistake_names_its_line(file: Callable[[str], str], text: str, sentence: str) -> None:
    path = file(text)
    assert complaint(path).startswith(f"{path}:{sentence}")


# --- pyproject.toml


PYPROJECT = """[project]
name = "shop"
dependencies = [
    "prefork",  # [tool.prefork]
]

[tool]
ruff.line-length = 120

[tool.prefork]
app = "shop:app"
workers = 3
bind = [
    "127.0.0.1:0",
]

[[tool.mypy.overrides]]
workers = 77

[tool.prefork-of-another]
workers = 88
"""


@pytest.fixture
def pyproject(tmp_path: Path) -> Callable[[str], str]:
    """Write pyproject.toml and return its path."""

    def write(text: str) -> str:
        (tmp_path / "pyproject.toml").write_text(text)
        return str(tmp_path / "pyproject.toml")

    return write


def test_the_table_of_a_pyproject_gives_its_values_and_their_lines(pyproject: Callable[[str], str]) -> None:
    path = pyproject(PYPROJECT)
    config = configure(None, {}, path, {})
    lines = {name: source.removeprefix(path + ":") for name, source in config.sources.items() if source != "default"}
    assert lines == {"app": "11", "workers": "12", "bind": "13"}
    assert (config.app, config.workers) == ("shop:app", 3)


@pytest.mark.parametrize(
    "text",
    ["[tool]\nprefork.workers = 3", "tool.prefork.workers = 3", "[tool]\nprefork = {workers = 3}",
     "[ tool . 'prefork' ] # ours\nworkers = 3", "[tool.prefork]\n[tool.x]\nworkers = 4\n[tool.y]\n[a.tool.prefork]\n"],
    ids=["dotted", "dotted-from-the-top", "inline", "odd-header", "empty"],
)  # fmt: skip
def test_the_table_may_be_written_in_every_way_of_toml(pyproject: Callable[[str], str], text: str) -> None:
    found = {name: setting.raw for name, setting in read(pyproject(text)).items()}
    assert found == ({} if "[tool.prefork]" in text else {"workers": "3"})


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[project]\nname = 'x'", " it has no table [tool.prefork], where options stand, as `workers = 4`"),
        ("[tool]\nprefork = 4", " it has no table [tool.prefork]"),
        ("[[tool.prefork]]\nworkers = 4", " it has no table [tool.prefork]"),
        ("workers = 4", " it has no table [tool.prefork]"),
        ("[tool.prefork]\n\nwokers = 4", "3: there is no option 'wokers'; did you mean 'workers'?"),
        ("[tool.prefork]\nbind = [\n]\nworkers = 0", "2: bind: it is empty"),
        ("[tool.prefork]\nworkers = 0", "2: workers: '0' is too small: at least 1"),
        ("[tool.prefork.http]\nx = 4", "1: http is a table; options stand in [tool.prefork], as `workers = 4`"),
        ("[tool.prefork]\nkeep-alive = 1\nkeep_alive = 2", "3: keep-alive was given before, at "),
        ("[tool.prefork]\nx", "2: this is not TOML: "),
    ],
)  # fmt: skip
def test_a_mistake_in_a_pyproject_names_its_line(pyproject: Callable[[str], str], text: str, sentence: str) -> None:
    path = pyproject(text)
    assert complaint(path).startswith(f"{path}:{sentence}")


def test_a_file_in_python_is_said_to_be_one(tmp_path: Path) -> None:
    path = tmp_path / "gunicorn.conf.py"
    path.write_text("import os\nworkers = os.cpu_count()\n")
    assert complaint(str(path)).startswith(f"{path}: this is Python, and options stand in TOML, as `workers = 4`")


def test_a_file_that_cannot_be_read_is_named(file: Callable[[str | bytes], str], tmp_path: Path) -> None:
    assert complaint(str(tmp_path / "none.toml")) == f"cannot read '{tmp_path}/none.toml': No such file or directory"
    assert complaint(str(tmp_path)) == f"cannot read '{tmp_path}': Is a directory"
    assert complaint(file(b"app = '\xff'")).endswith("it is not text in UTF-8")
    assert "cannot read" in complaint("a\0b")


@pytest.mark.parametrize("from_environment", [False, True], ids=["flag", "variable"])
def test_a_relative_path_starts_in_the_folder_of_chdir(
    file: Callable[[str], str], tmp_path: Path, from_environment: bool
) -> None:
    file("workers = 77")
    flags = {} if from_environment else {"chdir": str(tmp_path)}
    environ = {"PREFORK_CHDIR": str(tmp_path)} if from_environment else {}
    config = configure(None, flags, "prefork.toml", environ)
    assert (config.workers, config.sources["workers"]) == (77, "prefork.toml:1")


@given(name=st.sampled_from(TEXT_OPTIONS), text=st.text(st.characters(exclude_categories=["Cs"]), max_size=12))
def test_any_string_is_either_taken_or_refused_in_one_sentence_with_its_line(
    tmp_path_factory: pytest.TempPathFactory, name: str, text: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_text(
        f"threads = 1\n{name} = {json.dumps(text)}\n" if name != "threads" else f"\nthreads = {json.dumps(text)}\n"
    )
    try:
        configure(None, {}, str(path), {})
    except ConfigError as error:
        assert re.match(rf"{re.escape(str(path))}:2: ", str(error))  # noqa: PT017 - it may as well be taken
