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
from edl_jax import RankingProblem, evolve
from edl_jax.objective import measure
from edl_jax.runs.folder import as_json, read_json
from edl_jax.strategies import build_strategy
from edl_jax.studies import AblateConfig

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


def evolved(problem: RankingProblem, key: jax.Array) -> nnx.State:
    """An evolved network."""
    config = problem.config
    strategy, params = build_strategy(config, problem.sample)
    draws = -(-config.held_out_pairs // config.pairs_per_generation)
    found = evolve(
        problem, strategy, key, generations=config.generations, params=params, draws=draws
    )
    return found.solution


def fitted(problem: RankingProblem, key: jax.Array, steps: int) -> nnx.State:
    """A network from the same kind of fresh one, fitted by Adam."""
    optimizer = optax.adam(optax.schedules.cosine_decay_schedule(_LEARNING_RATE, steps))

    def objective(solution: nnx.State, key: jax.Array) -> jax.Array:
        batch = problem.batch(key, problem.pairs(key))
        return problem.violations(jax.tree.map(lambda x: x[None], solution), batch)[0]

    @jax.jit
    def fit(key: jax.Array, solution: nnx.State) -> nnx.State:
        def step(carry: Any, index: jax.Array) -> tuple[Any, None]:
            solution, state = carry
            gradient = jax.grad(objective)(solution, jax.random.fold_in(key, index))
            updates, state = optimizer.update(gradient, state)
            return (optax.apply_updates(solution, updates), state), None

        start = solution, optimizer.init(solution)
        (solution, _), _ = jax.lax.scan(step, start, jnp.arange(steps))
        return solution

    return fit(key, problem.sample(key))


def measured(problem: RankingProblem, solution: nnx.State) -> dict[str, float]:
    """The objective and the ranking on held-out pairs, always the same."""
    key = jax.random.key(2**31)
    pairs = problem.held_out_pairs(key)
    one = jax.tree.map(lambda x: x[None], solution)
    found = measure(problem.loss(solution), pairs, severity=problem.severity, margin=problem.margin)
    return {"objective": float(problem.violations(one, problem.batch(key, pairs))[0]), **found}


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
        problem, keys = RankingProblem(config), list(map(jax.random.key, seeds))
        networks = (
            [evolved(problem, key) for key in keys],
            [fitted(problem, key, steps) for key in keys],
        )
        row: dict[str, Any] = {"setting": _named(change)}
        for way, each in zip(WAYS, networks, strict=True):
            found = [measured(problem, solution) for solution in each]
            row[way] = {name: [metrics[name] for metrics in found] for name in METRICS}
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
