"""Few-shot learning: many tasks of a few images each, from classes that the test does not see."""

import dataclasses
import os
from typing import Annotated, Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from annotated_types import Ge
from jax.typing import ArrayLike

from edl_jax.checked import Checked, Count, Positive, Seed, config_or_default
from edl_jax.data.augmentation import normalize
from edl_jax.data.by_class import ByClass, by_class
from edl_jax.data.config import DataConfig
from edl_jax.data.datasets import Dataset, load_dataset
from edl_jax.data.sources import ArraySource
from edl_jax.errors import ConfigError, DivergedError
from edl_jax.runs.describing import describe
from edl_jax.runs.devices import device_mesh, to_every_device
from edl_jax.runs.fit import fit
from edl_jax.runs.folder import METRICS, Row, as_finite, open_run


@dataclasses.dataclass(frozen=True, kw_only=True)
class FewShotConfig(Checked):
    """Few-shot tasks, and how to learn from them. Raises ConfigError for an invalid field."""

    ways: Annotated[int, Ge(2)] = 5
    """Number of classes of a task."""
    shots: Count = 1
    """Number of labeled images of each class, from which a task is learned."""
    queries: Count = 15
    """Number of further images of each class, on which it is measured."""
    test_classes: Annotated[int, Ge(2)] = 5
    """Number of classes, the last of the data set, for the tasks of the test; the others are for
    training."""
    steps: Count = 1000
    """Number of training steps."""
    tasks: Count = 2
    """Number of tasks in a step."""
    learning_rate: Positive = 1e-3
    """Learning rate of the steps, by Adam."""
    test_tasks: Annotated[int, Ge(2)] = 600
    """Number of tasks of the test."""
    seed: Seed = 0
    """Seed of initial weights and tasks; the tasks are the same for all methods."""


