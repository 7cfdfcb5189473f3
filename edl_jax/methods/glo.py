"""GLO: loss formulas by genetic programming (Gonzalez and Miikkulainen, CEC 2020).

The paper's: a loss is a tree of operators and leaves, evaluated for each class and averaged over
the classes; genetic programming searches the tree, then CMA-ES its coefficients; a candidate is as
good as the validation accuracy after a short training. Baikal was found so.

Ours, since the authors published no code: which operators and leaves there are, and what they do
where their formula has no value or gradient (`losses/formulas/expression.py`); programs in postfix
notation with a limit to their size; that all contain both the label and the probability;
tournaments, and how children are bred (`strategies/genetic_programming.py`); that a coefficient
multiplies every node; all sizes, rates and lengths; and that each of the two searches chooses among
its best by fresh trainings.
"""

import dataclasses
import functools
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Ge, Le
from evosax.algorithms import CMA_ES

from edl_jax.checked import Count, Positive
from edl_jax.errors import ConfigError
from edl_jax.losses.formulas.expression import OPERATORS, postfix
from edl_jax.losses.method import METHODS
from edl_jax.losses.searched import Losses, SearchedLoss, Task
from edl_jax.strategies.genetic_programming import GeneticProgramming

LEAVES = ("w", "p", 1.0, -1.0)
TOKENS = (*LEAVES, *OPERATORS)  # the token `i + 1` is the one at `i`; 0 stands behind the last
ARITY = (*(0 for _ in LEAVES), *(arity for arity, _ in OPERATORS.values()))


@METHODS.register("glo")
@dataclasses.dataclass(frozen=True, kw_only=True)
class GLO(SearchedLoss):
    """A formula of labels and probabilities, found on the task by genetic programming.

    What it finds is `expression(formula=...)`, a loss that can be named again.

    References:
      Gonzalez and Miikkulainen, Improved Training Speed, Accuracy, and Data Utilization Through
      Loss Function Optimization, CEC 2020. https://arxiv.org/abs/1905.11528
    """

    looks_at: ClassVar[str] = "training images, and labels of validation images"

    population_size: Annotated[int, Ge(4)] = 20
    """Number of formulas in a generation, in both searches."""
    generations: Count = 20
    """Number of generations of genetic programming."""
    coefficient_generations: Annotated[int, Ge(0)] = 10
    """Number of generations of CMA-ES on the coefficients of the best formula."""
    steps: Count = 100
    """Length of a short training, in steps."""
    size: Annotated[int, Ge(3)] = 16
    """Most operators, variables and numbers that a formula has."""
    seeds: tuple[str, ...] = ()
    """Formulas of which half of the first generation is drawn, such as -log(p) + w / p; their
    numbers can be 1 and -1."""
    crossover_rate: Annotated[float, Ge(0), Le(1)] = 0.6
    """Share of the children that are bred by crossover; of the others half are bred by mutation of
    a subtree, half by mutation of a single operator or leaf."""
    std_init: Positive = 0.2
    """Step size of CMA-ES in the first generation; all coefficients begin at 1."""
    draws: Count = 2
    """Number of trainings by which the best of each search is chosen."""

    def search(self, key: jax.Array, task: Task) -> str:
        """The name of the best formula, its coefficients rounded to four digits."""
        key_program, key_coefficients = jax.random.split(key)
        program = self.best_program(key_program, task)
        coefficients = np.ones((np.count_nonzero(program),), np.float32)
        if self.coefficient_generations:
            coefficients = self.best_coefficients(key_coefficients, task, program)
        return f"expression(formula={formula_of(program, coefficients)!r})"

    def best_program(self, key: jax.Array, task: Task) -> np.ndarray:
        """The first search: the best program, `[size]` int32, with coefficients of 1."""
        needs = [TOKENS.index(leaf) + 1 for leaf in ("w", "p")]
        breeding = GeneticProgramming(self.population_size, self.size, ARITY, needs=needs)
        seeds = [program_of(formula, self.size) for formula in self.seeds]

        def sample(key: jax.Array) -> jax.Array:
            fresh = breeding.sample(key)
            if not seeds:
                return fresh
            key_kind, key_seed = jax.random.split(key)
            seed = jax.random.choice(key_seed, np.stack(seeds))
            return jnp.where(jax.random.bernoulli(key_kind), seed, fresh)

        def loss(program: jax.Array) -> Losses:
            return functools.partial(losses_of, program, np.ones((self.size,), np.float32))

        params = breeding.default_params.replace(
            crossover_rate=self.crossover_rate, point_rate=(1 - self.crossover_rate) / 2
        )
        found = {"generations": self.generations, "params": params}
        return self._best(task, "formula", sample, loss, breeding, key, found)

    def best_coefficients(self, key: jax.Array, task: Task, program: np.ndarray) -> np.ndarray:
        """The second search: the best coefficients of a program's tokens, float32."""
        ones = np.ones((np.count_nonzero(program),), np.float32)

        def loss(coefficients: jax.Array) -> Losses:
            padded = jnp.pad(coefficients, (0, self.size - len(ones)))
            return functools.partial(losses_of, program, padded)

        strategy = CMA_ES(self.population_size, jnp.asarray(ones))
        params = lambda: strategy.default_params.replace(std_init=jnp.float32(self.std_init))  # noqa: E731
        found = {"generations": self.coefficient_generations, "params": jax.jit(params)()}
        sample = lambda key: jnp.asarray(ones)  # noqa: E731
        return self._best(task, "coefficients", sample, loss, strategy, key, found)

    def _best(
        self, task: Task, name: str, sample: Any, loss: Any, strategy: Any, key: Any, options: Any
    ) -> np.ndarray:
        from edl_jax.evolution.evolve import evolve  # loads matplotlib, by evosax's problems

        found = evolve(
            task.trainings(sample, loss, self.steps),
            strategy,
            key,
            draws=self.draws,
            run_dir=task.run_dir and task.run_dir / name,
            **task.options(self.population_size),
            **options,
        )
        return np.asarray(found.solution)

    @property
    def num_trainings(self) -> int:
        """Of all generations of both searches, and of the two choices."""
        quarter = self.population_size // 4
        of_formulas = self.population_size * self.generations + self.draws * (quarter + 1)
        of_coefficients = self.population_size * self.coefficient_generations
        of_coefficients += self.draws * (quarter + 2)
        return of_formulas + (of_coefficients if self.coefficient_generations else 0)


