"""The two architectures of a loss network, and their structure as plain data."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from edl_jax.checked import Checked, OneOf
from edl_jax.errors import ConfigError, InputError
from edl_jax.networks.loss_network import ACTIVATIONS, LossNetwork, RunnerUp

MAX_LAYERS, MAX_SIZE = 16, 4096  # far above any useful loss; bounds what a file can ask for


@dataclasses.dataclass(frozen=True)
class Architecture(Checked):
    """A loss network's structure: what a loss file's header holds, and the network is built by.

    Attributes:
      network: "class_agnostic" or "pair".
      hidden: widths of the hidden layers.
      activation: name in `ACTIVATIONS`.
      num_classes: class count of a "pair" network; None for "class_agnostic".

    Raises:
      ConfigError: if the fields do not describe a network.
    """

    network: Literal["class_agnostic", "pair"]
    hidden: tuple[int, ...]
    activation: Annotated[str, OneOf(ACTIVATIONS)]
    num_classes: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.hidden) > MAX_LAYERS or not all(1 <= x <= MAX_SIZE for x in self.hidden):
            raise ConfigError(
                f"hidden is {self.hidden}; expected at most {MAX_LAYERS} widths between 1 and "
                f"{MAX_SIZE}."
            )
        is_pair, count = self.network == "pair", self.num_classes
        if is_pair != (count is not None) or not 2 <= (2 if count is None else count) <= MAX_SIZE:
            raise ConfigError(
                f"num_classes is {count!r} for a {self.network!r} network; a 'pair' network has "
                f"exactly one class count, between 2 and {MAX_SIZE}, a 'class_agnostic' one none."
            )

    def build(self, key: jax.Array) -> LossNetwork:
        """A network of this structure with initial weights from `key`."""
        rngs = nnx.Rngs(key)
        if self.num_classes is not None:
            return PairNetwork(self.num_classes, self.hidden, self.activation, rngs=rngs)
        return ClassAgnosticNetwork(self.hidden, self.activation, rngs=rngs)

    def initial_state(self, key: jax.Array) -> nnx.State:
        """Initial parameters of a network of this structure."""
        return nnx.state(self.build(key))

    @functools.cache  # noqa: B019 - one small entry for each architecture in use
    def abstract(self) -> tuple[nnx.GraphDef, nnx.State]:
        """Graph definition and the shapes of the parameters, without making any array."""
        return nnx.split(nnx.eval_shape(lambda: self.build(jax.random.key(0))))


class ClassAgnosticNetwork(LossNetwork):
    """An MLP on symmetric summaries of a prediction and its label.

    The summaries are the true class's probability and surprisal, the runner-up's probability,
    and the prediction's entropy and second moment. None depends on the number of classes or on
    their order: one network serves any class count of at least 2, and relabelling the classes
    cannot change the loss. Logarithms are in nats, divided by 4 to be of the probabilities' size.

    Args:
      hidden: widths of the hidden layers.
      activation: name in `ACTIVATIONS`. One that grows without bound lets the loss keep a slope
        at surprisals far beyond the pretraining pairs.
      rngs: NNX random number generators for the initial weights.

    Raises:
      ConfigError: for an unknown activation or a hidden width that is out of range.
    """

    def __init__(
        self, hidden: Sequence[int] = (16, 16), activation: str = "silu", *, rngs: nnx.Rngs
    ):
        Architecture("class_agnostic", tuple(hidden), activation)
        super().__init__(5, hidden, activation, rngs=rngs)

    def features(self, log_probabilities: jax.Array, labels: jax.Array) -> jax.Array:
        """Summaries `[5, ...]` of `[..., num_classes]` log-probabilities and `[...]` labels."""
        labels = labels[..., None]
        own = jnp.take_along_axis(log_probabilities, labels, axis=-1)
        shape = log_probabilities.shape
        is_label = labels == jax.lax.broadcasted_iota(jnp.int32, shape, len(shape) - 1)
        lowest = jnp.finfo(log_probabilities.dtype).min
        others = jnp.where(is_label, lowest, log_probabilities)
        runner_up = jnp.max(others, axis=-1, keepdims=True)
        parts = _of_label(own, runner_up), _of_prediction(log_probabilities)
        return jnp.concatenate(parts)[..., 0]

    def summary(self, log_probabilities: jax.Array) -> tuple[RunnerUp, jax.Array]:
        """The runner-up, and `[2, ..., 1]` entropy and second moment."""
        return RunnerUp.among(log_probabilities), _of_prediction(log_probabilities)

    def candidate_features(
        self, summary: tuple[RunnerUp, jax.Array], classes: jax.Array, own: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Summaries `[3, ..., n]` of the classes and `[2, ..., 1]` of the prediction."""
        runner_up, of_prediction = summary
        return _of_label(own, runner_up.of(classes, own)), of_prediction


def _of_label(own: jax.Array, runner_up: jax.Array) -> jax.Array:
    """`[3, ...]` of log-probabilities `[...]` of a class and of its runner-up."""
    return jnp.stack([jnp.exp(own), -own / 4, jnp.exp(runner_up)])


def _of_prediction(log_probabilities: jax.Array) -> jax.Array:
    """`[2, ..., 1]`: a quarter of the entropy, and the second moment."""
    probabilities = jnp.exp(log_probabilities)
    entropy = -jnp.sum(probabilities * log_probabilities, axis=-1, keepdims=True)
    return jnp.stack([entropy / 4, jnp.sum(probabilities**2, axis=-1, keepdims=True)])


class PairNetwork(LossNetwork):
    """An MLP on the prediction and the one-hot label side by side, for one fixed class count.

    The presumed plain form of the paper's loss network.

    Args:
      num_classes: class count of the predictions, at least 2.
      hidden: widths of the hidden layers.
      activation: name in `ACTIVATIONS`.
      rngs: NNX random number generators for the initial weights.

    Raises:
      ConfigError: for an unknown activation, or a class count or hidden width out of range.
    """

    def __init__(
        self,
        num_classes: int,
        hidden: Sequence[int] = (16, 16),
        activation: str = "silu",
        *,
        rngs: nnx.Rngs,
    ):
        Architecture("pair", tuple(hidden), activation, num_classes)
        super().__init__(2 * num_classes, hidden, activation, rngs=rngs)
        self.num_classes = num_classes

    def features(self, log_probabilities: jax.Array, labels: jax.Array) -> jax.Array:
        """`concat(p, onehot(y))`, `[2 num_classes, ...]`.

        Raises:
          InputError: if the predictions have another class count than the network.
        """
        probabilities = self.summary(log_probabilities)[..., 0]
        one_hot = jax.nn.one_hot(labels, self.num_classes, dtype=probabilities.dtype, axis=0)
        return jnp.concatenate([probabilities, one_hot])

    def summary(self, log_probabilities: jax.Array) -> jax.Array:
        """The probabilities, `[num_classes, ..., 1]`; raises as `features`."""
        if log_probabilities.shape[-1] != self.num_classes:
            raise InputError(
                f"predictions have {log_probabilities.shape[-1]} classes; this PairNetwork was "
                f"made for {self.num_classes}. A class_agnostic network serves any count."
            )
        return jnp.moveaxis(jnp.exp(log_probabilities), -1, 0)[..., None]

    def candidate_features(
        self, summary: jax.Array, classes: jax.Array, own: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The probabilities, and `onehot(k)` for every class k, `[num_classes, 1..., n]`."""
        return summary, jax.nn.one_hot(classes, self.num_classes, dtype=own.dtype, axis=0)
