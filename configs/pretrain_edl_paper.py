"""The paper's plain recipe as far as it goes here, shipped as `load_pretrained("edl-paper")`.

A `PairNetwork` for 10 classes, the ranking objective, the chaotic evolution strategy, and fifteen
times the generations of `pretrain_edl.py`. A reference point: it orders pairs worse than the
class-agnostic network does (results/ablate_edl_paper and results/benchmarks/gradient_fit.md say
what stops it).

Command:  edl pretrain --config configs/pretrain_edl_paper.py --run-dir runs/paper
Time:     15 minutes on 2 CPU cores beside other work.
Result:   pairwise accuracy of 0.935 on 10^5 held-out pairs, 11.5 % of the margins violated.
"""

from edl_jax import PretrainConfig


def get_config() -> PretrainConfig:
    """The pretraining configuration."""
    return PretrainConfig(
        network="pair",
        activation="silu",
        class_counts=(10,),
        generations=3000,
        generations_per_chunk=100,
    )
