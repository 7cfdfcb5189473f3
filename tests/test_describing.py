"""Losses and other parts of users' own, told from others by what a run folder keeps of them."""

import dataclasses
import os
import pathlib
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, struct

from edl_jax import MARGINS, MUTATIONS, SEVERITIES, STRATEGIES, ChaoticES, pretrain
from edl_jax.errors import RunFolderError
from edl_jax.evolution.pretraining import own_parts
from edl_jax.runs.describing import describe
from edl_jax.studies.ablation import study
from tests.test_ablation import SMALL
from tests.test_evolution import TINY

MANY = np.zeros(2000)  # so many that NumPy's repr leaves some out
OTHER = np.where(np.arange(2000) == 1000, 1.0, 0.0)


class Tuple(NamedTuple):
    weight: Any

    def __call__(self, logits, labels):
        return self.weight * logits[..., 0]


class Slots:
    __slots__ = "weight"

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


def closed_over(value):
    def loss(logits, labels):
        return (logits[..., 0], value)[0]

    return loss


def with_gradient(weight):
    @jax.custom_vjp
    def loss(logits, labels):
        return logits[..., 0]

    def backward(_, gradient):
        return weight * gradient[..., None], None

    loss.defvjp(lambda logits, labels: (logits[..., 0], None), backward)
    return loss


def from_text(weight):
    names: dict[str, Any] = {}  # no `__name__`: the function's module is None
    exec(f"def loss(logits, labels):\n    return {weight} * logits[..., 0]", names)
    return names["loss"]


def power(exponent):
    return lambda x: x**exponent


# What makes a part, and two values that make different ones.
DIFFERENT = {
    "a named tuple": (Tuple, 1.0, 2.0),
    "an object with slots": (Slots, 1.0, 2.0),
    "a dataclass with slots": (Record, 1.0, 2.0),
    "a named tuple of many numbers": (lambda x: closed_over(Tuple(x)), MANY, OTHER),
    "a dataclass of many numbers": (lambda x: closed_over(Record(x)), MANY, OTHER),
    "a tree of many numbers": (lambda x: closed_over(Tree(jnp.asarray(x))), MANY, OTHER),
    "a variable": (lambda x: closed_over(nnx.Param(jnp.asarray(x))), MANY, OTHER),
    "a random key": (lambda x: closed_over(jax.random.key(x)), 1, 2),
    "a set": (lambda x: closed_over({"a", x}), "b", "c"),
    "a path": (lambda x: closed_over(pathlib.PurePosixPath(x)), "b", "c"),
    "a function made from text": (from_text, 1.0, 2.0),
    "a gradient of its own": (with_gradient, 1.0, 2.0),
    "a module with a function": (lambda x: Module(power(x)), 2, 3),
    "a module with a jitted function": (lambda x: Module(jax.jit(power(x))), 2, 3),
    "a module that is closed over": (lambda x: closed_over(Module(power(x))), 2, 3),
    "a module's shapes": (lambda x: Module(nnx.Param(jnp.ones(x))), (2, 3), (3, 2)),
}


@pytest.mark.parametrize("kind", DIFFERENT)
def test_parts_are_told_apart_by_what_they_hold_and_by_nothing_else(kind):
    make, one, other = DIFFERENT[kind]
    assert describe(make(one)) == describe(make(one)) != describe(make(other))
    assert " at 0x" not in describe(make(one))


def test_descriptions_do_not_differ_from_process_to_process():
    def told():
        made = [make(one) for make, one, _ in DIFFERENT.values()]
        made += [Module(jax.nn.relu), closed_over(set("abcdef"))]
        return "".join(map(describe, made))

    code = (
        "from tests.test_describing import *\n"
        "made = [make(one) for make, one, _ in DIFFERENT.values()]\n"
        "made += [Module(jax.nn.relu), closed_over(set('abcdef'))]\n"
        "print(''.join(map(describe, made)))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == told()


def test_a_part_that_holds_itself_is_described():
    def itself(weight):
        def loss(logits, labels, depth=0):
            return weight * (logits[..., 0] if depth else loss(logits, labels, 1))

        return loss

    holder: list[Any] = [1.0]
    holder.append(holder)
    slots = Slots(None)
    slots.weight = slots
    assert describe(itself(1.0)) == describe(itself(1.0)) != describe(itself(2.0))
    assert "..." in describe(slots)
    assert "..." in describe(closed_over(holder))


def scaled(part, factor):
    return lambda *args: jax.tree.map(lambda x: factor * x, part(*args))


# Of each kind of part its table, and what makes one of a number.
PARTS = {
    "severity": (SEVERITIES, lambda x: scaled(SEVERITIES["surprisal"], x)),
    "margin": (MARGINS, lambda x: scaled(MARGINS["proportional"], x)),
    "mutation": (MUTATIONS, lambda x: MUTATIONS["gaussian"]._replace(step=power(x))),
    "strategy": (
        STRATEGIES,
        lambda x: lambda config, solution: ChaoticES(config.population_size, solution, rate=x),
    ),
}


@pytest.mark.parametrize("kind", PARTS)
def test_a_run_folder_knows_the_parts_that_a_user_has_registered(kind, tmp_path, monkeypatch):
    registry, make = PARTS[kind]
    monkeypatch.setattr(study, "_ablate", lambda *_: None)
    with registry.restored():
        registry.register("mine")(make(1.0))
        config = dataclasses.replace(TINY, **{kind: "mine"})
        small = dataclasses.replace(
            SMALL, mutations=(), pretrain=dataclasses.replace(SMALL.pretrain, **{kind: "mine"})
        )
        before = own_parts(config)
        assert list(before) == [f"{kind} mine"]
        if kind == "severity":  # which alone is evolved with here
            first = pretrain(config, run_dir=tmp_path / "pretrain").metrics
            assert pretrain(config, run_dir=tmp_path / "pretrain").metrics == first
        study.ablate(small, run_dir=tmp_path / "ablate")
        registry.register("mine")(make(1.0))
        study.ablate(small, run_dir=tmp_path / "ablate")
        registry.register("mine")(make(2.0))
        assert own_parts(config) != before
        with pytest.raises(RunFolderError, match=f"parts.{kind} mine is"):
            study.ablate(small, run_dir=tmp_path / "ablate")
        if kind == "severity":
            with pytest.raises(RunFolderError, match=f"parts.{kind} mine is"):
                pretrain(config, run_dir=tmp_path / "pretrain")
    assert not own_parts(TINY)
