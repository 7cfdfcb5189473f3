"""The networks of `edl_jax.training` once more, in plain PyTorch, and weights carried over to them.

Submodules have our names, so that only the layout of arrays has to be converted.
"""

import numpy as np
import torch
from flax import nnx, traverse_util
from torch import nn

from benchmarks.peers.torch_resnet import ResNet as ResNet


class VisionTransformer(nn.Module):
    def __init__(self, width, depth, heads, patch, image_size, classes=10):
        super().__init__()
        self.embed = nn.Conv2d(3, width, patch, patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, (image_size // patch) ** 2 + 1, width))
        options = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, 4 * width, layer_norm_eps=1e-6, **options)
            for _ in range(depth)
        )
        self.norm, self.head = nn.LayerNorm(width, eps=1e-6), nn.Linear(width, classes)

    def forward(self, x):
        patches = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), patches], 1) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


RENAMED = {
    "attention.query_key_value.weight": "self_attn.in_proj_weight",
    "attention.query_key_value.bias": "self_attn.in_proj_bias",
    "attention.out": "self_attn.out_proj",
    "expand": "linear1",
    "contract": "linear2",
    "scale": "weight",
    "kernel": "weight",
    "mean": "running_mean",
    "var": "running_var",
}


def to_torch(state: nnx.State) -> dict[str, torch.Tensor]:
    """An NNX state (parameters, statistics, or gradients) by PyTorch's names, in float64."""
    tensors = {}
    for path, array in traverse_util.flatten_dict(nnx.to_pure_dict(state)).items():
        array = np.asarray(array, np.float64)
        if path[-1] == "kernel":
            array = array.transpose({2: (1, 0), 4: (3, 2, 0, 1)}[array.ndim])
        *module, leaf = (str(part) for part in path)
        name = ".".join([*module, RENAMED.get(leaf, leaf)])
        for ours, theirs in RENAMED.items():
            if "." in ours or ours in ("expand", "contract"):
                name = name.replace(ours, theirs)
        tensors[name] = torch.tensor(array)
    return tensors
