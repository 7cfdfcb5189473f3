"""GLO's programs, how they are bred, and what its search finds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evosax.problems import Problem
from scipy import special

from edl_jax import LOSSES, DataConfig, TrainConfig, train
from edl_jax.data.datasets import load_dataset
from edl_jax.errors import ConfigError
from edl_jax.evolution.problems import static_self
from edl_jax.losses.by_name import resolve_loss
from edl_jax.losses.formulas.expression import postfix
from edl_jax.losses.searched import Task
from edl_jax.methods.glo import ARITY, GLO, TOKENS, formula_of, losses_of, program_of, run_program
from edl_jax.runs.folder import read_json
from edl_jax.strategies.genetic_programming import (
    GeneticProgramming,
    crossover,
    point_mutation,
)
from edl_jax.training.search import TrainingProblem
from tests.test_train_objects import Linear

SIZE, MANY = 16, 1000
BAIKAL = "-log(p) + w / p"
NEEDS = [TOKENS.index(leaf) + 1 for leaf in ("w", "p")]
BREEDING = GeneticProgramming(MANY, SIZE, ARITY, needs=NEEDS)


def divided(x, y):
    return x / (np.where(y < 0, -1, 1) * np.maximum(np.abs(y), 1e-7))


NUMPY = {
    "log": lambda x: np.log(np.maximum(np.abs(x), 1e-30)),
    "sqrt": lambda x: np.sqrt(np.maximum(np.abs(x), 1e-14)),
    "square": lambda x: x * x,
    "+": lambda x, y: x + y,
    "-": lambda x, y: x - y,
    "*": lambda x, y: x * y,
    "/": divided,
}


def tree_of(program):
    """The tree of a program, as nested tuples of tokens and their places; it must be whole."""
    stack = []
    tokens = program[program > 0]
    assert (program[: len(tokens)] > 0).all()  # all empty places are behind
    for place, token in enumerate(tokens):
        count = ARITY[token - 1]
        arguments = stack[len(stack) - count :]
        assert len(arguments) == count
        stack = [*stack[: len(stack) - count], (TOKENS[token - 1], place, *arguments)]
    assert len(stack) == 1
    return stack[0]


def value_of(tree, coefficients, w, p):
    """The value of a tree in float64, by recursion."""
    name, place, *arguments = tree
    if arguments:
        value = NUMPY[name](*(value_of(x, coefficients, w, p) for x in arguments))
    else:
        value = {"w": w, "p": p}.get(name, np.full_like(p, name if name in (1.0, -1.0) else 0))
    return coefficients[place] * value


@functools.cache
def random_programs():
    return np.asarray(jax.jit(jax.vmap(BREEDING.sample))(jax.random.split(jax.random.key(0), MANY)))


def test_the_machine_is_python_on_1000_random_trees_and_so_is_its_gradient():
    rng = np.random.default_rng(0)
    programs, coefficients = random_programs(), rng.uniform(0.5, 2, (MANY, SIZE))
    logits, direction = 2 * rng.normal(size=(2, 4, 3))
    w = np.concatenate([np.eye(3), [[0.5, 0.3, 0.2]]])

    def total(logits, program, coefficients):
        p = jax.nn.softmax(logits)
        return run_program(program, coefficients, jnp.asarray(w), p).sum()

    with jax.enable_x64(True):
        of_each = jax.vmap(jax.value_and_grad(total), (None, 0, 0))
        values, gradients = map(np.asarray, jax.jit(of_each)(logits, programs, coefficients))

    def reference(index, step):
        p = special.softmax(logits + step * direction, axis=-1)
        return value_of(tree_of(programs[index]), coefficients[index], w, p).sum()

    compared = 0
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for index in range(MANY):
            expected = reference(index, 0.0)
            slopes = [(reference(index, h) - reference(index, -h)) / (2 * h) for h in (1e-5, 2e-5)]
            # How far the value moves with the last digits of the logits: rounding differs too.
            near = max(abs(reference(index, s * 1e-14) - expected) for s in (-1, 1))
            assert abs(values[index] - expected) <= 1e-9 * abs(expected) + 100 * near + 1e-12
            # Differences err by the curvature, and by the rounding of what they are taken of.
            slope, error = slopes[0], abs(slopes[1] - slopes[0]) + 1e-10 * abs(expected)
            if error < 1e-4 * abs(slope) + 1e-8:  # where differences can tell
                found = np.sum(gradients[index] * direction)
                assert abs(found - slope) <= 10 * error + 1e-4 * abs(slope) + 1e-6, tree_of(
                    programs[index]
                )
                compared += 1
    assert compared > 0.9 * MANY
    assert np.isfinite(gradients).all()


def test_random_programs_are_whole_of_all_sizes_and_contain_what_they_need():
    programs = random_programs()
    for program in programs:
        tree_of(program)
        assert {*NEEDS} <= {*program}
    assert {*np.count_nonzero(programs, axis=1)} == {*range(3, SIZE + 1)}
    assert {*programs.ravel()} == {*range(len(TOKENS) + 1)}


def structure(tree):
    """A tree without the places of its tokens."""
    name, _, *arguments = tree
    return (name, *map(structure, arguments))


def size_of(tree):
    return 1 + sum(map(size_of, tree[1:]))


def subtrees_of(tree):
    return {tree}.union(*map(subtrees_of, tree[1:]))


def replaced(tree, others):
    """The trees in which one subtree is replaced by one of the others."""
    name, *arguments = tree
    inner = (
        (name, *arguments[:i], new, *arguments[i + 1 :])
        for i, argument in enumerate(arguments)
        for new in replaced(argument, others)
    )
    return others.union(inner)


def test_crossover_replaces_one_subtree_by_one_of_the_other_and_all_come_up():
    programs, seen, possible = random_programs(), set(), set()
    first, second = program_of("log(p) * w", SIZE), program_of("p / (w - 1)", SIZE)
    pairs = [(first, second)] * 300 + [(programs[i], programs[i + 100]) for i in range(100)]
    cross = jax.jit(jax.vmap(lambda key, a, b: crossover(key, a, b, BREEDING.arity)))
    keys = jax.random.split(jax.random.key(5), len(pairs))
    children = np.asarray(cross(keys, *map(np.stack, zip(*pairs, strict=True))))
    for child, (a, b) in zip(children, pairs, strict=True):
        trees = replaced(structure(tree_of(a)), subtrees_of(structure(tree_of(b))))
        if not child.any():
            assert any(size_of(tree) > SIZE for tree in trees)
            continue
        assert structure(tree_of(child)) in trees
        if a is first:
            seen.add(structure(tree_of(child)))
            possible |= trees
    assert seen == possible


def test_point_mutation_changes_one_token_for_one_with_as_many_arguments():
    programs = random_programs()
    mutate = jax.jit(jax.vmap(lambda key, program: point_mutation(key, program, BREEDING.arity)))
    children = np.asarray(mutate(jax.random.split(jax.random.key(6), MANY), programs))
    assert {*(children != programs).sum(axis=1)} == {0, 1}
    np.testing.assert_array_equal(BREEDING.arity[children], BREEDING.arity[programs])
    assert ((children > 0) == (programs > 0)).all()


def test_children_are_whole_and_come_of_the_best():
    """Of parents that are all alike but for their fitness, children are like the fit ones."""
    programs = random_programs()
    fitness = np.where(np.arange(MANY) < 500, 0.0, 1.0).astype(np.float32)
    fitness[:2] = np.nan, -1  # what failed is no elite
    params = BREEDING.default_params.replace(crossover_rate=0.0, point_rate=1.0)
    state = BREEDING.init(jax.random.key(1), programs, fitness, params)
    state, _ = BREEDING.tell(jax.random.key(1), programs, fitness, state, params)
    children = np.asarray(BREEDING.ask(jax.random.key(2), state, params)[0])
    np.testing.assert_array_equal(children[0], programs[1])
    assert not (children[:100] == programs[0]).all(axis=1).any()
    fit = programs[1:500]
    near = [(np.count_nonzero(fit != child, axis=1) <= 1).any() for child in children[100:]]
    assert np.mean(near) > 0.8  # seven of eight, but for those that then lack w or p
    for child in np.asarray(BREEDING.ask(jax.random.key(2), state, BREEDING.default_params)[0]):
        tree_of(child)
        assert {*NEEDS} <= {*child}


def test_baikal_is_a_program_a_formula_and_a_loss():
    program = program_of(BAIKAL, SIZE)
    assert program.dtype == np.int32
    logits = np.asarray(jax.random.normal(jax.random.key(3), (6, 5)), np.float32)
    labels = np.arange(6) % 5
    p = special.softmax(logits.astype(np.float64), axis=-1)
    expected = -np.log(p).mean(axis=-1) + 1 / p[np.arange(6), labels] / 5
    formula = formula_of(program, np.ones(SIZE))
    assert formula == "(log(p) * (-1)) + (w / p)"
    assert tuple(program_of(formula, SIZE)) == tuple(program)
    found = jax.jit(
        lambda x, y: (
            losses_of(program, jnp.ones((SIZE,)), x, y),
            losses_of(program, jnp.ones((SIZE,)), x, jax.nn.one_hot(y, 5)),
            LOSSES["baikal"](x, y),
            LOSSES["expression"](x, y, formula=formula),
        )
    )(logits, labels)
    for values in found:
        np.testing.assert_allclose(values, expected, rtol=1e-5)


def test_a_formula_with_coefficients_is_read_as_it_was_written():
    rng = np.random.default_rng(4)
    p, w = rng.uniform(0.1, 0.9, 7), rng.uniform(size=7)
    for program in random_programs()[:200]:
        coefficients = np.asarray([float(f"{x:.4g}") for x in rng.uniform(-2, 2, SIZE)])
        expected = value_of(tree_of(program), coefficients, w, p)
        stack = []
        for token in postfix(formula_of(program, coefficients)):
            count = ARITY[TOKENS.index(token)] if token in NUMPY else 0
            arguments = [stack.pop() for _ in range(count)][::-1]
            leaf = {"w": w, "p": p}.get(token, token)
            stack.append(NUMPY[token](*arguments) if count else leaf)
        np.testing.assert_allclose(stack[0] * np.ones(7), expected, rtol=1e-6)


class Likeness(Problem):
    """How far a loss is from a target on a few predictions: what short trainings cost, for free."""

    def __init__(self, sample, loss, target):
        self.draw, self.loss, self.target = sample, loss, target

    def sample(self, key):
        return self.draw(key)

    @static_self
    def eval(self, key, solutions, state):
        def distance(solution):
            return jnp.mean((self.loss(solution)(LOGITS, LABELS) - self.target) ** 2)

        return jax.vmap(distance)(solutions), state.replace(counter=state.counter + 1), {}


LOGITS = np.asarray([[0.5, -1.0, 1.5], [2.0, 0.3, -0.2], [0.0, 1.0, 0.4]], np.float32)
LABELS = np.asarray([0, 1, 1])


def values_of(loss):
    return jax.jit(loss)(LOGITS, LABELS)


def task_of(target):
    return Task(3, lambda sample, loss, steps: Likeness(sample, loss, target))


@pytest.mark.slow
def test_breeding_reaches_baikal_from_random_formulas():
    size, size_of_population = 8, 512
    breeding = GeneticProgramming(size_of_population, size, ARITY, needs=NEEDS)
    params = breeding.default_params
    logits = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    labels = np.arange(8) % 3

    def run(key):
        target = LOSSES["baikal"](logits, labels)

        def scored(programs):
            ones = np.ones((size,), np.float32)
            losses = jax.vmap(lambda program: losses_of(program, ones, logits, labels))(programs)
            return jnp.mean((losses - target) ** 2, axis=-1)

        def generation(state, key):
            programs, state = breeding.ask(key, state, params)
            return breeding.tell(key, programs, scored(programs), state, params)[0], None

        key_first, key = jax.random.split(key)
        programs = jax.vmap(breeding.sample)(jax.random.split(key_first, size_of_population))
        fitness = scored(programs)
        state = breeding.init(key, programs, fitness, params)
        state, _ = jax.lax.scan(generation, state, jax.random.split(key, 20))
        return fitness, state.best_fitness

    first, best = jax.jit(run)(jax.random.key(0))
    assert np.min(first) > 1e-2
    assert best < 1e-9


@pytest.mark.slow
def test_seeds_begin_and_coefficients_follow():
    formula = "-1.5 * log(p) + 0.7 * w / p"
    target = values_of(functools.partial(LOSSES["expression"], formula=formula))
    method = GLO(
        population_size=16, generations=1, coefficient_generations=40, size=8, seeds=(BAIKAL,)
    )
    name = method.search(jax.random.key(0), task_of(target))
    np.testing.assert_allclose(values_of(resolve_loss(name)), target, rtol=2e-2)
    assert name.startswith("expression(formula='")
    assert method.num_trainings == 16 * 1 + 2 * 5 + 16 * 40 + 2 * 6


def test_a_candidate_that_is_not_finite_is_the_worst():
    data = DataConfig("digits", train_examples=64, val_examples=64, test_examples=8)
    config = TrainConfig(data=data, batch_size=32, learning_rate=0.1)
    formulas = ["-w * log(p)", "square(square(square(w / (p - p))))"]
    programs = np.stack([program_of(x, SIZE) for x in formulas])
    problem = TrainingProblem(
        config,
        load_dataset(data),
        lambda key: jnp.asarray(programs[0]),
        lambda program: functools.partial(losses_of, program, jnp.ones((SIZE,))),
        20,
        model=Linear,
    )
    errors, _, _ = problem.eval(jax.random.key(0), programs, problem.init(jax.random.key(1)))
    assert errors[0] < 0.8
    assert errors[1] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": ("2 * p",)}, "no numbers but 1 and -1"),
        ({"seeds": ("log(p) + " * 9 + "w",)}, "has 28 tokens; expected at most 16"),
        ({"seeds": ("exp(p)",)}, "formula is 'exp"),
        ({"size": 2}, "GLO.size is 2"),
        ({"crossover_rate": 2.0}, "crossover_rate is 2.0"),
    ],
)
def test_refuses_what_is_no_search(options, message):
    with pytest.raises(ConfigError, match=message):
        GLO(**options).search(jax.random.key(0), task_of(np.zeros(3)))


SMALL = TrainConfig(
    loss="glo(population_size=4, generations=1, coefficient_generations=1, steps=2, size=6)",
    data=DataConfig("digits", train_examples=64, val_examples=32, test_examples=8),
    batch_size=32,
    epochs=1,
)


@pytest.mark.slow
def test_a_training_searches_first_and_its_search_resumes(tmp_path):
    once = train(SMALL, model=Linear, run_dir=tmp_path)
    name = read_json(tmp_path / "search/found.json")["loss"]
    assert train(SMALL, model=Linear, run_dir=tmp_path).history == once.history
    assert train(SMALL, model=Linear, loss=name).test_nll == once.test_nll


@pytest.mark.slow
def test_a_loss_that_is_searched_on_digits_trains_on_digits():
    data = DataConfig("digits", val_examples=300)
    config = TrainConfig(
        loss="glo(population_size=8, generations=4, coefficient_generations=2, steps=40)",
        data=data,
        model="resnet8",
        width=8,
        epochs=10,
        batch_size=64,
    )
    assert train(config).test_accuracy > 0.95
