"""What the benchmarks share: the work that everybody does, the contestants, arguments, folders."""

import argparse
import dataclasses
import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from benchmarks.cores import num_cores
from edl_jax import PretrainConfig
from edl_jax.errors import RunFolderError
from edl_jax.networks import ACTIVATIONS
from edl_jax.pairs import Mixture
from edl_jax.runs.environment import commit, version
from edl_jax.runs.folder import RunFolder, read_json
from edl_jax.strategies import StrategyConfig

# Kernels `[population, fan_in, fan_out]` and biases `[population, fan_out]` of each layer.
Layers = list[tuple[np.ndarray, np.ndarray]]
NUM_FEATURES = 5
FLOAT_BYTES = 4
TEMPERED = Mixture(
    uniform=0, sparse=0, confident_correct=0, confident_wrong=0, ambiguous=0, untrained=0
)


@dataclasses.dataclass(frozen=True)
class Work:
    """What every contestant does: the same network, pairs and objective, in float32.

    A generation draws fresh pairs (Gaussian logits over a log-uniform temperature in [0.1, 10];
    half of the labels drawn from the prediction, half uniform), reads the five class-agnostic
    features and the surprisal of each, scores every network by the margins it violates against
    four opponents of each pair, keeps the best and mutates them into the next population.
    """

    population_size: int
    num_pairs: int
    hidden: tuple[int, ...] = (16, 16)
    activation: str = PretrainConfig.activation
    num_classes: int = 10
    num_opponents: int = 4
    elite_ratio: float = 0.25
    std: float = 0.1

    @property
    def sizes(self) -> tuple[int, ...]:
        """Widths of the layers, the features first."""
        return (NUM_FEATURES, *self.hidden, 1)

    @property
    def num_parameters(self) -> int:
        """Parameters of one network."""
        return sum((fan_in + 1) * fan_out for fan_in, fan_out in itertools.pairwise(self.sizes))

    @property
    def num_elites(self) -> int:
        """Networks that become parents."""
        return max(1, int(self.elite_ratio * self.population_size))

    @property
    def pair_evaluations(self) -> int:
        """Evaluations of one network on one pair in a generation."""
        return self.population_size * self.num_pairs

    @property
    def flops(self) -> int:
        """Floating-point operations of the matrix products of a generation, two a weight."""
        weights = sum(fan_in * fan_out for fan_in, fan_out in itertools.pairwise(self.sizes))
        return 2 * weights * self.pair_evaluations

    @property
    def activations(self) -> int:
        """Evaluations of the hidden activation in a generation."""
        return sum(self.hidden) * self.pair_evaluations

    @property
    def hidden_bytes(self) -> int:
        """Size of the widest hidden layer of the whole population on all pairs."""
        return FLOAT_BYTES * max(self.hidden) * self.pair_evaluations

    def config(self) -> PretrainConfig:
        """The same work as a configuration of ours."""
        return PretrainConfig(
            hidden=self.hidden,
            activation=self.activation,
            class_counts=(self.num_classes,),
            mixture=TEMPERED,
            num_opponents=self.num_opponents,
            population_size=self.population_size,
            strategy=StrategyConfig(elite_ratio=self.elite_ratio, std_init=self.std),
            pairs_per_generation=self.num_pairs,
        )


# Runs something so many times, waits for all of it, and returns the last result.
Run = Callable[[int], Any]


@dataclasses.dataclass(frozen=True)
class Contestant:
    """One way to do the work.

    Attributes:
      name: what tables call it.
      missing: None if it can run here, otherwise why not and how to change that.
      evaluation: `(work, layers, features, severities) -> run`: each run scores the population,
        `features` being `[5, num_pairs]` and `severities` `[num_pairs]`, and gives `[population]`.
      generations: `(work, seed) -> run`: each run is `unit(work)` generations.
      peak_bytes: estimate of the memory it needs.
      unit: generations of one run.
    """

    name: str
    missing: Callable[[], str | None]
    evaluation: Callable[[Work, Layers, np.ndarray, np.ndarray], Run]
    generations: Callable[[Work, int], Run]
    peak_bytes: Callable[[Work], int]
    unit: Callable[[Work], int] = lambda work: 1


