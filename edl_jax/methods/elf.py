"""ELF: a loss network evolved on the task (Meng, Hai, Liu and Pei, ICONIP 2025).

The paper's: a neural network as the loss, evolved by mutation and selection on the target task.
Ours: everything else, since no more is public: the network and the evolution strategy are those of
EDL, which descends from it, and only the fitness differs: the validation error of short trainings.
"""

import dataclasses
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp
from annotated_types import Ge
from evosax.types import Solution
from flax import nnx

from edl_jax.checked import Count, OneOf, Positive
from edl_jax.losses import EvolvedLoss
from edl_jax.losses.method import METHODS
from edl_jax.losses.searched import SearchedLoss, Task
from edl_jax.networks import Architecture
from edl_jax.networks.loss_network import ACTIVATIONS
from edl_jax.strategies import ChaoticES


@METHODS.register("elf")
@dataclasses.dataclass(frozen=True, kw_only=True)
class ELF(SearchedLoss):
    """A loss network evolved on the task by short trainings.

    References:
      Meng et al., Optimization Design of Adaptive Loss Function Using Evolutionary Neural Networks,
      ICONIP 2025.
    """

    looks_at: ClassVar[str] = "training images, and labels of validation images"

    population_size: Annotated[int, Ge(2)] = 16
    """Number of loss networks in a generation."""
    generations: Count = 20
    """Number of generations."""
    steps: Count = 100
    """Length of a short training, in steps."""
    hidden: tuple[Count, ...] = (16, 16)
    """Widths of the loss network's hidden layers."""
    activation: Annotated[str, OneOf(ACTIVATIONS)] = "squareplus"
    """Activation of the hidden layers."""
    std_init: Positive = 0.1
    """Standard deviation of the mutations in the first generation."""
    draws: Count = 2
    """Number of trainings by which the best of the last generation is chosen."""

    def search(self, key: jax.Array, task: Task) -> EvolvedLoss:
        """The best network of the last generation, by fresh trainings."""
        from edl_jax.evolution.evolve import evolve  # loads matplotlib, by evosax's problems

        architecture = Architecture("class_agnostic", self.hidden, self.activation)

        def sample(key: jax.Array) -> Solution:
            return nnx.to_pure_dict(architecture.initial_state(key))

        def loss(solution: Solution) -> EvolvedLoss:
            return EvolvedLoss(solution, jnp.ones((), jnp.float32), architecture)

        problem = task.trainings(sample, loss, self.steps)
        strategy = ChaoticES(self.population_size, problem.sample(key))
        found = evolve(
            problem,
            strategy,
            key,
            generations=self.generations,
            params=strategy.default_params.replace(std_init=self.std_init),
            draws=self.draws,
            run_dir=task.run_dir,
            **task.options(self.population_size),
        )
        return loss(found.solution)

    @property
    def num_trainings(self) -> int:
        """Of all generations, and of the choice at the end."""
        chosen_from = max(1, self.population_size // 4) + 1
        return self.population_size * self.generations + self.draws * chosen_from
