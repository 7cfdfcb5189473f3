"""Where might chaos help? Small populations, fixed and large steps, a noisy fitness; 16 seeds.

The logistic orbit, with both marginals, beside its controls in 16 settings; all tests are corrected
together, for how many regimes were tried.

Command:  edl ablate --config configs/ablate_chaos_regimes.py --run-dir runs/regimes
Time:     about 45 minutes on one CPU core beside other work: 64 cells, each compiled anew.
Result:   none is found: in the final objective the logistic orbit is told apart from Gaussian
          mutation in 0 of 16 settings (corrected); see results/ablate_chaos_regimes/. A hint at a
          population of 8 is gone with 64 fresh seeds: results/ablate_chaos_confirm/.
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
