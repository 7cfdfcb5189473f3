"""The default pretraining."""

import jax
import numpy as np
import pytest

from edl_jax import PretrainConfig, load_pretrained, pretrain, sample_pairs
from edl_jax.objective import MARGINS, SEVERITIES, rank_metrics
from edl_jax.pairs import REGIMES, log_probabilities


@pytest.fixture(scope="module")
def default():
    """The default pretraining, about half a minute."""
    return pretrain()


@pytest.mark.parametrize(
    ("num_classes", "num_pairs"), [(2, 100_000), (10, 100_000), (100, 100_000), (1000, 10_000)]
)
def test_default_pretraining_ranks_held_out_pairs_at_any_class_count(
    default, num_classes, num_pairs
):
    pairs = sample_pairs(jax.random.key(2026), num_pairs, num_classes)
    log_p = log_probabilities(pairs.probabilities)
    losses = jax.jit(default.loss.network())(log_p, pairs.labels)
    severities = SEVERITIES["surprisal"](log_p, pairs.labels)
    metrics = rank_metrics(losses, severities, pairs.regimes, margin=MARGINS["proportional"])
    assert metrics["pairwise_accuracy"] >= 0.99
    regimes = {name for name in REGIMES if f"pairwise_accuracy/{name}" in metrics}
    # With two classes every tie has the same severity: there is nothing to compare.
    assert regimes == (set(REGIMES) - {"ambiguous"} if num_classes == 2 else set(REGIMES))
    for name in regimes:
        assert metrics[f"pairwise_accuracy/{name}"] >= 0.95, name


def test_default_pretraining_reports_itself(default):
    assert default.metrics["pairwise_accuracy"] >= 0.99
    assert default.metrics["10 classes: descent_rate"] > 0.99
    assert default.metrics["10 classes: gradient_ratio"] == pytest.approx(1, abs=0.2)
    assert default.loss.provenance.metrics == default.metrics
    history = default.history
    assert history["best_fitness"].shape == (PretrainConfig().generations,)
    assert history["mean_fitness"][-1] < 1e-3 < 0.1 < history["mean_fitness"][0]
    assert history["failed"].sum() == 0
    assert default.held_out["generation"].tolist() == list(range(24, 200, 25))
    assert np.isfinite(default.held_out["pairwise_accuracy"]).all()


def test_the_shipped_loss_is_of_the_kind_that_its_config_evolves(default):
    """It was evolved by an earlier revision (results/README.md), so it is not the same to a bit."""
    shipped, logits = load_pretrained(), 3 * jax.random.normal(jax.random.key(0), (100, 10))
    labels = jax.random.randint(jax.random.key(1), (100,), 0, 10)
    assert np.corrcoef(default.loss(logits, labels), shipped(logits, labels))[0, 1] > 0.98
