"""The work in NumPy: products of 16 networks at a time, to keep what is hidden in the cache."""

import numpy as np

from benchmarks.common import Contestant, Layers, Work, flattened, random_layers, unflattened
from benchmarks.timing import Run

BLOCK = 16  # networks at a time


def sample(
    rng: np.random.Generator, num_pairs: int, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Fresh pairs: probabilities `[num_pairs, num_classes]` and labels `[num_pairs]`."""
    magnitude, first, second, coin = rng.random((4, num_pairs), dtype=np.float32)
    noise = rng.standard_normal((num_pairs, num_classes), dtype=np.float32)
    logits = noise / (np.float32(0.1) * np.float32(100) ** magnitude)[:, None]
    probabilities = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities /= probabilities.sum(axis=-1, keepdims=True)
    cumulative = np.cumsum(probabilities, axis=-1)
    calibrated = np.sum(cumulative <= (first * cumulative[:, -1])[:, None], axis=-1)
    uninformed = (second * num_classes).astype(np.int64)
    labels = np.where(coin < 0.5, calibrated, uninformed)
    return probabilities, np.minimum(labels, num_classes - 1)


def observe(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The features `[5, num_pairs]` and severities `[num_pairs]` of pairs."""
    log_p = np.log(np.maximum(probabilities, np.finfo(np.float32).tiny))
    rows = np.arange(len(labels))
    own = log_p[rows, labels]
    others = log_p.copy()
    others[rows, labels] = -np.inf
    entropy = -np.sum(probabilities * log_p, axis=-1)
    moment = np.sum(probabilities**2, axis=-1)
    features = [np.exp(own), -own / 4, np.exp(others.max(axis=-1)), entropy / 4, moment]
    return np.stack(features), -own


def score(
    layers: Layers, features: np.ndarray, severities: np.ndarray, num_opponents: int
) -> np.ndarray:
    """The share of the asked margins that each network violates, `[population]`."""
    asked = []
    for shift in range(1, num_opponents + 1):
        difference = severities - np.roll(severities, shift)
        asked.append((shift, np.sign(difference), np.abs(difference)))
    demanded = max(sum(margin.sum() for _, _, margin in asked), np.finfo(np.float32).tiny)
    fitness = np.empty(len(layers[0][0]), np.float32)
    for begin in range(0, len(fitness), BLOCK):
        here = slice(begin, begin + BLOCK)
        losses = _losses([(k[here], b[here]) for k, b in layers], features)
        violated = np.zeros(len(losses), np.float32)
        for shift, sign, margin in asked:
            short = margin - sign * (losses - np.roll(losses, shift, axis=-1))
            violated += np.maximum(short, 0, out=short).sum(axis=-1)
        fitness[here] = violated / demanded
    return fitness


def _losses(layers: Layers, features: np.ndarray) -> np.ndarray:
    x = features
    for index, (kernel, bias) in enumerate(layers):
        if index:
            y = np.exp(-x)
            y += 1
            x = np.divide(x, y, out=y)  # silu
        x = np.matmul(kernel.swapaxes(1, 2), x)
        x += bias[:, :, None]
    return np.logaddexp(x[:, 0], np.float32(0))


def evaluation(work: Work, layers: Layers, features: np.ndarray, severities: np.ndarray) -> Run:
    """Runs of `score`."""

    def run(count: int) -> np.ndarray:
        fitness = np.empty(0, np.float32)
        for _ in range(count):
            fitness = score(layers, features, severities, work.num_opponents)
        return fitness

    return run


def generations(work: Work, seed: int = 0) -> Run:
    """Runs of a generation."""
    rng = np.random.default_rng(seed)
    population = flattened(random_layers(work, seed))

    def run(count: int) -> float:
        nonlocal population
        best = np.inf
        for _ in range(count):
            pairs = sample(rng, work.num_pairs, work.num_classes)
            layers = unflattened(population, work.sizes)
            fitness = score(layers, *observe(*pairs), work.num_opponents)
            best = float(fitness.min())
            elites = population[np.argsort(fitness)[: work.num_elites]]
            parents = rng.integers(work.num_elites, size=work.population_size - work.num_elites)
            children = elites[parents]
            noise = rng.standard_normal(children.shape, dtype=np.float32)
            population = np.concatenate([elites, children + np.float32(work.std) * noise])
        return best

    return run


NUMPY = Contestant("NumPy", lambda: None, evaluation, generations)
