"""Which metrics of pretraining go with accuracy: 28 losses, poor to good, trained with on digits.

Command:  edl ablate --config configs/ablate_downstream.py --run-dir runs/downstream
Time:     not measured yet: 28 evolutions and trainings.
Result:   of version 0.1.0 see results/ablate_downstream/.
"""

import dataclasses

from edl_jax.studies import AblateConfig


def get_config() -> AblateConfig:
    """The ablation's configuration."""
    return dataclasses.replace(
        AblateConfig(),
        grid={"pretrain.generations": (1, 2, 5, 10, 30, 100, 300)},
        num_seeds=4,
        downstream=True,
    )
