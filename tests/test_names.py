"""Hints for names that do not exist, the first of many, numbers with their nouns."""

import pytest

from lambdanets.names import count, did_you_mean, first_of, nearest_names, unknown_name

pytestmark = pytest.mark.smoke

KNOWN = ["query_first", "row_spectral", "banded", "spectral"]


def test_the_nearest_come_first():
    assert nearest_names("query_frist", KNOWN) == ["query_first"]
    assert nearest_names("row_spectral", ["spectral", "row_spectrum"]) == ["row_spectrum", "spectral"]
    assert nearest_names(3, KNOWN) == []


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("bandet", "did you mean 'banded'?"),
        ("zzz", "known are query_first, row_spectral, banded, spectral"),
        (None, "known are query_first, row_spectral, banded, spectral"),
    ],
)
def test_hints(name, hint):
    assert did_you_mean(name, KNOWN) == hint


def test_hints_of_many_names():
    assert did_you_mean("zzz", {f"{i:02}" for i in range(50)}).endswith("38, 39, ...")
    assert did_you_mean("zzz", KNOWN, "ask somebody") == "ask somebody"


def test_errors():
    assert str(unknown_name("model", "bandet", KNOWN)) == "unknown model 'bandet'. Did you mean 'banded'?"
    assert "Known: query_first" in str(unknown_name("model", "zzz", KNOWN, "Look it up."))


def test_the_first_of_many():
    assert first_of([]) == ""
    assert first_of(["a", "b", "c"]) == "a, b, c"
    assert first_of({"a": 1, "b": 2, "c": 3, "d": 4}) == "a, b, c and 1 more"
    assert first_of([str(i) for i in range(1_202)], 2, "; ") == "0; 1; and 1,200 more"


def test_numbers_with_their_nouns():
    assert [count(number, "epoch", "epochs") for number in (0, 1, 1024)] == ["0 epochs", "1 epoch", "1,024 epochs"]
