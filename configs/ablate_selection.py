"""Severity x selection x population size, chaotic and Gaussian mutation, 10 seeds.

Command:  edl ablate --config configs/ablate_selection.py --run-dir runs/selection
Time:     see results/README.md; 24 cells, a third of which have four times the default population.
Result:   see results/ablate_selection/.
"""

import dataclasses

from edl_jax.studies import AblateConfig


def get_config() -> AblateConfig:
    """The ablation's configuration."""
    return dataclasses.replace(
        AblateConfig(),
        mutations=("logistic", "gaussian"),
        severities=("surprisal", "brier"),
        selections=("plus", "comma"),
        population_sizes=(32, 64, 256),
        num_seeds=10,
    )
