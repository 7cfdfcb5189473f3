"""The shape of a loss in numbers: what it and its gradient do as the prediction changes."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util

from edl_jax.losses import EvolvedLoss
from edl_jax.pairs import REGIMES

Loss = Callable[[jax.Array, jax.Array], jax.Array]

VANISHING = 0.01  # of cross-entropy's gradient: below it, descent would hardly move
LEAST_REFERENCE = 1e-4  # below it float32 leaves too little of a gradient to judge
FEWEST = 1e-12  # probability of a class that is to have none: its logarithm stays finite
# An even number, so that no two classes tie: there a strongest rival has no gradient of its own.
_LOGITS = np.linspace(-1, 1, 368) * np.log(0.9999 / 0.0001)
_SIMPLEX_STEPS = 40
_SIMPLEX_MARGINS = np.asarray([0.004, 0.0041, 0.0042])  # not alike, against ties here too


class Part(NamedTuple):
    """A part of a loss that has parameters.

    Attributes:
      name: where it is in the NNX module, such as `layers.0`.
      arrays: its arrays with their shapes.
      parameters: how many numbers they hold.
    """

    name: str
    arrays: str
    parameters: int


class Response(NamedTuple):
    """A loss on some predictions, all `[n]` float64.

    Attributes:
      losses: its values.
      own: its gradient by the true class's logit.
      norms: Euclidean norm of its gradient by all logits.
      reference: the same of cross-entropy's, `|p - onehot(y)|`.
    """

    losses: np.ndarray
    own: np.ndarray
    norms: np.ndarray
    reference: np.ndarray

    def vanishes(self) -> np.ndarray:
        """Where the gradient is below 1 % of cross-entropy's, `[n]` bool."""
        return self.norms < VANISHING * self.reference

    def turns(self) -> np.ndarray:
        """Where descent does not raise the true class's logit, unless the gradient vanishes."""
        return (self.own >= 0) & ~self.vanishes()


class Shares(NamedTuple):
    """What a loss's gradient does on pairs.

    Attributes:
      turns: share of them where it does not raise the true class's logit.
      vanishes: share where it is below 1 % of cross-entropy's.
      ratio: mean of its norms over the mean of cross-entropy's.
    """

    turns: float
    vanishes: float
    ratio: float


def parts(loss: Loss) -> list[Part]:
    """The parts of a loss that have parameters, as in its NNX module; a formula has none."""
    module: Any = loss.network() if isinstance(loss, EvolvedLoss) else loss
    if not isinstance(module, nnx.Module):
        return []
    arrays: dict[tuple[Any, ...], dict[str, Any]] = {}
    for path, value in traverse_util.flatten_dict(nnx.to_pure_dict(nnx.state(module))).items():
        arrays.setdefault(path[:-1], {})[str(path[-1])] = value
    return [
        Part(
            ".".join(map(str, path)) or type(module).__name__,
            ", ".join(
                f"{name} {'×'.join(map(str, np.shape(x))) or 'scalar'}" for name, x in mine.items()
            ),
            sum(int(np.size(x)) for x in mine.values()),
        )
        for path, mine in sorted(arrays.items(), key=lambda item: tuple(map(str, item[0])))
    ]


