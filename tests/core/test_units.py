"""Text to quantities: what is read is exact, and what is no ASCII number is refused with a sentence."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.core.units import count, duration, positive_duration, size, switch, umask

if TYPE_CHECKING:
    from collections.abc import Callable

PARSERS = (count, duration, positive_duration, size)
NOT_PLAIN = (
    "", " ", "-1", "+1", "1_000", "1e3", "0x10", "1,5", "nan", "inf", "infinity", "four", "1 2", "1\n2",
    "\u0663",  # an Arabic-Indic three, which int() reads
    "\uff11",  # a fullwidth one
    "\u00b2",  # a superscript two, for which str.isdigit() is true
    "1\u0660",
)  # fmt: skip


@pytest.mark.parametrize("parse", PARSERS)
@pytest.mark.parametrize("text", NOT_PLAIN)
def test_only_plain_ascii_numbers_are_read(parse: Callable[[str], object], text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(text))):
        parse(text)


@pytest.mark.parametrize("parse", PARSERS)
@given(text=st.text(st.characters(categories=["Nd", "Nl", "No", "Pc", "Sm", "Pd"]), min_size=1, max_size=8))
def test_digits_of_other_scripts_signs_and_underscores_are_refused(parse: Callable[[str], object], text: str) -> None:
    if re.fullmatch("[0-9]+", text):
        return
    with pytest.raises(ValueError, match=re.escape(repr(text))):
        parse(text)


@given(number=st.integers(1, 999_999_999))
def test_a_count_is_read_as_written(number: int) -> None:
    assert count(str(number)) == number


def test_a_count_has_a_least_value() -> None:
    assert count("0", least=0) == 0
    with pytest.raises(ValueError, match="'0' is too small: at least 1"):
        count("0")
    with pytest.raises(ValueError, match="'2' is too small: at least 3"):
        count("2", least=3)


def test_a_count_that_is_too_large_is_not_called_something_else() -> None:
    """4294967296 is a whole number: the sentence must say that it is too large."""
    with pytest.raises(ValueError, match=r"'4294967296' is too (large|big)"):
        count("4294967296")


@given(ms=st.integers(0, 2400))
def test_the_same_duration_in_every_unit(ms: int) -> None:
    seconds = pytest.approx(ms / 1000)
    assert duration(f"{ms}ms") == seconds
    assert duration(f"{ms / 1000:.3f}") == seconds
    assert duration(f"{ms / 1000:.3f}s") == seconds
    assert duration(f"{ms}m") == pytest.approx(ms * 60)
    assert duration(f"{ms}h") == pytest.approx(ms * 3600)


@pytest.mark.parametrize("text", ["2401h", "144001m", "999999999", "8640000001ms"])
def test_a_duration_is_bounded(text: str) -> None:
    """Beyond it, system calls refuse the time with errors of their own."""
    with pytest.raises(ValueError, match=re.escape(repr(text))):
        duration(text)


@pytest.mark.parametrize(("text", "seconds"), [("30", 30), ("0", 0), (" 10s ", 10), ("500ms", 0.5), ("1.5m", 90)])
def test_durations(text: str, seconds: float) -> None:
    assert duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["s", "5.", ".5", "1.2.3", "5 s", "5S", "5d", "5min", "1h30m", "1.5.s"])
def test_what_is_no_duration_is_told_the_forms(text: str) -> None:
    with pytest.raises(
        ValueError, match=re.escape(f"{text!r} is not a duration: plain seconds, or 500ms, 10s, 2m, 1h")
    ):
        duration(text)


@pytest.mark.parametrize("text", ["0", "0s", "0.000", "0ms"])
def test_a_limit_that_must_be_positive(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{text!r} is too short: more than 0")):
        positive_duration(text)
    assert positive_duration("1ms") == 0.001


@given(number=st.integers(0, 10**12), power=st.integers(0, 4))
def test_sizes_are_powers_of_1024_in_either_case(number: int, power: int) -> None:
    unit = ("", "k", "m", "g", "t")[power]
    expected = number * 1024**power
    assert size(f"{number}{unit}") == size(f" {number}{unit.upper()} ") == size(f"{number}{unit}b") == expected
    if unit:
        assert size(f"{number}{unit.upper()}iB") == expected


@pytest.mark.parametrize("text", ["k", "64kk", "64p", "1.5g", "64 k", "b", "64\u212a", "64kbit", "0x40k"])
def test_what_is_no_size_is_told_the_forms(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{text!r} is not a size: plain bytes, or 64k, 10m, 1g")):
        size(text)


@pytest.mark.parametrize("word", ["yes", "true", "on", "1"])
@pytest.mark.parametrize("form", [str, str.upper, str.title, " {} ".format])
def test_a_switch_is_on(word: str, form: Callable[[str], str]) -> None:
    assert switch(form(word)) is True


@pytest.mark.parametrize("word", ["no", "false", "off", "0"])
@pytest.mark.parametrize("form", [str, str.upper, str.title, " {} ".format])
def test_a_switch_is_off(word: str, form: Callable[[str], str]) -> None:
    assert switch(form(word)) is False


@pytest.mark.parametrize("text", ["", "y", "2", "01", "yes!", "oui", "\u0661"])
def test_what_is_no_switch(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{text!r} is neither yes nor no")):
        switch(text)


@pytest.mark.parametrize(("text", "mask"), [("", None), ("027", 0o27), ("27", 0o27), ("0", 0), ("0777", 0o777)])
def test_a_mask_is_octal(text: str, mask: int | None) -> None:
    assert umask(text) == mask


@pytest.mark.parametrize("text", ["8", "0o27", "1777", "-1", "\u0667", "u=rwx", " 027"])
def test_what_is_no_mask(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(text))):
        umask(text)
