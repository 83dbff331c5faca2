"""Who types an option of another server, or leaves out a word that others do not have, is told what to type here."""

from __future__ import annotations

import itertools

import pytest

from prefork.config.foreign import FOREIGN, SERVERS, answers
from prefork.config.options import GROUPS
from tests.support.server import run

BAD_USAGE = 2
ROWS = list(itertools.chain.from_iterable(FOREIGN.values()))


def told(*args: str) -> list[str]:
    """The lines of the error, without the usage above it."""
    done = run(*args)
    assert (done.returncode, done.stdout) == (BAD_USAGE, "")
    assert "Traceback" not in done.stderr
    return done.stderr.partition("Error: ")[2].splitlines()


# --- the table


def test_the_groups_are_those_of_our_own_options() -> None:
    assert list(FOREIGN) == list(GROUPS)


def test_an_option_of_a_server_has_one_answer() -> None:
    pairs = [(flag, letter) for row in ROWS for flag, letters in row.flags.items() for letter in letters]
    assert len(pairs) == len(set(pairs))
    assert {letter for _, letter in pairs} == set(SERVERS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: next(iter(row.flags)))
def test_an_answer_says_what_to_use_or_why_it_is_not_needed(row: object) -> None:
    answer = row.answer  # type: ignore[attr-defined]
    assert answer.startswith(("`--", "`prefork ", "not needed: ", "no counterpart: ", "no HTTP/2 "))
    assert answer.count("`") % 2 == 0


@pytest.mark.parametrize(
    ("flags", "lines"),
    [
        (["--port"], ["No such option --port (uvicorn, granian). Use --bind HOST:PORT."]),
        (["--port", "--host", "--port"], ["No such option --port, --host (uvicorn, granian). Use --bind HOST:PORT."]),
        (["--certfile"], ["No such option --certfile (gunicorn, hypercorn). Use --tls-cert FILE."]),
        (["-D"], ["No such option -D (gunicorn, hypercorn). Not needed: systemd or a container runs it."]),
        (["-p"], ["No such option -p (gunicorn, hypercorn). Use --pid FILE; for a port --bind HOST:PORT."]),
        (["--zzz"], []),
    ],
)
def test_an_answer_is_one_line(flags: list[str], lines: list[str]) -> None:
    assert answers(flags) == lines


# --- the command line


def test_all_foreign_options_of_a_command_line_are_answered_whatever_their_values() -> None:
    assert told("serve", "-p", "8000", "--host=0.0.0.0", "shop:app", "-w", "4", "--daemon") == [
        "No such option --host (uvicorn, granian). Use --bind HOST:PORT.",
        "No such option -p (gunicorn, hypercorn). Use --pid FILE; for a port --bind HOST:PORT.",
        "No such option --daemon (gunicorn, hypercorn). Not needed: systemd or a container runs it.",
    ]


@pytest.mark.parametrize("command", ["serve", "config", "check"])
def test_each_command_that_takes_options_answers(command: str) -> None:
    assert told(command, "shop:app", "--uds", "/run/x") == [
        "No such option --uds (uvicorn, granian). Use --bind unix:PATH."
    ]


def test_what_is_ours_and_theirs_is_not_answered() -> None:
    (line,) = told("serve", "--workers", "4", "--wokers", "4", "--timeout", "3")
    assert "--workers" in line
    assert "gunicorn" not in line


@pytest.mark.parametrize(
    ("args", "hint"),
    [
        (("shop:app", "-b", ":0"), "No such command 'shop:app'. Did you mean `prefork serve shop:app -b :0`?"),
        (("shop.py",), "No such command 'shop.py'. Did you mean `prefork serve shop.py`?"),
        (("run", "shop:app"), "No such command 'run'. Did you mean `prefork serve shop:app`?"),
        (("-w", "4", "a b:app"), "No such option -w. Did you mean `prefork serve -w 4 'a b:app'`?"),
        (("sevre",), "No such command 'sevre'. Did you mean 'serve'?"),
        (("zzz",), "No such command 'zzz'. `prefork --help` lists the commands."),
    ],
)
def test_a_command_that_was_left_out_is_named(args: tuple[str, ...], hint: str) -> None:
    assert told(*args) == [hint]
