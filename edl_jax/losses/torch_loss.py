"""An evolved loss of edl_jax in PyTorch.

This file and a loss file are all it needs, besides PyTorch (2.4 or newer). It was written by
`edl export` and may be copied into any project (Apache-2.0).

    from evolved_loss import EvolvedLoss

    loss = EvolvedLoss("loss.safetensors")
    loss(logits, labels).mean().backward()
"""

import hashlib
import itertools
import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import torch  # pyright: ignore[reportMissingImports]
from torch import Tensor, nn  # pyright: ignore[reportMissingImports]
from torch.nn import functional  # pyright: ignore[reportMissingImports]

_FORMAT = "edl_jax.EvolvedLoss/1"
_FLOOR = -1e9  # least log-probability: its exponential is 0, and sums of it are finite
_GREATEST = [1, -_FLOOR / 4, 1, 8, 1]  # features of a loss for any number of classes
_TOLERANCE = 0.01  # of the sum of soft labels, which may have been rounded to bfloat16
_MOST_LAYERS, _WIDEST, _LONGEST_HEADER = 16, 4096, 10_000_000
_ACTIVATIONS = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "silu": functional.silu,
    "softplus": functional.softplus,
    "squareplus": lambda x: (x + torch.sqrt(x * x + 4)) / 2,
}


