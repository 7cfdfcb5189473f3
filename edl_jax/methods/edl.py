"""EDL: a loss network evolved on synthetic pairs alone (Xiang and Pei, 2026): what `pretrain` runs.

docs/method.md says what is the paper's and what is ours.
"""

import dataclasses
from typing import ClassVar

import jax

from edl_jax.evolution import PretrainConfig
from edl_jax.losses import EvolvedLoss
from edl_jax.losses.method import METHODS
from edl_jax.losses.searched import SearchedLoss, Task


@METHODS.register("edl")
@dataclasses.dataclass(frozen=True, kw_only=True)
class EDL(SearchedLoss):
    """A loss network evolved on synthetic pairs of predictions and labels, for any task.

    `edl` alone is the shipped loss, which was evolved once; with an option, such as `edl(seed=1)`,
    another one is evolved.

    References:
      Xiang and Pei, "Distribution-Free Pretraining of Classification Losses via Evolutionary
      Dynamics", 2026. https://arxiv.org/abs/2605.03722
    """

    looks_at: ClassVar[str] = "nothing of the task"
    validates: ClassVar[bool] = False

    pretrain: PretrainConfig = PretrainConfig()
    """How to evolve it; the search's seed replaces its own."""

    def search(self, key: jax.Array, task: Task) -> EvolvedLoss:
        """The winner of `pretrain`, calibrated."""
        from edl_jax.evolution.pretraining import pretrain  # loads matplotlib

        options = {"run_dir": task.run_dir, "progress": task.progress}
        return pretrain(self.pretrain, key=key, **options).loss

    @property
    def num_trainings(self) -> int:
        """None."""
        return 0
