"""How far does the paper's plain recipe go? A PairNetwork for 10 classes, 3,000 generations.

What else could stop it (the network's size, the class count, the severity) is asked by
`python -m benchmarks.gradient_fit`, beside gradient descent on the same objective.

Command:  edl ablate --config configs/ablate_edl_paper.py --run-dir runs/paper
Time:     not measured yet.
Result:   not measured yet.
"""

import dataclasses

from edl_jax.studies import AblateConfig


def get_config() -> AblateConfig:
    """The ablation's configuration."""
    base = AblateConfig()
    return dataclasses.replace(
        base,
        mutations=("logistic",),
        population_sizes=(64, 256),
        std_inits=(0.1, 0.5),
        num_seeds=10,
        thresholds=(0.5, 0.3, 0.2),
        pretrain=dataclasses.replace(base.pretrain, generations=3000, generations_per_chunk=100),
    )
