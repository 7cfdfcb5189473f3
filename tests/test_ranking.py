import functools
import warnings
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, strategies as st
from scipy import stats

from edl_jax import sample_pairs
from edl_jax.errors import InputError
from edl_jax.objective import (
    MARGINS,
    SEVERITIES,
    apply_severity,
    margin_violation,
    rank_metrics,
    ranking,
)
from edl_jax.objective.measure import GradientSample, gradient_metrics, logit_gradients
from edl_jax.pairs import REGIMES, Pairs, log_probabilities
from tests.network_tools import quick_jit

# Few distinct values, so that ties are common; all sums and differences are exact in float32.
VALUES = st.integers(-3, 3).map(lambda n: n / 2)
TRIPLES = st.tuples(VALUES, VALUES, st.integers(0, 6))

cross_entropy = optax.losses.softmax_cross_entropy_with_integer_labels


def mean_absolute_error(logits, labels):
    p = jax.nn.softmax(logits)
    return 1 - jnp.take_along_axis(p, labels[:, None], axis=-1)[:, 0]


@functools.cache
def _draw(num_classes):
    return jax.device_get(sample_pairs(jax.random.key(0), 2000, num_classes))


def some_pairs(num_pairs=2000, num_classes=10, *, first=0):
    """Pairs from one draw, since every other size would compile the sampler again."""
    return jax.tree.map(lambda x: x[first : first + num_pairs], _draw(num_classes))


def quadratic_margin(worse, better):
    return (worse - better) ** 2


@pytest.fixture
def own_parts():
    """Registers a severity and a margin, as a user's script would, and removes them after."""

    with mock.patch.dict(SEVERITIES), mock.patch.dict(MARGINS):

        @SEVERITIES.register("test_error")
        def error(log_probabilities, labels):
            return jnp.argmax(log_probabilities, axis=-1) != labels

        MARGINS.register("test_quadratic")(quadratic_margin)
        yield error


# --- severities and margins ---------------------------------------------------------------------


def float64_severities(log_p, y):
    p, rows, num_classes = np.exp(log_p), np.arange(len(y)), log_p.shape[-1]
    own, one_hot = p[rows, y], np.eye(num_classes)[y]
    return {
        "surprisal": -log_p[rows, y],
        "miss_probability": 1 - own,
        "brier": ((p - one_hot) ** 2).sum(-1),
        "smoothed_surprisal": -((0.9 * one_hot + 0.1 / num_classes) * log_p).sum(-1),
        "generalised_surprisal": (1 - own**0.7) / 0.7,
    }


@quick_jit
def every_severity(log_p, labels):
    return {name: severity(log_p, labels) for name, severity in SEVERITIES.items()}


@quick_jit
def every_value_and_gradient(log_p, labels):
    """Of every severity, by the logits."""
    return {
        name: jax.vmap(jax.value_and_grad(lambda x, y, of=of: of(jax.nn.log_softmax(x), y)))(
            log_p, labels
        )
        for name, of in SEVERITIES.items()
    }


@pytest.mark.parametrize("num_classes", [2, 10])
def test_severities_against_float64(num_classes):
    pairs = some_pairs(300, num_classes)
    log_p = np.asarray(log_probabilities(pairs.probabilities))
    expected = float64_severities(np.asarray(log_p, np.float64), pairs.labels)
    assert set(expected) == set(SEVERITIES)
    for name, found in every_severity(log_p, pairs.labels).items():
        np.testing.assert_allclose(found, expected[name], rtol=1e-5, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("name", ["miss_probability", "generalised_surprisal"])
def test_a_small_severity_keeps_its_digits(name):
    log_p = jnp.log(jnp.asarray([[1e-7, 1e-7, 1e-7]])).at[0, 0].set(-2e-7)
    severity = SEVERITIES[name](log_p, jnp.asarray([0]))
    np.testing.assert_allclose(severity, [2e-7], rtol=1e-5)


def test_over_confidence_is_an_error_to_the_smoothed_surprisal():
    target = jnp.asarray([0.9 + 0.1 / 4] + [0.1 / 4] * 3)
    logits = jnp.log(target) * jnp.asarray([[0.5], [1.0], [2.0], [8.0]])
    severity = SEVERITIES["smoothed_surprisal"](jax.nn.log_softmax(logits), jnp.zeros(4, int))
    assert jnp.argmin(severity) == 1
    assert severity[1] < severity[2] < severity[3]


@pytest.mark.parametrize("name", SEVERITIES)
def test_severities_of_extreme_predictions_are_finite_with_their_gradients(name):
    log_p = log_probabilities(np.float32([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.5, 0.5, 0.0]]))
    assert np.min(log_p) < -87
    values, gradient = map(np.asarray, every_value_and_gradient(log_p, np.int32([0, 1, 2]))[name])
    assert values.dtype == jnp.float32
    assert np.isfinite(values).all()
    assert np.isfinite(gradient).all()
    # Sure and wrong is worse than sure and right, to every severity.
    assert values[0] < values[1]


