"""MeTAL: its loss in NumPy, its outer gradient by finite differences, what it learns on digits."""

import dataclasses

import jax
import numpy as np
import pytest
from scipy import special

from edl_jax import DataConfig, TrainConfig, train
from edl_jax.errors import ConfigError
from edl_jax.losses.by_name import resolve_method
from edl_jax.methods.metal import MeTAL, learned_loss
from edl_jax.training.few_shot import FewShotConfig, MetaTraining, meta_train
from edl_jax.training.training import load_shared

TINY = MeTAL(inner_steps=2, inner_rate=0.1, width=2)
SHAPE, WAYS = (4, 4, 1), 2


def begun(method, *, adapting=True):
    """What a method has learned at first, in float64, adapters that have an effect among it."""
    learned = jax.jit(lambda key: method.init(key, SHAPE, WAYS))(jax.random.key(1))
    rng = np.random.default_rng(2)

    def moved(x):
        return np.asarray(x, float) + adapting * rng.normal(0, 0.3, x.shape)

    return jax.tree.map(moved, jax.device_get(learned))


def test_the_loss_of_a_step_is_that_of_the_formulas():
    rng = np.random.default_rng(0)
    learned = begun(TINY)
    support, query = rng.normal(size=(WAYS, 1, WAYS)), rng.normal(size=(WAYS, 3, WAYS))
    losses = jax.tree.map(lambda x: x[1], learned.losses)  # of the second step
    with jax.enable_x64(True):
        found = jax.jit(learned_loss)(losses, learned.weights, support, query)

    def normalized(x):
        return (x - np.mean(x)) / np.std(x, ddof=1)

    def judged(part, task, rows):
        (a, b), (c, d) = part.adapter
        factors = np.maximum(task @ a + b, 0) @ c + d
        (k1, b1), (k2, b2) = part.mlp
        w = [
            (1 + part.scale[i] * factors[i]) * x + part.shift[i] * factors[4 + i]
            for i, x in enumerate((k1, b1, k2, b2))
        ]
        return np.mean(np.maximum(rows @ w[0] + w[1], 0) @ w[2] + w[3])

    means = [x.mean() for layer in learned.weights for x in layer]
    log_p = special.log_softmax(support[:, 0], axis=-1)
    cross_entropy = -np.mean([log_p[0, 0], log_p[1, 1]])
    task = np.array([*means, cross_entropy])
    rows = np.array([[*task, *support[k, 0], *np.eye(WAYS)[k]] for k in range(WAYS)])
    of_support = judged(losses[0], normalized(task), normalized(rows))
    negative_entropy = -special.entr(special.softmax(query, axis=-1)).sum(axis=-1)
    rows = [[*means, *query[k, n], negative_entropy[k, n]] for k in range(WAYS) for n in range(3)]
    rows = normalized(np.array(rows))
    of_query = judged(losses[1], rows.mean(axis=0), rows)
    np.testing.assert_allclose(found, cross_entropy + of_support + of_query, rtol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("inner_loss", ["learned", "cross_entropy"])
def test_the_outer_gradient_equals_finite_differences(inner_loss):
    method = dataclasses.replace(TINY, inner_loss=inner_loss)
    learned, rng = begun(method), np.random.default_rng(3)
    support, query = rng.normal(size=(WAYS, 2, *SHAPE)), rng.normal(size=(WAYS, 3, *SHAPE))
    with jax.enable_x64(True):
        loss = jax.jit(lambda x: method.query_loss(x, support, query)[0])
        gradient = jax.device_get(jax.jit(jax.grad(loss))(learned))
        parts = jax.tree.leaves(gradient)
        assert all(np.abs(x).max() > 1e-6 for x in jax.tree.leaves(gradient.losses))
        for _ in range(5):
            way = jax.tree.map(lambda x: rng.normal(size=x.shape), learned)
            ends = [jax.tree.map(lambda x, d, e=e: x + e * d, learned, way) for e in (1e-6, -1e-6)]
            slope = (float(loss(ends[0])) - float(loss(ends[1]))) / 2e-6
            along = sum(np.vdot(g, d) for g, d in zip(parts, jax.tree.leaves(way), strict=True))
            np.testing.assert_allclose(along, slope, rtol=1e-5)


def test_the_queries_are_measured_once_the_task_is_learned():
    method = MeTAL(inner_loss="cross_entropy", inner_steps=20, inner_rate=1.0, width=2)
    learned, rng = begun(method, adapting=False), np.random.default_rng(4)
    support = rng.normal(size=(WAYS, 2, *SHAPE))
    measured = jax.jit(method.query_loss)
    for query, right in ((support, True), (support[::-1], False)):
        loss, accuracy = measured(learned, support, query)
        assert (accuracy, loss < np.log(2)) == (right, right)


def test_maml_begins_with_the_same_classifier_and_has_no_losses():
    maml = begun(dataclasses.replace(TINY, inner_loss="cross_entropy"), adapting=False)
    metal = begun(TINY, adapting=False)
    jax.tree.map(np.testing.assert_array_equal, maml.weights, metal.weights)
    assert (len(maml.losses), len(metal.losses)) == (0, 2)
    with jax.enable_x64(True):
        abstract = jax.eval_shape(lambda: TINY.init(jax.random.key(0), SHAPE, WAYS))
    assert {x.dtype for x in jax.tree.leaves(abstract)} == {np.dtype(np.float32)}
    # At first adapters change nothing.
    assert not any(np.any(part.scale) or np.any(part.shift) for part in metal.losses)


def test_train_says_how_to_run_it_instead():
    data = DataConfig("digits", train_examples=128, test_examples=50)
    assert resolve_method("metal(width=8)") == MeTAL(width=8)
    for given in ({"config": TrainConfig(loss="metal", data=data)}, {"loss": MeTAL()}):
        with pytest.raises(ConfigError, match="so train cannot use it"):
            train(**{"data": data, "model": "resnet8", **given})


@pytest.mark.slow
def test_five_way_one_shot_on_digits_is_learned():
    config, method = FewShotConfig(steps=200, queries=5, test_tasks=200), MeTAL(width=16)
    result = meta_train(method, "digits", config)
    run = MetaTraining(method, load_shared(DataConfig("digits")), config)
    before = run.evaluate(run.init(run.key_init).learned, run.key_test, 200)[1].mean()
    assert result.test_accuracy > before + 0.1
    assert result.history[-1]["train_accuracy"] > 0.6
    # New tasks of the same classes, which were in no step: 5 standard errors apart at most.
    again = result.evaluate(200, seed=1)
    spread = again.std() * np.sqrt(2 / 200)
    assert abs(again.mean() - result.test_accuracy) < 5 * spread
