"""Severity x selection x population size, chaotic and Gaussian mutation, 10 seeds.

Command:  edl ablate --config configs/ablate_selection.py --run-dir runs/selection
Time:     not measured yet: 240 evolutions.
Result:   see results/ablate_selection/.
"""

import dataclasses

from edl_jax.studies import AblateConfig


def get_config() -> AblateConfig:
    """The ablation's configuration."""
    return dataclasses.replace(
        AblateConfig(),
        grid={
            "pretrain.strategy.mutation": ("logistic", "gaussian"),
            "pretrain.severity": ("surprisal", "brier"),
            "pretrain.strategy.selection": ("plus", "comma"),
            "pretrain.population_size": (32, 64, 256),
        },
        num_seeds=10,
    )
