"""What a run folder keeps of losses and of other parts of your own, to tell them from others."""

import dataclasses
import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, struct

from edl_jax import (
    LOSSES,
    MARGINS,
    MUTATIONS,
    SEVERITIES,
    STRATEGIES,
    ChaoticES,
    LossMethod,
    load_pretrained,
    pretrain,
)
from edl_jax.errors import RunFolderError
from edl_jax.losses import Provenance
from edl_jax.runs.describing import describe
from edl_jax.runs.folder import own_parts
from edl_jax.studies import Study, ablate
from edl_jax.studies.cells import Cell
from edl_jax.studies.sweep import with_fields
from tests.test_ablate import SMALL
from tests.test_evolution import TINY

MANY = np.zeros(2000)  # so many that NumPy's repr leaves some out
OTHER = np.where(np.arange(2000) == 1000, 1.0, 0.0)


class Tuple(NamedTuple):
    weight: Any

    def __call__(self, logits, labels):
        return self.weight * logits[..., 0]


class Weighted:
    def __init__(self, weight):
        self.weight = weight

    def __call__(self, logits, labels):
        return self.weight * logits[..., 0]


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    weight: Any

    def __call__(self, logits, labels):
        return self.weight * logits[..., 0]


@struct.dataclass
class Tree:
    weight: Any


class Module(nnx.Module):
    def __init__(self, part):
        self.part = part

    def __call__(self, logits, labels):
        return logits[..., 0]


class Method(LossMethod):
    def __init__(self, rate):
        self.rate = rate

    def losses(self, state, logits, labels):
        return self.rate * logits[..., 0]


def with_default(value):
    def loss(logits, labels, scale=value):
        return scale * logits[..., 0]

    return loss


def closed_over(value):
    return lambda logits, labels: value * logits[..., 0]


def with_option(value):
    return functools.partial(power, value)


def power(exponent, x):
    return x**exponent


def holding_itself(value):
    part = Weighted(value)
    part.own = part
    return part


# What makes a part, and two values that make different ones.
DIFFERENT = {
    "a default": (with_default, 1.0, 2.0),
    "a default under jit": (lambda x: jax.jit(with_default(x)), 1.0, 2.0),
    "an argument": (with_option, 2, 3),
    "what was taken from around": (closed_over, 2, 3),
    "a function from around": (closed_over, LOSSES["gce"], LOSSES["poly"]),
    "an object from around": (closed_over, Weighted(1.0), Weighted(2.0)),
    "what a wrapped function took": (lambda x: jax.jit(closed_over(x)), 2, 3),
    "an argument of many numbers": (with_option, MANY, OTHER),
    "a function as an argument": (with_option, LOSSES["gce"], LOSSES["poly"]),
    "an object's attribute": (Weighted, 1.0, 2.0),
    "an object within another": (lambda x: Weighted([Weighted(x)]), 1.0, 2.0),
    "a named tuple": (Tuple, 1.0, 2.0),
    "a dataclass with slots": (Record, 1.0, 2.0),
    "a dataclass of many numbers": (Record, MANY, OTHER),
    "a tree of many numbers": (lambda x: Weighted(Tree(jnp.asarray(x))), MANY, OTHER),
    "a variable": (lambda x: Module(nnx.Param(jnp.asarray(x))), MANY, OTHER),
    "a random stream": (lambda x: Module(nnx.Rngs(noise=x)), 1, 2),
    "a number of NumPy": (with_option, np.int64(1), np.int64(2)),
    "keys of several types": (lambda x: Weighted({1: 0, "a": x}), 1.0, 2.0),
    "an object that holds itself": (holding_itself, 1.0, 2.0),
    "a generator": (lambda x: Weighted([x, (i for i in "a")]), 1.0, 2.0),
    "a set": (lambda x: Weighted({"a", x}), "b", "c"),
    "a module's shapes": (lambda x: Module(nnx.Param(jnp.ones(x))), (2, 3), (3, 2)),
    "a module in a module": (lambda x: Module(Module(nnx.Param(jnp.ones(2) * x))), 2, 3),
    "a LossMethod": (Method, 1.0, 2.0),
    "an evolved loss": (lambda x: load_pretrained().replace(scale=jnp.float32(x)), 1, 2),
}


@pytest.mark.parametrize("kind", DIFFERENT)
def test_parts_are_told_apart_by_their_options_and_arrays(kind):
    make, one, other = DIFFERENT[kind]
    assert describe(make(one)) == describe(make(one)) != describe(make(other))
    assert " at 0x" not in describe(make(one))


def test_code_and_provenance_are_not_looked_at():
    assert describe(lambda x: x) == describe(lambda x: -x)
    assert describe(max) == "max"
    evolved = load_pretrained()
    assert describe(evolved.replace(provenance=Provenance())) == describe(evolved)


@pytest.mark.slow
def test_descriptions_do_not_differ_from_process_to_process():
    code = (
        "from tests.test_describing import *\n"
        "print(''.join(describe(make(one)) for make, one, _ in DIFFERENT.values()))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    here = "".join(describe(make(one)) for make, one, _ in DIFFERENT.values())
    assert found.stdout.strip() == here


def scaled(part, factor, *arguments):
    return jax.tree.map(lambda x: factor * x, part(*arguments))


def strategy(rate, config, solution):
    return ChaoticES(config.population_size, solution, rate=rate)


# Of each kind of part its table, and what makes one of a number.
PARTS = {
    "severity": (SEVERITIES, lambda x: functools.partial(scaled, SEVERITIES["surprisal"], x)),
    "margin": (MARGINS, lambda x: functools.partial(scaled, MARGINS["proportional"], x)),
    "mutation": (MUTATIONS, lambda x: MUTATIONS["gaussian"]._replace(step=with_option(x))),
    "strategy": (STRATEGIES, lambda x: functools.partial(strategy, x)),
}


@pytest.mark.parametrize("kind", PARTS)
def test_a_run_folder_knows_the_parts_that_a_user_has_registered(kind, tmp_path, monkeypatch):
    registry, make = PARTS[kind]
    monkeypatch.setattr(Cell, "run", lambda _: {"violated_margins": 0.5, "area": 0.5})
    module = sys.modules[ablate.__module__]  # its name is the function's
    monkeypatch.setattr(module, "_study", lambda *_: Study("", [], {}, {}))
    monkeypatch.setattr(Study, "written", lambda *_: None)
    with mock.patch.dict(registry):
        registry.register("mine")(make(1.0))
        field = {"mutation": "strategy.mutation", "strategy": "strategy.name"}.get(kind, kind)
        config = with_fields(TINY, {field: "mine"})
        small = with_fields(SMALL, {"grid": {}, f"pretrain.{field}": "mine"})
        before = own_parts(config)
        assert list(before) == [f"{kind} mine"]
        if kind == "severity":  # which alone is evolved with here
            first = pretrain(config, run_dir=tmp_path / "pretrain").metrics
            assert pretrain(config, run_dir=tmp_path / "pretrain").metrics == first
        ablate(small, run_dir=tmp_path / "ablate", executor="1")
        registry.register("mine")(make(1.0))
        ablate(small, run_dir=tmp_path / "ablate", executor="1")
        registry.register("mine")(make(2.0))
        assert own_parts(config) != before
        with pytest.raises(RunFolderError, match=f"parts.{kind} mine is"):
            ablate(small, run_dir=tmp_path / "ablate", executor="1")
        if kind == "severity":
            with pytest.raises(RunFolderError, match=f"parts.{kind} mine is"):
                pretrain(config, run_dir=tmp_path / "pretrain")
    assert not own_parts(TINY)
