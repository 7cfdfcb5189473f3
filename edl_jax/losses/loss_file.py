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
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from edl_jax.errors import InputError, LossFileError
from edl_jax.networks import Architecture
from edl_jax.runs.storage import user_path, write_atomically

FORMAT = "edl_jax.EvolvedLoss/1"
RECORDS = ("config", "metrics", "versions")


def write_loss_file(
    path: str | os.PathLike[str],
    architecture: Architecture,
    arrays: dict[str, Any],
    records: dict[str, dict[str, Any]],
) -> None:
    """Write a loss to `path`, whole or not at all; `records` has the names of `RECORDS`."""
    path, tensors = user_path(path), checked_tensors(architecture, arrays)
    fields = {"architecture": dataclasses.asdict(architecture), **records}
    try:
        header = {name: json.dumps(value, sort_keys=True) for name, value in fields.items()}
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"the loss cannot be saved: its provenance is no JSON data ({error})."
        ) from error
    header["format"] = FORMAT
    header["sha256"] = digest(header, tensors)
    write_atomically(path, save(tensors, metadata=header))


def read_loss_file(
    path: str | os.PathLike[str],
) -> tuple[Architecture, dict[str, Any], dict[str, dict[str, Any]]]:
    """The architecture, arrays and records that `write_loss_file` wrote."""
    path = user_path(path)
    if not path.is_file():  # a pipe or a device would keep us waiting
        raise LossFileError(f"there is no loss file at {path}; check the path.")
    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise ValueError(f"its format is {header.get('format')!r}, not {FORMAT!r}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if header["sha256"] != digest(header, tensors):
            raise ValueError(f"its sha256 is {header['sha256']!r}, not that of what it holds")
        fields = {name: json.loads(header[name]) for name in ("architecture", *RECORDS)}
        architecture = fields.pop("architecture")
        architecture = Architecture(**{**architecture, "hidden": tuple(architecture["hidden"])})
        _check(architecture, tensors)
        arrays = traverse_util.unflatten_dict(jax.tree.map(jnp.asarray, tensors), sep=".")
        return architecture, nnx.restore_int_paths(arrays), fields
    except OSError as error:
        raise LossFileError(f"{path} cannot be read ({error}); it was left as it is.") from error
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise LossFileError(
            f"{path} is no loss file, or one that was cut, damaged or changed ({error}). Save or "
            "copy the loss again."
        ) from error


def checked_tensors(architecture: Architecture, arrays: dict[str, Any]) -> dict[str, np.ndarray]:
    """The arrays by name, as a file holds them; refused if `load` would refuse the file."""
    tensors = {
        # A Python number is float32, as for JAX.
        name: np.asarray(x, np.float32 if isinstance(x, float | int) else None, order="C")
        for name, x in flat(arrays).items()
    }
    _check(architecture, tensors)
    return tensors


def _check(architecture: Architecture, tensors: dict[str, np.ndarray]) -> None:
    params = nnx.to_pure_dict(architecture.abstract()[1])
    expected = flat({"params": params, "scale": jax.ShapeDtypeStruct((), jnp.float32)})
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


def flat(tree: dict[str, Any]) -> dict[str, Any]:
    """The leaves by name, such as `params.layers.0.bias`."""
    leaves = traverse_util.flatten_dict(tree)
    return {".".join(map(str, path)): value for path, value in leaves.items()}


def digest(header: Mapping[str, str], tensors: Mapping[str, np.ndarray]) -> str:
    """What the header's `sha256` must be."""
    found = hashlib.sha256()
    for name in sorted(header.keys() - {"sha256"}):
        found.update(f"{name}={header[name]}\n".encode(errors="surrogatepass"))
    for name in sorted(tensors):
        found.update(name.encode() + np.asarray(tensors[name], "<f4").tobytes())
    return found.hexdigest()
