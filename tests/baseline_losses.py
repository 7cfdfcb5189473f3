"""All baseline losses compiled together: one program of all is quicker to compile than twenty."""

import functools
import inspect

import jax
import jax.numpy as jnp

from edl_jax import LOSSES

COUNTS = (50, 40, 1, 7, 30)
NAMES = tuple(LOSSES)

# Small programs that run a few times each: compiling them is all the cost.
_QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
quick_jit = functools.partial(jax.jit, compiler_options=_QUICK)


def takes_counts(name):
    return "class_counts" in inspect.signature(LOSSES[name]).parameters


def loss_of(name, counts=COUNTS):
    part = LOSSES[name]
    if isinstance(part, type):
        return part()
    return functools.partial(part, class_counts=counts) if takes_counts(name) else part


@functools.cache
def compiled(names=NAMES, counts=COUNTS):
    """`(logits, labels, where) -> {name: (values, gradient of their sum)}`."""

    def both(loss, logits, labels, where):
        values, vjp = jax.vjp(lambda x: loss(x, labels, where=where), logits)
        return values, vjp(jnp.ones_like(values))[0]

    losses = {name: loss_of(name, counts) for name in names}
    return quick_jit(
        lambda logits, labels, where=None: {
            name: both(loss, logits, labels, where) for name, loss in losses.items()
        }
    )


def logits_of(seed=0, scale=3.0, shape=(6, 5)):
    return scale * jax.random.normal(jax.random.key(seed), shape)
