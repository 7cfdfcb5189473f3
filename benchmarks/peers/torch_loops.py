"""The work in PyTorch: by `torch.func.vmap` and by batched products, eager and compiled.

The batched products come in two forms: of the whole population, and of 16 networks at a time, which
keeps what is hidden in a CPU's cache. A GPU is used where there is one; matrix products are in
full float32, as ours are.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks.common import Contestant, Layers, Work, flattened, random_layers, unflattened
from benchmarks.timing import Run

BLOCK = 16  # networks at a time
Tensor = Any
Score = Callable[[Any, Tensor, Tensor], Tensor]


def load() -> Any:
    """PyTorch, imported at the first use."""
    import torch  # pyright: ignore[reportMissingImports]

    return torch


def set_up() -> Any:
    """PyTorch, in full float32, and without what earlier runs have compiled."""
    torch = load()
    torch.set_float32_matmul_precision("highest")
    inductor: Any = importlib.import_module("torch._inductor.config")
    inductor.force_disable_caches = True  # or they would hide how long compiling takes
    return torch


def missing() -> str | None:
    """Why PyTorch cannot be used."""
    if importlib.util.find_spec("torch") is None:
        return "PyTorch is not installed; pip install torch"
    if jax.default_backend() != device().replace("cuda", "gpu"):
        return "PyTorch has no GPU where JAX has one; pip install a torch that is built for it"
    return None


def forget() -> None:
    """Drop what `torch.compile` has compiled in this process, and memory that is not in use."""
    if "torch" in sys.modules:
        importlib.import_module("torch._dynamo").reset()
        load().cuda.empty_cache()


def device() -> str:
    """Where PyTorch runs."""
    return "cuda" if load().cuda.is_available() else "cpu"


def wait() -> None:
    """Until all is done."""
    if load().cuda.is_available():
        load().cuda.synchronize()


def sample(num_pairs: int, num_classes: int) -> tuple[Tensor, Tensor]:
    """Fresh pairs: probabilities `[num_pairs, num_classes]` and labels `[num_pairs]`."""
    torch, where = load(), device()
    magnitude, first, second, coin = torch.rand((4, num_pairs), device=where)
    noise = torch.randn((num_pairs, num_classes), device=where)
    probabilities = torch.softmax(noise / (0.1 * 100.0**magnitude)[:, None], dim=-1)
    cumulative = torch.cumsum(probabilities, dim=-1)
    calibrated = (cumulative <= (first * cumulative[:, -1])[:, None]).sum(dim=-1)
    uninformed = (second * num_classes).to(torch.int64)
    labels = torch.where(coin < 0.5, calibrated, uninformed)
    return probabilities, labels.clamp(max=num_classes - 1)


def observe(probabilities: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The features `[5, num_pairs]` and severities `[num_pairs]` of pairs."""
    torch = load()
    log_p = torch.log(probabilities.clamp(min=torch.finfo(torch.float32).tiny))
    own = log_p.gather(1, labels[:, None])
    rival = log_p.scatter(1, labels[:, None], -torch.inf).amax(dim=-1)
    own = own[:, 0]
    entropy = -(probabilities * log_p).sum(dim=-1)
    moment = (probabilities**2).sum(dim=-1)
    return torch.stack([own.exp(), -own / 4, rival.exp(), entropy / 4, moment]), -own


def violation(work: Work, losses: Tensor, severities: Tensor) -> Tensor:
    """The share of the asked margins that losses `[..., num_pairs]` violate, `[...]`."""
    torch = load()
    violated = demanded = 0.0
    for shift in range(1, work.num_opponents + 1):
        difference = severities - severities.roll(shift, dims=-1)
        asked = difference.abs()
        kept = difference.sign() * (losses - losses.roll(shift, dims=-1))
        violated = violated + torch.relu(asked - kept).sum(dim=-1)
        demanded = demanded + asked.sum()
    return violated / demanded.clamp(min=torch.finfo(torch.float32).tiny)  # type: ignore


