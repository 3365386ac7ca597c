"""Classifier-free guidance: a function that takes denoisers or velocities and returns one.

    guided(x, time) = null + scale (cond - null)          scale 1 = cond alone

It is linear, so it means the same for velocities, for x0 and for whatever a network predicts.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fv_jax.diffusion.times import Times

FlowFn = Callable[[jax.Array, Times], jax.Array]  # (x, one time) -> velocity or x0, shaped like x
CondFn = Callable[[jax.Array, Times, jax.Array], jax.Array]  # (x, one time, condition) -> the same


def mix(cond: jax.Array, null: jax.Array, scale: float) -> jax.Array:
    """null + scale (cond - null)."""
    return null + scale * (cond - null)


def classifier_free(cond_fn: FlowFn, null_fn: FlowFn, scale: float) -> FlowFn:
    """Guidance by two evaluations, one after the other: least memory. With scale 1 `null_fn` is never called."""
    if scale == 1:
        return cond_fn
    return lambda x, time: mix(cond_fn(x, time), null_fn(x, time), scale)


def classifier_free_batched(
    fn: CondFn, cond: jax.Array, null_cond: jax.Array, scale: float, *, cond_first: bool = True
) -> FlowFn:
    """Guidance by one evaluation at twice the batch: `fn` sees two copies of x and both conditions, stacked. With scale
    1 the batch is not doubled.

    Args:
      fn: sees x, a time and a condition.
      cond, null_cond: (B, ...) each.
      scale: the guidance scale, 1 = off.
      cond_first: the order of the stack: [cond, null] as in the official second stage, or [null, cond] as in the first.
    """
    if scale == 1:
        return lambda x, time: fn(x, time, cond)

    stacked_cond = jnp.concatenate([cond, null_cond] if cond_first else [null_cond, cond])

    def guided(x: jax.Array, time: Times) -> jax.Array:
        first, second = jnp.split(fn(jnp.concatenate([x, x]), time, stacked_cond), 2)
        return mix(first, second, scale) if cond_first else mix(second, first, scale)

    return guided
