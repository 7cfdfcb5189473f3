"""All losses compiled together: one program of all is quicker to compile than twenty."""

import functools
import inspect

import jax
import jax.numpy as jnp
from flax import nnx

from edl_jax import LOSSES, EvolvedLoss, LossMethod, load_pretrained
from edl_jax.checked import Positive, check
from edl_jax.networks import Architecture

COUNTS = (50, 40, 1, 7, 30)


def is_method(part) -> bool:
    """Whether a loss is called by a training alone: it changes while a classifier trains."""
    return isinstance(part, type) and issubclass(part, LossMethod)


NAMES = tuple(name for name, part in LOSSES.items() if not is_method(part))
EVERY = (*NAMES, "edl", "pair")  # evolved ones too

# Small programs that run a few times each: compiling them is all the cost.
_QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
quick_jit = functools.partial(jax.jit, compiler_options=_QUICK)


@functools.cache
def _built(architecture):
    return jax.jit(lambda key: nnx.to_pure_dict(nnx.state(architecture.build(key))))


def random_loss(seed: int = 0, num_classes: int | None = None) -> EvolvedLoss:
    """A loss of random weights: what must hold for every loss should hold for it."""
    kind = "class_agnostic" if num_classes is None else "pair"
    architecture = Architecture(kind, (8, 8), "silu", num_classes)
    params = _built(architecture)(jax.random.key(seed))
    return EvolvedLoss(params=params, scale=jnp.asarray(1.7), architecture=architecture)


def takes_counts(name):
    return name in NAMES and "class_counts" in inspect.signature(LOSSES[name]).parameters


class Tempered(nnx.Module):
    """A module as a loss: cross-entropy at a temperature that is trained."""

    def __init__(self, *, temperature: float = 2.0):
        temperature = check("temperature", float(temperature), Positive)
        self.temperature = nnx.Param(jnp.asarray(temperature, jnp.float32))

    def __call__(self, logits, labels):
        return LOSSES["cross_entropy"](logits / self.temperature[...], labels)


def loss_of(name, counts=COUNTS):
    if name == "edl":
        return load_pretrained()
    if name == "pair":
        return random_loss(1, len(counts))
    part = LOSSES[name]
    return functools.partial(part, class_counts=counts) if takes_counts(name) else part


def values_and_gradients(names, counts=COUNTS):
    """`(logits, labels, where) -> {name: (values, gradient of their sum)}`, not compiled."""

    def both(loss, logits, labels, where):
        values, vjp = jax.vjp(lambda x: loss(x, labels, where=where), logits)
        return values, vjp(jnp.ones_like(values))[0]

    losses = {name: loss_of(name, counts) for name in names}
    return lambda logits, labels, where=None: {
        name: both(loss, logits, labels, where) for name, loss in losses.items()
    }


@functools.cache
def compiled(names=NAMES, counts=COUNTS):
    """`values_and_gradients` as one program."""
    return quick_jit(values_and_gradients(names, counts))


def logits_of(seed=0, scale=3.0, shape=(6, 5)):
    return scale * jax.random.normal(jax.random.key(seed), shape, jnp.float32)
