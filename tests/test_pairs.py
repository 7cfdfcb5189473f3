import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st
from scipy import special, stats

from edl_jax import Mixture, sample_pairs
from edl_jax.errors import ConfigError, InputError
from edl_jax.pairs import REGIMES, _regimes, log_probabilities

NUM_PAIRS = 7000
LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)


def draw(regime: str):
    """Probabilities, labels and true class's probabilities of one regime's pairs, 10 classes."""
    pairs = sample_pairs(jax.random.key(0), NUM_PAIRS * len(REGIMES), 10)
    mine = np.asarray(pairs.regimes) == list(REGIMES).index(regime)
    probabilities, labels = np.asarray(pairs.probabilities)[mine], np.asarray(pairs.labels)[mine]
    return probabilities, labels, probabilities[np.arange(NUM_PAIRS), labels]


@pytest.mark.parametrize("num_classes", [2, 100])
def test_pairs_are_distributions_with_labels_in_range(num_classes):
    pairs = sample_pairs(jax.random.key(1), 1000, num_classes)
    assert pairs.probabilities.dtype == jnp.float32
    assert pairs.probabilities.shape == (1000, num_classes)
    assert (pairs.probabilities >= 0).all()
    np.testing.assert_allclose(pairs.probabilities.sum(-1), 1.0, atol=2e-6)
    assert pairs.labels.dtype == pairs.regimes.dtype == jnp.int32
    assert set(np.unique(pairs.labels)) <= set(range(num_classes))
    assert np.bincount(pairs.regimes, minlength=7).tolist() == pytest.approx([1000 / 7] * 7, abs=1)


