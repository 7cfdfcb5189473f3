"""Take a loss out of this package: as StableHLO, and as a PyTorch module."""

import os
from importlib import resources
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp

from edl_jax.errors import InputError
from edl_jax.losses.evolved_loss import EvolvedLoss
from edl_jax.losses.loss_file import checked_tensors
from edl_jax.runs.storage import user_path, write_atomically

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def export_loss(loss: EvolvedLoss, folder: str | os.PathLike[str]) -> tuple[Path, ...]:
    """Write a loss so that it can be used without this package.

    - `loss.safetensors`: its parameters (`edl_jax.losses.loss_file` describes the file).
    - `loss.jax_export`: the loss and its gradient as StableHLO, from `to_stablehlo`.
    - `evolved_loss.py`: a PyTorch module that reads `loss.safetensors` and needs PyTorch alone.

    The folder is made if missing, and files of these names in it are replaced; returns their paths.

    Raises:
      ConfigError: if `folder` is no path.
      InputError: if the loss is not whole, not finite, or several that were stacked.
      OSError: if a file cannot be written.
    """
    folder = user_path(folder)
    program = to_stablehlo(loss)
    folder.mkdir(parents=True, exist_ok=True)
    paths = tuple(folder / f for f in ("loss.safetensors", "loss.jax_export", "evolved_loss.py"))
    loss.save(paths[0])
    write_atomically(paths[1], program)
    module = resources.files("edl_jax.losses") / "torch_loss.py"
    write_atomically(paths[2], module.read_bytes())
    return paths


def to_stablehlo(loss: EvolvedLoss) -> bytes:
    """The loss as a serialised `jax.export.Exported`, with its gradient.

    It serves any batch size and, unless the network is for one class count, any number of classes,
    on CPU, GPU and TPU, from float32 logits `[batch, classes]` and int32 labels `[batch]` to losses
    `[batch]`; JAX promises to read it for six months at least. To use it:

        loss = jax.export.deserialize(Path("loss.jax_export").read_bytes())
        loss.call(logits, labels)

    Raises:
      InputError: if the loss is not whole, not finite, or several that were stacked.
    """
    if not isinstance(loss, EvolvedLoss):
        raise InputError(f"the loss is {loss!r}; expected an EvolvedLoss.")
    checked_tensors(loss.architecture, {"params": loss.params, "scale": loss.scale})
    classes = loss.architecture.num_classes or "classes"
    shape = jax.export.symbolic_shape(
        f"batch, {classes}", constraints=["classes >= 2"] if classes == "classes" else []
    )
    logits = jax.ShapeDtypeStruct(shape, jnp.float32)
    labels = jax.ShapeDtypeStruct(shape[:1], jnp.int32)

    call = jax.jit(lambda logits, labels: loss(logits, labels))
    exported = jax.export.export(call, platforms=PLATFORMS)(logits, labels)
    return bytes(exported.serialize(vjp_order=1))