def random_layers(work: Work, seed: int = 0) -> Layers:
    """A population of networks with LeCun-normal kernels and small biases."""
    rng = np.random.default_rng(seed)
    return [
        (
            (rng.standard_normal((work.population_size, fan_in, fan_out)) / np.sqrt(fan_in)).astype(
                np.float32
            ),
            (0.1 * rng.standard_normal((work.population_size, fan_out))).astype(np.float32),
        )
        for fan_in, fan_out in itertools.pairwise(work.sizes)
    ]


def unflattened(population: Any, sizes: tuple[int, ...]) -> list[tuple[Any, Any]]:
    """Layers of networks `[population, num_parameters]`, of NumPy or PyTorch."""
    layers, begin = [], 0
    for fan_in, fan_out in itertools.pairwise(sizes):
        middle = begin + fan_in * fan_out
        kernel = population[:, begin:middle].reshape(-1, fan_in, fan_out)
        layers.append((kernel, population[:, middle : middle + fan_out]))
        begin = middle + fan_out
    return layers


def parser(
    name: str, description: str | None, *, activation: bool = True
) -> argparse.ArgumentParser:
    """A parser of the arguments that all benchmarks take; the activation is of loss networks."""
    found = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument("--out", type=Path, help=f"results folder; default runs/{name}")
    found.add_argument("--quick", action="store_true", help="tiny sizes: does it run at all?")
    found.add_argument("--fresh", action="store_true", help="measure finished cells again too")
    if activation:
        found.add_argument("--activation", default=Work.activation, choices=sorted(ACTIVATIONS))
    found.add_argument("--repeats", type=int, help="most repeats of a cell")
    return found


def open_folder(name: str, arguments: argparse.Namespace, config: dict[str, Any]) -> RunFolder:
    """The results folder: made, or taken up where a stopped run left it.

    It belongs to one configuration, device and commit of the package, so that numbers of different
    ones never meet in a table.
    """
    import jax

    # Shared with PyTorch, so not all of a GPU's memory at once.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    path = arguments.out or Path("runs") / (name + ("-quick" if arguments.quick else ""))
    if arguments.fresh and (path / "config.json").exists():
        if read_json(path / "config.json").get("benchmark") != name:
            stop(
                f"{path} is the folder of another run; expected one of this benchmark for --fresh."
            )
        shutil.rmtree(path)
    device = jax.devices()[0]
    config = {
        "benchmark": name,
        **config,
        "device": f"{device.platform} {device.device_kind}",
        "cores": num_cores(),
        "memory": os.environ.get("GLIBC_TUNABLES") or "as the C library gives it",
        "commit": commit(),
    }
    try:
        folder = RunFolder(path, config)
        environment = read_json(path / "environment.json")
    except RunFolderError as error:
        stop(f"{error} Or measure anew with --fresh.")
    for library in ("torch", "evotorch", "matplotlib"):
        environment["versions"][library] = version(library)
    environment |= {
        "cores": num_cores(),
        "memory": config["memory"],
        "load_average_at_start": os.getloadavg(),
        "uncommitted_changes": _has_changes(),
    }
    folder.write_json("environment.json", environment)
    print(f"results: {path}", flush=True)
    return folder


def caption(folder: RunFolder) -> str:
    """One paragraph that says where and with what the numbers were measured."""
    environment = read_json(folder.path / "environment.json")
    versions = ", ".join(f"{name} {value}" for name, value in environment["versions"].items())
    return (
        f"Measured on {environment['backend']} ({environment['device']}), "
        f"{environment['cores']} cores, memory: {environment['memory']}, "
        f"commit {environment['commit']}"
        f"{' with uncommitted changes' * bool(environment['uncommitted_changes'])}, load average "
        f"at the start {environment['load_average_at_start'][0]:.2f}. {versions}. "
        f"Command: `{json.dumps(environment['command'])}`."
    )


def _has_changes() -> bool:
    """Whether the package differs from its last commit."""
    command = ["git", "-C", str(Path(__file__).parents[1]), "status", "--porcelain", "edl_jax"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:  # no git here
        return False
    return bool(found.stdout.strip())


def available(contestants: Sequence[Contestant], names: Sequence[str] | None) -> list[Contestant]:
    """Those that can run here, of those asked for; says which cannot, and how to install them."""
    found = []
    for contestant in contestants:
        if names and contestant.name not in names:
            continue
        if (reason := contestant.missing()) is None:
            found.append(contestant)
        else:
            print(f"skipped {contestant.name}: {reason}", flush=True)
    return found


def stop(message: str) -> NoReturn:
    """End with a message and exit status 2."""
    print(message, flush=True)
    raise SystemExit(2)
