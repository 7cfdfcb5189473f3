"""As ablate_downstream, with the class-agnostic network, which reaches losses that train well.

Command:  edl ablate --config configs/ablate_downstream_agnostic.py --run-dir runs/agnostic
Time:     not measured yet: 28 evolutions and trainings.
Result:   of version 0.1.0 see results/ablate_downstream_agnostic/.
"""

import dataclasses

from edl_jax.studies import AblateConfig


def get_config() -> AblateConfig:
    """The ablation's configuration."""
    base = AblateConfig()
    return dataclasses.replace(
        base,
        grid={"pretrain.generations": (1, 2, 3, 4, 5, 10, 100)},
        num_seeds=4,
        pretrain=dataclasses.replace(base.pretrain, network="class_agnostic"),
        downstream=True,
    )
