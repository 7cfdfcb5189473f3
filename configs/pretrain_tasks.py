"""A loss evolved by how well small classifiers learn synthetic problems with it. An experiment.

Command:  edl pretrain --config configs/pretrain_tasks.py --run-dir runs/tasks
Time:     20 minutes on 2 CPU cores beside other work.
Result:   error on 64 fresh tasks 39.0 %, cross-entropy's 40.2 % (results/pretrain_tasks). This
          loss itself was not tried on all of CIFAR-10; others like it were (results/cifar10_full).
"""

from edl_jax import PretrainConfig
from edl_jax.objective import TaskConfig


def get_config() -> PretrainConfig:
    """The pretraining configuration."""
    return PretrainConfig(
        activation="silu",
        # A point of error counts as much as a tenth of all margins.
        task_weight=10.0,
        tasks=TaskConfig(test_examples=4096, steps=120, learning_rates=(0.3, 1.0)),
        population_size=64,
        generations=100,
        generations_per_chunk=5,
    )
