"""What configurations take and refuse, by the annotations of their fields."""

import math
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from annotated_types import Ge, Lt, MinLen

from edl_jax.checked import Distinct, NotNegative, OneOf, Seed, check
from edl_jax.errors import ConfigError

NAME = Annotated[str, OneOf({"red": 1, "green": 2})]


@pytest.mark.parametrize(
    ("hint", "value", "message"),
    [
        (int, True, "a whole number"),
        (int, 1.0, "a whole number"),
        (float, math.nan, "a finite number"),
        (float, 10**400, "a finite number"),
        (NotNegative, -0.5, "a finite number, at least 0"),
        (Annotated[float, Ge(0), Lt(1)], 1, "a finite number, at least 0 and less than 1"),
        (Seed, 2**32, "a whole number, at least 0 and at most 4294967295"),
        (int | None, "1", "a whole number or None"),
        (bool, 1, "a truth value"),
        (Literal["a", "b"], np.zeros(2), "one of a, b"),
        (NAME, "blue", "one of red, green"),
        (NAME, ["red"], "one of red, green"),
        (tuple[int, ...], 3, r"a tuple \(each a whole number\)"),
        (tuple[NAME, ...], ("blue",), r"a tuple \(each one of red, green\)"),
        (Annotated[tuple[int, ...], MinLen(1), Distinct()], (1, 1), ".*empty and all different"),
        (dict[str, float], {"a": "b"}, r"a dictionary by name \(each a finite"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(hint, value, message):
    with pytest.raises(ConfigError, match=f"x is .*; expected {message}"):
        check("x", value, hint)


@pytest.mark.parametrize(
    ("hint", "value", "kept"),
    [
        (float, 1, 1.0),
        (Annotated[float, Ge(0)] | None, 1, 1.0),
        (float | bool | str | None, True, True),
        (int | float, 1, 1),
        (tuple[float, ...], [1, 0.5], (1.0, 0.5)),
        (int, np.int64(3), 3),
        (tuple[int, ...], [np.int32(1), 2], (1, 2)),
        (dict[str, tuple[Any, ...]], {"a": [1, "b"]}, {"a": (1, "b")}),
        (NAME, "green", "green"),
    ],
)
def test_what_means_the_same_is_turned_into_the_type(hint, value, kept):
    found = check("x", value, hint)
    assert repr(found) == repr(kept)  # which tells 1 from 1.0


def test_a_bound_that_would_not_be_checked_is_refused():
    with pytest.raises(TypeError, match=r"MinLen.*is no bound that is checked"):
        check("x", (1,), Annotated[tuple[int, ...], MinLen(2)])


def test_annotations_have_a_hash_which_the_command_line_needs():
    assert hash(NAME) == hash(NAME)
