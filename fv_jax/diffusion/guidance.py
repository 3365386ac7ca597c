"""Classifier-free guidance (arXiv:2207.12598): a function that takes denoisers or velocities and returns one.

    guided(x, time) = null + w (cond - null)                       (1)   w = 1 is cond alone

It is linear, so it means the same for velocities, for x0 and for whatever a network predicts. The scale w is a number,
or a table of one for each of the 1000 timesteps k, made in float64 on the host, with g the guidance scale and p the
exponent:

    constant  w = g                                                (2)   off at g = 1
    cosine    w = 1 + (g - 1) (1 - cos(pi (1 - k/1000)^p)) / 2     (3)   off at g = 1
    official  w = 1 + g (1 - cos(pi ((n - k)/n)^p)) / 2            (4)   off at g = 0; model guide 5.2

(3) rises from 1 at the noise to g at the data. (4) was meant to, but subtracts the timestep k, up to 999, from the
number of steps n: the base is negative and large, and w looks random in [1, 1 + g]. The official samples were made
with it. The cosine's argument reaches 10^7: in float32 w would be off by more than half its range.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from fv_jax.diffusion.noise_schedules import NUM_TIMESTEPS
from fv_jax.diffusion.time_grids import Times

FlowFn = Callable[[jax.Array, Times], jax.Array]  # (x, one time) -> velocity or x0, shaped like x
CondFn = Callable[[jax.Array, Times, jax.Array], jax.Array]  # (x, one time, condition) -> the same
Scale = float | np.ndarray  # w: a number, or (1000,) by timestep, on the host
Kind = Literal['official', 'constant', 'cosine']


def scales(kind: Kind, scale: float, exponent: int = 5, num_steps: int = 51) -> np.ndarray:
    """The table of w by timestep, float64 (1000,).

    Args:
      kind: of (2), (3), (4).
      scale: g.
      exponent: p of (3) and (4), a whole number: the base of (4) is negative.
      num_steps: n of (4).
    """
    return TABLES[kind](scale, exponent, num_steps)


def _constant(scale: float, exponent: int, num_steps: int) -> np.ndarray:
    return np.full(NUM_TIMESTEPS, scale, np.float64)


def _cosine(scale: float, exponent: int, num_steps: int) -> np.ndarray:
    progress = 1 - np.arange(NUM_TIMESTEPS) / NUM_TIMESTEPS
    return 1 + (scale - 1) * (1 - np.cos(np.pi * progress**exponent)) / 2


def _official(scale: float, exponent: int, num_steps: int) -> np.ndarray:
    progress = (num_steps - np.arange(NUM_TIMESTEPS)) / num_steps
    return 1 + scale * (1 - np.cos(np.pi * progress**exponent)) / 2


TABLES: dict[str, Callable[[float, int, int], np.ndarray]] = {
    'official': _official,
    'constant': _constant,
    'cosine': _cosine,
}


def is_off(scale: Scale) -> bool:
    """Whether w is 1 everywhere."""
    return bool(np.all(np.asarray(scale) == 1))


def scale_at(scale: Scale, time: Times) -> float | jax.Array:
    """w at one time: of a table, the entry of the nearest timestep, float32."""
    if np.ndim(scale) == 0:
        return scale
    index = jnp.clip(jnp.round(time.timestep), 0, NUM_TIMESTEPS - 1).astype(jnp.int32)
    return jnp.asarray(scale, jnp.float32)[index]


def mix(cond: jax.Array, null: jax.Array, scale: float | jax.Array) -> jax.Array:
    """null + scale (cond - null)."""
    return null + scale * (cond - null)


def classifier_free(cond_fn: FlowFn, null_fn: FlowFn, scale: Scale) -> FlowFn:
    """Guidance by two evaluations, one after the other: least memory. With scale 1 `null_fn` is never called."""
    if is_off(scale):
        return cond_fn
    return lambda x, time: mix(cond_fn(x, time), null_fn(x, time), scale_at(scale, time))


def classifier_free_batched(
    fn: CondFn, cond: jax.Array, null_cond: jax.Array, scale: Scale, *, cond_first: bool = True
) -> FlowFn:
    """Guidance by one evaluation at twice the batch: `fn` sees two copies of x and both conditions, stacked. With scale
    1 the batch is not doubled.

    Args:
      fn: sees x, a time and a condition.
      cond, null_cond: (B, ...) each.
      scale: the guidance scale, 1 = off, or a table of it.
      cond_first: the order of the stack: [cond, null] as in the official second stage, or [null, cond] as in the first.
    """
    if is_off(scale):
        return lambda x, time: fn(x, time, cond)

    stacked_cond = jnp.concatenate([cond, null_cond] if cond_first else [null_cond, cond])

    def guided(x: jax.Array, time: Times) -> jax.Array:
        first, second = jnp.split(fn(jnp.concatenate([x, x]), time, stacked_cond), 2)
        w = scale_at(scale, time)
        return mix(first, second, w) if cond_first else mix(second, first, w)

    return guided
