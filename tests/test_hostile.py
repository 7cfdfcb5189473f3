from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from edl_jax.errors import ConfigError
from tests.hostile import ATTEMPTS, Attempt, check


@pytest.mark.slow
@settings(max_examples=500, suppress_health_check=[HealthCheck.too_slow])
@given(attempt=ATTEMPTS)
def test_bad_input_is_refused_clearly(tmp_path_factory, attempt):
    check(attempt, tmp_path_factory.mktemp("attempt"))


def refuse(text: str) -> None:
    raise ConfigError(text)


def leave_half(folder: Path) -> None:
    (folder / "half").touch()
    refuse("epochs is -1; expected at least 1.")


def test_check_notices_what_it_is_for(tmp_path):
    for call, complaint in [
        (lambda _: None, "was taken"),
        (lambda _: 1 / 0, "ZeroDivisionError"),
        (lambda _: refuse("bad input"), "says no more than"),
        (leave_half, "leaves"),
    ]:
        with pytest.raises(AssertionError, match=complaint):
            check(Attempt("none", "nothing", call), tmp_path)
    fine = Attempt("none", "nothing", lambda _: None, is_bad=False)
    assert check(fine, tmp_path) == "taken"
    refused = Attempt("none", "nothing", lambda _: refuse("epochs is -1; expected 1 or more."))
    assert check(refused, tmp_path) == "ConfigError"
