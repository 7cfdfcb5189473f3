"""Every mutation over 100 seeds with the population of `edl pretrain`, for a GPU.

Command:  edl ablate --config configs/ablate_mutations_gpu.py --run-dir runs/mutations_gpu
Time:     not measured yet.
Result:   not measured yet.
"""

import dataclasses

from edl_jax.studies import AblateConfig


def get_config() -> AblateConfig:
    """The ablation's configuration."""
    base = AblateConfig()
    pretrain = dataclasses.replace(
        base.pretrain,
        population_size=256,
        pairs_per_generation=4096,
        held_out_pairs=100_000,
        networks_at_a_time=256,
    )
    return dataclasses.replace(base, num_seeds=100, pretrain=pretrain)