@pytest.mark.parametrize("name", SEVERITIES)
def test_severities_take_any_leading_shape_under_jit(name):
    pairs = some_pairs(12)
    log_p = np.asarray(log_probabilities(pairs.probabilities))
    flat = every_severity(log_p, pairs.labels)[name]
    shaped = every_severity(log_p.reshape(3, 4, 10), pairs.labels.reshape(3, 4))[name]
    np.testing.assert_allclose(shaped, np.reshape(flat, (3, 4)), rtol=1e-5, atol=1e-6)


def test_margins():
    worse, better = jnp.asarray([3.0, 0.5]), jnp.asarray([1.0, 0.25])
    np.testing.assert_array_equal(MARGINS["proportional"](worse, better), [2.0, 0.25])
    np.testing.assert_array_equal(MARGINS["constant"](worse, better), np.float32([0.1, 0.1]))
    assert list(MARGINS) == ["proportional", "constant"]


def test_apply_severity_refuses_what_is_not_one_value_a_pair():
    log_p, labels = jnp.zeros((4, 3)), jnp.zeros(4, jnp.int32)

    def per_class(log_probabilities, labels):
        return -log_probabilities

    with pytest.raises(
        InputError, match=r"severity per_class gave shape \(4, 3\) for pairs of shape \(4,"
    ):
        apply_severity(per_class, log_p, labels)
    with pytest.raises(InputError, match=r"gave shape \(\)"):
        jax.jit(functools.partial(apply_severity, lambda log_p, labels: 0.5))(log_p, labels)


def test_apply_severity_gives_floats():
    log_p, labels = jnp.log(jnp.asarray([[0.9, 0.1], [0.2, 0.8]])), jnp.asarray([0, 0])
    right = apply_severity(lambda log_p, labels: log_p.argmax(-1) != labels, log_p, labels)
    assert right.dtype == jnp.float32
    np.testing.assert_array_equal(right, [0, 1])


def test_a_users_own_severity_and_margin(own_parts):
    pairs = some_pairs(200)
    log_p = log_probabilities(pairs.probabilities)
    assert SEVERITIES["test_error"] is own_parts
    assert MARGINS["test_quadratic"] is quadratic_margin
    severities = apply_severity(SEVERITIES["test_error"], log_p, pairs.labels)
    assert set(np.unique(severities)) == {0, 1}
    for slope, violated in ((1.0, 0), (0.5, 1)):  # 0.5 falls short of the margin (1 - 0)^2
        metrics = rank_metrics(
            slope * severities, severities, pairs.regimes, margin=MARGINS["test_quadratic"]
        )
        assert metrics["violated_margins"] == violated
        assert metrics["pairwise_accuracy"] == 1
        violation = margin_violation(
            slope * severities, severities, margin=MARGINS["test_quadratic"], num_opponents=3
        )
        assert violation == pytest.approx(1 - slope)


def test_parts_of_other_tests_do_not_stay():
    assert not [name for name in (*SEVERITIES, *MARGINS) if name.startswith("test")]


