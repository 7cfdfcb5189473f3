"""Baseline losses against their formulas in float64, at their limits, and against optax."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads
from scipy import optimize, special

from edl_jax import LOSSES
from edl_jax.errors import ConfigError
from edl_jax.losses.formulas.cross_entropies import log_tempered_softmax
from edl_jax.losses.formulas.discovered import CROSS_ENTROPY_EXPANSION
from tests.baseline_losses import COUNTS, EVERY, NAMES, compiled, logits_of, quick_jit

LABELS = np.asarray([0, 1, 2, 3, 4, 0])


def tempered(x, t):
    """The tempered softmax, its normaliser by bisection."""

    def p(normaliser):
        return (1 + (t - 1) * (normaliser - x)) ** (1 / (1 - t))

    uniform = (len(x) ** (t - 1) - 1) / (t - 1)  # of equal logits: no normaliser is larger
    root = optimize.brentq(lambda n: p(n).sum() - 1, x.max(), x.max() + uniform, xtol=1e-14)
    return p(root)


def bi_tempered_of(x, w, t1=0.8, t2=1.2):
    def log_t(u):
        return (u ** (1 - t1) - 1) / (1 - t1)

    p, q = tempered(x, t2), np.where(w > 0, w, 1)
    first = np.sum(w * (log_t(q) - log_t(p)))
    return first - np.sum(w ** (2 - t1) - p ** (2 - t1)) / (2 - t1)


def taylor_glo_of(x, w, a=CROSS_ENTROPY_EXPANSION):
    total = 0.0
    for u, v in zip(w - a[0], special.softmax(x) - a[1], strict=True):
        total += a[2] * v + a[3] / 2 * v**2 + a[4] / 6 * v**3 + a[5] * u * v
        total += a[6] / 2 * u * v**2 + a[7] / 2 * u**2 * v
    return -total


def replaced(x, y, value):
    x = x.copy()
    x[y] = value
    return -special.log_softmax(x)[y]


def normalised(values, y):
    return values[y] / values.sum()


def focals(p, gamma):
    return -((1 - p) ** gamma) * np.log(p)


# name: (logits of one example, probabilities, label) -> loss, at the default options
FORMULAS = {
    "cross_entropy": lambda x, p, y: -np.log(p[y]),
    "label_smoothing": lambda x, p, y: -0.9 * np.log(p[y]) - 0.1 * np.log(p).mean(),
    "focal": lambda x, p, y: focals(p, 2)[y],
    "poly": lambda x, p, y: -np.log(p[y]) + 2 * (1 - p[y]),
    "taylor_ce": lambda x, p, y: (1 - p[y]) + (1 - p[y]) ** 2 / 2,
    "mae": lambda x, p, y: np.abs(p - np.eye(5)[y]).sum(),
    "gce": lambda x, p, y: (1 - p[y] ** 0.7) / 0.7,
    "sce": lambda x, p, y: -0.1 * np.log(p[y]) + 4 * np.delete(p, y).sum(),
    "nce_mae": lambda x, p, y: normalised(-np.log(p), y) + 1 - p[y],
    "nce_rce": lambda x, p, y: normalised(-np.log(p), y) + 4 * (1 - p[y]),
    "nfl_rce": lambda x, p, y: normalised(focals(p, 0.5), y) + 4 * (1 - p[y]),
    "bi_tempered": lambda x, p, y: bi_tempered_of(x, np.eye(5)[y]),
    "multiclass_hinge": lambda x, p, y: max(0, 1 + np.delete(x, y).max() - x[y]),
    "smoothed_zero_one": lambda x, p, y: 1 / (1 + np.exp(x[y] - np.delete(x, y).max())),
    "ldam": lambda x, p, y: replaced(x, y, x[y] - 30 * 0.5 * (1 / COUNTS[y]) ** 0.25),
    "barron": lambda x, p, y: np.sqrt((1 - p[y]) ** 2 + 1) - 1,
    "baikal": lambda x, p, y: -np.log(p).mean() + 1 / p[y] / 5,
    "taylor_polynomial": lambda x, p, y: taylor_glo_of(x, np.eye(5)[y]),
    "expression": lambda x, p, y: -np.log(p[y]) / 5,
}
PUBLISHED_SOFT = {"bi_tempered": bi_tempered_of, "taylor_polynomial": taylor_glo_of}


def by_formula(name, logits, labels):
    rows = np.asarray(logits, np.float64)
    return [FORMULAS[name](x, special.softmax(x), y) for x, y in zip(rows, labels, strict=True)]


def test_every_loss_has_a_formula():
    assert {*FORMULAS} == {*NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_values(name):
    for seed in range(5):
        logits = logits_of(seed)
        values = compiled()(logits, LABELS)[name][0]
        np.testing.assert_allclose(values, by_formula(name, logits, LABELS), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", NAMES)
def test_values_with_soft_labels(name):
    logits, soft = logits_of(1), np.asarray(jax.nn.softmax(logits_of(2)), np.float64)
    each = np.stack([by_formula(name, logits, [k] * 6) for k in range(5)], axis=-1)
    expected = (soft * each).sum(-1)
    if name in PUBLISHED_SOFT:
        pairs = zip(np.asarray(logits, np.float64), soft, strict=True)
        expected = [PUBLISHED_SOFT[name](x, w) for x, w in pairs]
    value = compiled()(logits, jnp.asarray(soft, jnp.float32))[name][0]
    np.testing.assert_allclose(value, expected, rtol=2e-5, atol=2e-6)


LIMITS = [  # (loss, options, what it then is, factor, tolerance)
    ("label_smoothing", {"alpha": 0.0}, "cross_entropy", 1, 1e-6),
    ("focal", {"gamma": 0.0}, "cross_entropy", 1, 1e-6),
    ("poly", {"epsilon": 0.0}, "cross_entropy", 1, 1e-6),
    ("taylor_ce", {"order": 1}, "mae", 0.5, 1e-6),
    ("taylor_ce", {"order": 100}, "cross_entropy", 1, 1e-2),
    ("gce", {"q": 1.0}, "mae", 0.5, 1e-6),
    ("gce", {"q": 1e-5}, "cross_entropy", 1, 1e-4),
    ("sce", {"alpha": 1.0, "beta": 0.0}, "cross_entropy", 1, 1e-6),
    ("nfl_rce", {"gamma": 0.0}, "nce_rce", 1, 1e-6),
    ("nce_rce", {"beta": 0.25}, "nce_mae", 1, 1e-6),
    ("bi_tempered", {"t1": 1.0, "t2": 1.0}, "cross_entropy", 1, 1e-5),
    ("bi_tempered", {"t1": 0.9999, "t2": 1.0001}, "cross_entropy", 1, 2e-3),
    ("bi_tempered", {"t1": 0.0, "t2": 1.0}, "brier", 0.5, 1e-5),
    ("ldam", {"max_margin": 0.0, "class_counts": COUNTS}, "cross_entropy", 1, 1e-6),
    ("barron", {"alpha": 2.0, "scale": 0.5}, "squared_miss", 2, 1e-6),
    ("expression", {"formula": "-log(p) + w / p"}, "baikal", 1, 1e-6),
    ("expression", {"formula": "5 * w * square(1 - p)"}, "squared_miss", 1, 1e-6),
    ("expression", {"formula": "5 * sqrt(square(w - p))"}, "mae", 1, 1e-6),
]


@functools.cache
def at_limits():
    return quick_jit(lambda x: [LOSSES[name](x, LABELS, **kw) for name, kw, *_ in LIMITS])(
        logits_of(6, 1.0)
    )


@pytest.mark.parametrize("case", range(len(LIMITS)), ids=lambda i: f"{LIMITS[i][0]}-{LIMITS[i][1]}")
def test_limits(case):
    _, _, other, factor, tolerance = LIMITS[case]
    logits = logits_of(6, 1.0)
    p = special.softmax(np.asarray(logits, np.float64), axis=-1)
    if other == "squared_miss":
        expected = (1 - p[np.arange(6), LABELS]) ** 2
    elif other == "brier":
        expected = ((p - np.eye(5)[LABELS]) ** 2).sum(-1)
    else:
        expected = np.asarray(by_formula(other, logits, LABELS))
    np.testing.assert_allclose(at_limits()[case], factor * expected, rtol=tolerance, atol=1e-6)


PINS = json.loads((Path(__file__).parent / "loss_pins.json").read_text())


@pytest.mark.parametrize("name", PINS)
def test_values_are_those_of_version_0_1_0(name):
    """Recorded from its code: of integer labels, and of soft ones."""
    function = compiled(EVERY)
    for kind, logits, labels in (
        ("hard", logits_of(), jnp.asarray(LABELS)),
        ("soft", logits_of(1), jax.nn.softmax(logits_of(2))),
    ):
        np.testing.assert_allclose(function(logits, labels)[name][0], PINS[name][kind], rtol=1e-6)


def test_like_optax():
    logits, one_hot = logits_of(5), jax.nn.one_hot(LABELS, 5)
    optax_losses = {
        "cross_entropy": optax.losses.softmax_cross_entropy(logits, one_hot),
        "label_smoothing": optax.losses.softmax_cross_entropy(
            logits, optax.losses.smooth_labels(one_hot, 0.1)
        ),
        "poly": optax.losses.poly_loss_cross_entropy(logits, one_hot),
        "multiclass_hinge": optax.losses.multiclass_hinge_loss(logits, LABELS),
    }
    values = compiled()(logits, LABELS)
    for name, expected in optax_losses.items():
        np.testing.assert_allclose(values[name][0], expected, rtol=1e-5, err_msg=name)


def test_like_torch():
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    logits = logits_of(5)
    x, y = torch.tensor(np.asarray(logits)), torch.tensor(LABELS)
    smoothed = functional.cross_entropy(x, y, label_smoothing=0.1, reduction="none")
    values = compiled()(logits, LABELS)
    np.testing.assert_allclose(values["label_smoothing"][0], smoothed.numpy(), rtol=1e-5)
    # torch sums over the rivals, divided by the class count: of two classes, half the loss.
    two = quick_jit(LOSSES["multiclass_hinge"])(np.asarray(logits)[:, :2], LABELS % 2)
    hinge = functional.multi_margin_loss(x[:, :2], y % 2, reduction="none")
    np.testing.assert_allclose(two, 2 * hinge.numpy(), rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("label_smoothing", {"alpha": 1.5}, "alpha is 1.5; expected a finite number, at least 0"),
        ("focal", {"gamma": "2"}, "gamma is '2'"),
        ("focal", {"gamma": float("inf")}, "gamma is inf"),
        ("poly", {"epsilon": -2}, "epsilon is -2"),
        ("taylor_ce", {"order": 2.0}, "order is 2.0; expected a whole number"),
        ("gce", {"q": 0}, "q is 0; expected a finite number, more than 0 and at most 1"),
        ("sce", {"beta": -1.0}, "beta is -1.0"),
        ("bi_tempered", {"t1": 1.2}, "t1 is 1.2"),
        ("bi_tempered", {"t2": 0.8}, "t2 is 0.8"),
        ("smoothed_zero_one", {"sharpness": True}, "sharpness is True"),
        ("ldam", {"class_counts": (1, 2, 3, 0, 5)}, "at least 1"),
        ("barron", {"alpha": 3.0}, "alpha is 3.0"),
        (
            "baikal",
            {"epsilon": 1e-40},
            "epsilon is 1e-40; expected a finite number, at least 1e-30",
        ),
        ("taylor_polynomial", {"parameters": (1.0, 2.0)}, "expected 8 numbers"),
        ("expression", {"formula": "exp(p)"}, r"formula is .exp\(p\).; expected numbers, w and p"),
        ("expression", {"formula": "p.real"}, "formula is .p.real"),
        ("expression", {"formula": "log(p, 2)"}, "formula is .log"),
        ("expression", {"formula": "w < p"}, "formula is .w < p"),
        ("expression", {"formula": "1e999 * p"}, "formula is .1e999"),
        ("expression", {"formula": f"{10**400} * p"}, "formula is .1000"),
        ("expression", {"formula": "(" * 3000 + ")" * 3000}, "formula is"),
        ("expression", {"formula": "p" + " + p" * 3000}, "formula is"),
        ("expression", {"formula": 1.0}, "formula is 1.0"),
    ],
)
def test_refuses_bad_options(name, options, message):
    with pytest.raises(ConfigError, match=message):
        LOSSES[name](logits_of(), LABELS, **options)


def test_refuses_counts_of_other_classes():
    with pytest.raises(ConfigError, match=r"class_counts is \(1, 2, 3\); .* 5 classes"):
        LOSSES["ldam"](logits_of(), LABELS, class_counts=(1, 2, 3))


@pytest.mark.parametrize(("t1", "t2"), [(0.5, 4.0), (0.9, 1.05), (0.2, 10.0)])
def test_bi_tempered_at_other_temperatures(t1, t2):
    logits = logits_of(7, 4.0)
    rows = np.asarray(logits, np.float64)
    expected = [bi_tempered_of(x, np.eye(5)[y], t1, t2) for x, y in zip(rows, LABELS, strict=True)]
    loss = quick_jit(lambda x: LOSSES["bi_tempered"](x, LABELS, t1=t1, t2=t2))
    np.testing.assert_allclose(loss(logits), expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("t2", [1.05, 4.0, 10.0])
def test_tempered_probabilities_sum_to_1(t2):
    log_softmax = quick_jit(lambda x: log_tempered_softmax(x, t2, None))
    for scale in (1.0, 1e8):
        log_p = log_softmax(logits_of(scale=scale, shape=(64, 1000)))
        np.testing.assert_allclose(np.exp(np.asarray(log_p, np.float64)).sum(-1), 1, atol=2e-6)


def test_baikal_is_finite_at_its_least_epsilon():
    assert np.isfinite(LOSSES["baikal"](1e4 * logits_of(), LABELS, epsilon=1e-30)).all()


def test_bi_tempered_in_forward_mode():
    loss = jax.jit(lambda x: LOSSES["bi_tempered"](x, LABELS))
    check_grads(loss, (logits_of(7),), order=1, modes=["fwd"], eps=1e-2, rtol=2e-3)


@pytest.mark.parametrize("labels", ["hard", "soft", "hard, masked"])
def test_bi_tempered_has_the_derivatives_of_its_equation(labels):
    """Also the second and third ones, which a single Newton step at the solution has not."""
    where = jnp.arange(5)[None] != 3 if "masked" in labels else None
    with jax.enable_x64(True):
        given = special.softmax(np.eye(5)[LABELS], -1) if labels == "soft" else LABELS % 3
        loss = jax.jit(lambda x: LOSSES["bi_tempered"](x, given, where=where).sum())
        check_grads(loss, (np.asarray(logits_of(7), float),), order=3, eps=1e-4, rtol=1e-6)
