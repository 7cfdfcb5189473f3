"""Loss files: one safetensors file whose header says what the loss is and where it comes from.

Safetensors holds plain arrays behind a JSON header, so loading runs no code. The header's metadata
maps strings to strings; ours are `format`, and as JSON `architecture`, `config`, `metrics` and
`versions`.
"""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from edl_jax.errors import ConfigError, LossFileError
from edl_jax.frozen.evolved_loss import EvolvedLoss, Provenance
from edl_jax.network import Architecture
from edl_jax.storage import write_atomically

FORMAT = "edl_jax.EvolvedLoss/1"


def save_loss(loss: EvolvedLoss, path: str | os.PathLike[str]) -> None:
    """Write `loss` to `path`, whole or not at all."""
    tensors = {
        name: np.asarray(value, np.float32, order="C")
        for name, value in _flat({"params": loss.params, "scale": loss.scale}).items()
    }
    fields = {
        "architecture": dataclasses.asdict(loss.architecture),
        "config": loss.provenance.config,
        "metrics": loss.provenance.metrics,
        "versions": loss.provenance.versions,
    }
    header = {name: json.dumps(value, sort_keys=True) for name, value in fields.items()}
    write_atomically(Path(path), save(tensors, metadata={"format": FORMAT, **header}))


def load_loss(path: str | os.PathLike[str]) -> EvolvedLoss:
    """Read a loss, checking everything the header says against the arrays before reading them."""
    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise LossFileError(
                    f"{path} is a safetensors file of format {header.get('format')!r}; expected "
                    f"{FORMAT!r}. It is no loss of this package, or of a newer version of it."
                )
            architecture = _architecture(path, header)
            names = list(file.keys())
            shapes = {name: file.get_slice(name).get_shape() for name in names}
            dtypes = {name: file.get_slice(name).get_dtype() for name in shapes}
            _check_tensors(path, architecture, shapes, dtypes)
            flat = {name: file.get_tensor(name) for name in shapes}
    except FileNotFoundError as error:
        raise LossFileError(f"there is no loss file at {path}; check the path.") from error
    except (SafetensorError, OSError) as error:
        raise LossFileError(
            f"{path} is not a whole safetensors file ({error}); it is truncated or foreign. Save "
            "or copy the loss again."
        ) from error
    for name, value in flat.items():
        if not np.isfinite(value).all():
            raise LossFileError(f"{path}: tensor {name!r} holds values that are not finite.")
    tree: Any = _unflat(flat)
    provenance = Provenance(
        *(_json_field(path, header, name, dict) for name in ("config", "metrics", "versions"))
    )
    return EvolvedLoss(tree["params"], tree["scale"], architecture, provenance)


def _architecture(path: str | os.PathLike[str], header: dict[str, str]) -> Architecture:
    fields = _json_field(path, header, "architecture", dict)
    try:
        hidden = tuple(fields.pop("hidden"))
        return Architecture(hidden=hidden, **fields)
    except (ConfigError, KeyError, TypeError) as error:
        raise LossFileError(f"{path}: the header's architecture is unusable ({error}).") from error


def _json_field(path: Any, header: dict[str, str], name: str, kind: type) -> Any:
    try:
        value = json.loads(header[name])
    except (KeyError, ValueError, RecursionError) as error:
        raise LossFileError(f"{path}: the header's {name!r} is missing or no JSON.") from error
    if not isinstance(value, kind):
        raise LossFileError(
            f"{path}: the header's {name!r} is a {type(value).__name__}; expected {kind.__name__}."
        )
    return value


def _check_tensors(
    path: Any, architecture: Architecture, shapes: dict[str, Any], dtypes: dict[str, str]
) -> None:
    _, abstract = architecture.abstract()
    expected = {
        name: tuple(leaf.shape)
        for name, leaf in _flat(
            {"params": nnx.to_pure_dict(abstract), "scale": jax.ShapeDtypeStruct((), jnp.float32)}
        ).items()
    }
    found = {name: tuple(shape) for name, shape in shapes.items()}
    if found != expected:
        odd = sorted(set(found.items()) ^ set(expected.items()))
        raise LossFileError(
            f"{path}: its tensors do not fit the architecture in its header; they differ in "
            f"{', '.join(f'{name} {shape}' for name, shape in odd[:4])}."
        )
    for name, dtype in dtypes.items():
        if dtype != "F32":
            raise LossFileError(f"{path}: tensor {name!r} has dtype {dtype}; expected F32.")


def _flat(tree: dict[str, Any]) -> dict[str, Any]:
    flat = traverse_util.flatten_dict(tree)
    return {".".join(map(str, path)): value for path, value in flat.items()}


def _unflat(flat: dict[str, np.ndarray]) -> dict[str, Any]:
    paths = {
        tuple(int(part) if part.isdigit() else part for part in name.split(".")): jnp.asarray(value)
        for name, value in flat.items()
    }
    return traverse_util.unflatten_dict(paths)
