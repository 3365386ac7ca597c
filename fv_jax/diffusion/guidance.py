"""Classifier-free guidance (arXiv:2207.12598) of denoisers and velocity functions.

    guided(x, time) = null + w (cond - null)                       (1)   w = 1 is cond alone

It is linear, so that it is the same for velocities, for x0 and for every other prediction. The scale w is a number or a
schedule, a table of one value for each of the 1000 timesteps k, computed in float64 on the host. With g the guidance
scale and p the exponent:

    constant    w = g                                                (2)   off at g = 1
    cosine      w = 1 + (g - 1) (1 - cos(pi (1 - k/1000)^p)) / 2     (3)   off at g = 1
    official    w = 1 + g (1 - cos(pi ((n - k)/n)^p)) / 2            (4)   off at g = 0; model guide 5.2
    decreasing  w = 1 + (g - 1) (k/1000)^p                           (5)   off at g = 1

(3) rises from 1 at the noise to g at the data. (5) falls from g to 1: motion and composition are decided near noise;
near the data, where arXiv:2404.07724 leaves guidance out, it exaggerates contrast. (4) is the official code's, which
subtracts the timestep k, up to 999, from the number of steps n: the base is negative and large, and w varies
erratically in [1, 1 + g]. The official samples were made with it. The argument of the cosine reaches 10^7, so that the
error of w in float32 would exceed half its range.
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
GuidanceKind = Literal['official', 'constant', 'cosine', 'decreasing']


def guidance_schedule(kind: GuidanceKind, scale: float, exponent: int = 5, num_steps: int = 51) -> np.ndarray:
    """Computes the guidance scale w for every timestep.

    Args:
      kind: 'constant' is (2), 'cosine' (3), 'official' (4), 'decreasing' (5).
      scale: g.
      exponent: p of (3), (4) and (5), an integer: the base of (4) is negative.
      num_steps: n of (4).

    Returns:
      w by timestep, float64 (1000,).
    """
    return SCHEDULES[kind](scale, exponent, num_steps)


def _constant(scale: float, exponent: int, num_steps: int) -> np.ndarray:
    return np.full(NUM_TIMESTEPS, scale, np.float64)


def _cosine(scale: float, exponent: int, num_steps: int) -> np.ndarray:
    progress = 1 - np.arange(NUM_TIMESTEPS) / NUM_TIMESTEPS
    return 1 + (scale - 1) * (1 - np.cos(np.pi * progress**exponent)) / 2


def _official(scale: float, exponent: int, num_steps: int) -> np.ndarray:
    progress = (num_steps - np.arange(NUM_TIMESTEPS)) / num_steps
    return 1 + scale * (1 - np.cos(np.pi * progress**exponent)) / 2


def _decreasing(scale: float, exponent: int, num_steps: int) -> np.ndarray:
    return 1 + (scale - 1) * (np.arange(NUM_TIMESTEPS) / NUM_TIMESTEPS) ** exponent


SCHEDULES: dict[str, Callable[[float, int, int], np.ndarray]] = {
    'official': _official,
    'constant': _constant,
    'cosine': _cosine,
    'decreasing': _decreasing,
}


def is_unguided(scale: Scale) -> bool:
    """Returns whether w is 1 everywhere, so that the unconditional evaluation can be skipped."""
    return bool(np.all(np.asarray(scale) == 1))


def guidance_scale_at(scale: Scale, time: Times) -> float | jax.Array:
    """Looks up w at one time.

    Args:
      scale: a number, or w by timestep, (1000,).
      time: scalars.

    Returns:
      The number itself, or the float32 entry for the nearest timestep.
    """
    if np.ndim(scale) == 0:
        return scale
    index = jnp.clip(jnp.round(time.timestep), 0, NUM_TIMESTEPS - 1).astype(jnp.int32)
    return jnp.asarray(scale, jnp.float32)[index]


def apply_cfg(cond: jax.Array, null: jax.Array, scale: float | jax.Array) -> jax.Array:
    """Combines two predictions by (1): null + scale (cond - null) (arXiv:2207.12598, eq. 6, whose w is scale - 1).

    Args:
      cond, null: predictions of one shape, conditional and unconditional.
      scale: w.
    """
    return null + scale * (cond - null)


def classifier_free(cond_fn: FlowFn, null_fn: FlowFn, scale: Scale) -> FlowFn:
    """Guides by two evaluations, one after the other, which takes the least memory (arXiv:2207.12598).

    Args:
      cond_fn, null_fn: the conditional and the unconditional prediction.
      scale: w, a number or by timestep; with 1 `null_fn` is never called.

    Returns:
      The guided function (x, time) -> prediction.
    """
    if is_unguided(scale):
        return cond_fn
    return lambda x, time: apply_cfg(cond_fn(x, time), null_fn(x, time), guidance_scale_at(scale, time))


def classifier_free_batched(
    fn: CondFn, cond: jax.Array, null_cond: jax.Array, scale: Scale, *, cond_first: bool = True
) -> FlowFn:
    """Guides by one evaluation at twice the batch size: two copies of x and both conditions (arXiv:2207.12598).

    With scale 1 the batch is not doubled.

    Args:
      fn: (x, time, condition) -> prediction.
      cond, null_cond: (B, ...) each.
      scale: w, a number or by timestep; 1 is no guidance.
      cond_first: the order of the stack: [cond, null] as in the official second stage, or [null, cond] as in the first.

    Returns:
      The guided function (x, time) -> prediction.
    """
    if is_unguided(scale):
        return lambda x, time: fn(x, time, cond)

    stacked_cond = jnp.concatenate([cond, null_cond] if cond_first else [null_cond, cond])

    def guided(x: jax.Array, time: Times) -> jax.Array:
        first, second = jnp.split(fn(jnp.concatenate([x, x]), time, stacked_cond), 2)
        w = guidance_scale_at(scale, time)
        return apply_cfg(first, second, w) if cond_first else apply_cfg(second, first, w)

    return guided