def losses_of(program: Any, coefficients: Any, logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Losses `[batch]` of a program `[size]` int32 and its coefficients `[size]`."""
    p = jax.nn.softmax(logits, axis=-1)
    w = labels if labels.ndim == p.ndim else jax.nn.one_hot(labels, p.shape[-1], dtype=p.dtype)
    return jnp.mean(run_program(program, coefficients, w, p), axis=-1)


def run_program(program: Any, coefficients: Any, w: jax.Array, p: jax.Array) -> jax.Array:
    """The value of a program, of the shape of `w` and `p`, by a machine with a stack."""
    arity = jnp.asarray((1, *ARITY))  # the empty token keeps the top of the stack
    room = (len(program) + 1) // 2 + 1  # for as many leaves as there can be, and one value more
    below = jnp.arange(room - 1)

    def step(stack: jax.Array, node: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        token, coefficient = node
        values = [stack[0], w, p, jnp.ones_like(p), -jnp.ones_like(p)]
        for name, (count, function) in OPERATORS.items():
            # Operators that are not asked for are fed ones, so that no gradient comes of them.
            asked = token == TOKENS.index(name) + 1
            values.append(function(*(jnp.where(asked, x, 1) for x in stack[:count][::-1])))
        top = jax.lax.select_n(token, *values) * jnp.where(token > 0, coefficient, 1)
        rest = stack[jnp.minimum(below + arity[token], room - 1)]
        return jnp.concatenate([top[None], rest]), None

    stack = jnp.zeros((room, *p.shape), p.dtype)  # its top first
    nodes = jnp.asarray(program), jnp.asarray(coefficients, p.dtype)
    return jax.lax.scan(step, stack, nodes)[0][0]


def program_of(formula: str, size: int) -> np.ndarray:
    """A formula whose numbers are 1 and -1 as a program, `[size]` int32."""
    tokens = postfix(formula)
    if len(tokens) > size or not {*tokens} <= {*TOKENS}:
        raise ConfigError(
            f"the formula {formula!r} has {len(tokens)} tokens; expected at most {size}, and no "
            "numbers but 1 and -1."
        )
    program = [TOKENS.index(token) + 1 for token in tokens]
    return np.asarray(program + [0] * (size - len(program)), np.int32)


def formula_of(program: np.ndarray, coefficients: np.ndarray) -> str:
    """A program as a formula, its coefficients rounded to four digits."""
    stack: list[tuple[str, bool]] = []  # texts, and whether they need brackets beside an operator
    for token, coefficient in zip(program[program > 0], coefficients, strict=False):
        name, count = TOKENS[token - 1], ARITY[token - 1]
        factor = float(f"{coefficient:.4g}")
        if isinstance(name, float):
            stack.append((f"{name * factor:g}", name * factor < 0))
            continue
        arguments = [stack.pop() for _ in range(count)][::-1]
        texts = [f"({text})" if needs and count == 2 else text for text, needs in arguments]
        text = f" {name} ".join(texts) if count == 2 else f"{name}({texts[0]})" if count else name
        if factor != 1:
            text = f"{factor:g} * ({text})" if count == 2 else f"{factor:g} * {text}"
        stack.append((text, count == 2 or factor != 1))
    return stack[0][0]
