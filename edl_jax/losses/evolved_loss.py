"""The evolved loss (docs/method.md, section 6), and its file.

A loss file is one safetensors file: plain arrays behind a JSON header, so that loading runs no
code. The header's `sha256` is the digest of all else, so that no flipped bit is another loss.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, struct, traverse_util
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from edl_jax.errors import InputError, LossFileError
from edl_jax.losses.inputs import log_softmax, masked, per_example
from edl_jax.networks import Architecture, LossNetwork
from edl_jax.objective import SEVERITIES
from edl_jax.objective.measure import responses
from edl_jax.pairs import Pairs
from edl_jax.runs.storage import user_path, write_atomically

FORMAT = "edl_jax.EvolvedLoss/1"


@dataclasses.dataclass(frozen=True)
class Provenance:
    """Where a loss comes from, as JSON data; never compared, so that losses can be stacked.

    The configuration it was evolved with, its metrics on held-out pairs, the libraries' versions.
    """

    described_as = None  # which tells no loss from another

    config: dict[str, Any] = dataclasses.field(default_factory=dict, compare=False)
    metrics: dict[str, float] = dataclasses.field(default_factory=dict, compare=False)
    versions: dict[str, str] = dataclasses.field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if odd := {name: x for name, x in vars(self).items() if not isinstance(x, dict)}:
            raise InputError(f"a loss's provenance has {odd}; expected dictionaries.")


class EvolvedLoss(struct.PyTreeNode, eq=False):
    """An evolved loss: a pytree that is called like a loss of `optax.losses`.

    References:
      Xiang and Pei, "Distribution-Free Pretraining of Classification Losses via Evolutionary
      Dynamics", 2026. https://arxiv.org/abs/2605.03722

    Attributes:
      params: the loss network's parameters, a pytree of float32 arrays.
      scale: factor on the network's output, a float32 scalar, set by calibration.
      architecture: the loss network's structure.
      provenance: configuration, held-out metrics and versions.

    >>> loss = load_pretrained()
    >>> loss(jnp.asarray([[2.0, 0.0, -1.0]]), jnp.asarray([0])).shape
    (1,)
    """

    params: Any
    scale: jax.Array
    architecture: Architecture = struct.field(pytree_node=False)
    provenance: Provenance = struct.field(pytree_node=False, repr=False, default=Provenance())

    def __call__(
        self,
        logits: jax.typing.ArrayLike,
        labels: jax.typing.ArrayLike,
        *,
        axis: int = -1,
        where: jax.typing.ArrayLike | None = None,
    ) -> jax.Array:
        """The loss of each example.

        Computed in float32 at least; value and gradient are finite for any finite float32 or
        bfloat16 logits. For soft labels `w` it is `sum_k w_k L(p, k)`.

        Args:
          logits: unnormalised log-probabilities, `[..., num_classes]`, any floating dtype.
          labels: classes, `[...]` integers in `[0, num_classes)`; or soft or one-hot labels,
            `[..., num_classes]`, of any dtype, non-negative and summing to 1.
          axis: the axis of the classes.
          where: mask of the examples, of one rank less than the logits, or of the classes, of the
            logits' rank; any size may be 1. An example that is False has a loss of 0; a class that
            is False takes no part, and adds nothing as a label.

        Returns:
          Losses of at least 0, `[...]`, in the logits' dtype. In a trace, a class out of range and
          a soft label that is not finite give NaN.

        Raises:
          InputError: if shapes, dtypes or known labels do not fit, or the loss is a stack.
        """
        if jnp.ndim(self.scale):
            raise InputError(
                f"the loss is a stack of {jnp.shape(self.scale)} losses; expected a single one, or "
                "jax.vmap(lambda loss: loss(logits, labels))(stack)."
            )
        network, scale = self.network(), self.scale
        return per_example(
            logits,
            labels,
            axis,
            where,
            of_classes=lambda x, label, mask: scale * network.of_logits(masked(x, mask), label),
            of_weights=lambda x, weights, mask: (
                scale * network.label_weighted(log_softmax(x, mask), weights)
            ),
        )

    def network(self) -> LossNetwork:
        """The loss network, without the scale."""
        graphdef, state = self.architecture.abstract()
        state = jax.tree.map(lambda x: x, state)  # a copy: the abstract one is kept for others
        nnx.replace_by_pure_dict(state, self.params)
        return nnx.merge(graphdef, state)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the loss to one safetensors file, atomically.

        Raises:
          InputError: if the loss is not whole, not finite, or several that were stacked.
          OSError: if the file cannot be written.
        """
        path, tensors = user_path(path), self.tensors()
        fields = {"architecture": dataclasses.asdict(self.architecture), **vars(self.provenance)}
        try:
            header = {name: json.dumps(value, sort_keys=True) for name, value in fields.items()}
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(
                f"the loss cannot be saved: its provenance is no JSON data ({error})."
            ) from error
        header["format"] = FORMAT
        header["sha256"] = digest(header, tensors)
        write_atomically(path, save(tensors, metadata=header))

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "EvolvedLoss":
        """Read a loss from a file written by `save`. Runs no code from the file.

        Raises:
          LossFileError: if the file is missing, foreign, damaged or at odds with its header.
        """
        path = user_path(path)
        if not os.path.isfile(path):  # a pipe or a device would keep us waiting
            raise LossFileError(f"there is no loss file at {path}; check the path.")
        try:
            with safe_open(path, framework="numpy") as file:
                header = file.metadata() or {}
                if header.get("format") != FORMAT:
                    raise ValueError(f"its format is {header.get('format')!r}, not {FORMAT!r}")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if header["sha256"] != digest(header, tensors):
                raise ValueError(f"its sha256 is {header['sha256']!r}, not that of what it holds")
            structure = json.loads(header["architecture"])
            architecture = Architecture(**{**structure, "hidden": tuple(structure["hidden"])})
            _check(architecture, tensors)
            tree = traverse_util.unflatten_dict(jax.tree.map(jnp.asarray, tensors), sep=".")
            provenance = Provenance(**{x: json.loads(header[x]) for x in vars(Provenance())})
        except OSError as error:
            raise LossFileError(
                f"{path} cannot be read ({error}); it was left as it is."
            ) from error
        except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise LossFileError(
                f"{path} is no loss file, or one that was cut, damaged or changed ({error}). Save "
                "or copy the loss again."
            ) from error
        params = nnx.restore_int_paths(tree["params"])
        return EvolvedLoss(params, tree["scale"], architecture, provenance)

    def tensors(self) -> dict[str, np.ndarray]:
        """Return the arrays by name, as in a file; rejects what `load` would reject."""
        tensors = {
            # A Python number is float32, as for JAX.
            name: np.asarray(x, np.float32 if isinstance(x, float | int) else None, order="C")
            for name, x in _flat(self.params, self.scale).items()
        }
        _check(self.architecture, tensors)
        return tensors


