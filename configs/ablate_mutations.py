"""Every mutation over 30 seeds: what chaos, its dynamics and its marginal do for the evolution.

Command:  edl ablate --config configs/ablate_mutations.py --run-dir runs/mutations
Time:     not measured yet: 240 evolutions.
Result:   none of the three that are tested against Gaussian differs significantly from it (the
          tent, sine and Chebyshev maps are measured, not tested); of version 0.1.0 see
          results/ablate_mutations/.
"""

from edl_jax.studies import AblateConfig


def get_config() -> AblateConfig:
    """The ablation's configuration."""
    return AblateConfig()
