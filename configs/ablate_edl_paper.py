"""How far does the paper's plain recipe go? A PairNetwork for 10 classes, 3,000 generations.

Our plain strategy beside a few that adapt a step size for every weight. What else could stop it
(the network's size, the class count, the severity) is asked beside gradient descent on the
same objective (results/benchmarks/gradient_fit.md).

Command:  edl ablate --config configs/ablate_edl_paper.py --run-dir runs/paper
          the same with --grid pretrain.population_size=64,256 pretrain.strategy.std_init=0.1,0.5
Time:     31 minutes on 2 CPU cores beside other work (the first command, version 0.1.0).
Result:   ChaoticES ends at a pairwise accuracy of 0.913, the others at 0.941 to 0.951; see
          results/ablate_edl_paper/.
"""

import dataclasses

from edl_jax.studies import AblateConfig


def get_config() -> AblateConfig:
    """The ablation's configuration."""
    base = AblateConfig()
    return dataclasses.replace(
        base,
        grid={
            "pretrain.strategy.name": (
                "ChaoticES",
                "ChaoticSNES",
                "SNES",
                "Sep_CMA_ES",
                "CR_FM_NES",
            )
        },
        num_seeds=10,
        pretrain=dataclasses.replace(base.pretrain, generations=3000, generations_per_chunk=100),
    )
