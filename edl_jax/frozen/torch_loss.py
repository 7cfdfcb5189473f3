"""An evolved loss of edl_jax in PyTorch.

This file and a loss file are all it needs, besides PyTorch (2.0 or newer):

    from evolved_loss import EvolvedLoss

    loss = EvolvedLoss("loss.safetensors")
    loss(logits, labels).mean().backward()

It was written by `edl export` and may be copied into any project (Apache-2.0).
"""

import hashlib
import itertools
import json
import math
from pathlib import Path
from typing import Any

import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]
from torch.nn import functional  # pyright: ignore[reportMissingImports]

_FORMAT = "edl_jax.EvolvedLoss/1"
_FLOOR = -1e9  # least log-probability: its exponential is 0, and sums of it are finite
_LONGEST_HEADER = 10_000_000
_AGNOSTIC_FEATURES = 5  # of a loss for any number of classes
_ACTIVATIONS = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "silu": functional.silu,
    "softplus": functional.softplus,
    "squareplus": lambda x: (x + torch.sqrt(x * x + 4)) / 2,
}


class EvolvedLoss(nn.Module):
    """A frozen loss: logits and labels in, one loss for each example out.

    Its parameters are buffers: they follow `.to(device)` and are never trained.

    Args:
      path: a loss file, as `edl pretrain` and `edl export` write.

    Raises:
      ValueError: if the file is missing, damaged or no loss file.
    """

    scale: torch.Tensor

    def __init__(self, path: str | Path):
        super().__init__()
        architecture, tensors = _read(Path(path))
        self.num_classes: int | None = architecture["num_classes"]
        self.activation = _ACTIVATIONS[architecture["activation"]]
        self.num_layers = len(architecture["hidden"]) + 1
        self.register_buffer("scale", tensors["scale"])
        for index in range(self.num_layers):
            for part in ("kernel", "bias"):
                self.register_buffer(f"{part}_{index}", tensors[f"params.layers.{index}.{part}"])

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The loss of each example.

        Args:
          logits: `[..., num_classes]`, floating; computed in float32 at least.
          labels: classes `[...]` (int64), or soft labels `[..., num_classes]` that sum to 1.

        Returns:
          Losses of at least 0, `[...]`, in the logits' dtype.

        Raises:
          ValueError: if the shapes do not fit.
        """
        if self.num_classes not in (None, logits.shape[-1]):
            raise ValueError(
                f"logits have {logits.shape[-1]} classes; this loss is for {self.num_classes}."
            )
        is_soft = labels.shape == logits.shape
        if not is_soft and (labels.shape != logits.shape[:-1] or labels.is_floating_point()):
            raise ValueError(
                f"labels have shape {tuple(labels.shape)} and dtype {labels.dtype} for logits of "
                f"shape {tuple(logits.shape)}; expected classes, or soft labels of that shape."
            )
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        top = wide.detach().amax(-1, keepdim=True)
        floor = wide.new_tensor(_FLOOR)
        log_p = torch.log_softmax(torch.maximum(wide - top, floor), -1)
        log_p = torch.maximum(log_p, floor)  # which halves the gradient at a tie, as in JAX
        if is_soft:
            every = torch.arange(log_p.shape[-1], device=log_p.device).expand_as(log_p)
            losses = self._network(log_p.unsqueeze(-2).expand(*log_p.shape, -1), every)
            losses = (labels * losses).sum(-1)
        else:
            losses = self._network(log_p, labels)
        return (self.scale * losses).to(logits.dtype)

    def _network(self, log_p: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = self._features(log_p, labels.unsqueeze(-1))
        for index in range(self.num_layers):
            if index:
                x = self.activation(x)
            kernel = getattr(self, f"kernel_{index}").to(x.dtype)
            x = x @ kernel + getattr(self, f"bias_{index}").to(x.dtype)
        return functional.softplus(x[..., 0])

    def _features(self, log_p: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        p = log_p.exp()
        is_label = labels == torch.arange(log_p.shape[-1], device=log_p.device)
        if self.num_classes is not None:
            return torch.cat([p, is_label.to(p.dtype)], -1)
        own = log_p.gather(-1, labels)
        rival = log_p.masked_fill(is_label, -torch.inf).amax(-1, keepdim=True)
        entropy = -(p * log_p).sum(-1, keepdim=True)
        second_moment = (p * p).sum(-1, keepdim=True)
        return torch.cat([own.exp(), -own / 4, rival.exp(), entropy / 4, second_moment], -1)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The architecture in a loss file, and its arrays."""
    architecture, arrays = _contents(path)
    tensors = {
        name: torch.frombuffer(content, dtype=torch.float32).reshape(shape)
        for name, (shape, content) in arrays.items()
    }
    if not all(torch.isfinite(x).all() for x in tensors.values()) or not tensors["scale"] > 0:
        raise ValueError(
            f"{path} is no loss file: not all its numbers are finite, or its scale is 0."
        )
    return architecture, tensors