class MetaLearner(Protocol):
    """What `meta_train` trains: two pure functions, such as those of MeTAL."""

    def init(self, key: jax.Array, image_shape: tuple[int, ...], ways: int) -> Any:
        """What is learned over many tasks, as it begins: a pytree of floating-point arrays."""
        ...

    def query_loss(
        self, learned: Any, support: jax.Array, query: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Mean loss, and accuracy, on a task's query images once it is learned from its support.

        Both are normalized images `[ways, n, height, width, channels]` float32, and the first axis
        is the label. Differentiable in `learned`.
        """
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class FewShotResult:
    """The result of `meta_train`.

    Attributes:
      test_accuracy: mean accuracy on the query images of the test's tasks, after the last step.
      test_interval: half the width of its 95 % interval over the tasks.
      test_loss: mean loss on them.
      history: a row for every 100 steps: `step`, and of the tasks of these steps `train_loss` and
        `train_accuracy` on the query images.
      source: a sentence that says which data was used.
      learned: what was learned.
    """

    test_accuracy: float
    test_interval: float
    test_loss: float
    history: list[Row]
    source: str
    learned: Any
    _run: "MetaTraining" = dataclasses.field(repr=False)

    def evaluate(self, tasks: int, *, seed: int = 0) -> np.ndarray:
        """The accuracies `[tasks]` on the query images of new tasks of the test classes."""
        return self._run.evaluate(self.learned, jax.random.key(seed), tasks)[1]


def meta_train(
    learner: MetaLearner,
    data: ArraySource | DataConfig | str = "auto",
    config: FewShotConfig | None = None,
    *,
    run_dir: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> FewShotResult:
    """Learn to learn tasks of a few images each, and test it on tasks of other classes.

    Args:
      learner: what learns, such as `MeTAL()`.
      data: a data set, as in `train`. Training tasks are images of the train split and the training
        classes; the test's are images of the test split and the test classes.
      config: which tasks, and how many; the defaults if None.
      run_dir: where to keep configuration, metrics, checkpoints and the result; nowhere by default.
        A run that was stopped there resumes.
      progress: whether to tell how far it is.

    Raises:
      ConfigError: if the data set has too few classes, or too few images of one.
      DataError, RunFolderError, Preempted: as `train`.
      DivergedError: if the loss is no longer finite.
    """
    config = config_or_default(config, FewShotConfig)
    source = data if isinstance(data, ArraySource) else None
    name = data.name if isinstance(data, ArraySource) else data
    dataset = load_dataset(DataConfig(name) if isinstance(name, str) else name, source)
    run = MetaTraining(learner, dataset, config)
    if run_dir is None:
        return _result(run, fit(run, run.key_init, progress=progress))
    identity = {"few_shot": config, "learner": describe(learner), "data": dataset.identity}
    with open_run(run_dir, identity) as folder:
        result = _result(run, fit(run, run.key_init, folder=folder, progress=progress))
        names = ("test_accuracy", "test_interval", "test_loss")
        measured = as_finite({name: getattr(result, name) for name in names})
        folder.write_json("results.json", {**measured, "data": result.source})
    return result


def _result(run: "MetaTraining", fitted: Any) -> FewShotResult:
    learned = jax.device_get(fitted.state.learned)
    losses, accuracies = run.evaluate(learned, run.key_test, run.config.test_tasks)
    return FewShotResult(
        test_accuracy=float(accuracies.mean()),
        test_interval=float(1.96 * accuracies.std(ddof=1) / np.sqrt(len(accuracies))),
        test_loss=float(losses.mean()),
        history=fitted.rows[0],
        source=run.dataset.source,
        learned=learned,
        _run=run,
    )


class MetaState(NamedTuple):
    """All that a step changes."""

    learned: Any
    optimizer: optax.OptState
    step: jax.Array  # steps taken, int32
    loss_sum: jax.Array  # of the steps since the period began, float32
    accuracy_sum: jax.Array  # likewise


class MetaTraining:
    """Steps of a learner on one device, which `fit` drives (see `edl_jax.runs.fit.Run`)."""

    name, unit, files, chunk, period = "meta-train", "step", (METRICS,), 10, 100

    def __init__(self, learner: MetaLearner, dataset: Dataset, config: FewShotConfig):
        self.learner, self.dataset, self.config = learner, dataset, config
        self.total, self.mesh = config.steps, device_mesh("data", jax.local_devices()[:1])
        first = dataset.num_classes - config.test_classes
        if config.ways > min(first, config.test_classes) or dataset.streamed:
            raise ConfigError(
                f"FewShotConfig.ways is {config.ways}; {dataset.name} has {max(first, 0)} training "
                f"classes beside {config.test_classes} test classes, and its images are "
                f"{'streamed' if dataset.streamed else 'in memory'}. Expected that many classes of "
                "either kind, and images in memory."
            )
        needed = config.shots + config.queries
        self._train = by_class(dataset, "train", range(first), needed)
        self._test = by_class(dataset, "test", range(first, dataset.num_classes), needed)
        self.optimizer = optax.adam(config.learning_rate)
        keys = jax.random.split(jax.random.key(config.seed), 3)
        self.key_init, self._key, self.key_test = keys
        self._step = jax.jit(self.step, donate_argnums=(0,))
        self._measured = jax.jit(self.measured)

    def init(self, key: jax.Array) -> MetaState:
        """The state before the first step."""

        def begin(key: jax.Array) -> MetaState:
            shape = self.dataset.train_images.shape[1:]
            learned = self.learner.init(key, shape, self.config.ways)
            zero = jnp.zeros((), jnp.float32)
            begun = jnp.zeros((), jnp.int32)
            return MetaState(learned, self.optimizer.init(learned), begun, zero, zero)

        return to_every_device(jax.device_get(jax.jit(begin)(key)), self.mesh)

    def step(self, state: MetaState, key: jax.Array, data: ByClass) -> MetaState:
        """The state after a step, by the mean loss of its tasks."""
        numbers = state.step * self.config.tasks + jnp.arange(self.config.tasks)

        def objective(learned: Any) -> tuple[jax.Array, jax.Array]:
            of_task = lambda number: self.measured(learned, key, number, data)  # noqa: E731
            losses, accuracies = jax.vmap(of_task)(numbers)
            return losses.mean(), accuracies.mean()

        differentiated = jax.value_and_grad(objective, has_aux=True)
        (loss, accuracy), gradient = differentiated(state.learned)
        with jax.numpy_dtype_promotion("standard"):  # which Adam needs
            updates, optimizer = self.optimizer.update(gradient, state.optimizer, state.learned)
        learned: Any = optax.apply_updates(state.learned, updates)
        going = state.step % self.period > 0  # the period has begun before
        loss_sum = jnp.where(going, state.loss_sum, 0.0) + loss
        accuracy_sum = jnp.where(going, state.accuracy_sum, 0.0) + accuracy
        return MetaState(learned, optimizer, state.step + 1, loss_sum, accuracy_sum)

    def measured(
        self, learned: Any, key: jax.Array, number: ArrayLike, data: ByClass
    ) -> tuple[jax.Array, jax.Array]:
        """Loss and accuracy on the queries of one of the tasks that a key draws."""
        key, size = jax.random.fold_in(key, number), self.config.shots + self.config.queries
        images = data.task(key, self.config.ways, size)
        pixels = images.reshape(-1, *images.shape[2:])
        images = normalize(pixels, self.dataset.mean, self.dataset.std).reshape(images.shape)
        shots = self.config.shots
        return self.learner.query_loss(learned, images[:, :shots], images[:, shots:])

    def advance(self, state: MetaState, n: int) -> tuple[MetaState, list[Row]]:
        """Take `n` steps."""
        for _ in range(n):
            state = self._step(state, self._key, self._train)
        if not np.isfinite(state.loss_sum):
            raise DivergedError(
                f"the loss is not finite by step {int(state.step)} (seed {self.config.seed}). "
                "Lower learning_rate, or the rate by which the learner learns a task."
            )
        return state, []

    def measure(self, state: MetaState) -> Row:
        """The row of a period; see `FewShotResult.history`."""
        step = int(state.step)
        count = (step - 1) % self.period + 1
        loss, accuracy = float(state.loss_sum) / count, float(state.accuracy_sum) / count
        return {"step": step, "train_loss": loss, "train_accuracy": accuracy}

    def summary(self, row: Row) -> str:
        """Loss and accuracy of the training tasks."""
        return f"query loss {row['train_loss']:.3f}, accuracy {row['train_accuracy']:.3f}"

    def evaluate(self, learned: Any, key: jax.Array, tasks: int) -> tuple[np.ndarray, np.ndarray]:
        """Losses and accuracies on the queries of tasks of the test classes, `[tasks]` each."""
        numbers = np.arange(tasks, dtype=np.int32)
        measured = [self._measured(learned, key, number, self._test) for number in numbers]
        losses, accuracies = zip(*jax.device_get(measured), strict=True)
        return np.asarray(losses), np.asarray(accuracies)
