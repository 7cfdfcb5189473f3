"""Take a loss out of this package: as StableHLO, and as a PyTorch module."""

import os
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp

from edl_jax.errors import InputError
from edl_jax.losses.evolved_loss import EvolvedLoss
from edl_jax.runs.storage import user_path, write_atomically

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def export_loss(loss: EvolvedLoss, folder: str | os.PathLike[str]) -> tuple[Path, Path, Path]:
    """Write a loss so that it can be used without this package; replaces files of its name.

    These are `loss.safetensors`, its parameters; `loss.jax_export`, from `to_stablehlo`; and
    `evolved_loss.py`, a PyTorch module that reads the first.

    Raises:
      InputError: if `save` would refuse the loss.
      OSError: if a file cannot be written.
    """
    folder, program = user_path(folder), to_stablehlo(loss)
    folder.mkdir(parents=True, exist_ok=True)
    weights, exported, module = (
        folder / name for name in ("loss.safetensors", "loss.jax_export", "evolved_loss.py")
    )
    loss.save(weights)
    write_atomically(exported, program)
    write_atomically(module, Path(__file__).with_name("torch_loss.py").read_bytes())
    return weights, exported, module


def to_stablehlo(loss: EvolvedLoss) -> bytes:
    """The loss and its gradient as a serialized `jax.export.Exported` (docs/export.md)."""
    if not isinstance(loss, EvolvedLoss):
        raise InputError(f"the loss is {loss!r}; expected an EvolvedLoss.")
    loss.tensors()  # refused if `save` would refuse them
    classes = loss.architecture.num_classes or "classes"
    constraints = [] if loss.architecture.num_classes else ["classes >= 2"]
    shape = jax.export.symbolic_shape(f"batch, {classes}", constraints=constraints)
    logits = jax.ShapeDtypeStruct(shape, jnp.float32)
    labels = jax.ShapeDtypeStruct(shape[:1], jnp.int32)
    call = jax.jit(lambda logits, labels: loss(logits, labels))
    exported = jax.export.export(call, platforms=PLATFORMS)(logits, labels)
    return bytes(exported.serialize(vjp_order=1))