# --- the objective ------------------------------------------------------------------------------


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
    severities = np.random.default_rng(0).normal(size=100).astype(np.float32)
    violation = quick_jit(
        lambda losses: margin_violation(
            losses, severities, margin=MARGINS["proportional"], num_opponents=5
        )
    )
    assert violation(severities) == pytest.approx(0, abs=1e-6)
    assert violation(2 * severities + 1) == 0  # steeper keeps every margin
    assert violation(np.zeros(100, np.float32)) == pytest.approx(1, rel=1e-6)
    assert violation(0.5 * severities) == pytest.approx(0.5, rel=1e-5)
    assert violation(-severities) == pytest.approx(2, rel=1e-5)


# --- ranking metrics ----------------------------------------------------------------------------


def brute_force_metrics(losses, severities, margin, tolerance):
    """The metrics from their definitions, all comparisons at once."""
    harder, gap = (np.subtract.outer(x, x) for x in (severities, losses))
    worse = harder > 0
    asked = margin(severities[:, None], severities[None])
    decided = harder > tolerance
    metrics = {
        "pairwise_accuracy": (decided & (gap > 0)).sum() / max(1, decided.sum()),
        "violated_margins": (worse & (gap < asked)).sum() / max(1, worse.sum()),
    }
    metrics = {
        name: value
        for (name, value), compared in zip(metrics.items(), (decided, worse), strict=True)
        if compared.any()
    }
    # Kendall's tau-b is undefined exactly where one of the two is constant; so is Spearman's rho.
    if worse.any() and (gap > 0).any():
        metrics["kendall_tau"] = stats.kendalltau(losses, severities).statistic
        metrics["spearman_rho"] = stats.spearmanr(losses, severities).statistic
    return metrics


def assert_as_brute_force(losses, severities, regimes, margin, tolerance):
    expected = brute_force_metrics(losses, severities, margin, tolerance)
    for index, regime in enumerate(REGIMES):
        mine = regimes == index
        own = brute_force_metrics(losses[mine], severities[mine], margin, tolerance)
        expected |= {f"{name}/{regime}": value for name, value in own.items()}
    with mock.patch.object(ranking, "TOLERANCE", tolerance):
        result = rank_metrics(losses, severities, regimes, margin=margin)
    assert result == pytest.approx(expected, abs=1e-9)
    assert all(type(value) is float for value in result.values())


@given(
    # A few lengths: each compiles a program.
    data=st.sampled_from([2, 3, 15, 40]).flatmap(
        lambda n: st.lists(TRIPLES, min_size=n, max_size=n)
    ),
    margin=st.sampled_from([MARGINS["proportional"], quadratic_margin]),
    tolerance=st.sampled_from([0.0, 0.01, 0.5, 0.75]),
)
def test_rank_metrics_against_brute_force(data, margin, tolerance):
    losses, severities, regimes = (np.asarray(x) for x in zip(*data, strict=True))
    assert_as_brute_force(losses, severities, regimes, margin, tolerance)


@pytest.mark.parametrize("num_pairs", [127, 128, 129, 700])  # 128 rows are counted at a time
def test_rank_metrics_whatever_the_number_of_pairs(num_pairs):
    rng = np.random.default_rng(num_pairs)
    losses, severities = rng.integers(-8, 8, (2, num_pairs)) / 4
    regimes = rng.integers(0, 4, num_pairs)
    assert_as_brute_force(losses, severities, regimes, quadratic_margin, 0.01)


def test_rank_metrics_of_many_pairs_against_scipy():
    rng = np.random.default_rng(1)
    severities = rng.normal(size=20_000).astype(np.float32).round(2)
    losses = (severities + rng.normal(size=20_000)).astype(np.float32).round(2)
    regimes = rng.integers(0, 2, 20_000)
    metrics = rank_metrics(losses, severities, regimes, margin=MARGINS["constant"])
    for suffix, mine in (("", regimes >= 0), ("/sparse", regimes == 1)):
        own = losses[mine], severities[mine]
        tau, rho = stats.kendalltau(*own).statistic, stats.spearmanr(*own).statistic
        assert metrics[f"kendall_tau{suffix}"] == pytest.approx(tau, abs=1e-12)
        assert metrics[f"spearman_rho{suffix}"] == pytest.approx(rho, abs=1e-12)


