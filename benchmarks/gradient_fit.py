"""Is it the network or the search? PairNetworks evolved, and fitted to the same objective by Adam.

Command:  python -m benchmarks.gradient_fit [--quick]

Evolution sees no gradient. Where gradient descent finds a network that evolution does not, it is
the search that stops, and not what the network can express. Both draw fresh pairs in every step,
and both are measured on the same held-out pairs. Writes a table and its data to runs/gradient_fit.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from benchmarks.common import caption, open_folder, parser, stop
from benchmarks.report import table, write_report
from edl_jax.evolution import PretrainConfig, make_evolution
from edl_jax.objective import MARGINS, margin_violation
from edl_jax.runs.folder import as_json, read_json
from edl_jax.studies import AblateConfig
from edl_jax.studies.ablation.seeds import SeedRuns, keys_of, make_seed_runs

NAME = "gradient_fit"
BASE = AblateConfig().pretrain
CHANGES: tuple[dict[str, Any], ...] = (
    {},
    {"hidden": (16,)},
    {"hidden": (64, 64)},
    {"class_counts": (2,)},
    {"class_counts": (3,)},
    {"class_counts": (5,)},
    {"severity": "miss_probability"},
    {"severity": "brier"},
)
WAYS = ("evolution", "gradient")
METRICS = ("objective", "pairwise_accuracy")
_LEARNING_RATE, _STEPS = 3e-3, 3000


def evolve(config: PretrainConfig, runs: SeedRuns, keys: jax.Array) -> nnx.State:
    """Evolved networks, one for each key."""
    last = np.int32(config.generations)
    return runs.winners(keys, runs.advance(keys, runs.init(keys), np.int32(0), last))


def fit(config: PretrainConfig, runs: SeedRuns, keys: jax.Array, steps: int) -> nnx.State:
    """Networks from the same kind of fresh ones, fitted by Adam."""
    evolution, margin = make_evolution(config), MARGINS[config.margin]
    optimizer = optax.adam(optax.schedules.cosine_decay_schedule(_LEARNING_RATE, steps))

    def objective(solution: nnx.State, key: jax.Array) -> jax.Array:
        batch = evolution.observe(key, evolution.sample(key))
        losses = nnx.merge(evolution.graphdef, solution).from_features(batch.features)
        opponents = config.num_opponents
        return margin_violation(losses, batch.severities, margin=margin, num_opponents=opponents)

    def fitted(key: jax.Array, solution: nnx.State) -> nnx.State:
        def step(carry: Any, index: jax.Array) -> tuple[Any, None]:
            solution, state = carry
            gradient = jax.grad(objective)(solution, jax.random.fold_in(key, index))
            updates, state = optimizer.update(gradient, state)
            return (optax.apply_updates(solution, updates), state), None

        (solution, _), _ = jax.lax.scan(
            step, (solution, optimizer.init(solution)), jnp.arange(steps)
        )
        return solution

    return jax.jit(jax.vmap(fitted))(keys, runs.leaders(runs.init(keys)))


def main(argv: Sequence[str] | None = None) -> None:
    """Evolve and fit in every setting, and write the table."""
    arguments = parser(NAME, __doc__, activation=False).parse_args(
        None if argv is None else list(argv)
    )
    base, changes, steps = BASE, CHANGES, _STEPS
    if arguments.quick:
        base, changes, steps = dataclasses.replace(BASE, generations=5), CHANGES[:2], 10
    if arguments.repeats == 1:
        stop("--repeats is 1; expected at least 2 seeds, or there is no deviation to tell.")
    seeds = list(range(arguments.repeats or (2 if arguments.quick else 5)))
    folder = open_folder(NAME, arguments, {"base": as_json(base), "steps": steps, "seeds": seeds})
    rows = folder.resume_rows()
    for change in changes[len(rows) :]:
        config = dataclasses.replace(base, **change)
        runs, keys = make_seed_runs(config, len(seeds)), keys_of(seeds)
        networks = evolve(config, runs, keys), fit(config, runs, keys, steps)
        row: dict[str, Any] = {"setting": _named(change)}
        for way, found in zip(WAYS, networks, strict=True):
            measured = runs.measure(keys, found)
            row[way] = {name: [metrics[name] for metrics in measured] for name in METRICS}
        folder.append_rows([row])
        rows.append(row)
        print(f"{NAME}: {row['setting']} finished", flush=True)
    head = ["setting", *(f"{way}: {name.replace('_', ' ')}" for way in WAYS for name in METRICS)]
    lines = [
        [row["setting"], *(_spread(row[way][name]) for way in WAYS for name in METRICS)]
        for row in rows
    ]
    sections = [
        "# PairNetworks evolved, and fitted by gradients",
        f"Hidden layers {base.hidden}, {base.class_counts[0]} classes and {base.severity}, but "
        f"for what the setting says. Mean ± standard deviation of {len(seeds)} seeds, on at least "
        f"{base.held_out_pairs:,} held-out pairs; objective: the share of the asked margins that "
        f"is missing. Evolution: {base.generations} generations of {base.population_size} networks "
        f"on {base.pairs_per_generation:,} pairs. Gradient: {steps:,} steps of Adam on as many, "
        f"learning rate {_LEARNING_RATE:g} and cosine decay.",
        table(head, lines),
        caption(folder),
    ]
    data = {"rows": rows, "environment": read_json(folder.path / "environment.json")}
    write_report(folder, NAME, sections, data)


def _named(change: dict[str, Any]) -> str:
    parts = [f"{name.replace('_', ' ')} {value}" for name, value in change.items()]
    return ", ".join(parts) or "base"


def _spread(values: Sequence[float]) -> str:
    return f"{np.mean(values):.4f} ± {np.std(values, ddof=1):.4f}"


if __name__ == "__main__":
    main()
