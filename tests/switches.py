"""What must work under every switch of JAX, in a process of its own: tests/test_switches.py.

    python -m tests.switches RESULTS.json [WORKLOAD ...]

writes, by the workload's name, the arrays it gave, or the error that it ended in; of all workloads
unless some are given.
"""

import dataclasses
import functools
import json
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from edl_jax import (
    DATASETS,
    LOSSES,
    MUTATIONS,
    STRATEGIES,
    ArraySource,
    ChaoticES,
    ChaoticSNES,
    EvolvedLoss,
    Mixture,
    PretrainConfig,
    TrainConfig,
    load_pretrained,
    pretrain,
    sample_pairs,
    train,
)
from edl_jax.data.config import DataConfig
from edl_jax.losses import PRETRAINED
from edl_jax.losses.export import to_stablehlo
from edl_jax.models import MODELS
from edl_jax.models.resnet import ResNet
from edl_jax.objective import (
    MARGINS,
    SEVERITIES,
    TaskConfig,
    apply_severity,
    draw_tasks,
    margin_violation,
    rank_metrics,
    task_errors,
)
from edl_jax.objective.measure import gradient_metrics, logit_gradients
from edl_jax.pairs import log_probabilities
from edl_jax.strategies import StrategyConfig
from tests.baseline_losses import loss_of, quick_jit
from tests.test_evolution import evolution_of
from tests.test_strategies import Sphere

WORKLOADS: dict[str, Callable[[], Any]] = {}
TASKS = TaskConfig(
    num_tasks=2,
    num_classes=5,
    num_features=4,
    train_examples=16,
    test_examples=16,
    hidden=4,
    steps=2,
    batch_size=8,
    learning_rates=(0.1, 0.3),
)
EVOLUTION = PretrainConfig(
    hidden=(4,),
    class_counts=(5,),
    population_size=8,
    num_opponents=2,
    pairs_per_generation=64,
    held_out_pairs=64,
    networks_at_a_time=4,
    generations=2,
    generations_per_chunk=2,
)


def workload(name: str) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    return lambda call: WORKLOADS.setdefault(name, call)


def inputs(num_classes: int = 5) -> tuple[jax.Array, dict[str, tuple[jax.Array, jax.Array | None]]]:
    """Logits, and labels with a mask of the classes or none, by kind."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, num_classes)), jnp.float32)
    hard, soft = jnp.asarray([0, 1, 2, 0], jnp.int32), jax.nn.softmax(2 * x[::-1])
    where = (jnp.arange(num_classes) != 3)[None]
    masked = jnp.where(where, soft, 0)
    masked /= masked.sum(-1, keepdims=True)
    kinds = {"hard": (hard, None), "soft": (soft, None), "masked": (masked, where)}
    return x, kinds | {"hard, masked": (hard, where)}


def of_loss(loss: Callable[..., jax.Array], num_classes: int = 5) -> dict[str, Any]:
    """Values and gradients of a loss for every kind of labels."""
    x, kinds = inputs(num_classes)

    @quick_jit
    def both(x: jax.Array) -> dict[str, Any]:
        found = {}
        for kind, (labels, where) in kinds.items():
            values, vjp = jax.vjp(lambda x, y=labels, w=where: loss(x, y, where=w), x)
            found[kind] = values, vjp(jnp.ones_like(values))[0]
        return found

    loss(x, kinds["hard"][0])
    return both(x)


for _name in LOSSES:
    workload(f"the loss {_name}")(lambda name=_name: of_loss(loss_of(name)))
for _name in PRETRAINED:
    workload(f"the loss {_name}")(lambda name=_name: of_loss(load_pretrained(name), 10))


@workload("pairs")
def pairs() -> Any:
    uneven = Mixture(sparse=0.3, ambiguous=0)
    return [sample_pairs(jax.random.key(3), 64, num, mixture=uneven) for num in (2, 5)]


@workload("ranking")
def ranking() -> Any:
    drawn = sample_pairs(jax.random.key(3), 64, 5)
    log_p = log_probabilities(drawn.probabilities)
    loss = load_pretrained()
    losses, found = loss(log_p, drawn.labels), {}
    for name, severity in SEVERITIES.items():
        found[name] = apply_severity(severity, log_p, drawn.labels)
    for name, margin in MARGINS.items():
        options = {"margin": margin}
        found[f"{name} margin"] = margin_violation(
            losses, found["surprisal"], num_opponents=2, **options
        )
        found[f"{name} metrics"] = rank_metrics(losses, found["brier"], drawn.regimes, **options)
    severity = SEVERITIES["surprisal"]
    sample = quick_jit(lambda: logit_gradients(loss, drawn, severity))()
    return found, sample, gradient_metrics(sample)


for _name in MUTATIONS:

    @workload(f"the mutation {_name}")
    def mutate(name: str = _name) -> Any:
        source = MUTATIONS[name]
        orbit = source.init(jax.random.key(0), (3, 5))
        return source.step(jax.random.key(1), orbit)


def evolved(algorithm: Any) -> Any:
    """What three turns of evosax's own loop come to, on a parabola."""
    start, params = jnp.linspace(1, 2, 3, dtype=jnp.float32), algorithm.default_params
    population = jnp.tile(start, (8, 1))
    given = (start,) if isinstance(algorithm, ChaoticSNES) else (population, population[:, 0])
    key = jax.random.key(0)
    state = algorithm.init(key, *given, params)
    for turn in range(3):
        population, state = algorithm.ask(jax.random.fold_in(key, turn), state, params)
        fitness = jnp.sum(population**2, axis=-1)
        state, metrics = algorithm.tell(key, population, fitness, state, params)
    return population, metrics["best_fitness"]


