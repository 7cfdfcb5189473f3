"""Where might chaos help? Small populations, fixed and large steps, a noisy fitness; 16 seeds.

Every mutation beside its controls in 16 settings; all tests are corrected together, for how many
regimes were tried.

Command:  edl ablate --config configs/ablate_chaos_regimes.py --run-dir runs/regimes
Time:     not measured yet; 64 cells, each compiled anew.
Result:   not measured yet.
"""

import dataclasses

from edl_jax.studies import AblateConfig


def get_config() -> AblateConfig:
    """The ablation's configuration."""
    base = AblateConfig()
    return dataclasses.replace(
        base,
        mutations=("logistic", "logistic_gaussian", "arcsine", "gaussian"),
        population_sizes=(8, 64),
        step_sizes=("success_rule", "constant"),
        std_inits=(0.1, 0.5),
        pair_numbers=(64, 1024),
        num_seeds=16,
        pretrain=dataclasses.replace(base.pretrain, generations=200, generations_per_chunk=50),
    )
