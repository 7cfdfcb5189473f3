# pyright: strict
"""Every public name as a strictly typed program sees it: checked by pyright, never run."""

from pathlib import Path
from typing import Any, assert_type

import jax
from flax import nnx

import edl_jax


def call_the_functions(key: jax.Array, logits: jax.Array, labels: jax.Array) -> None:
    pairs = assert_type(edl_jax.sample_pairs(key, 8, 10, mixture=edl_jax.Mixture()), edl_jax.Pairs)
    assert_type(pairs.probabilities, jax.Array)
    assert_type(pairs.labels, jax.Array)

    result = assert_type(
        edl_jax.pretrain(edl_jax.PretrainConfig(), key=key), edl_jax.PretrainResult
    )
    assert_type(result.metrics, dict[str, float])
    loss = assert_type(result.loss, edl_jax.EvolvedLoss)
    assert_type(loss(logits, labels), jax.Array)
    assert_type(loss.architecture.build(key)(logits, labels), jax.Array)
    loss.save(Path("loss.safetensors"))
    assert_type(edl_jax.EvolvedLoss.load("loss.safetensors"), edl_jax.EvolvedLoss)
    assert_type(edl_jax.load_pretrained("edl"), edl_jax.EvolvedLoss)

    data = edl_jax.DataConfig("digits", train_examples=64)
    config = edl_jax.TrainConfig(data=data, optimizer=edl_jax.OptimizerConfig("adamw"))
    assert_type(edl_jax.PretrainConfig(strategy=edl_jax.StrategyConfig("SNES")).generations, int)
    trained = assert_type(edl_jax.train(config, loss=loss), edl_jax.TrainResult)
    assert_type(trained.test_accuracy, float)
    assert_type(trained.history, list[dict[str, Any]])


def look_parts_up(key: jax.Array, logits: jax.Array, labels: jax.Array) -> None:
    assert_type(edl_jax.SEVERITIES["surprisal"](logits, labels), jax.Array)
    assert_type(edl_jax.MARGINS["constant"](labels, labels), jax.Array)
    assert_type(list(edl_jax.LOSSES), list[str])
    assert_type(edl_jax.DATASETS["digits"](), edl_jax.ArraySource)
    assert_type(list(edl_jax.STRATEGIES), list[str])
    assert_type(list(edl_jax.MODELS), list[str])
    assert_type(list(edl_jax.METHODS), list[str])
    mutation = edl_jax.MUTATIONS["logistic"]
    assert_type(mutation.init(key, (2, 3)), jax.Array)
    network = edl_jax.PairNetwork(10, (16,), "silu", rngs=nnx.Rngs(0))
    assert_type(network(logits, labels), jax.Array)


def make_parts_of_ones_own(logits: jax.Array, labels: jax.Array) -> None:
    @edl_jax.SEVERITIES.register("mine")
    def mine(log_probabilities: jax.Array, labels: jax.Array) -> jax.Array:
        return -log_probabilities[..., 0] + labels

    assert_type(mine(logits, labels), jax.Array)


class MethodOfOnesOwn(edl_jax.LossMethod):
    def losses(self, state: Any, logits: jax.Array, labels: jax.Array) -> jax.Array:
        return edl_jax.LOSSES["mae"](logits, labels)

    def update(self, state: Any, student: edl_jax.Student) -> Any:
        assert_type(student.validation(), tuple[jax.Array, jax.Array])
        return student.progress


def train_with_it() -> None:
    edl_jax.train(edl_jax.TrainConfig(), loss=MethodOfOnesOwn())


def evolve_any_problem(key: jax.Array) -> None:
    problem = 0.5 * edl_jax.RankingProblem() + 0.5 * edl_jax.TaskProblem()
    found = edl_jax.evolve(problem, "SNES", key, generations=2)
    assert_type(found.fitness, float)


def catch_errors() -> str:
    try:
        edl_jax.load_pretrained("none")
    except edl_jax.EDLError as error:
        return str(error)
    return ""


STRATEGIES = (edl_jax.ChaoticES, edl_jax.ChaoticSNES, edl_jax.ClassAgnosticNetwork)