class EvolvedLoss(nn.Module):
    """A frozen loss: logits and labels in, one loss for each example out.

    Its parameters are buffers: they follow `.to(device)`, stay in float32 under `.half()` and
    `.to(dtype)`, and are never trained.

    Args:
      path: a loss file, as `edl pretrain` and `edl export` write.

    Raises:
      ValueError: if the file is missing, damaged or no loss file.
      OSError: if it cannot be read.
    """

    def __init__(self, path: str | Path):
        super().__init__()
        architecture, arrays = _contents(Path(os.path.expanduser(path)))
        self.num_classes: int | None = architecture["num_classes"]
        self.activation = _ACTIVATIONS[architecture["activation"]]
        self.num_layers = len(architecture["hidden"]) + 1
        for name, (shape, content) in arrays.items():
            *_, index, part = ["", *name.split(".")]  # of "params.layers.0.kernel", or "scale"
            tensor = torch.frombuffer(content, dtype=torch.float32).reshape(shape)
            self.register_buffer(f"{part}_{index}" if index else part, tensor)
        self.scale: Tensor
        features = _GREATEST if self.num_classes is None else [1.0] * (2 * self.num_classes)
        reach = self.scale.new_tensor(features)
        for index in range(self.num_layers):  # no activation goes beyond |x| + 1
            kernel, bias = self._layer(index, torch.float32)
            reach = (reach + 1) @ kernel.abs() + bias.abs()
        if not self.scale > 0 or not (self.scale * (reach + 1)).isfinite():
            raise ValueError(
                f"{path} is no loss file: not all its numbers are finite, or its scale is 0 or "
                "less, or its losses overflow."
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "EvolvedLoss":
        return super()._apply(
            lambda x: y if (y := fn(x)).dtype == x.dtype else x.to(y.device), recurse
        )

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of each example, computed in float32 at least, under `torch.autocast` too.

        Args:
          logits: `[..., num_classes]`, any floating dtype.
          labels: classes `[...]`, any integer dtype; or soft labels `[..., num_classes]`.

        Returns:
          Losses of at least 0, `[...]`, in the logits' dtype. `torch.compile`, `torch.export` and
          `torch.func.vmap` cannot look at values: labels out of range or not finite give NaN there.

        Raises:
          ValueError, TypeError: if shapes, dtypes or labels do not fit, or are no tensors.
        """
        is_soft, kind = self._is_soft(logits, labels), logits.device.type
        has_autocast = torch.amp.is_autocast_available(kind)
        with torch.autocast(kind, enabled=False) if has_autocast else nullcontext():
            wide = logits.to(torch.float64 if logits.dtype == torch.float64 else torch.float32)
            log_p = torch.log_softmax(_hold(wide - wide.amax(-1, keepdim=True), wide), -1)
            log_p = _hold(log_p, log_p)
            losses = (self._of_soft if is_soft else self._of_classes)(log_p, labels)
            return (self.scale * losses).to(logits.dtype)

    def _is_soft(self, logits: Tensor, labels: Tensor) -> bool:
        """Whether labels are soft; refuses what is of another shape or dtype."""
        if not isinstance(logits, Tensor) or not isinstance(labels, Tensor):
            raise TypeError(f"logits are {type(logits)}, labels {type(labels)}; expected tensors.")
        fits = logits.ndim and 2 <= logits.shape[-1] == (self.num_classes or logits.shape[-1])
        if not fits or not logits.is_floating_point():
            raise ValueError(
                f"logits have shape {tuple(logits.shape)} and dtype {logits.dtype}; expected "
                f"floating numbers for {self.num_classes or 'at least 2'} classes."
            )
        is_soft = labels.shape == logits.shape and not labels.is_complex()
        no_class = labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool
        if not is_soft and (no_class or labels.shape != logits.shape[:-1]):
            raise ValueError(
                f"labels have shape {tuple(labels.shape)} and dtype {labels.dtype} for logits of "
                f"shape {tuple(logits.shape)}; expected classes, or soft labels of that shape."
            )
        return is_soft

    def _of_classes(self, log_p: Tensor, labels: Tensor) -> Tensor:
        num_classes, y = log_p.shape[-1], labels.to(torch.int64).unsqueeze(-1)
        in_range = (y >= 0) & (y < num_classes)
        if _is_surely_false(in_range.all()):
            raise ValueError(f"labels go from {y.min()} to {y.max()}; expected [0, {num_classes}).")
        y = y.clamp(0, num_classes - 1)
        if self.num_classes is None:
            runner_up = log_p.scatter(-1, y, -torch.inf).amax(-1, keepdim=True)
            losses = self._of_summaries(log_p, log_p.gather(-1, y), runner_up)
        else:
            losses = self._of_pairs(log_p, y)
        return torch.where(in_range, losses, torch.nan)[..., 0]

    def _of_soft(self, log_p: Tensor, labels: Tensor) -> Tensor:
        """The mean of the losses of all classes, weighted by the labels."""
        labels = labels.to(log_p.dtype)
        is_finite = labels.isfinite().all(-1)
        fits = is_finite & (labels >= 0).all(-1) & ((labels.sum(-1) - 1).abs() <= _TOLERANCE)
        if _is_surely_false(fits.all()):
            odd = labels.detach()[~fits][0]
            raise ValueError(
                f"soft labels of an example range from {odd.min():g} to {odd.max():g} and sum to "
                f"{odd.sum():g}; expected finite numbers of at least 0 that sum to 1."
            )
        if self.num_classes is None:
            losses = self._of_summaries(log_p, log_p, _runner_up(log_p))
        else:
            losses = self._of_pairs(log_p, torch.arange(self.num_classes, device=log_p.device))
        return torch.where(is_finite, (labels * losses).sum(-1), torch.nan)

    def _of_summaries(self, log_p: Tensor, own: Tensor, runner_up: Tensor) -> Tensor:
        """Losses `[..., n]` of n classes, by their log-probabilities and their runners-up'."""
        p = log_p.exp()
        entropy, second_moment = (x.sum(-1, keepdim=True) for x in (-p * log_p, p * p))
        summaries = (own.exp(), -own / 4, runner_up.exp(), entropy / 4, second_moment)
        summaries = torch.stack(torch.broadcast_tensors(*summaries), -1)
        kernel, bias = self._layer(0, p.dtype)
        return self._after_first(summaries @ kernel + bias)

    def _of_pairs(self, log_p: Tensor, labels: Tensor) -> Tensor:
        """Losses `[..., n]` of n classes: the first layer is a sum over prediction and label."""
        kernel, bias = self._layer(0, log_p.dtype)
        of_prediction, of_label = kernel.chunk(2)
        prediction = (log_p.exp() @ of_prediction).unsqueeze(-2)
        return self._after_first(prediction + (of_label[labels] + bias))

    def _after_first(self, x: Tensor) -> Tensor:
        for index in range(1, self.num_layers):
            kernel, bias = self._layer(index, x.dtype)
            x = self.activation(x) @ kernel + bias
        return functional.softplus(x[..., 0])

    def _layer(self, index: int, dtype: torch.dtype) -> Iterator[Tensor]:
        return (getattr(self, f"{part}_{index}").to(dtype) for part in ("kernel", "bias"))


def _is_surely_false(condition: Tensor) -> bool:
    with suppress(RuntimeError):  # in `vmap`, which cannot look either
        return not torch.compiler.is_compiling() and not bool(condition)
    return False


def _hold(x: Tensor, source: Tensor) -> Tensor:
    """Values of at least the floor, with the slope of `source`, which finds the way down there."""
    return x.detach().clamp(min=_FLOOR) + (source - source.detach()).nan_to_num()


def _runner_up(log_p: Tensor) -> Tensor:
    """The largest log-probability among the other classes, for each class, `[..., num_classes]`."""
    classes = torch.arange(log_p.shape[-1], device=log_p.device)
    is_first = classes == log_p.argmax(-1, keepdim=True)
    second = log_p.masked_fill(is_first, -torch.inf).amax(-1, keepdim=True)
    top = log_p.amax(-1, keepdim=True)
    is_top = log_p == top
    # Where several tie at the top, the slope is the mean of the others', as of their maximum.
    others = log_p.masked_fill(~is_top, 0).sum(-1, keepdim=True) - log_p
    others = others / (is_top.sum(-1, keepdim=True) - 1).clamp(min=1)
    tied = top.detach() + (others - others.detach())
    return torch.where(is_first, second, torch.where(is_top, tied, top))


def _contents(path: Path) -> tuple[dict[str, Any], dict[str, tuple[tuple[int, ...], bytearray]]]:
    """The architecture, and each array's shape and bytes; all is checked before they are read."""
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
    hidden, num_classes = architecture["hidden"], architecture["num_classes"]
    sizes = [*hidden, 2 if num_classes is None else num_classes]
    fits = all(type(size) is int and 0 < size <= _WIDEST for size in sizes)
    if not fits or len(hidden) > _MOST_LAYERS or architecture["activation"] not in _ACTIVATIONS:
        raise ValueError("its architecture is none of a loss")
    num_features = len(_GREATEST) if num_classes is None else 2 * num_classes
    shapes: dict[str, tuple[int, ...]] = {"scale": ()}
    for index, shape in enumerate(itertools.pairwise((num_features, *hidden, 1))):
        shapes |= {f"params.layers.{index}.kernel": shape, f"params.layers.{index}.bias": shape[1:]}
    return shapes


def _digest(metadata: dict[str, str], arrays: dict[str, tuple[Any, bytearray]]) -> str:
    digest = hashlib.sha256()
    for name in sorted(metadata.keys() - {"sha256"}):
        digest.update(f"{name}={metadata[name]}\n".encode(errors="surrogatepass"))
    for name in sorted(arrays):
        digest.update(name.encode() + arrays[name][1])
    return digest.hexdigest()
