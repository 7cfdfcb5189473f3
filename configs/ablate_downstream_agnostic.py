"""As ablate_downstream, with the class-agnostic network, which reaches losses that train well.

Command:  edl ablate --config configs/ablate_downstream_agnostic.py --run-dir runs/agnostic
Time:     11 minutes on 2 CPU cores beside other work.
Result:   see results/ablate_downstream_agnostic/.
"""

import dataclasses

from edl_jax.studies import AblateConfig


def get_config() -> AblateConfig:
    """The ablation's configuration."""
    base = AblateConfig()
    return dataclasses.replace(
        base,
        mutations=("logistic",),
        num_seeds=4,
        pretrain=dataclasses.replace(base.pretrain, network="class_agnostic", generations=100),
        downstream_losses=28,
        downstream_generations=(0, 1, 2, 3, 5, 10, 100),
    )
