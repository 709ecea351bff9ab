"Names, numbers and messages: what is refused, and in which words. Exercises: test_exercises.py."

from types import SimpleNamespace

import numpy as np
import pytest

from latref_nb.checks import ABOVE, COUNT, SEED, SHARE, WEIGHT, WHOLE, check_fields, check_range, check_ranges
from latref_nb.checks import nearest, shown, unknown_name
from picture_case import ODD, refused


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), "1", None, True, [1], 1.5])
@pytest.mark.parametrize("how", [dict(low=0, high=1), dict(low=0, high=1, whole=True)])
def test_what_is_no_number_of_a_range(value, how):
    with pytest.raises(
        ValueError, match="^x=.* came; allowed: a (finite|whole) number at least 0 and at most 1.$"
    ) as e:
        check_range("x", value, **how)
    assert "\n" not in str(e.value)


def test_ends_of_a_range():
    assert [check_range("x", v, 0, 1) for v in (0, 1, 0.5, np.float32(0.25))] == [0, 1, 0.5, 0.25]
    assert check_range("x", np.int64(3), 1, whole=True) == 3 and check_range("x", -1e30) == -1e30
    for ends, bad in (("(]", 0), ("[)", 1), ("()", 0), ("()", 1)):
        with pytest.raises(ValueError, match="above 0|below 1"):
            check_range("x", bad, 0, 1, ends)


@pytest.mark.parametrize(
    "allowed, good, bad",
    [
        (COUNT, (1, 10**9), (0, 1.5)),
        (WHOLE, (0, 7), (-1, 0.5)),
        (SEED, (0, 2**63 - 1), (-1, 2**63)),
        (SHARE, (0, 0.5, 1), (-0.1, 1.1)),
        (WEIGHT, (0, 100.0), (-1e-9, float("inf"))),
        (ABOVE, (1e-9, 3), (0, -1)),
    ],
)
def test_ranges_with_a_name(allowed, good, bad):
    for value in good:
        check_ranges(first=(0, SHARE), n=(value, allowed))
        check_fields(SimpleNamespace(n=value), n=allowed)
    for value in bad:
        refused(lambda: check_ranges(first=(0, SHARE), n=(value, allowed)), f"n={value} came", exc=ValueError)
        refused(lambda: check_fields(SimpleNamespace(n=value), n=allowed), f"n={value} came", exc=ValueError)


def test_the_name_that_was_meant():
    assert nearest("smilling", ["Smiling", "Bangs"]) == "Did you mean 'Smiling'?" and nearest("qqq", ["Smiling"]) == ""
    assert unknown_name("tag", "qqq", ["Smiling", 7]) == "tag 'qqq' is not known. Known: Smiling, 7."
    assert unknown_name("tag", "BANGS", ["Bangs"]) == "tag 'BANGS' is not known. Did you mean 'Bangs'? Known: Bangs."


@pytest.mark.parametrize("name", ODD)
def test_any_name_fits_into_one_line(name):
    assert "\n" not in shown(name) and shown(name).encode("utf-8")
    assert len(shown(name * 1000)) <= 201 and len(shown(name * 1000, 20)) <= 21
