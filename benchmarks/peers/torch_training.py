"""A training step in PyTorch, the same as ours; on a GPU where there is one.

Images stay on the device as uint8 with the channels last. The fused optimizer is used, which is
PyTorch's fastest. `torch.compile` compiles all from the pixels to the loss as one function.
"""

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.peers.torch_loops import Tensor, device, load, set_up, wait
from benchmarks.timing import Run
from benchmarks.training_work import TrainWork
from edl_jax.models import MODELS
from edl_jax.training.optimizers import make_schedule


def augment(images: Tensor, padding: int) -> Tensor:
    """Crop and mirror each image `[batch, h, w, c]` by itself, after black padding."""
    torch, where = load(), images.device
    count, height, width, _ = images.shape
    sides = (0, 0, padding, padding, padding, padding)
    padded = torch.nn.functional.pad(images, sides)
    top, left = torch.randint(0, 2 * padding + 1, (2, count, 1), device=where)
    mirrored = torch.rand(count, 1, device=where) < 0.5
    rows = top + torch.arange(height, device=where)
    columns = left + torch.arange(width, device=where)
    columns = torch.where(mirrored, columns.flip(1), columns)
    return padded[
        torch.arange(count, device=where)[:, None, None], rows[:, :, None], columns[:, None, :]
    ]


def network_of(work: TrainWork) -> Any:
    """The network of the work, its convolutions' weights with the channels last."""
    resnet: Any = importlib.import_module("benchmarks.peers.torch_resnet")
    factory: Any = MODELS[work.model]
    shape = {"width": 16, "projection": False, "bottleneck": False, **factory.keywords}
    shape["width"] = work.width or shape["width"]
    network = resnet.ResNet(*factory.args, **shape)
    return network.to(device(), memory_format=load().channels_last)


def trainer(work: TrainWork, network: Any, *, bfloat16: bool, compiled: bool) -> Run:
    """Runs of steps that train the network; the result is their mean loss."""
    torch, where, config, data = set_up(), device(), work.config(), work.dataset
    torch.backends.cudnn.benchmark = True
    images, all_labels = (
        torch.as_tensor(x, device=where) for x in (data.train_images, data.train_labels.astype(int))
    )
    mean, std = (torch.as_tensor(x, device=where) for x in (data.mean, data.std))
    optimizer = torch.optim.SGD(
        network.parameters(),
        lr=0.0,
        momentum=0.9,
        nesterov=True,
        weight_decay=config.optimizer.weight_decay,
        fused=True,
    )
    schedule = make_schedule(
        config.learning_rate,
        warmup_steps=round(config.warmup_epochs * work.num_batches),
        total_steps=config.epochs * work.num_batches,
    )
    rates = np.asarray(schedule(np.arange(config.epochs * work.num_batches)))
    order, done = torch.arange(len(images), device=where), 0

    def objective(pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if work.augmented:
            pixels = augment(pixels, data.crop_padding)
        x = ((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2)  # still channels last
        with torch.autocast(where, torch.bfloat16, enabled=bfloat16):
            logits = network(x).float()
        loss = torch.nn.functional.cross_entropy(logits, labels)
        return loss, (logits.argmax(-1) == labels).sum()

    forward = torch.compile(objective, dynamic=False) if compiled else objective

    def run(count: int) -> float:
        nonlocal order, done
        network.train()
        losses, correct = torch.zeros(2, device=where)
        for _ in range(count):
            first = done % work.num_batches * work.batch_size
            if first == 0:
                order = torch.randperm(len(images), device=where)
            rows = order[first : first + work.batch_size]
            loss, right = forward(images[rows], all_labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.param_groups[0]["lr"] = float(rates[done])
            optimizer.step()
            losses, correct, done = losses + loss.detach(), correct + right, done + 1
        wait()
        return float(losses) / count

    return run


def torch_training(
    work: TrainWork, steps: int, *, bfloat16: bool = False, compiled: bool = False
) -> Callable[[], Run]:
    """What starts a training of PyTorch's; a run is so many steps."""

    def prepare() -> Run:
        set_up().manual_seed(0)
        step = trainer(work, network_of(work), bfloat16=bfloat16, compiled=compiled)
        return lambda count: step(count * steps)

    return prepare
