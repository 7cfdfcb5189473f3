"""EvoTorch: its elitist GeneticAlgorithm on a vectorised problem, with batched products.

Half of the population it scores are parents and half children, which is how its elitist mode is
made; parents are scored again on the same fresh pairs.
"""

import importlib
import importlib.util
import logging
from typing import Any

import numpy as np

from benchmarks.common import Contestant, Layers, Work, flattened, unflattened
from benchmarks.peers import torch_loops
from benchmarks.timing import Run


def missing() -> str | None:
    """Why EvoTorch cannot be used."""
    if importlib.util.find_spec("evotorch") is None:
        return "EvoTorch is not installed; pip install evotorch"
    return torch_loops.missing()


def _problem(work: Work, objective: Any) -> Any:
    torch = torch_loops.set_up()
    evotorch = importlib.import_module("evotorch")
    logging.getLogger("evotorch.core").setLevel(logging.WARNING)
    return evotorch.Problem(
        "min",
        objective,
        solution_length=work.num_parameters,
        initial_bounds=(-0.5, 0.5),
        dtype=torch.float32,
        device=torch_loops.device(),
        vectorized=True,
    )


def evaluation(work: Work, layers: Layers, features: np.ndarray, severities: np.ndarray) -> Run:
    """Runs of `Problem.evaluate`."""
    torch, where = torch_loops.set_up(), torch_loops.device()
    core = importlib.import_module("evotorch.core")
    score = torch_loops.batched_score(work)
    x, e = (torch.as_tensor(values, device=where) for values in (features, severities))
    problem = _problem(work, lambda population: score(unflattened(population, work.sizes), x, e))
    batch = core.SolutionBatch(problem, work.population_size)
    batch.set_values(torch.as_tensor(flattened(layers), device=where))

    def run(count: int) -> Any:
        for _ in range(count):
            batch.forget_evals()
            problem.evaluate(batch)
        torch_loops.wait()
        return batch.evals[:, 0]

    return run


def generations(work: Work, seed: int = 0) -> Run:
    """Runs of a step of the GeneticAlgorithm."""
    score = torch_loops.batched_score(work)

    def objective(population: Any) -> Any:
        pairs = torch_loops.sample(work.num_pairs, work.num_classes)
        layers = unflattened(population, work.sizes)
        return score(layers, *torch_loops.observe(*pairs))

    problem = _problem(work, objective)
    problem.manual_seed(seed)
    algorithms = importlib.import_module("evotorch.algorithms")
    operators = importlib.import_module("evotorch.operators")
    searcher = algorithms.GeneticAlgorithm(
        problem,
        popsize=work.population_size // 2,
        operators=[operators.GaussianMutation(problem, stdev=work.std)],
    )

    def run(count: int) -> Any:
        searcher.run(count)
        torch_loops.wait()
        return searcher.population

    return run


EVOTORCH = Contestant("EvoTorch GeneticAlgorithm", evaluation, generations, missing=missing)
