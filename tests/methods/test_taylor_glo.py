"""TaylorGLO's polynomial, and what its search finds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from edl_jax import LOSSES, DataConfig, TrainConfig, train
from edl_jax.losses.by_name import resolve_loss
from edl_jax.methods.taylor_glo import TaylorGLO
from edl_jax.runs.folder import read_json
from tests.methods.test_glo import task_of, values_of
from tests.test_train_objects import Linear


def test_a_cubic_is_its_own_expansion_around_any_centers():
    """Of `f = w^2 p + 2 w p^2 - p^3 + 3 w p + p`, but for what does not depend on p."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4, 3))
    w = np.asarray([[1.0, 0, 0], [0, 0, 1], [0.2, 0.5, 0.3], [0, 0.9, 0.1]])
    p = special.softmax(logits, axis=-1)
    by_p = -(w**2 + 4 * w * p - 3 * p**2 + 3 * w + 1)  # of the loss, which is -f
    expected = p * (by_p - (by_p * p).sum(axis=-1, keepdims=True))
    gradient = jax.jit(
        jax.grad(lambda x, a: LOSSES["taylor_polynomial"](x, jnp.asarray(w), parameters=a).sum())
    )
    with jax.enable_x64(True):
        for a, b in ((0.0, 0.0), (0.3, 0.8), (-1.1, 0.4)):
            f_p, f_pp, f_ppp = a**2 + 4 * a * b - 3 * b**2 + 3 * a + 1, 4 * a - 6 * b, -6
            f_wp, f_wpp, f_wwp = 2 * a + 4 * b + 3, 4, 2
            parameters = np.asarray([a, b, f_p, f_pp, f_ppp, f_wp, f_wpp, f_wwp])
            np.testing.assert_allclose(
                gradient(logits, parameters), expected, rtol=1e-9, atol=1e-12
            )


def test_the_search_finds_a_polynomial_whose_losses_are_known():
    target = values_of(LOSSES["taylor_polynomial"])  # of cross-entropy
    method = TaylorGLO(population_size=40, generations=60)
    name = method.search(jax.random.key(0), task_of(target))
    np.testing.assert_allclose(values_of(resolve_loss(name)), target, atol=1e-2)
    assert name.startswith("taylor_polynomial(parameters=(")
    assert method.num_trainings == 40 * 60 + 2 * 12


@pytest.mark.slow
def test_a_training_searches_first_and_by_an_object_too(tmp_path):
    config = TrainConfig(
        loss="taylor_glo(population_size=4, generations=2, steps=2)",
        data=DataConfig("digits", train_examples=64, val_examples=32, test_examples=8),
        batch_size=32,
        epochs=1,
    )
    once = train(config, model=Linear, run_dir=tmp_path)
    name = read_json(tmp_path / "search/found.json")["loss"]
    assert train(config, model=Linear, run_dir=tmp_path).history == once.history
    assert train(config, model=Linear, loss=name).test_nll == once.test_nll
    given = TaylorGLO(population_size=4, generations=2, steps=2)
    assert train(config, model=Linear, loss=given).test_nll == once.test_nll


@pytest.mark.slow
def test_a_loss_that_is_searched_on_digits_trains_on_digits():
    config = TrainConfig(
        loss="taylor_glo(population_size=12, generations=5, steps=40)",
        data=DataConfig("digits", val_examples=300),
        model="resnet8",
        width=8,
        epochs=10,
        batch_size=64,
    )
    assert train(config).test_accuracy > 0.95
