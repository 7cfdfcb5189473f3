"""What problems of loss networks share: the networks, and the pairs."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from evosax.types import Fitness, Population, Solution
from flax import nnx

from edl_jax.checked import config_or_default
from edl_jax.evolution.config import PretrainConfig
from edl_jax.evolution.sums import Summand, static_self
from edl_jax.losses import EvolvedLoss, calibrated
from edl_jax.networks import LossNetwork
from edl_jax.objective import MARGINS, SEVERITIES
from edl_jax.objective.severity import Margin, Severity
from edl_jax.pairs import Pairs, sample_pairs

# Several functions may be given one key: each first folds in a number of its own, so that none
# draws what another does. `pairs` folds in the index of a class count, which is smaller.
ORDER, HELD_OUT, TASKS = range(2**31, 2**31 + 3)


@dataclasses.dataclass(frozen=True)
class LossProblem(Summand):
    """What problems of loss networks share: the networks, and the pairs.

    Attributes:
      config: which network, pairs and objective; the defaults if None.
    """

    config: PretrainConfig = None  # pyright: ignore[reportAssignmentType]
    # What the configuration's names stand for: they may be registered anew.
    severity: Severity = dataclasses.field(init=False, repr=False)
    margin: Margin = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        config = config_or_default(self.config, PretrainConfig)
        object.__setattr__(self, "config", config)
        object.__setattr__(self, "severity", SEVERITIES[config.severity])
        object.__setattr__(self, "margin", MARGINS[config.margin])

    def network(self, solution: Solution) -> LossNetwork:
        """The loss network of a solution."""
        return nnx.merge(self.config.architecture().abstract()[0], solution)

    def loss(self, solution: Solution, key: jax.Array | None = None) -> EvolvedLoss:
        """The frozen loss of a solution, for `train` and to save.

        Args:
          solution: the state of a loss network.
          key: draws `held_out_pairs` pairs to calibrate on; without, the loss is as evolved.

        Raises:
          InputError: if the loss is flat on the pairs.
        """
        loss = EvolvedLoss(
            params=nnx.to_pure_dict(solution),
            scale=jnp.ones((), jnp.float32),
            architecture=self.config.architecture(),
        )
        return loss if key is None else calibrated(loss, self.held_out_pairs(key))

    @static_self
    def sample(self, key: jax.Array) -> Solution:
        """The state of a fresh network."""
        return self.config.architecture().initial_state(key)

    @static_self
    def pairs(self, key: jax.Array) -> tuple[Pairs, ...]:
        """A generation's pairs, one set for each class count."""
        counts = self.config.class_counts
        each, extra = divmod(self.config.pairs_per_generation, len(counts))
        return tuple(
            sample_pairs(
                jax.random.fold_in(key, index),
                each + (index < extra),
                num_classes,
                mixture=self.config.mixture,
            )
            for index, num_classes in enumerate(counts)
        )

    def held_out_pairs(self, key: jax.Array) -> tuple[Pairs, ...]:
        """At least `held_out_pairs` pairs, drawn a generation's worth at a time by one program."""
        draws = -(-self.config.held_out_pairs // self.config.pairs_per_generation)
        key = jax.random.fold_in(key, HELD_OUT)
        parts = [self.pairs(jax.random.fold_in(key, index)) for index in range(draws)]
        return jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *parts)

    def in_blocks(
        self, function: Callable[[LossNetwork], jax.Array], solutions: Population
    ) -> Fitness:
        """A function of every network, `networks_at_a_time` of them together, `[population]`."""
        size = jax.tree.leaves(solutions)[0].shape[0]
        blocks = -(-size // self.config.networks_at_a_time)
        each = -(-size // blocks)
        rows = jnp.minimum(jnp.arange(blocks * each), size - 1).reshape(blocks, each)
        whole = jax.tree.map(lambda x: x[rows], solutions)
        of_block = jax.vmap(lambda solution: function(self.network(solution)))
        return jax.lax.map(of_block, whole).reshape(-1)[:size]
