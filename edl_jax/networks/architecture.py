"""The two architectures of a loss network, and their structure as plain data."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from annotated_types import Ge, Le
from flax import nnx

from edl_jax.checked import Checked, OneOf
from edl_jax.errors import ConfigError, InputError
from edl_jax.networks.loss_network import (
    ACTIVATIONS,
    ClassFeatures,
    LossNetwork,
    largest_other,
    runner_up_of,
)
from edl_jax.networks.summaries import summaries

MAX_LAYERS, MAX_SIZE = 16, 4096  # far above any useful loss; bounds what a file can ask for


@dataclasses.dataclass(frozen=True)
class Architecture(Checked):
    """A loss network's structure: what a loss file's header holds, and the network is built by.

    Attributes:
      network: "class_agnostic" or "pair".
      hidden: widths of the hidden layers.
      activation: name in `ACTIVATIONS`.
      num_classes: class count of a "pair" network; None for "class_agnostic".
    """

    network: Literal["class_agnostic", "pair"]
    hidden: tuple[Annotated[int, Ge(1), Le(MAX_SIZE)], ...]
    activation: Annotated[str, OneOf(ACTIVATIONS)]
    num_classes: Annotated[int, Ge(2), Le(MAX_SIZE)] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.hidden) > MAX_LAYERS:
            raise ConfigError(
                f"Architecture.hidden has {len(self.hidden)} widths; expected at most {MAX_LAYERS}."
            )
        if (self.network == "pair") != (self.num_classes is not None):
            raise ConfigError(
                f"Architecture.num_classes is {self.num_classes!r} for a {self.network!r} network; "
                "a 'pair' network has exactly one class count, a 'class_agnostic' one none."
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
    """An MLP on class-symmetric summaries of a prediction and its label.

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
        self, hidden: Sequence[int] = (16, 16), activation: str = "squareplus", *, rngs: nnx.Rngs
    ):
        Architecture("class_agnostic", tuple(hidden), activation)
        super().__init__(5, hidden, activation, rngs=rngs)

    def class_features(self, log_p: jax.Array, only: jax.Array | None = None) -> ClassFeatures:
        """Summaries `[3, ..., n]` of the classes and `[2, ..., 1]` of the prediction."""
        one = None if only is None else largest_other(log_p, only)  # quicker than of every class
        runner_up = runner_up_of(log_p) if one is None else lambda *_: one
        probabilities = jnp.exp(log_p)
        entropy = -jnp.sum(probabilities * log_p, axis=-1, keepdims=True)
        moment = jnp.sum(probabilities**2, axis=-1, keepdims=True)
        of_prediction = jnp.stack([entropy / 4, moment])

        def of_classes(classes: jax.Array, own: jax.Array) -> tuple[jax.Array, jax.Array]:
            of_labels = [jnp.exp(own), -own / 4, jnp.exp(runner_up(classes, own))]
            return jnp.stack(of_labels), of_prediction

        return of_classes

    def of_logits(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        """The loss, `[...]`, of logits `[..., num_classes]`; in fewer passes than of `features`."""
        return self.from_features(summaries(logits, labels))


class PairNetwork(LossNetwork):
    """An MLP on the concatenated prediction and one-hot label, for one fixed class count.

    Args:
      num_classes: class count of the predictions, at least 2.
      hidden, activation, rngs: as of `ClassAgnosticNetwork`.

    Raises:
      ConfigError: for an unknown activation, or a class count or hidden width out of range.
    """

    def __init__(
        self,
        num_classes: int,
        hidden: Sequence[int] = (16, 16),
        activation: str = "squareplus",
        *,
        rngs: nnx.Rngs,
    ):
        Architecture("pair", tuple(hidden), activation, num_classes)
        super().__init__(2 * num_classes, hidden, activation, rngs=rngs)
        self.num_classes = num_classes

    def class_features(self, log_p: jax.Array, only: jax.Array | None = None) -> ClassFeatures:
        """The probabilities `[num_classes, ..., 1]`, and `onehot(k)` of each class k."""
        count = self.num_classes
        if log_p.shape[-1] != count:
            raise InputError(
                f"predictions have {log_p.shape[-1]} classes; this PairNetwork was made for "
                f"{count}. A class_agnostic network serves any count."
            )
        p = jnp.moveaxis(jnp.exp(log_p), -1, 0)[..., None]
        return lambda classes, own: (p, jax.nn.one_hot(classes, count, dtype=own.dtype, axis=0))
