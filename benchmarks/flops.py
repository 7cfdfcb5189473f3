"""Floating-point operations of the matrix products and convolutions of a function."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr


def product_flops(function: Callable[..., Any], *args: Any) -> list[int]:
    """FLOPs of each convolution and matrix product, in the order of the program.

    Two for each weight that an output is a sum over: `2 * output size * kernel terms`. Terms that
    meet padding count, as is usual.

    Args:
      function: what is counted; it is traced and not run.
      args: its arguments; shapes are enough.

    Raises:
      NotImplementedError: if a product is in a loop whose length is not known.
    """
    return list(_of_jaxpr(jax.make_jaxpr(function)(*args).jaxpr))


def training_flops(forward: list[int]) -> int:
    """FLOPs of forward and backward together.

    Each product has two of the same size in the backward pass, one for the gradient of its weights
    and one for that of its input; the first layer needs none for its input.
    """
    return 3 * sum(forward) - forward[0]


def _of_jaxpr(jaxpr: Jaxpr) -> Iterator[int]:
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        shapes: list[Any] = [getattr(x.aval, "shape", ()) for x in (*eqn.invars, *eqn.outvars)]
        if name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            terms = math.prod(shapes[0][axis] for axis in contracted)
            yield 2 * math.prod(shapes[-1]) * terms
        elif name == "conv_general_dilated":
            outputs = shapes[1][eqn.params["dimension_numbers"].rhs_spec[0]]
            yield 2 * math.prod(shapes[-1]) * (math.prod(shapes[1]) // outputs)
        else:
            inner = [flops for part in _parts(eqn.params) for flops in _of_jaxpr(part)]
            if inner and name in ("while", "cond"):
                raise NotImplementedError(f"a product inside {name}: how often it runs is unknown")
            yield from inner * eqn.params.get("length", 1) if name == "scan" else inner


def _parts(params: dict[str, Any]) -> Iterator[Jaxpr]:
    """The programs inside an operation."""
    for value in jax.tree.leaves(list(params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
        if isinstance(value, ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, Jaxpr):
            yield value
