"""A loss that is written as a formula, as the losses are that genetic programming finds."""

import ast
import math
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from edl_jax.errors import ConfigError, shortened
from edl_jax.losses.inputs import log_softmax
from edl_jax.losses.lift import formula_of_weights

LEAVES = ("w", "p")
# What is closer to 0 has, in each of the operators, the value of this and no gradient.
LEAST_LOGARITHM, LEAST_ROOT, LEAST_DIVISOR = 1e-30, 1e-14, 1e-7

Value = Any  # an array, or a number


def log(x: Value) -> jax.Array:
    """`log |x|` of an `|x|` of at least 1e-30."""
    return jnp.log(jnp.maximum(jnp.abs(x), LEAST_LOGARITHM))


def sqrt(x: Value) -> jax.Array:
    """The root of an `|x|` of at least 1e-14."""
    return jnp.sqrt(jnp.maximum(jnp.abs(x), LEAST_ROOT))


def divide(x: Value, y: Value) -> jax.Array:
    """`x / y` of a `y` that is at least 1e-7 from 0, on its side of it; 0 is on the right."""
    return x / (jnp.where(y < 0, -1.0, 1.0) * jnp.maximum(jnp.abs(y), LEAST_DIVISOR))


OPERATORS: dict[str, tuple[int, Callable[..., Value]]] = {  # with the number of their arguments
    "log": (1, log),
    "square": (1, jnp.square),
    "sqrt": (1, sqrt),
    "+": (2, operator.add),
    "-": (2, operator.sub),
    "*": (2, operator.mul),
    "/": (2, divide),
}
_SIGNS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}


@formula_of_weights
def expression(
    x: jax.Array, weights: jax.Array, where: jax.Array | None, *, formula: str = "-w * log(p)"
) -> jax.Array:
    """A formula of your own, of labels and probabilities, averaged over the classes.

    The operators have values and gradients everywhere: `log` and `sqrt` take `|x|` of at least
    1e-30 and 1e-14, and a divisor is at least 1e-7 from 0.

    Args:
      formula: of `w`, the label's weight on a class (1 or 0 without soft labels), `p`, its
        probability, and numbers, by `+ - * /`, `log()`, `sqrt()` and `square()`. Baikal is
        "-log(p) + w / p"; the default is cross-entropy, divided by the number of classes.

    References:
      Gonzalez and Miikkulainen, 2020. https://arxiv.org/abs/1905.11528
    """
    leaves, stack = {"w": weights, "p": jnp.exp(log_softmax(x, where))}, []
    for token in postfix(formula):
        arity, function = OPERATORS.get(token, (0, lambda token=token: leaves.get(token, token)))
        arguments = [stack.pop() for _ in range(arity)]
        stack.append(function(*arguments[::-1]))
    values = jnp.broadcast_to(stack[0], x.shape).astype(x.dtype)
    if where is None:
        return jnp.mean(values, axis=-1)
    count = jnp.maximum(jnp.sum(where, axis=-1), 1).astype(x.dtype)
    return jnp.sum(values, axis=-1, where=where) / count


def postfix(formula: str) -> tuple[Any, ...]:
    """A formula's leaves, numbers and operators, arguments before their operator.

    Raises:
      ConfigError: if it is none.

    >>> postfix("-log(p) + w / p")
    ('p', 'log', -1.0, '*', 'w', 'p', '/', '+')
    """
    try:
        return _tokens(ast.parse(formula, mode="eval").body)
    except (ArithmeticError, SyntaxError, TypeError, ValueError, RecursionError, MemoryError):
        raise ConfigError(
            f"formula is {shortened(repr(formula))}; expected numbers, w and p, with + - * /, "
            "log(), sqrt() and square(), such as -log(p) + w / p."
        ) from None


def _tokens(node: ast.expr) -> tuple[Any, ...]:
    match node:
        case ast.Name(name) if name in LEAVES:
            return (name,)
        case ast.Constant(int() | float() as x) if not isinstance(x, bool) and math.isfinite(x):
            return (float(x),)
        case ast.UnaryOp(ast.USub(), ast.Constant() as number):
            return (-_tokens(number)[0],)
        case ast.UnaryOp(ast.USub(), argument):
            return (*_tokens(argument), -1.0, "*")
        case ast.BinOp(left, sign, right) if type(sign) in _SIGNS:
            return (*_tokens(left), *_tokens(right), _SIGNS[type(sign)])
        case ast.Call(ast.Name(name), [argument], []) if OPERATORS.get(name, (0,))[0] == 1:
            return (*_tokens(argument), name)
    raise ValueError(ast.dump(node))
