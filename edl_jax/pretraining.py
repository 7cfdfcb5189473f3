"""Evolve a loss, choose the winner, freeze it: stages 1 to 6 in one call."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from edl_jax.evolution import PretrainConfig, make_evolution, run_keys
from edl_jax.evolution.engine import Batch
from edl_jax.evolution.loop import evolve
from edl_jax.frozen import EvolvedLoss, Provenance, calibrated
from edl_jax.pairs import Pairs
from edl_jax.ranking import SEVERITIES, gradient_metrics, rank_metrics
from edl_jax.runs import RunFolder, as_json, versions


@dataclasses.dataclass(frozen=True)
class PretrainResult:
    """What `pretrain` gives.

    Attributes:
      loss: the winner, calibrated and frozen.
      history: by name, one value for each generation, `[generations]` float64: `best_fitness`,
        `mean_fitness`, `step_size`, `failed` (networks whose fitness was not finite), and
        `held_out_accuracy` (pairwise accuracy of the leader; NaN but at the end of a chunk).
      metrics: of the winner on held-out pairs that nothing was chosen on, by name.
    """

    loss: EvolvedLoss
    history: dict[str, np.ndarray]
    metrics: dict[str, float]


def pretrain(
    config: PretrainConfig | None = None,
    *,
    key: jax.Array | None = None,
    run_dir: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> PretrainResult:
    """Evolve a loss on synthetic pairs and freeze it.

    The same key gives the same loss, bit for bit, on the CPU.

    Args:
      config: how to evolve; the defaults unless given.
      key: a key from `jax.random.key`; from `config.seed` unless given.
      run_dir: where to keep configuration, metrics, checkpoints and the loss; a run that was
        stopped there goes on from its last checkpoint. Nothing is written unless given.
      progress: whether to show a progress bar.

    Raises:
      RunFolderError: if `run_dir` holds a run with another configuration or key.
      EDLError: if every network of a generation fails.
    """
    config = config or PretrainConfig()
    key = jax.random.key(config.seed) if key is None else key
    folder = None
    if run_dir is not None:
        identity = {"pretrain": as_json(config), "key": jax.random.key_data(key).tolist()}
        folder = RunFolder(Path(run_dir), identity)
    evolution = make_evolution(config)
    key_init, key_generations, key_choice, key_measurement = run_keys(key)

    sample, observe = jax.jit(evolution.sample), jax.jit(evolution.observe)
    state, rows = evolve(
        config,
        evolution,
        key_generations,
        jax.jit(evolution.init)(key_init),
        observe(key_measurement, sample(key_measurement)),
        folder=folder,
        progress=progress,
    )

    # Best-ever fitness is optimistic: it keeps the luckiest draw of pairs. So the winner is the
    # elite of the last generation that scores best on many fresh pairs, and is measured on others.
    pairs = _held_out(sample, key_choice, config)
    elites = evolution.elites(state)
    scores = jax.jit(evolution.score)(elites, observe(key_choice, pairs))
    winner = jnp.argmin(jnp.where(jnp.isnan(scores), jnp.inf, scores))
    loss = EvolvedLoss(
        params=nnx.to_pure_dict(jax.tree.map(lambda x: x[winner], elites)),
        scale=jnp.ones(()),
        architecture=config.architecture(),
    )
    loss = calibrated(loss, pairs)
    metrics = _measure(loss, observe, _held_out(sample, key_measurement, config), config)
    loss = loss.replace(provenance=Provenance(as_json(config), metrics, versions()))

    if folder is not None:
        folder.write_json("results.json", metrics)
        loss.save(folder.path / "loss.safetensors")
    names = [name for name in rows[0] if name != "generation"]
    history = {name: np.asarray([row[name] for row in rows], np.float64) for name in names}
    return PretrainResult(loss, history, metrics)


def _held_out(
    sample: Callable[[jax.Array], tuple[Pairs, ...]], key: jax.Array, config: PretrainConfig
) -> tuple[Pairs, ...]:
    """At least `held_out_pairs` pairs, drawn a generation's worth at a time by one program."""
    draws = -(-config.held_out_pairs // config.pairs_per_generation)
    parts = [sample(jax.random.fold_in(key, index)) for index in range(draws)]
    return jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *parts)


def _measure(
    loss: EvolvedLoss,
    observe: Callable[[jax.Array, tuple[Pairs, ...]], Batch],
    pairs_of_counts: tuple[Pairs, ...],
    config: PretrainConfig,
) -> dict[str, float]:
    """Ranking over all class counts together; ranking and gradient for each by itself."""
    batch = observe(jax.random.key(0), pairs_of_counts)
    losses = loss.network().from_features(batch.features)
    metrics = rank_metrics(losses, batch.severities, batch.regimes)
    for pairs in pairs_of_counts:
        num_classes = pairs.probabilities.shape[-1]
        mine = np.asarray(batch.class_counts) == num_classes
        parts = {
            **rank_metrics(losses[mine], batch.severities[mine], batch.regimes[mine]),
            **gradient_metrics(loss, pairs, SEVERITIES[config.severity]),
        }
        metrics |= {f"{num_classes} classes: {name}": value for name, value in parts.items()}
    return metrics
