"""The residual networks of `edl_jax.training` once more, in plain PyTorch.

Submodules have our names, so that only the layout of arrays has to be converted where weights are
carried over. To be imported where PyTorch is installed.
"""

from collections.abc import Sequence

import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]
from torch.nn import functional as F  # pyright: ignore[reportMissingImports]


class ConvNorm(nn.Module):
    """Convolution without bias, then batch norm."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs, eps=1e-5, momentum=0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps `[batch, channels, h, w]`."""
        return self.norm(self.conv(x))


class Shortcut(nn.Module):
    """Option A or B of He et al. (2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int, projection: bool):
        super().__init__()
        self.stride, self.extra = stride, outputs - inputs
        if projection and (stride > 1 or inputs != outputs):
            self.project = ConvNorm(inputs, outputs, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps `[batch, channels, h, w]`."""
        if hasattr(self, "project"):
            return self.project(x)
        before = self.extra // 2
        padding = (0, 0, 0, 0, before, self.extra - before)
        return F.pad(x[:, :, :: self.stride, :: self.stride], padding)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions."""

    def __init__(self, inputs: int, width: int, stride: int, projection: bool):
        super().__init__()
        self.first = ConvNorm(inputs, width, 3, stride)
        self.second = ConvNorm(width, width, 3, 1)
        self.shortcut = Shortcut(inputs, width, stride, projection)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps `[batch, channels, h, w]`."""
        return F.relu(self.second(F.relu(self.first(x))) + self.shortcut(x))


class BottleneckBlock(nn.Module):
    """1x1, 3x3 and 1x1 convolutions."""

    def __init__(self, inputs: int, width: int, stride: int, projection: bool):
        super().__init__()
        self.first = ConvNorm(inputs, width, 1, 1)
        self.second = ConvNorm(width, width, 3, stride)
        self.third = ConvNorm(width, 4 * width, 1, 1)
        self.shortcut = Shortcut(inputs, 4 * width, stride, projection)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps `[batch, channels, h, w]`."""
        y = F.relu(self.second(F.relu(self.first(x))))
        return F.relu(self.third(y) + self.shortcut(x))


class ResNet(nn.Module):
    """Stem, stages of blocks, global average pool, head; a `ResNet` of ours."""

    def __init__(
        self,
        stage_blocks: Sequence[int],
        width: int,
        projection: bool,
        bottleneck: bool = False,
        classes: int = 10,
    ):
        super().__init__()
        self.stem = ConvNorm(3, width, 3, 1)
        block, expansion = (BottleneckBlock, 4) if bottleneck else (BasicBlock, 1)
        self.blocks, channels = nn.ModuleList(), width
        for stage, count in enumerate(stage_blocks):
            for index in range(count):
                stride = 2 if stage and not index else 1
                self.blocks.append(block(channels, width * 2**stage, stride, projection))
                channels = expansion * width * 2**stage
        self.head = nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps `[batch, channels, h, w]`."""
        x = F.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))
