"""Losses that are searched for on the task before a classifier is trained with them."""

import abc
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import jax

from edl_jax.checked import Checked, Seed

Losses = Callable[[jax.Array, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Task:
    """What a search may use of the task that its loss is for.

    Attributes:
      num_classes: the number of classes.
      trainings: `(sample, loss, steps) -> Problem`: an evosax problem whose solutions are like
        `sample(key)`, pytrees of arrays. The fitness of one is the error on validation images of a
        classifier that `loss(solution)`, a function of logits and labels, has trained for so many
        steps; a `TrainingProblem`.
      run_dir: a folder in which the search may keep what it needs to resume, or None.
      devices: those that the classifier will be trained on; all if empty.
      progress: whether to show it.
    """

    num_classes: int
    trainings: Callable[[Callable[..., Any], Callable[[Any], Losses], int], Any]
    run_dir: Path | None = None
    devices: tuple[Any, ...] = ()
    progress: bool = False

    def options(self, population_size: int) -> dict[str, Any]:
        """Further arguments of `evolve`: a checkpoint after each generation, and what it runs on.

        It runs on as many devices as the population can be divided among.
        """
        counts = [n for n in range(1, 1 + len(self.devices)) if population_size % n == 0]
        devices = self.devices[: counts[-1]] if counts else None
        return {"generations_per_chunk": 1, "devices": devices, "progress": self.progress}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchedLoss(Checked, abc.ABC):
    """Base class of the losses that a search finds on the task; frozen while they train.

    A subclass is a configuration: its fields are the options of its name. `train` runs the search
    on its own data first, and then trains with the loss that was found.
    """

    looks_at: ClassVar[str]  # what of the task the search looks at, in words
    validates: ClassVar[bool] = True  # whether validation images are needed

    seed: Seed = 0
    """Seed of the search. One search serves the trainings of all seeds."""

    @abc.abstractmethod
    def search(self, key: jax.Array, task: Task) -> Any:
        """The loss that is found: an `EvolvedLoss`, or its name and options, as `gce(q=0.5)`."""

    @property
    @abc.abstractmethod
    def num_trainings(self) -> int:
        """How many short trainings the search takes."""
