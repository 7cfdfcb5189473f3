"""What a run folder keeps of losses and of other parts of your own, to tell them from others."""

import collections
import dataclasses
import enum
import functools
import os
import pathlib
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
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


class Private:
    def __init__(self, weight):
        self._weight = weight

    def loss(self, logits, labels):
        return self._weight * logits[..., 0]


class Slots:
    __slots__ = ("weight",)

    def __init__(self, weight):
        self.weight = weight


@dataclasses.dataclass
class Hidden:
    weight: Any = dataclasses.field(repr=False, compare=False)


class Widening:
    def __init__(self, rngs, num_classes, in_channels, width=8):
        pass


class Kind(enum.Enum):
    ONE = 1
    OTHER = 2


class Weights(dict):
    pass


def scaling(factor):
    def decorate(function):
        @functools.wraps(function)
        def scaled_loss(logits, labels):
            return factor * function(logits, labels)

        return scaled_loss

    return decorate


def linked(value):
    """Objects that all hold one another: to follow each path would take for ever."""
    parts = [Private(value) for _ in range(40)]
    for part in parts:
        part.others = parts
    return parts[0]


def recursive(value):
    def loss(logits, labels, depth=0):
        return value * (logits if depth else loss(logits, labels, 1))

    return loss


def multi_steps(optimizer, steps=2):
    return optax.MultiSteps(optimizer, steps).gradient_transformation()


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
    "an attribute that begins with _": (Private, 1.0, 2.0),
    "a bound method": (lambda x: Private(x).loss, 1.0, 2.0),
    "a method in C": (lambda x: Weighted([x].count), 1, 2),
    "slots": (Slots, 1.0, 2.0),
    "a field that is not shown": (Hidden, MANY, OTHER),
    "a closure in a closure": (lambda x: closed_over(closed_over(x)), 1.0, 2.0),
    "a function that holds itself": (recursive, 1.0, 2.0),
    "objects that hold one another": (linked, 1.0, 2.0),
    "what a decorator took": (lambda x: scaling(x)(power), 1.0, 2.0),
    "a decorator of a formula": (lambda x: scaling(x)(LOSSES["gce"]), 1.0, 2.0),
    "what a mapped function took": (lambda x: jax.vmap(closed_over(x)), 1.0, 2.0),
    "how a function is mapped": (lambda x: jax.vmap(power, in_axes=x), 0, 1),
    "a loss with a derivative of its own": (lambda x: jax.custom_jvp(closed_over(x)), 1.0, 2.0),
    "a cached function": (lambda x: functools.cache(closed_over(x)), 1.0, 2.0),
    "the axis of a function": (lambda x: with_option(lambda y, axis=x: y), 0, 1),
    "a class's defaults": (lambda x: functools.partial(Widening, width=x), 8, 16),
    "a member of an enumeration": (with_option, Kind.ONE, Kind.OTHER),
    "a path": (with_option, pathlib.Path("a"), pathlib.Path("b")),
    "bytes": (with_option, b"a", b"b"),
    "a complex number": (with_option, 1j, 2j),
    "a range": (with_option, range(2), range(3)),
    "a slice": (with_option, slice(None, 1), slice(1, None)),
    "a dtype": (with_option, jnp.float32, jnp.bfloat16),
    "a subclass of a dictionary": (lambda x: Weights(a=x), MANY, OTHER),
    "a queue": (lambda x: collections.deque([1.0, x]), 1.0, 2.0),
    "an array of objects": (lambda x: np.array([x, "a"], object), 1.0, 2.0),
    "bits that are drawn": (np.random.default_rng, 1, 2),
    "the kind of a variable": (lambda x: Module(x(jnp.ones(2))), nnx.Param, nnx.BatchStat),
    "a learning rate": (optax.sgd, 0.1, 0.2),
    "a constant schedule": (lambda x: optax.sgd(optax.constant_schedule(x)), 0.1, 0.2),
    "a schedule": (lambda x: optax.sgd(optax.cosine_decay_schedule(x, 4)), 0.1, 0.001),
    "a schedule's steps": (lambda x: optax.adamw(optax.cosine_decay_schedule(1, x)), 4, 8),
    "steps in one": (lambda x: multi_steps(optax.sgd(0.1), x), 2, 4),
    "the optimizer of steps in one": (lambda x: multi_steps(optax.sgd(x)), 0.1, 0.01),
    "an evolved loss": (lambda x: load_pretrained().replace(scale=jnp.float32(x)), 1, 2),
}


@pytest.mark.parametrize("kind", DIFFERENT)
def test_parts_are_told_apart_by_their_options_and_arrays(kind):
    make, one, other = DIFFERENT[kind]
    assert describe(make(one)) == describe(make(one)) != describe(make(other))
    assert " at 0x" not in describe(make(one))
    assert len(describe(make(one))) < 1100


def test_code_and_provenance_are_not_looked_at():
    assert describe(lambda x: x) == describe(lambda x: -x)
    assert describe(max) == "max"
    assert describe(jax.nn.relu) == describe(jax.jit(jax.nn.relu)) == "relu"
    assert describe(Widening) == "Widening(width=8)"
    evolved = load_pretrained()
    assert describe(evolved.replace(provenance=Provenance())) == describe(evolved)


def test_what_is_computed_once_and_kept_makes_no_difference():
    class Lazy(Private):
        @functools.cached_property
        def table(self):
            return MANY * self._weight

    part = Lazy(1.0)
    before = describe(part)
    assert part.table is not None
    assert describe(part) == before
    shared = Private(1.0)  # once, or two that are alike
    assert describe([shared, shared]) == describe([Private(1.0), Private(1.0)])


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
