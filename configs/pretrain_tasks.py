"""A loss evolved by how well small classifiers learn synthetic problems with it. An experiment.

Command:  edl pretrain --config configs/pretrain_tasks.py --run-dir runs/tasks
Time:     not measured yet.
Result:   not measured yet.
"""

from edl_jax import PretrainConfig
from edl_jax.tasks import TaskConfig


def get_config() -> PretrainConfig:
    """The pretraining configuration."""
    return PretrainConfig(
        # A point of error counts as much as a tenth of all margins.
        task_weight=10.0,
        tasks=TaskConfig(test_examples=4096, steps=120, learning_rates=(0.3, 1.0)),
        population_size=64,
        generations=100,
        generations_per_chunk=5,
    )
