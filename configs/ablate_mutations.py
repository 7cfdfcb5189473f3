"""Every mutation over 30 seeds: what chaos, its dynamics and its marginal do for the evolution.

Command:  edl ablate --config configs/ablate_mutations.py --run-dir runs/mutations
Time:     22 minutes on 2 CPU cores beside other work: 1 or 2 to compile and 1 or 2 to run each of
          the 8 cells.
Result:   none of the four that are tested against Gaussian is told apart from it (the tent, sine
          and Chebyshev maps are measured, not tested); see results/ablate_mutations/.
"""

from edl_jax.studies import AblateConfig


def get_config() -> AblateConfig:
    """The ablation's configuration."""
    return AblateConfig()
