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
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from edl_jax.errors import ConfigError, LossFileError
from edl_jax.network import Architecture
from edl_jax.storage import write_atomically

FORMAT = "edl_jax.EvolvedLoss/1"
_RECORDS = ("config", "metrics", "versions")


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


def write_loss_file(path: str | os.PathLike[str], contents: Contents) -> None:
    """Write a loss to `path`, whole or not at all."""
    tensors = {
        name: np.asarray(value, np.float32, order="C")
        for name, value in _flat(contents.arrays).items()
    }
    fields = {"architecture": dataclasses.asdict(contents.architecture), **contents.records}
    header = {name: json.dumps(value, sort_keys=True) for name, value in fields.items()}
    header["format"] = FORMAT
    header["sha256"] = _digest(header, tensors)
    write_atomically(Path(path), save(tensors, metadata=header))


def read_loss_file(path: str | os.PathLike[str]) -> Contents:
    """Read a loss, checking the header and the arrays' sizes before reading the arrays.

    Raises:
      LossFileError: if the file is missing, truncated, foreign, at odds with its header, or cannot
        be read.
    """
    if not isinstance(path, str | os.PathLike):
        raise LossFileError(f"the loss file is {path!r}; expected a path.")
    try:
        if not Path(path).is_file():  # a pipe or a device would keep us waiting
            raise LossFileError(f"there is no loss file at {path}; check the path.")
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise LossFileError(
                    f"{path} is a safetensors file of format {header.get('format')!r}; expected "
                    f"{FORMAT!r}. It is no loss of this package, or of a newer version of it."
                )
            architecture = _architecture(path, header)
            names = list(file.keys())
            slices = {name: file.get_slice(name) for name in names}
            _check_tensors(path, architecture, slices)
            flat = {name: file.get_tensor(name) for name in names}
    except OSError as error:
        raise LossFileError(f"{path} cannot be read ({error}); it was left as it is.") from error
    except SafetensorError as error:
        raise LossFileError(
            f"{path} is not a whole safetensors file ({error}); it is truncated or foreign. Save "
            "or copy the loss again."
        ) from error
    for name, value in flat.items():
        if not np.isfinite(value).all():
            raise LossFileError(f"{path}: tensor {name!r} holds values that are not finite.")
    if not flat["scale"] > 0:
        raise LossFileError(f"{path}: the scale is {flat['scale']}; expected more than 0.")
    records = {name: _json_object(path, header, name) for name in _RECORDS}
    if "sha256" not in header:
        raise LossFileError(
            f"{path} has no sha256: an earlier version of this package wrote it, or another "
            "program. Evolve the loss again."
        )
    if header["sha256"] != _digest(header, flat):
        raise LossFileError(
            f"{path}: its sha256 is {header['sha256']!r}, not that of what it holds: it was "
            "damaged or changed. Save or copy the loss again."
        )
    return Contents(architecture, _unflat(flat), records)


def _digest(header: Mapping[str, str], tensors: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(header.keys() - {"sha256"}):
        digest.update(f"{name}={header[name]}\n".encode(errors="surrogatepass"))
    for name in sorted(tensors):
        digest.update(name.encode() + np.asarray(tensors[name], "<f4").tobytes())
    return digest.hexdigest()


def _architecture(path: Any, header: dict[str, str]) -> Architecture:
    fields = _json_object(path, header, "architecture")
    try:
        return Architecture(**{**fields, "hidden": tuple(fields["hidden"])})
    except (ConfigError, KeyError, TypeError) as error:
        raise LossFileError(f"{path}: the header's architecture is unusable ({error}).") from error


def _json_object(path: Any, header: dict[str, str], name: str) -> dict[str, Any]:
    try:
        value = json.loads(header[name])
    except (KeyError, ValueError, RecursionError) as error:
        raise LossFileError(f"{path}: the header's {name!r} is missing or no JSON.") from error
    if not isinstance(value, dict):
        raise LossFileError(
            f"{path}: the header's {name!r} is a {type(value).__name__}; expected an object."
        )
    return value


def _check_tensors(path: Any, architecture: Architecture, slices: dict[str, Any]) -> None:
    params = nnx.to_pure_dict(architecture.abstract()[1])
    scale = jax.ShapeDtypeStruct((), jnp.float32)
    abstract = _flat({"params": params, "scale": scale})
    expected = {name: (tuple(leaf.shape), "F32") for name, leaf in abstract.items()}
    found = {name: (tuple(x.get_shape()), x.get_dtype()) for name, x in slices.items()}
    if found != expected:
        odd = sorted(set(found.items()) ^ set(expected.items()))[:4]
        raise LossFileError(
            f"{path}: its tensors do not fit the architecture in its header; they differ in "
            f"{', '.join(f'{name} {dtype}{list(shape)}' for name, (shape, dtype) in odd)}."
        )


def _flat(tree: dict[str, Any]) -> dict[str, Any]:
    flat = traverse_util.flatten_dict(tree)
    return {".".join(map(str, path)): value for path, value in flat.items()}


def _unflat(flat: dict[str, np.ndarray]) -> dict[str, Any]:
    paths = {
        tuple(int(part) if part.isdigit() else part for part in name.split(".")): jnp.asarray(value)
        for name, value in flat.items()
    }
    return traverse_util.unflatten_dict(paths)
