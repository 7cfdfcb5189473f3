"""Loss files: one safetensors file whose header says what the loss is and where it comes from.

Safetensors holds plain arrays behind a JSON header, so loading runs no code. The header's metadata
maps strings to strings; ours are `format`, as JSON `architecture`, `config`, `metrics` and
`versions`, and `sha256`, the digest of all of these and of the arrays: a single flipped bit is an
error, not another loss.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from edl_jax.errors import ConfigError, InputError, LossFileError
from edl_jax.losses.log_probabilities import FLOOR
from edl_jax.networks import Architecture
from edl_jax.runs.storage import user_path, write_atomically

FORMAT = "edl_jax.EvolvedLoss/1"
_RECORDS = ("config", "metrics", "versions")
# What a loss network reads is at most this: -log p_y / 4 of the least log-probability, a quarter of
# the entropy of e^32 classes, and otherwise probabilities.
_GREATEST_FEATURES = (1.0, -FLOOR / 4, 1.0, 8.0, 1.0)
# Losses stay below this, so that gradients and sums of them are finite in float32 too.
_GREATEST_LOSS = 1e36
# Half of what the PyTorch module reads of a header, in which each quotation mark takes two.
_LONGEST_RECORDS = 4_000_000


class Contents(NamedTuple):
    """What a loss file holds.

    Attributes:
      architecture: the loss network's structure.
      arrays: `{"params": ..., "scale": ...}`, pytrees of float32 arrays.
      records: `config`, `metrics` and `versions`, JSON objects.
    """

    architecture: Architecture
    arrays: dict[str, Any]
    records: dict[str, dict[str, Any]]


class _Fault(ValueError):
    """What is wrong with a loss or its file, in words."""


def write_loss_file(path: str | os.PathLike[str], contents: Contents) -> None:
    """Write a loss to `path`, whole or not at all; see `EvolvedLoss.save`."""
    path = user_path(path)
    tensors = checked_tensors(contents.architecture, contents.arrays)
    fields = {"architecture": dataclasses.asdict(contents.architecture), **contents.records}
    try:
        header = {name: json.dumps(value, sort_keys=True) for name, value in fields.items()}
        for name in _RECORDS:
            _json_object(header, name)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"the loss cannot be saved: its provenance is no JSON data ({error})."
        ) from error
    if (size := sum(map(len, header.values()))) > _LONGEST_RECORDS:
        raise InputError(
            f"the loss cannot be saved: its provenance takes {size} bytes; expected at most "
            f"{_LONGEST_RECORDS}. Keep there what made the loss, and other data elsewhere."
        )
    header["format"] = FORMAT
    header["sha256"] = _digest(header, tensors)
    write_atomically(path, save(tensors, metadata=header))


def checked_tensors(architecture: Architecture, arrays: dict[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of a loss by name, checked as those of a file are.

    Raises:
      InputError: if they do not fit the architecture, or losses would not be finite.
    """

    def tensor(value: Any) -> np.ndarray:  # a Python number is float32, as for JAX
        return np.asarray(value, np.float32 if isinstance(value, float | int) else None, order="C")

    try:
        with np.errstate(over="ignore"):  # to infinity, which is refused below
            tensors = {name: tensor(value) for name, value in _flat(arrays).items()}
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"the loss cannot be saved: it is not all arrays ({error}).") from error
    found = {
        name: (x.shape, "F32" if x.dtype == np.float32 else x.dtype.name)
        for name, x in tensors.items()
    }
    if fault := _misfit(architecture, found) or _no_loss(architecture, tensors):
        raise InputError(f"the loss cannot be saved: {fault}")
    return tensors


def read_loss_file(path: str | os.PathLike[str]) -> Contents:
    """Read a loss, checking header and sizes before the arrays; see `EvolvedLoss.load`."""
    path = user_path(path)
    if not path.is_file():  # a pipe or a device would keep us waiting
        raise LossFileError(f"there is no loss file at {path}; check the path.")
    try:
        return _contents(path)
    except OSError as error:
        raise LossFileError(f"{path} cannot be read ({error}); it was left as it is.") from error
    except SafetensorError as error:
        raise LossFileError(
            f"{path} is not a whole safetensors file ({error}); it is truncated or foreign. Save "
            "or copy the loss again."
        ) from error
    except _Fault as fault:
        raise LossFileError(f"{path}: {fault}") from fault