def test_violated_margins_are_those_of_the_first_pairs(monkeypatch):
    assert ranking.MOST_PAIRS == 16_384
    monkeypatch.setattr(ranking, "MOST_PAIRS", 200)
    rng = np.random.default_rng(2)
    losses, severities = rng.integers(-8, 8, (2, 500)) / 4
    regimes = rng.integers(0, 2, 500)
    few = rank_metrics(losses[:200], severities[:200], regimes[:200], margin=quadratic_margin)
    many = rank_metrics(losses, severities, regimes, margin=quadratic_margin)
    for name in ("violated_margins", "violated_margins/uniform", "violated_margins/sparse"):
        assert many[name] == few[name]
    assert many["pairwise_accuracy"] != few["pairwise_accuracy"]


def test_rank_metrics_of_known_losses():
    pairs = some_pairs()
    log_p = log_probabilities(pairs.probabilities)
    severities = np.asarray(SEVERITIES["surprisal"](log_p, pairs.labels))

    def metrics(losses, margin="proportional"):
        return rank_metrics(losses, severities, pairs.regimes, margin=MARGINS[margin])

    ordered = {"pairwise_accuracy": 1, "kendall_tau": 1, "spearman_rho": 1, "violated_margins": 0}
    names = {f"{name}{suffix}" for name in ordered for suffix in ("", *(f"/{r}" for r in REGIMES))}
    # Rounding of a loss that keeps every margin exactly does not count as a violation.
    for losses in (severities, severities + 1, severities / 3 * 3, 2 * severities):
        result = metrics(losses)
        assert set(result) == names
        for name, value in result.items():
            assert value == pytest.approx(ordered[name.split("/")[0]], abs=1e-12), name
    # A loss of half the slope orders perfectly and keeps no margin, but for those of severities
    # that float32 can hardly tell apart.
    half = metrics(severities / 2)
    assert half["kendall_tau"] == pytest.approx(1, abs=1e-12)
    assert half["violated_margins"] == pytest.approx(1, abs=1e-4)
    reverse = metrics(-severities)
    assert reverse["pairwise_accuracy"] == 0
    assert reverse["spearman_rho"] == pytest.approx(-1)
    assert reverse["violated_margins/ambiguous"] == pytest.approx(1, abs=1e-4)
    # MAE: perfect order, but flat where the model is wrong. A margin on the order alone is content
    # with far more of it.
    mae = metrics(-np.expm1(-severities))
    assert mae["spearman_rho"] > 0.999
    assert mae["violated_margins/confident_wrong"] > 0.999
    assert mae["violated_margins/confident_correct"] > 0.9
    own = metrics(-np.expm1(-severities), "constant")
    assert own["violated_margins"] < mae["violated_margins"] - 0.3
    constant = metrics(np.zeros(2000))
    assert constant["pairwise_accuracy"] == 0
    assert constant["violated_margins"] == pytest.approx(1, abs=1e-4)
    assert "kendall_tau" not in constant
    assert "spearman_rho" not in constant


def test_losses_that_are_not_finite_keep_no_margin():
    severities, regimes = np.arange(4.0), np.zeros(4, int)
    for bad in (np.nan, np.inf):
        # The bad loss is that of the mildest pair: it breaks its three margins of six.
        losses = np.asarray([bad, 1.0, 2.0, 3.0])
        metrics = rank_metrics(losses, severities, regimes, margin=MARGINS["proportional"])
        assert metrics["violated_margins"] == 0.5
    all_bad = rank_metrics(np.full(4, np.nan), severities, regimes, margin=MARGINS["constant"])
    assert all_bad["violated_margins"] == 1
    assert all_bad["pairwise_accuracy"] == 0


