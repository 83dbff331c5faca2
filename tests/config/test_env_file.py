r"""--env-file: what a file of KEY=VALUE sets, what wins over it, and what a mistake in it is told."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.config.config import Setting, configure
from prefork.config.env_file import read
from prefork.errors import ConfigError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / ".env"


def values(file: Path, text: str, **environ: str) -> dict[str, str]:
    file.write_text(text)
    return {name: str(value) for name, value in read(str(file), "--env-file", environ).items()}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("A=b", "b"),
        ("  export\tA =  b c  ", "b c"),
        ("A=", ""),
        ("A='' # none", ""),
        ("A=b # comment", "b"),
        ("A=b#c", "b#c"),
        ("A=#fff", "#fff"),
        ("A= # comment", ""),
        ("A=b\\nc", "b\\nc"),
        ("A=it's", "it's"),
        ("A='b # \\n ${X} \"c\"'", 'b # \\n ${X} "c"'),
        (r"""A="b\n\t\"c\" \\ \$ \d" # x""", 'b\n\t"c" \\ $ \\d'),
        ('A="b\nc"\nB=1', "b\nc"),
        ("A=${X}/${Y}", "x/"),
        ("A=${Y:-why}-${X:-no}", "why-x"),
        ('A="${X} \\${X} $X"', "x ${X} $X"),
        ("B=1\nA=${B}${X}", "1x"),
        ("X=other\nA=${X}", "x"),
        ("A=b=c", "b=c"),
        ("A=1\nA=2", "2"),
        ("\ufeffA=1\r\nB=2\r\n", "1"),
        ("# one\n\n   # two\nA=caf\u00e9", "caf\u00e9"),
    ],
)
def test_values(file: Path, text: str, value: str) -> None:
    assert values(file, text, X="x")["A"] == value


@pytest.mark.parametrize(
    ("text", "line", "error"),
    [
        ("A=1\nSECRET", 2, "this is neither KEY=VALUE nor a comment"),
        ("A=1\n\n- A=2", 3, "this is neither KEY=VALUE nor a comment"),
        ("1A=secret", 1, "this is neither KEY=VALUE nor a comment"),
        ("=secret", 1, "this is neither KEY=VALUE nor a comment"),
        ("B='\n\n'\nA='secret\n", 4, "the quote of A is not closed"),
        ('A="secret', 1, "the quote of A is not closed"),
        ('A="b" secret', 1, "something follows the quoted value of A"),
        ("A='b'c", 1, "something follows the quoted value of A"),
        ("A=a\0b", 1, "A has a null character"),
    ],
)
def test_a_mistake_names_its_line_and_no_secret(file: Path, text: str, line: int, error: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read(str(file), "--env-file", {})
    assert str(caught.value) == f"{file}:{line}: {error}"


@pytest.mark.parametrize(
    ("data", "reason"), [(None, "No such file or directory"), (b"A=\xff", "it is not text in UTF-8")]
)
def test_a_file_that_cannot_be_read(file: Path, data: bytes | None, reason: str) -> None:
    if data is not None:
        file.write_bytes(data)
    with pytest.raises(ConfigError, match=rf"^--env-file: cannot read the environment file '{file}': {reason}$"):
        read(str(file), "--env-file", {})


@given(
    st.dictionaries(st.from_regex(r"[A-Za-z_][A-Za-z0-9_]*", fullmatch=True), st.text().filter(lambda t: "\0" not in t))
)
def test_what_is_quoted_comes_back(tmp_path_factory: pytest.TempPathFactory, wanted: dict[str, str]) -> None:
    file = tmp_path_factory.getbasetemp() / "quoted.env"
    marks = {"\\": "\\\\", '"': '\\"', "$": "\\$", "\r": "\\r", "\n": "\\n"}
    lines = [f'{name}="{"".join(marks.get(c, c) for c in value)}"' for name, value in wanted.items()]
    file.write_bytes("\n".join(lines).encode("utf-8", "replace"))
    assert read(str(file), "--env-file", {}) == {
        name: value.encode("utf-8", "replace").decode() for name, value in wanted.items()
    }


def test_variables_of_ours_are_options_below_the_environment_and_above_the_file(tmp_path: Path, file: Path) -> None:
    file.write_text("X=1\nPREFORK_THREADS=3\nPREFORK_WORKERS=4\nPREFORK_BIND='[::1]:1 [::1]:2'\nPREFORK_TIMEOUT=9\n")
    (tmp_path / "prefork.toml").write_text(f"threads = 8\nchdir = '{tmp_path}'\nenv-file = '.env'\n")
    flags = {"timeout": "5", "chdir": None}
    config = configure("hello", flags, str(tmp_path / "prefork.toml"), {"PREFORK_WORKERS": "2"})
    assert (config.threads, config.workers, config.timeout_s, config.env_file) == (3, 2, 5, ".env")
    assert [str(address) for address in config.bind] == ["[::1]:1", "[::1]:2"]
    sources = {name: config.sources[name] for name in ("threads", "workers", "timeout", "bind")}
    assert sources == {"threads": ".env:2", "workers": "PREFORK_WORKERS", "timeout": "--timeout", "bind": ".env:4"}


def test_a_value_of_an_option_that_cannot_be_names_its_line(file: Path) -> None:
    file.write_text("\nPREFORK_THREADS=many\n")
    for environ, flags in (({}, {"env-file": str(file)}), ({"PREFORK_ENV_FILE": str(file)}, {})):
        with pytest.raises(ConfigError, match=rf"^{file}:2: PREFORK_THREADS: 'many' is not"):
            configure("hello", flags, None, environ)
    setting = Setting(raw=str(file), source="serve(env_file=)", where="serve(env_file=)")
    with pytest.raises(ConfigError, match=rf"^{file}:2: PREFORK_THREADS: 'many' is not"):
        configure("hello", {"env-file": setting}, None, {})


@pytest.mark.parametrize("name", ["PREFORK_CHDIR", "PREFORK_ENV_FILE"])
def test_the_place_of_the_file_cannot_stand_in_it(tmp_path: Path, file: Path, name: str) -> None:
    file.write_text(f"{name}=/\n")
    with pytest.raises(ConfigError, match=rf"^\.env:1: {name} says where this file is, so it cannot stand in it$"):
        configure("hello", {"env-file": ".env", "chdir": str(tmp_path)}, None, {})


def test_an_option_that_does_not_exist_is_named_with_the_near_one(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("SECRET=1\nPREFORK_TREADS=8\n")
    with pytest.raises(
        ConfigError, match=r"^\.env:2: there is no option for PREFORK_TREADS; did you mean PREFORK_THREADS\?$"
    ):
        configure("hello", {"env-file": ".env", "chdir": str(tmp_path)}, None, {})


def test_what_a_platform_sets_counts_from_the_file_too(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("PORT=8123\nWEB_CONCURRENCY=3\n")
    config = configure("hello", {"env-file": ".env", "chdir": str(tmp_path)}, None, {})
    assert (str(config.bind[0]), config.workers, config.sources["bind"]) == ("0.0.0.0:8123", 3, "PORT")
