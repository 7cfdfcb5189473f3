"""Search for a loss on the task itself: its fitness is what short trainings come to."""

import contextlib
import dataclasses
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from evosax.types import Population, Solution
from jax.sharding import Mesh

from edl_jax.data.datasets import Dataset
from edl_jax.evolution.problems import Evaluated, Summand, static_self
from edl_jax.losses import EvolvedLoss
from edl_jax.losses.by_name import resolve_loss
from edl_jax.losses.method import Losses, LossMethod
from edl_jax.losses.searched import SearchedLoss, Task
from edl_jax.models import ModelFactory
from edl_jax.runs.describing import describe, describe_config
from edl_jax.runs.folder import read_json
from edl_jax.runs.storage import write_atomically
from edl_jax.training.classifier import AXIS
from edl_jax.training.config import TrainConfig, check_validation
from edl_jax.training.learner import Learner
from edl_jax.training.optimizers import Optimizer
from edl_jax.training.state import Batch

FOUND = "found.json"


@dataclasses.dataclass(frozen=True)
class _Candidate(LossMethod):
    """The loss of a solution, which is its state."""

    sample: Callable[[jax.Array], Solution]
    loss: Callable[[Solution], Losses]

    def init(self, key: jax.Array, num_classes: int) -> Solution:
        return self.sample(key)

    def losses(self, state: Solution, logits: jax.Array, labels: jax.Array) -> jax.Array:
        return self.loss(state)(logits, labels)


class TrainingProblem(Summand):
    """Error on validation images after a short training with each loss (in [0, 1]).

    In a generation all losses train from the same initial weights on the same batches, and are
    measured on the same images: the key draws them. A training that diverged has an error of 1. The
    whole population is trained by one program, vectorized over its losses.
    """

    def __init__(
        self,
        config: TrainConfig,
        dataset: Dataset,
        sample: Callable[[jax.Array], Solution],
        loss: Callable[[Solution], Losses],
        steps: int,
        *,
        model: ModelFactory | None = None,
        optimizer: Optimizer | None = None,
    ):
        """`config` says how to train, for `steps` steps in all; its loss is not used."""
        per_epoch = len(dataset.train_labels) // config.batch_size
        check_validation(config, dataset, "a search for a loss")
        share = steps / max(1, config.epochs * per_epoch)  # of the whole training
        short = dataclasses.replace(
            config, warmup_epochs=min(share * config.warmup_epochs, config.epochs)
        )
        self.steps, self._sample, self._dataset = steps, sample, dataset
        mesh = Mesh(np.asarray(jax.local_devices()[:1]), (AXIS,))
        parts = {"model": model, "optimizer": optimizer}
        candidate = _Candidate(sample, loss)
        self.learner = Learner(
            short, dataset, candidate, mesh, total_steps=steps, in_loops=True, **parts
        )

    @property
    def described_as(self) -> str:
        """What tells it from other problems."""
        learner = self.learner
        recipe = describe_config(learner.config)
        return f"{self.steps} steps of {recipe} with {describe(learner.identity())}"

    @static_self
    def sample(self, key: jax.Array) -> Solution:
        """A fresh solution."""
        return self._sample(key)

    @static_self
    def eval(self, key: jax.Array, solutions: Population, state: Any) -> Evaluated:  # pyright: ignore
        """The errors `[population]`, and as metrics too."""
        dataset = self._dataset
        data = dataset.train_images, dataset.train_labels, dataset.val_images, dataset.val_labels
        images, labels, val_images, val_labels = map(jnp.asarray, data)
        key_init, key_order, key_steps = jax.random.split(key, 3)
        size, per_epoch = self.learner.config.batch_size, self.learner.steps_per_epoch
        order = jax.vmap(partial(jax.random.permutation, x=len(labels)))
        rows = order(jax.random.split(key_order, -(-self.steps // per_epoch)))
        rows = rows[:, : per_epoch * size].reshape(-1, size)

        def batch_at(step: jax.Array) -> Batch:
            return images[rows[step]], labels[rows[step]]

        begun = self.learner.init(key_init)

        def error(solution: Solution) -> jax.Array:
            at = begun._replace(loss_state=solution)
            step = lambda _, at: self.learner.step(at, key_steps, batch_at)  # noqa: E731
            at = jax.lax.fori_loop(0, self.steps, step, at)
            is_wrong = lambda x: jnp.argmax(self.learner.evaluated_logits(at, x[0][None])) != x[1]  # noqa: E731
            # Not all images at once, since all losses are evaluated together.
            wrong = jax.lax.map(is_wrong, (val_images, val_labels), batch_size=size)
            return jnp.where(at.failed_step >= 0, 1.0, jnp.mean(wrong, dtype=jnp.float32))

        # The learner is written for one device of the axis "data": here an axis of one.
        of_device = jax.vmap(error, axis_name=AXIS, axis_size=1, in_axes=None)
        errors = jax.vmap(of_device)(solutions)[:, 0]
        return errors, state.replace(counter=state.counter + 1), {"error": errors}


def search(
    method: SearchedLoss,
    config: TrainConfig,
    dataset: Dataset,
    run_dir: Path,
    *,
    devices: tuple[Any, ...] = (),
    progress: bool = False,
    **parts: Any,
) -> dict[str, Any]:
    """Search for the loss of a training; a search that is finished in `run_dir` is not run again.

    Returns:
      `loss`, the name by which it can be chosen again: with options, or a file in `run_dir`; and
      what it took: `trainings`, `images` seen by them, `validation_images`, and `cpu_seconds` (of
      the process that ended it).
    """
    if (run_dir / FOUND).exists():
        found = read_json(run_dir / FOUND)
        return found | {"loss": _placed(found["loss"], run_dir)}
    began = time.process_time()
    trainings = partial(TrainingProblem, config, dataset, **parts)
    task = Task(dataset.num_classes, trainings, run_dir, devices, progress)
    loss = method.search(jax.random.key(method.seed), task)
    if isinstance(loss, EvolvedLoss):
        loss.save(run_dir / (name := "loss.safetensors"))
        loss = name
    looked = config.data.val_examples if method.validates else 0
    images = method.num_trainings * getattr(method, "steps", 0) * config.batch_size
    found = {"loss": loss, "trainings": method.num_trainings, "images": images}
    found |= {"validation_images": looked, "cpu_seconds": round(time.process_time() - began, 1)}
    write_atomically(run_dir / FOUND, json.dumps(found).encode())
    return found | {"loss": _placed(loss, run_dir)}


def _placed(loss: str, run_dir: Path) -> str:
    """The name of a loss; that of a file with its folder, which may have been moved."""
    return str(run_dir / loss) if loss.endswith(".safetensors") else loss


def found(learner: Learner, run_dir: Path | None = None, *, progress: bool = False) -> Learner:
    """A learner with the loss that its search finds; the search resumes in its folder."""
    parts = {**learner.parts}
    given = parts.pop("loss"), learner.config, learner.dataset
    with contextlib.ExitStack() as stack:
        run_dir = run_dir or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        devices = tuple(learner.mesh.devices.flat)
        options = {"devices": devices, "progress": progress, **parts}
        name = search(*given, run_dir, **options)["loss"]
        loss = resolve_loss(name)
    return Learner(*given[1:], loss, learner.mesh, **parts)
