"""An evolved loss of edl_jax in PyTorch.

This file and a loss file are all it needs, besides PyTorch (2.4 or newer) and safetensors. It was
written by `edl export` and may be copied into any project (Apache-2.0).

    from evolved_loss import EvolvedLoss

    loss = EvolvedLoss("loss.safetensors")
    loss(logits, labels).mean().backward()
"""

import hashlib
import json
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch  # pyright: ignore[reportMissingImports]
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn  # pyright: ignore[reportMissingImports]
from torch.nn import functional  # pyright: ignore[reportMissingImports]
from torch.utils.checkpoint import checkpoint  # pyright: ignore[reportMissingImports]

_FORMAT = "edl_jax.EvolvedLoss/1"
_FLOOR = -1e9  # least log-probability: its exponential is 0, and sums of it are finite
_BLOCK = 65536  # classes of examples whose hidden layers are held together
_ACTIVATIONS = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "silu": functional.silu,
    "softplus": functional.softplus,
    "squareplus": lambda x: (x + torch.sqrt(x * x + 4)) / 2,
}


class EvolvedLoss(nn.Module):
    """The frozen loss of a file of `edl pretrain` or `edl export`, or a ValueError.

    Its parameters are buffers: they follow `.to(device)`, stay in float32 under `.half()` and
    `.to(dtype)`, and are never trained.
    """

    scale: Tensor

    def __init__(self, path: str | Path):
        super().__init__()
        try:
            with safe_open(Path(path).expanduser(), framework="pt") as file:
                header = file.metadata() or {}
                if header.get("format") != _FORMAT:
                    raise ValueError(f"its format is {header.get('format')!r}, not {_FORMAT!r}")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if header.get("sha256") != _digest(header, tensors):
                raise ValueError(f"its sha256 is {header.get('sha256')!r}, not that of its content")
            architecture = json.loads(header["architecture"])
            self.num_classes: int | None = architecture["num_classes"]
            self.activation = _ACTIVATIONS[architecture["activation"]]
            self.num_layers = len(architecture["hidden"]) + 1
            widths = [tensors[f"params.layers.{i}.bias"].numel() for i in range(self.num_layers)]
            if widths != [*architecture["hidden"], 1]:
                raise ValueError(f"its layers are {widths} wide, not as its architecture says")
            for name, tensor in tensors.items():  # such as "params.layers.0.kernel"
                self.register_buffer(name.replace(".", "_"), tensor)
        except (OSError, SafetensorError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is no loss file: {error}.") from error

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "EvolvedLoss":
        return super()._apply(
            lambda x: y if (y := fn(x)).dtype == x.dtype else x.to(y.device), recurse
        )

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The losses `[...]`, in the logits' dtype but computed in float32 at least.

        Args:
          logits: `[..., num_classes]`, any floating dtype.
          labels: classes `[...]`, any integer dtype; or soft labels `[..., num_classes]`. Those
            that do not fit are a ValueError, or NaN where `torch.compile` cannot look at them.
        """
        if not isinstance(labels, Tensor):
            raise ValueError(f"labels are of type {type(labels).__name__}; expected a tensor.")
        is_soft = labels.shape == logits.shape and not labels.is_complex()
        is_hard = labels.shape == logits.shape[:-1] and not (
            labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool
        )
        fits = logits.ndim and 2 <= logits.shape[-1] == (self.num_classes or logits.shape[-1])
        if not (fits and logits.is_floating_point() and (is_hard or is_soft)):
            raise ValueError(
                f"logits have shape {tuple(logits.shape)} and dtype {logits.dtype}, labels "
                f"{tuple(labels.shape)} and {labels.dtype}; expected floating logits [..., "
                f"{self.num_classes or 'num_classes'}], and classes [...] or soft labels."
            )
        with torch.autocast(logits.device.type, enabled=False):
            wide = logits if logits.dtype == torch.float64 else logits.float()
            log_p = torch.log_softmax(wide, -1).clamp(min=_FLOOR)
            if is_soft:
                weights = labels.to(log_p.dtype)
                is_known = weights.isfinite().all(-1)
                fits = is_known & (weights >= 0).all(-1) & ((weights.sum(-1) - 1).abs() <= 0.01)
                _expect(fits, labels, "soft labels of at least 0 that sum to 1")
                losses = self._weighted(weights, *self._features(log_p))
            else:
                y = labels.to(torch.int64)
                is_known = (y >= 0) & (y < log_p.shape[-1])
                _expect(is_known, labels, f"classes in [0, {log_p.shape[-1]})")
                y = torch.where(is_known, y, 0).unsqueeze(-1)
                losses = self._losses(*self._features(log_p, y))[..., 0]
            return (self.scale * torch.where(is_known, losses, torch.nan)).to(logits.dtype)

    def _features(self, log_p: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What the network reads of the classes y, `[..., 1]`, or of all, and of the prediction.

        Of classes `[..., n, features]`, or their numbers `[..., n]`, each to be one-hot.
        """
        p = log_p.exp()
        if self.num_classes is not None:
            every = torch.arange(self.num_classes, device=p.device)
            return every if y is None else y, p.unsqueeze(-2)
        own = log_p if y is None else log_p.gather(-1, y)
        # The slope of `amax` is shared by all that tie, as in JAX.
        other = _runner_up(log_p) if y is None else log_p.scatter(-1, y, -torch.inf).amax(-1, True)
        of_classes = torch.stack([own.exp(), -own / 4, other.exp()], -1)
        entropy, moment = -torch.linalg.vecdot(p, log_p) / 4, torch.linalg.vecdot(p, p)
        return of_classes, torch.stack([entropy, moment], -1).unsqueeze(-2)

    def _weighted(self, weights: Tensor, of_classes: Tensor, of_prediction: Tensor) -> Tensor:
        """The weighted sum of the losses of all classes, `[...]`.

        In blocks of classes, whose hidden layers are computed again for the gradient: with many
        classes they take too much memory. Under transforms of `torch.func`, which cannot, all stay.
        """
        size = max(1, _BLOCK // max(1, weights[..., 0].numel()))
        if weights.shape[-1] <= size:
            return (weights * self._losses(of_classes, of_prediction)).sum(-1)
        blocks = of_classes.split(size, -2 if self.num_classes is None else -1)
        losses = torch.zeros_like(weights[..., 0])
        for block, some in zip(blocks, weights.split(size, -1), strict=True):
            if torch._C._are_functorch_transforms_active():
                of_block = self._losses(block, of_prediction)
            else:
                of_block = checkpoint(self._losses, block, of_prediction, use_reentrant=False)
            losses = losses + (some * of_block).sum(-1)
        return losses

    def _losses(self, of_classes: Tensor, of_prediction: Tensor) -> Tensor:
        """The losses `[..., n]` of `_features`."""
        features: tuple[Any, ...] = of_classes, of_prediction
        if self.num_classes is not None:
            every = torch.arange(self.num_classes, device=of_classes.device)
            one_hot = of_classes.unsqueeze(-1) == every  # `functional.one_hot` stops `vmap`
            features = of_prediction, one_hot.to(of_prediction)
        for index in range(self.num_layers):  # the first layer is a sum over two parts
            kernel, bias = (
                getattr(self, f"params_layers_{index}_{part}").to(of_prediction.dtype)
                for part in ("kernel", "bias")
            )
            if index:
                features = (self.activation(features[0]),)
            rows = kernel.split([part.shape[-1] for part in features])
            features = (sum((x @ k for x, k in zip(features, rows, strict=True)), bias),)
        return functional.softplus(features[0][..., 0])


def _digest(header: dict[str, str], tensors: dict[str, Tensor]) -> str:
    """What the header's `sha256` must be."""
    fields = [f"{name}={header[name]}\n" for name in sorted(header.keys() - {"sha256"})]
    found = hashlib.sha256("".join(fields).encode())
    for name, x in sorted(tensors.items()):
        found.update(name.encode() + struct.pack(f"<{x.numel()}f", *x.float().flatten().tolist()))
    return found.hexdigest()


def _expect(fits: Tensor, labels: Tensor, expected: str) -> None:
    """Refuse bad labels if their values can be read; under vmap reading is a RuntimeError."""
    with suppress(RuntimeError):
        if not torch.compiler.is_compiling() and not fits.all():
            odd = labels.detach()[~fits][0].tolist()
            raise ValueError(f"labels hold {odd}; expected {expected}.")


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
