"""Every mutation over 30 seeds: what chaos, its dynamics and its marginal do for the evolution.

Command:  edl ablate --config configs/ablate_mutations.py --run-dir runs/mutations
Time:     6 minutes for one of the 8 cells (1 to compile, 4 to run, 1 to measure) on 2 CPU cores
          that much other work shared; not measured on an idle machine yet.
Result:   a table, figures and a paragraph in runs/mutations/README.md.
"""

from edl_jax.studies import AblateConfig


def get_config() -> AblateConfig:
    """The ablation's configuration."""
    return AblateConfig()