# As an attribute of a module it is data like any array, in need of no wrapper.
nnx.register_data_type(EvolvedLoss)


def calibrated(loss: EvolvedLoss, pairs_sets: Sequence[Pairs]) -> EvolvedLoss:
    """Scale a loss so that its mean logit gradient over all pairs is as long as cross-entropy's.

    Evolution leaves the scale free, and it acts as a learning rate. A loss that is flat on the
    pairs is an InputError.
    """
    # By the program that measures the loss, which needs none of its own then.
    samples = [responses(loss, pairs, SEVERITIES["surprisal"])[2] for pairs in pairs_sets]
    norms = [(sample.norms, sample.reference_norms) for sample in jax.device_get(samples)]
    own, reference = np.concatenate(norms, axis=1).sum(axis=1, dtype=np.float64).tolist()
    if not own > 0:
        raise InputError(f"the loss's gradient on the pairs sums to {own}; expected a slope.")
    return loss.replace(scale=loss.scale * (reference / own))


def _check(architecture: Architecture, tensors: dict[str, np.ndarray]) -> None:
    params = nnx.to_pure_dict(architecture.abstract()[1])
    expected = _flat(params, jax.ShapeDtypeStruct((), jnp.float32))
    given, wanted = (
        {f"{name} {x.dtype}{[*x.shape]}" for name, x in those.items()}
        for those in (tensors, expected)
    )
    if given != wanted:
        raise InputError(
            "the arrays do not fit the loss's architecture; they differ in "
            f"{', '.join(sorted(given ^ wanted)[:4])}. Save losses in float32, one by one."
        )
    for name, value in tensors.items():
        if not np.isfinite(value).all():
            raise InputError(f"{name} of the loss holds values that are not finite.")
    if not tensors["scale"] > 0:
        raise InputError(f"the loss's scale is {tensors['scale']}; expected more than 0.")


def _flat(params: Any, scale: Any) -> dict[str, Any]:
    """The leaves by name, such as `params.layers.0.bias`."""
    leaves = traverse_util.flatten_dict({"params": params, "scale": scale})
    return {".".join(map(str, path)): value for path, value in leaves.items()}


def digest(header: Mapping[str, str], tensors: Mapping[str, np.ndarray]) -> str:
    """What the header's `sha256` must be."""
    found = hashlib.sha256()
    for name in sorted(header.keys() - {"sha256"}):
        found.update(f"{name}={header[name]}\n".encode(errors="surrogatepass"))
    for name in sorted(tensors):
        found.update(name.encode() + np.asarray(tensors[name], "<f4").tobytes())
    return found.hexdigest()
