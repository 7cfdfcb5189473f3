"""The one place where a loss is measured on pairs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from edl_jax import MARGINS, SEVERITIES, Pairs, load_pretrained
from edl_jax.objective import measure, rank_metrics
from edl_jax.objective.measure import gradient_metrics, logit_gradients, responses
from edl_jax.pairs import log_probabilities
from tests.network_tools import quick_jit

SURPRISAL, PROPORTIONAL = SEVERITIES["surprisal"], MARGINS["proportional"]
ASKED = {"severity": SURPRISAL, "margin": PROPORTIONAL}


def pairs_of(num_classes, num_pairs=60):
    rng = np.random.default_rng(num_classes)
    logits = 3 * rng.normal(size=(num_pairs, num_classes))
    labels = rng.integers(num_classes, size=num_pairs)
    probabilities = scipy.special.softmax(logits, axis=-1).astype(np.float32)
    return Pairs(probabilities, labels.astype(np.int32), labels % 7)  # pyright: ignore


def mean_absolute_error(logits, labels):
    return 1 - jnp.take_along_axis(jax.nn.softmax(logits), labels[:, None], axis=-1)[:, 0]


def test_ranks_and_gradients_are_those_of_all_sets_together():
    sets = pairs_of(3), pairs_of(5)
    losses, severities, samples = [], [], []
    for pairs in sets:
        log_p = log_probabilities(pairs.probabilities)
        losses.append(quick_jit(mean_absolute_error)(log_p, pairs.labels))
        severities.append(quick_jit(SURPRISAL)(log_p, pairs.labels))
        measured = quick_jit(lambda pairs: logit_gradients(mean_absolute_error, pairs, SURPRISAL))
        samples.append(measured(pairs))
    sample = jax.tree.map(lambda *x: np.concatenate(x), *samples)
    ranks = rank_metrics(
        np.concatenate(losses), np.concatenate(severities), sample.regimes, margin=PROPORTIONAL
    )
    expected = ranks | gradient_metrics(sample)
    assert measure(mean_absolute_error, sets, **ASKED) == pytest.approx(expected, rel=1e-5)
    # Its gradient is scaled, its margins are not.
    doubled = measure(mean_absolute_error, sets, scale=2.0, **ASKED)
    for name, value in doubled.items():
        factor = 2 if name.startswith("gradient_ratio") else 1
        assert value == pytest.approx(factor * expected[name], rel=1e-5), name


def test_losses_with_other_parameters_share_a_program():
    loss, pairs = load_pretrained().replace(scale=jnp.ones(())), pairs_of(4)
    one = measure(loss, pairs, **ASKED)
    size = responses._cache_size()
    other = measure(jax.tree.map(lambda x: -x, loss), pairs, **ASKED)
    assert responses._cache_size() == size
    assert one["pairwise_accuracy"] != other["pairwise_accuracy"]


def test_a_loss_that_is_not_finite_has_no_metrics():
    assert measure(lambda x, y: jnp.nan * x[:, 0], pairs_of(3), **ASKED) == {}
