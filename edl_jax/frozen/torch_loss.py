"""An evolved loss of edl_jax in PyTorch.

This file and a loss file are all it needs, besides PyTorch (2.0 or newer):

    from evolved_loss import EvolvedLoss

    loss = EvolvedLoss("loss.safetensors")
    loss(logits, labels).mean().backward()

It was written by `edl export` and may be copied into any project (Apache-2.0).
"""

import json
from pathlib import Path

import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]
from torch.nn import functional  # pyright: ignore[reportMissingImports]

_FORMAT = "edl_jax.EvolvedLoss/1"
_FLOOR = -1e9  # least log-probability: its exponential is 0, and sums of it are finite
_LONGEST_HEADER = 10_000_000
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
      ValueError: if the file is no loss file.
    """

    scale: torch.Tensor

    def __init__(self, path: str | Path):
        super().__init__()
        metadata, tensors = _read(Path(path))
        architecture = json.loads(metadata["architecture"])
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


def _read(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Metadata and tensors of a safetensors file: a length, a JSON header, float32 numbers."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    if not 0 < length <= min(len(content) - 8, _LONGEST_HEADER):
        raise ValueError(f"{path} is no loss file: its header is said to be {length} bytes long.")
    header = json.loads(content[8 : 8 + length])
    metadata = header.pop("__metadata__", {})
    if metadata.get("format") != _FORMAT:
        raise ValueError(f"{path} has format {metadata.get('format')!r}; expected {_FORMAT!r}.")
    data = bytearray(content[8 + length :])
    tensors = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        values = torch.frombuffer(data[start:end], dtype=torch.float32)
        tensors[name] = values.reshape(entry["shape"])
    return metadata, tensors