def test_same_key_same_pairs_and_another_key_others():
    first, same, other = (sample_pairs(jax.random.key(s), 1000, 2) for s in (3, 3, 4))
    for a, b in zip(first, same, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(first.probabilities, other.probabilities)


def test_order_is_random():
    regimes = np.asarray(sample_pairs(jax.random.key(0), NUM_PAIRS * len(REGIMES), 10).regimes)
    # In blocks, neighbours would agree always; in random order, one time in seven.
    agreement = (regimes[1:] == regimes[:-1]).mean()
    assert agreement == pytest.approx(1 / 7, abs=0.02)


def test_expected_counts_are_the_shares_even_for_one_pair():
    mixture = Mixture(0.3, 0.0, 0.1, 1.0, 1.0, 0.0, 0.6)
    keys = jax.random.split(jax.random.key(0), 30_000)
    drawn = jax.vmap(lambda key: sample_pairs(key, 1, 3, mixture=mixture).regimes)(keys)
    counts = np.bincount(np.asarray(drawn).ravel(), minlength=7)
    shares = np.asarray(mixture.shares())
    assert (counts[shares == 0] == 0).all()
    assert stats.chisquare(counts[shares > 0], 30_000 * shares[shares > 0]).pvalue > 1e-4


def test_shares_of_weights_whose_sum_overflows():
    assert Mixture(1e308, 1e308, 0, 0, 0, 0, 0).shares() == (0.5, 0.5, 0, 0, 0, 0, 0)


def test_a_regime_of_weight_zero_is_left_out():
    mixture = Mixture(uniform=0, sparse=0, confident_wrong=0)
    pairs = sample_pairs(jax.random.key(0), 400, 3, mixture=mixture)
    assert np.bincount(pairs.regimes, minlength=7).tolist() == [0, 0, 100, 100, 0, 100, 100]


@given(
    weights=st.lists(st.floats(0, 10), min_size=7, max_size=7).filter(lambda w: sum(w) > 1e-3),
    num_pairs=st.integers(1, 60),
    seed=st.integers(0, 100),
)
def test_counts_are_shares_rounded_up_or_down(weights, num_pairs, seed):
    mixture = Mixture(*weights)
    expected = np.asarray(mixture.shares()) * num_pairs
    counts = np.bincount(_regimes(jax.random.key(seed), num_pairs, mixture), minlength=7)
    assert counts.sum() == num_pairs
    assert (np.abs(counts - expected) < 1 + 1e-4).all()


def test_uniform_regime_is_uniform_on_the_simplex():
    probabilities, _, _ = draw("uniform")
    # A coordinate of Dirichlet(1) over 10 classes is Beta(1, 9).
    assert stats.kstest(probabilities[:, 3], stats.beta(1, 9).cdf).pvalue > 1e-4


def test_sparse_regime_has_the_moments_of_its_dirichlet():
    probabilities, _, _ = draw("sparse")
    # E[sum p^2] of Dirichlet(a) over K classes is (a + 1) / (K a + 1), a log-uniform.
    a = np.geomspace(0.03, 1.0, 20_001)
    expected = np.mean((a + 1) / (10 * a + 1))
    moments = (probabilities.astype(np.float64) ** 2).sum(-1)
    assert moments.mean() == pytest.approx(expected, abs=4 * moments.std() / NUM_PAIRS**0.5)


@pytest.mark.parametrize("num_classes", [2, 10, 100])
def test_sparse_regime_covers_what_its_dirichlet_does(num_classes):
    """By quantiles of the largest probability, of the entropy and of a class's surprisal."""
    drawn = np.asarray(only("sparse", num_classes).probabilities, np.float64)
    rng = np.random.default_rng(0)
    reference = dirichlet(rng, np.geomspace(0.03, 1.0, NUM_PAIRS)[:, None], num_classes)
    for of in (
        lambda p: p.max(axis=-1),
        lambda p: stats.entropy(p, axis=-1),
        lambda p: np.log1p(-np.log(p[:, 0] + 1e-12)),
    ):
        ours, theirs = of(drawn), of(reference)
        gap = np.quantile(ours, LEVELS) - np.quantile(theirs, LEVELS)
        assert (np.abs(gap) < 0.2 * theirs.std()).all()


@pytest.mark.parametrize("regime", ["confident_correct", "confident_wrong"])
def test_confident_regimes_leave_a_log_uniform_share(regime):
    probabilities, labels, own = draw(regime)
    is_right = probabilities.argmax(-1) == labels
    assert is_right.all() if regime == "confident_correct" else not is_right.any()
    # In float32 the rest of a probability near 1 is known to 1e-7 only.
    others = np.sort(probabilities, axis=-1)[:, :-1].sum(-1, dtype=np.float64)
    uniform = (np.log(others) - np.log(1e-5)) / (np.log(0.3) - np.log(1e-5))
    assert stats.kstest(uniform, "uniform").pvalue > 1e-4
    assert own.min() > 0


def test_ambiguous_regime_ties_at_the_top():
    probabilities, labels, _ = draw("ambiguous")
    top = np.sort(probabilities, axis=-1)[:, -2:]
    np.testing.assert_array_equal(top[:, 0], top[:, 1])
    among = probabilities[np.arange(NUM_PAIRS), labels] == top[:, 1]
    assert among.mean() == pytest.approx(0.5 + 0.5 * 2 / 10, abs=0.03)


def only(regime: str, num_classes: int, *, num_pairs: int = NUM_PAIRS, seed: int = 2):
    """Pairs of one regime, in any number of classes."""
    mixture = Mixture(**dict.fromkeys(REGIMES, 0.0) | {regime: 1.0})
    return sample_pairs(jax.random.key(seed), num_pairs, num_classes, mixture=mixture)


def dirichlet(rng: np.random.Generator, concentrations: np.ndarray, num_classes: int):
    """Draws for concentrations `[n, 1]` of at most 1, float64."""
    shape = (len(concentrations), num_classes)
    # Gamma draws of a small concentration round to 0; their logarithms do not.
    log_gamma = np.log(rng.standard_gamma(concentrations + 1, shape))
    return special.softmax(log_gamma + np.log(rng.random(shape)) / concentrations, axis=-1)


def test_ambiguous_regime_leads_by_up_to_6_nats_and_every_two_classes_tie_as_often():
    # Of 100 classes the two that tie are seldom those whose noise was the greatest.
    ordered = np.sort(np.asarray(log_probabilities(only("ambiguous", 100).probabilities)))
    lead = ordered[:, -1] - ordered[:, -3]
    assert stats.kstest(lead / 6, "uniform").pvalue > 1e-4
    tied = np.sort(np.argsort(np.asarray(only("ambiguous", 4).probabilities))[:, -2:])
    counts = np.bincount(tied[:, 0] * 4 + tied[:, 1], minlength=16)
    assert stats.chisquare(counts[[1, 2, 3, 6, 7, 11]]).pvalue > 1e-4
    assert counts.sum() == counts[[1, 2, 3, 6, 7, 11]].sum()


def test_tempered_regime_is_gaussian_logits_over_a_log_uniform_temperature():
    found = np.asarray(log_probabilities(only("tempered", 10).probabilities)).std(axis=1)
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(NUM_PAIRS, 10)) / 10 ** rng.uniform(-1, 1, (NUM_PAIRS, 1))
    assert stats.ks_2samp(found, logits.std(axis=1)).pvalue > 1e-4


