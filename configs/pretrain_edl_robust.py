"""The loss for wrong labels, shipped as `load_pretrained("edl-robust")`.

Evolved by how well small classifiers learn synthetic problems of which up to 60 % of the labels are
wrong, under a severity that saturates. Called `gen_noise_many` in results/search.

Command:  edl pretrain --config configs/pretrain_edl_robust.py --run-dir runs/robust
Time:     8 minutes on an H200 beside 12 others; hours on 2 CPU cores (not measured).
Result:   error on fresh tasks 34.8 %, cross-entropy's 36.8 %; of CIFAR-10 with wrong labels see
          results/label_noise/ and results/label_noise_full/. Another device rounds otherwise, and
          evolves another loss of the same kind.
"""

from edl_jax import PretrainConfig
from edl_jax.objective import TaskConfig


def get_config() -> PretrainConfig:
    """The pretraining configuration."""
    return PretrainConfig(
        activation="silu",
        severity="generalised_surprisal",
        task_weight=10.0,
        tasks=TaskConfig(
            num_tasks=16,
            train_examples=8192,
            test_examples=4096,
            max_label_noise=0.6,
            steps=200,
            learning_rates=(0.3, 1.0),
        ),
        population_size=64,
        generations=300,
        generations_per_chunk=10,
        networks_at_a_time=64,  # 16 suit a CPU's cache better
    )
