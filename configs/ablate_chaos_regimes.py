"""Where might chaos help? Small populations, fixed and large steps, a noisy fitness; 16 seeds.

The logistic orbit, with both marginals, beside its controls in 16 settings; all tests are corrected
together, for how many regimes were tried.

Command:  edl ablate --config configs/ablate_chaos_regimes.py --run-dir runs/regimes
Time:     not measured yet: 1,024 evolutions.
Result:   of version 0.1.0, by another objective: the logistic orbit differs significantly from
          Gaussian mutation in 0 of 16 settings (corrected); see results/ablate_chaos_regimes/. A
          hint at a population of 8 is gone with 64 fresh seeds: results/ablate_chaos_confirm/.
"""

import dataclasses

from edl_jax.studies import AblateConfig


def get_config() -> AblateConfig:
    """The ablation's configuration."""
    base = AblateConfig()
    return dataclasses.replace(
        base,
        grid={
            "pretrain.strategy.mutation": ("logistic", "logistic_gaussian", "arcsine", "gaussian"),
            "pretrain.population_size": (8, 64),
            "pretrain.strategy.step_size": ("success_rule", "constant"),
            "pretrain.strategy.std_init": (0.1, 0.5),
            "pretrain.pairs_per_generation": (64, 1024),
        },
        num_seeds=16,
        pretrain=dataclasses.replace(base.pretrain, generations=200, generations_per_chunk=20),
    )