def respond(
    loss: Loss,
    predictions: Mapping[str, np.ndarray],
    labels: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> dict[str, Response]:
    """A loss and its gradient on sets of predictions, by one program.

    Args:
      loss: of logits `[n, num_classes]` and classes `[n]`.
      predictions: logits of each set, `[n, num_classes]`.
      labels: true classes of the sets where they are not 0, `[n]`.

    Returns:
      Responses by the set's name.
    """

    @jax.jit
    def measure(x: jax.Array, labels: jax.Array) -> tuple[jax.Array, ...]:
        def total(x: jax.Array) -> tuple[jax.Array, jax.Array]:
            losses = loss(x, labels)
            return losses.sum(), losses

        gradient, losses = jax.grad(total, has_aux=True)(x)
        one_hot = jax.nn.one_hot(labels, x.shape[-1])
        reference = jax.nn.softmax(x) - one_hot
        own = jnp.sum(gradient * one_hot, axis=-1)
        return losses, own, *(jnp.linalg.norm(g, axis=-1) for g in (gradient, reference))

    classes = [labels.get(key, np.zeros(len(x), np.int32)) for key, x in predictions.items()]
    logits = np.concatenate(list(predictions.values())).astype(np.float32)
    found = [np.asarray(x, np.float64) for x in measure(logits, np.concatenate(classes))]
    ends = np.cumsum([len(x) for x in classes])[:-1]
    parts = zip(*(np.split(x, ends) for x in found), strict=True)
    return {key: Response(*part) for key, part in zip(predictions, parts, strict=True)}


def path_probabilities() -> np.ndarray:
    """Probabilities of the true class along the paths, `[n]` from 0.0001 to 0.9999."""
    return 1 / (1 + np.exp(-_LOGITS))


def paths(num_classes: int) -> dict[str, np.ndarray]:
    """Logits `[n, num_classes]` along which class 0 gains, evenly in its log-odds.

    The rest of the probability goes to one rival, or is spread evenly over all other classes.
    """
    shared = np.log(FEWEST) if num_classes > 2 else 0.0
    rival = np.full((len(_LOGITS), num_classes), shared)
    rival[:, 0], rival[:, 1] = _LOGITS, 0.0
    even = np.full((len(_LOGITS), num_classes), -np.log(num_classes - 1))
    even[:, 0] = _LOGITS
    return {"one rival": rival} | ({"all alike": even} if num_classes > 2 else {})


def perfect(num_classes: int) -> np.ndarray:
    """Logits `[1, num_classes]` of class 0 with all the probability."""
    return np.where(np.arange(num_classes) == 0, 0.0, np.log(FEWEST))[None]


def intervals(mask: np.ndarray, probabilities: np.ndarray) -> list[tuple[float, float]]:
    """Runs of True in a mask `[n]`, each as its first and last probability."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(int)))
    starts, ends = edges[::2], edges[1::2] - 1
    return [
        (float(probabilities[a]), float(probabilities[b]))
        for a, b in zip(starts, ends, strict=True)
    ]


def falls(response: Response) -> bool:
    """Whether a loss falls, or stays, at every step along a path, but for rounding."""
    rounding = 1e-6 * (1 + np.abs(response.losses).max())
    return bool(np.all(np.diff(response.losses) <= rounding))


def convex_share(response: Response) -> float:
    """Share of the steps of a path on which a loss is convex in the true class's logit."""
    rounding = 1e-5 * np.abs(response.own).max()
    return float(np.mean(np.diff(response.own) >= -rounding))


def shares(response: Response, regimes: np.ndarray) -> dict[str, Shares]:
    """What the gradient does on synthetic pairs, on all and by regime.

    Pairs so nearly perfect that float32 leaves nothing of their gradient to judge are left out.

    Args:
      response: the loss on the pairs.
      regimes: index into `REGIMES` of each, `[n]`.

    Returns:
      By the regime's name, `all` first; NaN for a regime without pairs.
    """
    judged = response.reference >= LEAST_REFERENCE
    groups = {"all": judged}
    groups |= {name: judged & (regimes == index) for index, name in enumerate(REGIMES)}

    def of(mine: np.ndarray) -> Shares:
        if not mine.any():
            return Shares(np.nan, np.nan, np.nan)
        return Shares(
            float(response.turns()[mine].mean()),
            float(response.vanishes()[mine].mean()),
            float(response.norms[mine].sum() / response.reference[mine].sum()),
        )

    return {name: of(mine) for name, mine in groups.items()}


def rival_grid(num_classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predictions by the probabilities of the true class (0) and of its strongest rival (1).

    What they leave is spread evenly over the other classes, each of which may have as much as the
    rival at most.

    Args:
      num_classes: at least 3.

    Returns:
      The two probabilities, `[61, 31]` each, and logits `[61 * 31, num_classes]`.
    """
    own = np.linspace(0.005, 0.995, 61)[:, None]
    low, high = (1 - own) / (num_classes - 1), 1 - own
    rival = low + (high - low) * np.linspace(0, 1, 31)
    own = np.broadcast_to(own, rival.shape)
    rest = np.maximum(1 - own - rival, 0) / (num_classes - 2)
    others = np.repeat(rest[..., None], num_classes - 2, axis=-1)
    probabilities = np.concatenate([own[..., None], rival[..., None], others], axis=-1)
    logits = np.log(np.maximum(probabilities, FEWEST)).reshape(-1, num_classes)
    return own, rival, logits


def simplex_grid() -> tuple[np.ndarray, np.ndarray]:
    """Predictions of three classes all over the simplex, but for a margin along its edges.

    Returns:
      Positions `[n, 2]` in a triangle whose top is the true class, 0, and logits `[n, 3]`.
    """
    n = _SIMPLEX_STEPS
    shares = np.asarray([(i, j, n - i - j) for i in range(n + 1) for j in range(n + 1 - i)]) / n
    probabilities = _SIMPLEX_MARGINS + (1 - _SIMPLEX_MARGINS.sum()) * shares
    corners = np.asarray([(0.5, 3**0.5 / 2), (0, 0), (1, 0)])
    return probabilities @ corners, np.log(probabilities)
