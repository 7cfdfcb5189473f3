"""Optimizers of optax by name, and the learning rate's schedule."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from edl_jax.checked import Checked, NotNegative, Positive
from edl_jax.errors import ConfigError, shortened

# What is trained: the classifier, and a loss that has parameters of its own.
MODEL, LOSS = "model", "loss"
_DECAYED = {MODEL: True, LOSS: False}
_TOY = dict.fromkeys((MODEL, LOSS), jax.ShapeDtypeStruct((2,), jnp.float32))
Optimizer = optax.GradientTransformation | Callable[[optax.Schedule], Any]


def make_schedule(learning_rate: float, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """Linear warm-up, then cosine decay to 0.

    Step `t` of `w = warmup_steps`, counted from 0, takes `(t + 1) / w` of the peak: none is lost on
    a rate of 0. The decay begins at the peak, and the step after the last would have 0.
    """
    schedule = optax.schedules.warmup_cosine_decay_schedule(
        init_value=learning_rate / max(warmup_steps, 1),
        peak_value=learning_rate,
        warmup_steps=max(warmup_steps - 1, 0),
        decay_steps=total_steps,
    )
    # As a float: a strict promotion of dtypes refuses what optax does with whole numbers.
    return lambda step: schedule(jnp.asarray(step, jnp.float32))


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(Checked):
    """An optax optimizer, by name.

    The gradient is clipped first. If the optimizer has its own `weight_decay` with a mask (AdamW,
    Lion, LAMB, ...), the decay uses it. Otherwise the decay is an L2 penalty, which adds
    `weight_decay * parameter` to the gradient. A loss's own parameters never decay.

    Raises:
      ConfigError: if optax has no such optimizer, or it cannot be used with these options.
    """

    name: str = "sgd"
    """Name of an optax optimizer that takes a learning_rate, such as sgd, adamw or lion."""
    options: dict[str, int | float | bool | str | None] | None = None
    """Other arguments of the optimizer; default: momentum 0.9 and nesterov for sgd, optax's
    defaults for others."""
    weight_decay: NotNegative = 5e-4
    """Weight decay factor (0 disables it)."""
    clip_norm: Positive | None = None
    """Maximum Euclidean norm of the gradient; default: no clipping."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.make(0.1)

    def make(self, learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformationExtraArgs:
        """Return the optimizer for parameters `{"model": ..., "loss": ...}`."""
        options: dict[str, Any] = self.options or {}
        if self.options is None and self.name == "sgd":
            options = {"momentum": 0.9, "nesterov": True}
        parts = [] if self.clip_norm is None else [optax.clip_by_global_norm(self.clip_norm)]
        try:
            make = getattr(optax, self.name)
            known = set(inspect.signature(make).parameters)
            masks = dict.fromkeys(known & {"mask", "weight_decay_mask"}, _DECAYED)
            arguments = {"learning_rate": learning_rate}
            if masks and "weight_decay" in known:
                arguments |= {"weight_decay": self.weight_decay, **masks}
            elif self.weight_decay:
                parts.append(optax.add_decayed_weights(self.weight_decay, mask=_DECAYED))
            return _usable(optax.chain(*parts, make(**arguments, **options)), _TOY)
        except (AttributeError, TypeError, ValueError, NotImplementedError) as error:
            raise ConfigError(
                f"OptimizerConfig.name is {self.name!r} with options {options}, which cannot be "
                f"used ({error}); expected an optimizer of optax that needs gradients and "
                "parameters alone, such as sgd, adamw, lion or rmsprop, and options that it takes."
            ) from error


def make_optimizer(
    config: OptimizerConfig, schedule: optax.Schedule, optimizer: Optimizer | None, params: Any
) -> optax.GradientTransformationExtraArgs:
    """The optimizer that is given, or made with the schedule, or else that of the configuration."""
    if optimizer is None:
        return config.make(schedule)
    try:
        return _usable(optimizer(schedule) if callable(optimizer) else optimizer, params)
    except Exception as error:  # it may be the user's own code
        raise ConfigError(
            f"optimizer is {shortened(repr(optimizer), 100)}; expected a GradientTransformation of "
            "optax that needs gradients, parameters and the loss's value alone, or a function that "
            f"makes one of the learning rate's schedule, such as optax.adam ({shortened(error)})."
        ) from error


def _usable(optimizer: Any, params: Any) -> optax.GradientTransformationExtraArgs:
    """The optimizer, once it is traced with what a step gives it for parameters of such shapes."""
    optimizer = optax.with_extra_args_support(optimizer)
    # What a strict promotion of dtypes would refuse is no option's fault.
    with jax.numpy_dtype_promotion("standard"):
        update = lambda x, y: optimizer.update(x, optimizer.init(x), x, value=y)  # noqa: E731
        _, state = jax.eval_shape(update, params, jax.ShapeDtypeStruct((), jnp.float32))
    if any(jnp.issubdtype(x.dtype, jax.dtypes.prng_key) for x in jax.tree.leaves(state)):
        raise ValueError("it keeps a random key, which checkpoints cannot hold")
    return optimizer