def _contents(path: os.PathLike[str]) -> Contents:
    with safe_open(path, framework="numpy") as file:
        header = file.metadata() or {}
        if header.get("format") != FORMAT:
            raise _Fault(
                f"it is a safetensors file of format {header.get('format')!r}; expected "
                f"{FORMAT!r}. It is no loss of this package, or of a newer version of it."
            )
        fields = _json_object(header, "architecture")
        try:
            architecture = Architecture(**{**fields, "hidden": tuple(fields["hidden"])})
        except (ConfigError, KeyError, TypeError) as error:
            raise _Fault(f"the header's architecture is unusable ({error}).") from error
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118, no mapping
        found = {name: (tuple(x.get_shape()), x.get_dtype()) for name, x in slices.items()}
        if fault := _misfit(architecture, found):
            raise _Fault(fault)
        flat = {name: file.get_tensor(name) for name in slices}
    if fault := _no_loss(architecture, flat):
        raise _Fault(fault)
    records = {name: _json_object(header, name) for name in _RECORDS}
    if header.get("sha256") != _digest(header, flat):
        raise _Fault(
            f"its sha256 is {header.get('sha256')!r}, not that of what it holds: it was damaged or "
            "changed. Save or copy the loss again."
        )
    return Contents(architecture, _unflat(flat), records)


def _digest(header: Mapping[str, str], tensors: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(header.keys() - {"sha256"}):
        digest.update(f"{name}={header[name]}\n".encode(errors="surrogatepass"))
    for name in sorted(tensors):
        digest.update(name.encode() + np.asarray(tensors[name], "<f4").tobytes())
    return digest.hexdigest()


def _json_object(header: Mapping[str, str], name: str) -> dict[str, Any]:
    try:
        value = json.loads(header[name])
    except (KeyError, ValueError, RecursionError) as error:
        raise _Fault(f"the header's {name!r} is missing or no JSON.") from error
    if not isinstance(value, dict):
        raise _Fault(f"the header's {name!r} is a {type(value).__name__}; expected an object.")
    return value


def _misfit(
    architecture: Architecture, found: Mapping[str, tuple[tuple[int, ...], str]]
) -> str | None:
    """What is wrong with the tensors' shapes and dtypes, by name; None if they fit."""
    params = nnx.to_pure_dict(architecture.abstract()[1])
    abstract = _flat({"params": params, "scale": jax.ShapeDtypeStruct((), jnp.float32)})
    expected = {name: (tuple(leaf.shape), "F32") for name, leaf in abstract.items()}
    if found == expected:
        return None
    odd = sorted({*found.items()} ^ {*expected.items()})[:4]
    return (
        "its tensors do not fit its architecture; they differ in "
        f"{', '.join(f'{name} {dtype}{list(shape)}' for name, (shape, dtype) in odd)}. A file "
        "holds a single loss, in float32; save the losses of a stack one by one."
    )


def _no_loss(architecture: Architecture, tensors: Mapping[str, np.ndarray]) -> str | None:
    """What keeps the numbers from being a loss that is finite everywhere; None if nothing does."""
    for name, value in tensors.items():
        if not np.isfinite(value).all():
            return f"tensor {name!r} holds values that are not finite."
    if not tensors["scale"] > 0:
        return f"the scale is {tensors['scale']}; expected more than 0."
    greatest = _greatest_loss(architecture, tensors)
    if not greatest <= _GREATEST_LOSS:
        return (
            f"its weights are so large that losses can reach {greatest:.0e}, which float32 cannot "
            f"hold with their gradients; expected at most {_GREATEST_LOSS:.0e}."
        )
    return None


def _greatest_loss(architecture: Architecture, tensors: Mapping[str, np.ndarray]) -> float:
    """A bound of every number on the way from any logits to a loss; may be infinite or NaN."""
    if architecture.num_classes is None:
        reach = np.asarray(_GREATEST_FEATURES)
    else:
        reach = np.ones(2 * architecture.num_classes)
    num_hidden, bounds = len(architecture.hidden), []
    with np.errstate(over="ignore", invalid="ignore"):
        for index in range(num_hidden + 1):
            kernel, bias = (
                np.abs(tensors[f"params.layers.{index}.{part}"].astype(np.float64))
                for part in ("kernel", "bias")
            )
            reach = (reach + 1) @ kernel + bias  # no activation goes beyond |x| + 1
            is_squared = architecture.activation == "squareplus" and index < num_hidden
            bounds.append(reach.max() ** (2 if is_squared else 1))
        bounds.append(tensors["scale"].astype(np.float64) * (reach.max() + 1))
    return float(np.max(bounds))


def _flat(tree: dict[str, Any]) -> dict[str, Any]:
    flat = traverse_util.flatten_dict(tree)
    return {".".join(map(str, path)): value for path, value in flat.items()}


def _unflat(flat: dict[str, np.ndarray]) -> dict[str, Any]:
    paths = {
        tuple(int(part) if part.isdigit() else part for part in name.split(".")): jnp.asarray(value)
        for name, value in flat.items()
    }
    return traverse_util.unflatten_dict(paths)