def vmap_score(work: Work) -> Score:
    """Of a population, one network written plainly and vmapped; examples come first."""
    torch = load()

    def one(layers: Any, features: Tensor, severities: Tensor) -> Tensor:
        x = features.T
        for index, (kernel, bias) in enumerate(layers):
            if index:
                x = (x + (x * x + 4).sqrt()) / 2  # squareplus
            x = x @ kernel + bias
        return violation(work, torch.nn.functional.softplus(x[:, 0]), severities)

    return torch.func.vmap(one, in_dims=(0, None, None))


def batched_score(work: Work) -> Score:
    """Of a population, by batched products; pairs come last."""
    torch = load()

    def score(layers: Any, features: Tensor, severities: Tensor) -> Tensor:
        x = features.expand(layers[0][0].shape[0], *features.shape)
        for index, (kernel, bias) in enumerate(layers):
            if index:
                x = (x + (x * x + 4).sqrt()) / 2  # squareplus
            x = torch.baddbmm(bias[:, :, None], kernel.mT, x)
        return violation(work, torch.nn.functional.softplus(x[:, 0]), severities)

    return score


def _in_blocks(score: Score) -> Score:
    def blocked(layers: Any, features: Tensor, severities: Tensor) -> Tensor:
        size = layers[0][0].shape[0]
        parts = [
            score([(k[i : i + BLOCK], b[i : i + BLOCK]) for k, b in layers], features, severities)
            for i in range(0, size, BLOCK)
        ]
        return load().cat(parts)

    return blocked


def _contestant(
    name: str, make: Callable[[Work], Score], *, compiled: bool, blocked: bool
) -> Contestant:
    def maybe_compiled(function: Callable[..., Any]) -> Callable[..., Any]:
        return load().compile(function, dynamic=False) if compiled else function

    def score_of(work: Work) -> Score:
        score = maybe_compiled(make(work))
        return _in_blocks(score) if blocked else score

    def evaluation(work: Work, layers: Layers, features: np.ndarray, severities: np.ndarray) -> Run:
        torch, where = set_up(), device()
        score = score_of(work)
        tensors = [tuple(torch.as_tensor(x, device=where) for x in pair) for pair in layers]
        x, e = (torch.as_tensor(values, device=where) for values in (features, severities))

        def run(count: int) -> Tensor:
            fitness = None
            with torch.no_grad():
                for _ in range(count):
                    fitness = score(tensors, x, e)
                wait()
            return fitness

        return run

    def generations(work: Work, seed: int = 0) -> Run:
        torch, where = set_up(), device()
        torch.manual_seed(seed)
        score = score_of(work)

        @maybe_compiled
        def draw() -> tuple[Tensor, Tensor]:
            return observe(*sample(work.num_pairs, work.num_classes))

        @maybe_compiled
        def breed(population: Tensor, fitness: Tensor) -> Tensor:
            elites = population[fitness.topk(work.num_elites, largest=False).indices]
            num_children = work.population_size - work.num_elites
            children = elites[torch.randint(work.num_elites, (num_children,), device=where)]
            return torch.cat([elites, children + work.std * torch.randn_like(children)])

        population = torch.as_tensor(flattened(random_layers(work, seed)), device=where)

        def run(count: int) -> Tensor:
            nonlocal population
            with torch.no_grad():
                for _ in range(count):
                    fitness = score(unflattened(population, work.sizes), *draw())
                    population = breed(population, fitness)
                wait()
            return population

        return run

    return Contestant(name, evaluation, generations, missing=missing)


TORCH = tuple(
    _contestant(f"torch {form}{', compiled' * compiled}", make, compiled=compiled, blocked=blocked)
    for form, make, blocked in (
        ("vmap", vmap_score, False),
        ("batched", batched_score, False),
        (f"batched by {BLOCK}", batched_score, True),
    )
    for compiled in (False, True)
)
