"""docs/method.md says all that a loss file means: the losses again in NumPy, by the page alone."""

import json
from importlib import resources
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors import safe_open
from scipy.special import expit
from scipy.stats import entropy

from edl_jax.losses import PRETRAINED, load_pretrained
from tests.test_pairs import dirichlet, only

NUM_PAIRS = 100_000
PAGE = " ".join((Path(__file__).parents[1] / "docs" / "method.md").read_text("utf-8").split())
QUOTES = [  # what the functions below follow
    r"$\log p_k = d_k - \log \sum_j e^{d_j}$ with $d_k = z_k - \max_j z_j$",
    r"Where $d_k$ or $\log p_k$ is less than $-10^9$, it is $-10^9$.",
    r"$(p_y,\; -\tfrac14 \log p_y,\; \max_{j \ne y} p_j,\; \tfrac14 H,\; \sum_j p_j^2)$",
    r"$H = -\sum_j p_j \log p_j$",
    r"$(p_1, \dots, p_K,\; [y = 1], \dots, [y = K])$",
    r"$h_{i+1} = a(W_i^\top h_i + b_i)$",
    r"`silu`, $x / (1 + e^{-x})$",
    r"$L(p, y) = c \log(1 + \exp(W_n^\top h_n + b_n))$",
    r"$\sum_k w_k L(p, k)$",
]


@pytest.mark.parametrize("quote", QUOTES)
def test_the_page_says_what_is_computed_here(quote):
    assert quote in PAGE


def sparse_predictions(draws, num_classes):
    """Predictions of version 0.1.0, whose draws were Gamma's, or of now, float64."""
    if draws == "now":
        pairs = only("sparse", num_classes, num_pairs=NUM_PAIRS, seed=0)
        return np.asarray(pairs.probabilities, np.float64)
    rng = np.random.default_rng(0)
    return dirichlet(rng, 0.03 ** rng.random((NUM_PAIRS, 1)), num_classes)


def sparse_row(draws, num_classes):
    """Quantiles of p_y, the largest probability and the entropy, as in the page's table."""
    p, rng = sparse_predictions(draws, num_classes), np.random.default_rng(1)
    rows, sums = np.arange(NUM_PAIRS), np.cumsum(p, axis=-1)
    calibrated = (sums < rng.random((NUM_PAIRS, 1)) * sums[:, -1:]).sum(axis=-1)
    uninformed = rng.integers(num_classes, size=NUM_PAIRS)
    of_label = p[rows, np.where(rng.random(NUM_PAIRS) < 0.5, calibrated, uninformed)]
    columns = of_label, p.max(axis=-1), entropy(p, axis=-1)
    quantiles = [[f"{x:.2g}" for x in np.quantile(x, (0.05, 0.5, 0.95))] for x in columns]
    return f"| {num_classes} | {draws} | {' | '.join(map(', '.join, quantiles))} |"


@pytest.mark.slow
@pytest.mark.parametrize("num_classes", [2, 10, 100])
@pytest.mark.parametrize("draws", ["Dirichlet", "now"])
def test_the_table_of_the_sparse_regime_can_be_made_again(draws, num_classes):
    assert sparse_row(draws, num_classes) in PAGE


def log_probabilities(z):
    d = np.maximum(z - z.max(), -1e9)
    return np.maximum(d - np.log(np.exp(d).sum()), -1e9)


def features(network, log_p, y):
    p = np.exp(log_p)
    if network == "pair":
        return np.concatenate([p, np.arange(len(p)) == y])
    entropy = -(p * log_p).sum()
    return np.asarray([p[y], -log_p[y] / 4, np.delete(p, y).max(), entropy / 4, (p**2).sum()])


def loss_by_the_page(name, z, y):
    path = resources.files("edl_jax.losses") / f"{name}.safetensors"
    with safe_open(str(path), framework="numpy") as file:
        architecture = json.loads(file.metadata()["architecture"])
        names = list(file.keys())
        arrays = {key: file.get_tensor(key).astype(np.float64) for key in names}
    assert architecture["activation"] == "silu"
    h = features(architecture["network"], log_probabilities(z), y)
    last = len(architecture["hidden"])
    for i in range(last + 1):
        h = arrays[f"params.layers.{i}.kernel"].T @ h + arrays[f"params.layers.{i}.bias"]
        if i < last:
            h = h * expit(h)  # x / (1 + e^-x)
    return arrays["scale"] * np.logaddexp(0, h[0])


@pytest.mark.parametrize("name", PRETRAINED)
def test_the_shipped_losses_by_the_page(name):
    rng = np.random.default_rng(0)
    z = rng.normal(size=(6, 10)).astype(np.float32) * [[0.1], [1], [3], [10], [100], [1e10]]
    z = z.astype(np.float32)
    rows = z.astype(np.float64)
    every = np.asarray([[loss_by_the_page(name, row, k) for k in range(10)] for row in rows])
    labels, soft = rng.integers(10, size=6), rng.dirichlet(np.ones(10), 6)
    loss = jax.jit(load_pretrained(name))
    np.testing.assert_allclose(loss(z, labels), every[np.arange(6), labels], rtol=1e-5)
    np.testing.assert_allclose(loss(z, soft), (soft * every).sum(-1), rtol=1e-5)
    if name == "edl-paper":  # for 10 classes
        return
    where = np.arange(10) < 7
    fewer = [loss_by_the_page(name, row[:7], 2) for row in rows]
    masked = loss(z, np.full(6, 2), where=where[None, :])
    np.testing.assert_allclose(masked, fewer, rtol=1e-5)
