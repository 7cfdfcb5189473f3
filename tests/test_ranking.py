import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, strategies as st
from scipy import stats

from edl_jax import sample_pairs
from edl_jax.pairs import REGIMES, log_probabilities
from edl_jax.ranking import MARGINS, SEVERITIES, gradient_metrics, margin_violation, rank_metrics

# Few distinct values, so that ties are common.
VALUES = st.integers(-3, 3).map(lambda n: n / 2)


def brute_force_violation(losses, severities, margin, num_opponents):
    violated = demanded = 0.0
    for shift in range(1, num_opponents + 1):
        for i in range(len(losses)):
            j = (i - shift) % len(losses)
            worse, better = (i, j) if severities[i] > severities[j] else (j, i)
            if severities[worse] == severities[better]:
                continue
            asked = margin(severities[worse], severities[better])
            violated += max(0.0, asked - (losses[worse] - losses[better]))
            demanded += asked
    return violated / demanded


@pytest.mark.parametrize("name", MARGINS)
def test_margin_violation_against_brute_force(name):
    rng = np.random.default_rng(0)
    losses, severities = rng.normal(size=30), rng.normal(size=30).round(1)
    margin = {"proportional": lambda w, b: w - b, "constant": lambda w, b: 0.1}[name]
    expected = brute_force_violation(losses, severities, margin, 3)
    result = margin_violation(
        jnp.asarray(losses), jnp.asarray(severities), margin=MARGINS[name], num_opponents=3
    )
    assert result == pytest.approx(expected, rel=1e-5)


def test_margin_violation_of_known_losses():
    severities = jax.random.normal(jax.random.key(0), (100,))
    violation = lambda losses: float(  # noqa: E731
        margin_violation(losses, severities, margin=MARGINS["proportional"], num_opponents=5)
    )
    assert violation(severities) == pytest.approx(0, abs=1e-6)
    assert violation(2 * severities + 1) == 0  # steeper keeps every margin
    assert violation(jnp.zeros(100)) == pytest.approx(1, rel=1e-6)
    assert violation(0.5 * severities) == pytest.approx(0.5, rel=1e-5)
    assert violation(-severities) == pytest.approx(2, rel=1e-5)


@pytest.mark.parametrize("num_classes", [2, 7])
def test_severities_against_float64(num_classes):
    pairs = sample_pairs(jax.random.key(0), 300, num_classes)
    log_p = log_probabilities(pairs.probabilities)
    p, y = np.exp(np.asarray(log_p, np.float64)), np.asarray(pairs.labels)
    own = p[np.arange(300), y]
    others = np.where(np.eye(num_classes, dtype=bool)[y], -1, p)
    expected = {
        "surprisal": -np.log(own),
        "miss_probability": 1 - own,
        "rival_margin": others.max(-1) - own,
        "brier": ((p - np.eye(num_classes)[y]) ** 2).sum(-1),
    }
    assert set(expected) == set(SEVERITIES)
    for name, severity in SEVERITIES.items():
        np.testing.assert_allclose(
            severity(log_p, pairs.labels), expected[name], rtol=1e-5, atol=2e-6, err_msg=name
        )


@given(data=st.lists(st.tuples(VALUES, VALUES, st.integers(0, 6)), min_size=2, max_size=40))
def test_rank_metrics_against_brute_force(data):
    losses, severities, regimes = (np.asarray(x) for x in zip(*data, strict=True))
    metrics = rank_metrics(jnp.asarray(losses), jnp.asarray(severities), jnp.asarray(regimes))
    decided = severities[:, None] - severities[None] > 0.01
    agreed = decided & (losses[:, None] > losses[None])
    if decided.any():
        assert metrics["pairwise_accuracy"] == pytest.approx(agreed.sum() / decided.sum())
    else:
        assert "pairwise_accuracy" not in metrics
    for index, name in enumerate(REGIMES):
        block = np.ix_(regimes == index, regimes == index)
        key = f"pairwise_accuracy/{name}"
        if decided[block].any():
            assert metrics[key] == pytest.approx(agreed[block].sum() / decided[block].sum())
        else:
            assert key not in metrics
    tau = stats.kendalltau(losses, severities).statistic
    if np.isnan(tau):
        assert "kendall_tau" not in metrics
    else:
        assert metrics["kendall_tau"] == pytest.approx(tau)


def test_rank_metrics_of_many_pairs_against_scipy():
    rng = np.random.default_rng(1)
    severities = rng.normal(size=20_000).astype(np.float32).round(2)
    losses = (severities + rng.normal(size=20_000)).astype(np.float32).round(2)
    metrics = rank_metrics(losses, severities, np.zeros(20_000, np.int32), tolerance=0.0)
    tau = stats.kendalltau(losses, severities).statistic
    assert metrics["kendall_tau"] == pytest.approx(tau, abs=1e-12)


def test_gradient_metrics_of_known_losses():
    pairs = sample_pairs(jax.random.key(0), 2000, 10)
    cross_entropy = optax.losses.softmax_cross_entropy_with_integer_labels

    def mean_absolute_error(logits, labels):
        p = jax.nn.softmax(logits)
        return 1 - jnp.take_along_axis(p, labels[:, None], axis=-1)[:, 0]

    own = gradient_metrics(cross_entropy, pairs, SEVERITIES["surprisal"])
    assert own["gradient_ratio"] == pytest.approx(1, rel=1e-4)
    assert own["gradient_ratio/0.4-0.5"] == pytest.approx(1, rel=1e-4)
    assert own["descent_rate"] > 0.999
    doubled = gradient_metrics(lambda x, y: 2 * cross_entropy(x, y), pairs, SEVERITIES["surprisal"])
    assert doubled["gradient_ratio"] == pytest.approx(2, rel=1e-4)
    ascent = gradient_metrics(lambda x, y: -cross_entropy(x, y), pairs, SEVERITIES["surprisal"])
    assert ascent["descent_rate"] == 0
    # The slope of 1 - p_y is p_y times cross-entropy's: it vanishes where the model is wrong.
    flat = gradient_metrics(mean_absolute_error, pairs, SEVERITIES["surprisal"])
    assert flat["gradient_ratio/0.0-0.1"] < 0.1 < 0.9 < flat["gradient_ratio/0.9-1.0"]


def test_differences_within_the_tolerance_are_left_out():
    losses, severities = np.asarray([1.0, 0.0, 2.0]), np.asarray([0.0, 0.005, 1.0])
    zeros = np.zeros(3, np.int32)
    assert rank_metrics(losses, severities, zeros)["pairwise_accuracy"] == 1
    strict = rank_metrics(losses, severities, zeros, tolerance=0.0)
    assert strict["pairwise_accuracy"] == pytest.approx(2 / 3)
