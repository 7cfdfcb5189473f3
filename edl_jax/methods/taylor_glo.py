"""TaylorGLO: the eight numbers of a polynomial, by CMA-ES (Gonzalez and Miikkulainen, GECCO 2021).

The paper's: the loss is a third-order Taylor polynomial in the label's weight on a class and the
class's probability, centered at `a_0` and `a_1`, without the terms that have no gradient; CMA-ES
searches its eight parameters, by the validation accuracy of short trainings. The authors' code
(github.com/cognizant-ai-labs/TaylorGLO) begins at zeros, with a step size of 1.2 and mostly 20
candidates a generation, for up to 100 generations: so do the defaults here, but for the number of
generations. It leaves the factorials out of the parameters; here they are as in the paper. Like
the code, and unlike the paper, the polynomial is summed over the classes and not averaged.

Ours: the number of generations, the length of the short trainings, evosax's CMA-ES, and that the
winner is chosen by fresh trainings among the best of the last generation, its mean, and the best
that was ever seen. The authors' check of candidates before they train, of a later paper, is left
out, as in most of their own experiments.
"""

import dataclasses
import functools
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp
from annotated_types import Ge
from evosax.algorithms import CMA_ES

from edl_jax.checked import Count, Positive
from edl_jax.losses.formulas.discovered import taylor_polynomial
from edl_jax.losses.method import METHODS
from edl_jax.losses.searched import Losses, SearchedLoss, Task


@METHODS.register("taylor_glo")
@dataclasses.dataclass(frozen=True, kw_only=True)
class TaylorGLO(SearchedLoss):
    """A polynomial of labels and probabilities, whose eight numbers are searched on the task.

    What it finds is `taylor_polynomial(parameters=...)`, a loss that can be named again.

    References:
      Gonzalez and Miikkulainen, Optimizing Loss Functions Through Multi-Variate Taylor Polynomial
      Parameterization, GECCO 2021. https://arxiv.org/abs/2002.00059
    """

    looks_at: ClassVar[str] = "training images, and labels of validation images"

    population_size: Annotated[int, Ge(4)] = 20
    """Number of polynomials in a generation."""
    generations: Count = 20
    """Number of generations."""
    steps: Count = 100
    """Length of a short training, in steps."""
    std_init: Positive = 1.2
    """Step size of CMA-ES in the first generation."""
    draws: Count = 2
    """Number of trainings by which the best of the last generation is chosen."""

    def search(self, key: jax.Array, task: Task) -> str:
        """The name of the best polynomial, its parameters rounded to six digits."""
        from edl_jax.evolution.evolve import evolve  # loads matplotlib, by evosax's problems

        def loss(parameters: jax.Array) -> Losses:
            return functools.partial(taylor_polynomial, parameters=parameters)

        origin = jnp.zeros((8,), jnp.float32)
        problem = task.trainings(lambda key: origin, loss, self.steps)
        strategy = CMA_ES(self.population_size, origin)
        params = lambda: strategy.default_params.replace(std_init=jnp.float32(self.std_init))  # noqa: E731
        found = evolve(
            problem,
            strategy,
            key,
            generations=self.generations,
            params=jax.jit(params)(),
            draws=self.draws,
            run_dir=task.run_dir,
            **task.options(self.population_size),
        )
        parameters = tuple(float(f"{x:.6g}") for x in found.solution.tolist())
        return f"taylor_polynomial(parameters={parameters})"

    @property
    def num_trainings(self) -> int:
        """Of all generations, and of the choice at the end."""
        chosen_from = self.population_size // 4 + 2
        return self.population_size * self.generations + self.draws * chosen_from
