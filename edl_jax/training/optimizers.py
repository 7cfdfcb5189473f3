"""Optimisers of optax by name, and the learning rate's schedule."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from edl_jax.checked import Checked, NotNegative, Positive
from edl_jax.errors import ConfigError

# What is trained: the classifier, and a loss that has parameters of its own.
MODEL, LOSS = "model", "loss"
_DECAYED = {MODEL: True, LOSS: False}
Optimizer = optax.GradientTransformation | Callable[[optax.Schedule], Any]


def make_schedule(learning_rate: float, *, warmup_steps: int, total_steps: int) -> optax.Schedule:
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
    """An optimiser of optax.

    The gradient is clipped first. Where the optimiser has a `weight_decay` of its own, with a mask
    (AdamW, Lion, LAMB, ...), that is the decay; otherwise it is an L2 penalty, `weight_decay *
    parameter` added to the gradient. A loss's own parameters never decay.

    Raises:
      ConfigError: if there is no such optimiser, it does not take the options, or it needs more
        than gradients.
    """

    name: str = "sgd"
    """Function of optax that takes a learning_rate, such as sgd, adamw or lion."""
    options: dict[str, float | bool | str | None] | None = None
    """Its own arguments; default: momentum 0.9 and nesterov for sgd, else optax's defaults."""
    weight_decay: NotNegative = 5e-4
    """Factor of the decay."""
    clip_norm: Positive | None = None
    """Largest Euclidean norm of the gradient; default: it is not clipped."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.make(0.1)

    def make(self, learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
        """The optimiser, of parameters `{"model": ..., "loss": ...}`."""
        options = self.options
        if options is None:
            options = {"momentum": 0.9, "nesterov": True} if self.name == "sgd" else {}
        make: Any = getattr(optax, self.name, None)
        known = _arguments(make)
        if "learning_rate" not in known:
            raise ConfigError(
                f"OptimizerConfig.name is {self.name!r}; expected an optimiser of optax, such as "
                "sgd, adamw, lion or rmsprop."
            )
        masks = {"mask", "weight_decay_mask"} & set(known)
        allowed = [x for x in known if x not in {"learning_rate", "weight_decay"} | masks]
        if surplus := [x for x in options if x not in allowed]:
            raise ConfigError(
                f"OptimizerConfig.options has {', '.join(surplus)}; {self.name} takes "
                f"{', '.join(allowed)}."
            )
        own_decay = "weight_decay" in known and bool(masks)
        decay: dict[str, Any] = dict.fromkeys(masks, _DECAYED) if own_decay else {}
        if own_decay:
            decay["weight_decay"] = self.weight_decay
        parts = [] if self.clip_norm is None else [optax.clip_by_global_norm(self.clip_norm)]
        if self.weight_decay and not own_decay:
            parts.append(optax.add_decayed_weights(self.weight_decay, mask=_DECAYED))
        try:
            optimizer = optax.chain(*parts, make(learning_rate, **options, **decay))
            toy = dict.fromkeys((MODEL, LOSS), jax.ShapeDtypeStruct((2,), jnp.float32))
            # What a strict promotion of dtypes would refuse is no option's fault.
            with jax.numpy_dtype_promotion("standard"):
                _, state = jax.eval_shape(lambda x: optimizer.update(x, optimizer.init(x), x), toy)
        except (TypeError, ValueError, NotImplementedError) as error:
            raise ConfigError(
                f"optimizer {self.name!r} with options {dict(options)} cannot be used ({error}); "
                "expected one that needs gradients and parameters alone, and options of the right "
                "kind."
            ) from error
        if any(jnp.issubdtype(x.dtype, jax.dtypes.prng_key) for x in jax.tree.leaves(state)):
            raise ConfigError(
                f"optimizer {self.name!r} keeps a random key, which checkpoints cannot hold; "
                "expected one without randomness of its own, such as sgd."
            )
        return optimizer


def make_optimizer(
    config: OptimizerConfig, schedule: optax.Schedule, given: Optimizer | None = None
) -> optax.GradientTransformation:
    """The optimiser that is given, or made with the schedule, or else that of the configuration.

    Raises:
      ConfigError: if what is given is no optimiser and makes none.
    """
    if given is None:
        return config.make(schedule)
    found = given if isinstance(given, optax.GradientTransformation) else None
    if found is None and callable(given):
        found = given(schedule)
    if not isinstance(found, optax.GradientTransformation):
        raise ConfigError(
            f"optimizer is {given!r}; expected a GradientTransformation of optax, or a function "
            "that makes one of the learning rate's schedule, such as optax.adam."
        )
    return found


def _arguments(make: Any) -> list[str]:
    try:
        return list(inspect.signature(make).parameters)
    except (TypeError, ValueError):  # nothing of that name, or no function
        return []