def test_a_margin_is_traced_once_for_one_shape():
    traces = []

    def counted(worse, better):
        traces.append(worse.shape)
        return worse - better

    rng = np.random.default_rng(0)
    regimes = np.zeros(300, int)
    rank_metrics(*rng.normal(size=(2, 300)), regimes, margin=counted)
    first = len(traces)
    assert first > 0
    rank_metrics(*rng.normal(size=(2, 300)), regimes, margin=counted)
    assert len(traces) == first


def test_differences_within_the_tolerance_are_left_out():
    losses, severities = np.asarray([1.0, 0.0, 2.0]), np.asarray([0.0, 0.005, 1.0])
    zeros = np.zeros(3, np.int32)
    margin = MARGINS["constant"]
    assert rank_metrics(losses, severities, zeros, margin=margin)["pairwise_accuracy"] == 1
    with mock.patch.object(ranking, "TOLERANCE", 0.0):
        strict = rank_metrics(losses, severities, zeros, margin=margin)
    assert strict["pairwise_accuracy"] == pytest.approx(2 / 3)


def test_shapes_that_differ_are_refused():
    with pytest.raises(AssertionError):
        rank_metrics(np.zeros(3), np.zeros(4), np.zeros(3, int), margin=MARGINS["constant"])
    with pytest.raises(AssertionError):
        rank_metrics(*np.zeros((3, 2, 2), int), margin=MARGINS["constant"])


# --- gradient metrics ---------------------------------------------------------------------------


def gradients_of(loss, pairs, severity=SEVERITIES["surprisal"]):
    return quick_jit(lambda pairs: logit_gradients(loss, pairs, severity))(pairs)


def gradient_metrics_of(loss, pairs):
    return gradient_metrics(gradients_of(loss, pairs))


def test_gradient_metrics_of_known_losses():
    pairs = some_pairs()
    own = gradient_metrics_of(cross_entropy, pairs)
    ratios = {name: value for name, value in own.items() if name.startswith("gradient_ratio")}
    bins = {f"gradient_ratio/{low / 10:.1f}-{(low + 1) / 10:.1f}" for low in range(10)}
    regimes = {f"gradient_ratio/{regime}" for regime in REGIMES}
    assert set(ratios) == {"gradient_ratio"} | bins | regimes
    assert ratios == pytest.approx(dict.fromkeys(ratios, 1), rel=1e-3)
    assert own["descent_rate"] > 0.999
    doubled = gradient_metrics_of(lambda x, y: 2 * cross_entropy(x, y), pairs)
    assert doubled["gradient_ratio"] == pytest.approx(2, rel=1e-4)
    assert doubled["gradient_ratio/untrained"] == pytest.approx(2, rel=1e-4)
    ascent = gradient_metrics_of(lambda x, y: -cross_entropy(x, y), pairs)
    for name, value in ascent.items():
        if name.startswith("descent_rate"):
            assert value == 0, name
    # The slope of 1 - p_y is p_y times cross-entropy's: it vanishes where the model is wrong.
    flat = gradient_metrics_of(mean_absolute_error, pairs)
    assert flat["gradient_ratio/0.0-0.1"] < 0.1 < 0.9 < flat["gradient_ratio/0.9-1.0"]
    assert flat["gradient_ratio/confident_wrong"] < 0.1 < flat["gradient_ratio/confident_correct"]


def test_pairs_without_a_cross_entropy_gradient_count_in_no_metric():
    sample = GradientSample(
        lowers=jnp.asarray([True, False]),
        norms=jnp.asarray([1.0, 100.0]),
        reference_norms=jnp.asarray([0.5, 0.0]),
        true_probabilities=jnp.asarray([0.95, 1.0]),
        regimes=jnp.asarray([0, 0]),
    )
    found = gradient_metrics(sample)
    assert found["gradient_ratio"] == found["gradient_ratio/0.9-1.0"] == 2
    assert found["descent_rate"] == 1