def _contents(path: Path) -> tuple[dict[str, Any], dict[str, tuple[tuple[int, ...], bytearray]]]:
    """The architecture, and each array's shape and bytes; all is checked before arrays are read.

    A safetensors file is a length, a JSON header and the arrays' numbers.
    """
    if not path.is_file():
        raise ValueError(f"there is no loss file at {path}.")
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length <= min(size - 8, _LONGEST_HEADER):
                raise ValueError(f"its header is said to be {length} bytes long")
            header = json.loads(file.read(length))
            metadata = header.pop("__metadata__", {})
            if metadata.get("format") != _FORMAT:
                raise ValueError(f"its format is {metadata.get('format')!r}, not {_FORMAT!r}")
            architecture = json.loads(metadata["architecture"])
            shapes = _shapes(architecture)
            sizes = {name: 4 * math.prod(shape) for name, shape in shapes.items()}
            found = {name: (x["dtype"], tuple(x["shape"])) for name, x in header.items()}
            if found != {name: ("F32", shape) for name, shape in shapes.items()}:
                raise ValueError("its arrays do not fit the architecture in its header")
            if size != 8 + length + sum(sizes.values()):
                raise ValueError(f"it is {size} bytes long, which do not fit its header")
            data = file.read()
        arrays = {}
        for name, shape in shapes.items():
            start, end = header[name]["data_offsets"]
            if start < 0 or end - start != sizes[name] or end > len(data):
                raise ValueError(f"the place of its array {name} does not fit its header")
            arrays[name] = (shape, bytearray(data[start:end]))
        if metadata["sha256"] != _digest(metadata, arrays):
            raise ValueError("it was damaged or changed: its sha256 is another")
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no loss file: {error!r}.") from error
    return architecture, arrays


def _shapes(architecture: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays of an architecture, by name."""
    if architecture["activation"] not in _ACTIVATIONS:
        raise ValueError(f"its activation is {architecture['activation']!r}")
    num_classes = architecture["num_classes"]
    num_features = _AGNOSTIC_FEATURES if num_classes is None else 2 * num_classes
    widths = [num_features, *architecture["hidden"], 1]
    shapes: dict[str, tuple[int, ...]] = {"scale": ()}
    for index, shape in enumerate(itertools.pairwise(widths)):
        shapes[f"params.layers.{index}.kernel"] = shape
        shapes[f"params.layers.{index}.bias"] = shape[1:]
    return shapes


def _digest(metadata: dict[str, str], arrays: dict[str, tuple[Any, bytearray]]) -> str:
    digest = hashlib.sha256()
    for name in sorted(metadata.keys() - {"sha256"}):
        digest.update(f"{name}={metadata[name]}\n".encode(errors="surrogatepass"))
    for name in sorted(arrays):
        digest.update(name.encode() + arrays[name][1])
    return digest.hexdigest()