def test_untrained_regime_is_near_uniform_and_tempered_is_not():
    assert draw("untrained")[0].max() < 0.6
    assert draw("tempered")[0].max() > 0.999


@pytest.mark.parametrize("regime", REGIMES)
def test_no_class_is_favoured(regime):
    probabilities, labels, _ = draw(regime)
    assert stats.chisquare(np.bincount(labels, minlength=10)).pvalue > 1e-4
    np.testing.assert_allclose(probabilities.mean(0), 0.1, atol=0.02)


def test_calibrated_half_of_the_labels_follows_the_prediction():
    probabilities, _, own = draw("uniform")
    # E[p_y] is E[sum p^2] = 2 / (K + 1) for labels drawn from p, and 1 / K for uniform ones.
    expected = 0.5 * 2 / 11 + 0.5 / 10
    assert own.mean() == pytest.approx(expected, abs=0.005)
    assert probabilities.shape == (NUM_PAIRS, 10)


def test_log_probabilities_are_finite_where_probabilities_vanish():
    result = log_probabilities(jnp.asarray([0.0, 1e-45, 1e-30, 1.0]))
    np.testing.assert_allclose(result, [-87.33655, -87.33655, -69.07755, 0.0], rtol=1e-6)


def test_refuses_bad_arguments():
    with pytest.raises(ConfigError, match="num_pairs is 0"):
        sample_pairs(jax.random.key(0), 0, 3)
    with pytest.raises(ConfigError, match="num_classes is 1"):
        sample_pairs(jax.random.key(0), 3, 1)
    with pytest.raises(ConfigError, match=r"num_pairs is 3\.0; expected a whole number"):
        sample_pairs(jax.random.key(0), 3.0, 3)  # pyright: ignore
    with pytest.raises(ConfigError, match=r"num_pairs is True; expected a whole number"):
        sample_pairs(jax.random.key(0), True, 3)
    for num_pairs, num_classes in ((2**40, 3), (8, 2**33), (2**28, 8), (2**20, 2**11)):
        with pytest.raises(InputError, match=rf"num_pairs is {num_pairs} .* fewer than 2\^31 num"):
            sample_pairs(jax.random.key(0), num_pairs, num_classes)
    pairs = sample_pairs(jax.random.key(0), np.int64(1000), np.int32(2))
    assert pairs.probabilities.shape == (1000, 2)
    with pytest.raises(ConfigError, match="uniform is 'a'"):
        Mixture(uniform="a")  # pyright: ignore
    with pytest.raises(ConfigError, match=r"Mixture\.sparse is -1"):
        Mixture(sparse=-1.0)
    with pytest.raises(ConfigError, match=r"Mixture\.tempered is nan"):
        Mixture(tempered=float("nan"))
    with pytest.raises(ConfigError, match="only zero weights"):
        Mixture(0, 0, 0, 0, 0, 0, 0)
