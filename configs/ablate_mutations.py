"""Every mutation over 30 seeds: what chaos, its dynamics and its marginal do for the evolution.

Command:  edl ablate --config configs/ablate_mutations.py --run-dir runs/mutations
Time:     TIME
Result:   a table, figures and a paragraph in runs/mutations/README.md.
"""

from edl_jax.studies import AblateConfig


def get_config() -> AblateConfig:
    """The ablation's configuration."""
    return AblateConfig()
