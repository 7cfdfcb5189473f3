"""Which metrics of pretraining go with accuracy: 28 losses, bad to good, trained with on digits.

Command:  edl ablate --config configs/ablate_downstream.py --run-dir runs/downstream
Time:     17 minutes on 2 CPU cores beside other work; mostly that of compiling 28 trainings.
Result:   see results/ablate_downstream/.
"""

import dataclasses

from edl_jax.studies import AblateConfig


def get_config() -> AblateConfig:
    """The ablation's configuration."""
    return dataclasses.replace(
        AblateConfig(), mutations=("logistic", "gaussian"), downstream_losses=28
    )