def test_logit_gradients_against_formulas():
    pairs = some_pairs(64)
    sample = gradients_of(mean_absolute_error, pairs)
    p, y = np.asarray(pairs.probabilities, np.float64), np.asarray(pairs.labels)
    own = p[np.arange(64), y]
    norms = np.linalg.norm(p - np.eye(10)[y], axis=-1)
    np.testing.assert_allclose(sample.reference_norms, norms, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(sample.norms, own * norms, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(sample.true_probabilities, own, rtol=1e-6)
    np.testing.assert_array_equal(sample.regimes, pairs.regimes)


def test_the_descent_rate_is_of_the_severity_asked_for():
    # Descent on another class's surprisal lowers neither severity of the true class ...
    pairs = some_pairs(500)
    other = lambda x, y: cross_entropy(x, (y + 1) % 10)  # noqa: E731
    assert gradient_metrics_of(other, pairs)["descent_rate"] < 0.5
    # ... but always that of the other class.
    severity = lambda log_p, y: SEVERITIES["surprisal"](log_p, (y + 1) % 10)  # noqa: E731
    sample = gradients_of(other, pairs, severity)
    assert gradient_metrics(sample)["descent_rate"] > 0.99


def test_gradients_of_changing_parameters_are_traced_once():
    traces = []

    @quick_jit
    def measure(scale, pairs):
        traces.append(scale)
        return logit_gradients(lambda x, y: scale * cross_entropy(x, y), pairs, severity)

    severity = SEVERITIES["surprisal"]
    for first, scale in ((0, 1.0), (100, 3.0)):
        sample = measure(scale, some_pairs(100, first=first))
        assert gradient_metrics(sample)["gradient_ratio"] == pytest.approx(scale, rel=1e-4)
    assert len(traces) == 1


def test_gradient_metrics_by_hand():
    sample = GradientSample(
        lowers=np.asarray([True, False, True, True]),
        norms=np.float32([1, 2, 3, 4]),
        reference_norms=np.float32([1, 1, 2, 2]),
        true_probabilities=np.float32([0.0, 0.35, 0.85, 1.0]),
        regimes=np.asarray([0, 0, 2, 2]),
    )
    assert gradient_metrics(sample) == pytest.approx(
        {
            "descent_rate": 3 / 4,
            "descent_rate/uniform": 1 / 2,
            "descent_rate/tempered": 1,
            "gradient_ratio": 10 / 6,
            "gradient_ratio/uniform": 3 / 2,
            "gradient_ratio/tempered": 7 / 4,
            "gradient_ratio/0.0-0.1": 1,
            "gradient_ratio/0.3-0.4": 2,
            "gradient_ratio/0.8-0.9": 3 / 2,
            "gradient_ratio/0.9-1.0": 2,
        }
    )


def test_pairs_without_a_reference_gradient_are_left_out():
    pairs = Pairs(jnp.asarray([[1.0, 0.0]]), jnp.asarray([0]), jnp.asarray([3]))
    with warnings.catch_warnings(action="error"):
        metrics = gradient_metrics_of(cross_entropy, pairs)
    assert metrics == {}
    reference = np.float32([0, 1, 0])
    metrics = gradient_metrics(
        GradientSample(reference > 0, reference, reference, 1 - reference / 2, np.full(3, 3))
    )
    assert metrics["descent_rate"] == metrics["descent_rate/confident_correct"] == 1


def test_gradients_refuse_a_severity_of_the_wrong_shape():
    pairs = some_pairs(4)
    with pytest.raises(InputError, match="expected one value for each pair"):
        logit_gradients(cross_entropy, pairs, lambda log_p, labels: log_p)


def test_a_margin_of_a_wrong_shape_is_refused():
    severities = jnp.arange(4.0)

    def outer(worse, better):
        return worse[:, None] - better

    with pytest.raises(
        InputError, match=r"margin outer gave shape \(4, 4\) for pairs of shape \(4,"
    ):
        margin_violation(severities, severities, margin=outer, num_opponents=1)
    alike = margin_violation(severities, severities, margin=lambda w, b: 0.1, num_opponents=1)
    assert alike == margin_violation(
        severities, severities, margin=MARGINS["constant"], num_opponents=1
    )