@workload("ChaoticES")
def chaotic_es() -> Any:
    solution = jnp.zeros(3, jnp.float32)
    other = {"selection": "comma", "std_schedule": optax.cosine_decay_schedule(0.1, 2)}
    return [evolved(ChaoticES(8, solution, **options)) for options in ({}, other)]


@workload("ChaoticSNES")
def chaotic_snes() -> Any:
    return evolved(ChaoticSNES(8, jnp.zeros(3, jnp.float32)))


def shapes_of_a_search(name: str) -> Any:
    """Of the population and the fitness after turns of a strategy; nothing is compiled."""
    config = dataclasses.replace(EVOLUTION, strategy=StrategyConfig(name))
    evolution = evolution_of(config, Sphere())

    def run(key: jax.Array) -> Any:
        turn = lambda state, _: evolution.generation(state)  # noqa: E731
        state, _ = jax.lax.scan(turn, evolution.begin(key), length=2)
        return state.population, state.fitness

    return zeros_like(jax.eval_shape(run, jax.random.key(0)))


def zeros_like(shapes: Any) -> list[np.ndarray]:
    return [np.zeros(x.shape, x.dtype) for x in jax.tree.leaves(shapes)]


for _name in STRATEGIES:
    workload(f"shapes of {_name}")(lambda name=_name: shapes_of_a_search(name))


@workload("tasks")
def tasks() -> Any:
    drawn = draw_tasks(jax.random.key(0), TASKS, Mixture())
    errors = jax.eval_shape(lambda: task_errors(SEVERITIES["brier"], drawn, TASKS))
    return drawn, zeros_like(errors)


@workload("shapes of a generation with every term")
def every_term() -> Any:
    config = dataclasses.replace(EVOLUTION, task_weight=1.0, tasks=TASKS)
    evolution = evolution_of(config)

    def run(key: jax.Array) -> Any:
        state, log = evolution.generation(evolution.begin(key))
        return state.population, state.fitness, log

    return zeros_like(jax.eval_shape(run, jax.random.key(0)))


for _name, _options in (("ChaoticES", {}), ("ChaoticSNES", {"network": "pair"})):

    @workload(f"pretrain with {_name}")
    def evolve_a_loss(name: str = _name, options: Any = _options) -> Any:
        result = pretrain(dataclasses.replace(EVOLUTION, strategy=StrategyConfig(name), **options))
        loss, history = result.loss, result.history["mean_fitness"]
        return loss.params, loss.scale, history, result.metrics


@workload("train")
def train_a_classifier() -> Any:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (24, 8, 8, 1), np.uint8), np.arange(24) % 3
    splits = {"train": (images[:16], labels[:16]), "test": (images[16:], labels[16:])}
    MODELS["one block"] = functools.partial(ResNet, (1,), width=4)
    DATASETS.register("noise")(
        lambda: ArraySource("noise", "random pixels", ("a", "b", "c"), splits)
    )
    config = TrainConfig(
        model="one block",
        loss="edl",
        sync_batch_norm=True,
        epochs=1,
        batch_size=8,
        learning_rate=0.01,
        data=DataConfig(name="noise"),
    )
    result = train(config)
    return [row["train_loss"] for row in result.history], result.test_nll


@workload("save, load and export")
def round_trip() -> Any:
    x, kinds = inputs()
    with tempfile.TemporaryDirectory() as folder:
        load_pretrained().save(Path(folder) / "loss.safetensors")
        loaded = EvolvedLoss.load(Path(folder) / "loss.safetensors")
    program = jax.export.deserialize(bytearray(to_stablehlo(loaded)))
    return jax.tree.leaves(loaded), program.call(x, kinds["hard"][0])


def main(path: str, *names: str) -> None:
    results = {}
    for name in names or WORKLOADS:
        try:
            leaves = map(np.asarray, jax.tree.leaves(WORKLOADS[name]()))
            results[name] = {"arrays": [(x.dtype.name, x.tolist()) for x in leaves]}
        except Exception:
            results[name] = {"error": traceback.format_exc()}
    Path(path).write_text(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
