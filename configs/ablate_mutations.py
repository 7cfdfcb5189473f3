"""Every mutation over 30 seeds: what chaos, its dynamics and its marginal do for the evolution.

Command:  edl ablate --config configs/ablate_mutations.py --run-dir runs/mutations
Time:     22 minutes on 2 CPU cores beside other work: 1 or 2 to compile and 1 or 2 to run each of
          the 8 cells.
Result:   no mutation is told apart from Gaussian; see results/ablate_mutations/.
"""

from edl_jax.studies import AblateConfig


def get_config() -> AblateConfig:
    """The ablation's configuration."""
    return AblateConfig()
