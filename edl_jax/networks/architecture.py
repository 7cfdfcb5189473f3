"""Everything needed to rebuild a loss network, as plain data: what a loss file's header holds."""

import dataclasses
import functools
from typing import Annotated, Literal

import jax
from flax import nnx

from edl_jax.checked import Checked, OneOf
from edl_jax.errors import ConfigError
from edl_jax.networks.class_agnostic import ClassAgnosticNetwork
from edl_jax.networks.loss_network import ACTIVATIONS, LossNetwork
from edl_jax.networks.pair import PairNetwork

MAX_LAYERS, MAX_SIZE = 16, 4096  # far above any useful loss; bounds what a file can ask for


@dataclasses.dataclass(frozen=True)
class Architecture(Checked):
    """A loss network's structure.

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
        if len(self.hidden) > MAX_LAYERS or not all(_is_size(width, 1) for width in self.hidden):
            raise ConfigError(
                f"hidden is {self.hidden}; expected at most {MAX_LAYERS} widths between 1 and "
                f"{MAX_SIZE}."
            )
        is_pair, count = self.network == "pair", self.num_classes
        if is_pair != (count is not None) or (count is not None and not _is_size(count, 2)):
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


def _is_size(value: int, low: int) -> bool:
    return low <= value <= MAX_SIZE
