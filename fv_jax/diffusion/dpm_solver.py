"""Samplers that know only a denoiser: from noise to data over a table of noise (model guide 5.2).

DPM-Solver++ is arXiv:2211.01095, DDIM arXiv:2010.02502.

`denoise_fn(x, time) -> x0` is all they are told of the network; how x0 comes about (v, guidance, the rounding of a) is
decided outside. At step i = 0 ... n - 1 the state is x_i = a_i x0 + s_i eps with s = sqrt(1 - a^2), from a_0 = 0 (pure
noise) to the table's last a; a_n = 1 is data. With lambda = ln(a / s), h = lambda_{i+1} - lambda_i,
r = (lambda_i - lambda_{i-1}) / h, D_i = denoise_fn(x_i, time_i) and

    D' = D_i + (D_i - D_{i-1}) / (2 r)                                                               (1)

a step is

    dpmpp_2m_sde  x_{i+1} = s_{i+1}/s_i e^{-h} x_i + a_{i+1} (1 - e^{-2h}) D' + s_{i+1} sqrt(1 - e^{-2h}) noise_i    (2)
    dpmpp_2m      x_{i+1} = s_{i+1}/s_i x_i + a_{i+1} (1 - e^{-h}) D'                                                (3)
    ddim          (3) with D_i in place of D'                                                                        (4)

At the first step lambda = -inf, so that e^{-h} = 0 and there is no D_{i-1}; at the second lambda_{i-1} = -inf, so that
D' = D_i; the last one is x_n = D_{n-1} (officially too D_{n-2} has no part in it, though r = 0 there).

So every step is a sum of x_i, D_i, D_{i-1} and noise_i with weights that depend on the table alone: they are made in
float64 on the host, and one `jax.lax.scan` adds up in the state's dtype, float32 at least.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fv_jax.diffusion.guidance import FlowFn
from fv_jax.diffusion.noise_schedules import NUM_TIMESTEPS, NoiseTable
from fv_jax.diffusion.time_grids import Times

NoiseFn = Callable[[jax.Array], jax.Array]  # a step's index, int32 -> unit Gaussian noise shaped like the state


class Weights(NamedTuple):
    """What each step's next state is made of, float64 (n,) each."""

    x: np.ndarray
    denoised: np.ndarray
    previous: np.ndarray
    noise: np.ndarray


def dpmpp_2m_sde(denoise_fn: FlowFn, x: jax.Array, table: NoiseTable, noise_fn: NoiseFn) -> jax.Array:
    """DPM-Solver++(2M) SDE (2), stochastic, second order in the denoiser: the official stage 1. nfe = n.

    Args:
      denoise_fn: (x, time) -> x0; `time` has t = timestep / 1000 and the table's timestep, both float32 scalars.
      x: unit Gaussian noise.
      table: n steps, from a = 0 up.
      noise_fn: the noise of step i = 0 ... n - 2; `given` makes one of an array.
    """
    return _solve(sde_weights(table), denoise_fn, x, table, noise_fn)


def dpmpp_2m(denoise_fn: FlowFn, x: jax.Array, table: NoiseTable, noise_fn: NoiseFn | None = None) -> jax.Array:
    """DPM-Solver++(2M) (3), deterministic, second order. nfe = n. `noise_fn` is never called."""
    return _solve(ode_weights(table), denoise_fn, x, table, noise_fn)


def ddim(denoise_fn: FlowFn, x: jax.Array, table: NoiseTable, noise_fn: NoiseFn | None = None) -> jax.Array:
    """DDIM (4), eta = 0: deterministic, first order. nfe = n. `noise_fn` is never called."""
    return _solve(ddim_weights(table), denoise_fn, x, table, noise_fn)


SAMPLERS: dict[str, Callable[[FlowFn, jax.Array, NoiseTable, NoiseFn], jax.Array]] = {
    'dpmpp_2m_sde': dpmpp_2m_sde,
    'dpmpp_2m': dpmpp_2m,
    'ddim': ddim,
}


def given(noises: jax.Array) -> NoiseFn:
    """The noise of an array (n - 1, ...): that of step i is its entry i."""
    return lambda step: jnp.asarray(noises)[step]


def used_draws(draws: jax.Array, num_steps: int) -> jax.Array:
    """The noises that the official sampler uses of those it draws: it draws one at the first step, two at every middle
    step, of which it throws the first away, and none at the last.

    Args:
      draws: all of them in order, (2 num_steps - 3, ...).
      num_steps: n, 2 or more.

    Returns:
      (num_steps - 1, ...), for `given`.
    """
    if draws.shape[0] != 2 * num_steps - 3:
        raise ValueError(
            f'{draws.shape[0]} draws: {num_steps} official steps draw {2 * num_steps - 3} times, 1 at the first, 2 at '
            f'each middle one, 0 at the last'
        )
    return draws[::2]


def sde_weights(table: NoiseTable) -> Weights:
    """Of (2)."""
    a_next, s, s_next, ratio = _shares(table)
    more = _extrapolation(table)
    denoised = a_next * (1 - ratio**2)
    noise = s_next * np.sqrt(1 - ratio**2)
    return Weights(s_next / s * ratio, denoised * (1 + more), -denoised * more, noise)


def ode_weights(table: NoiseTable) -> Weights:
    """Of (3)."""
    first_order, more = ddim_weights(table), _extrapolation(table)
    return first_order._replace(denoised=first_order.denoised * (1 + more), previous=-first_order.denoised * more)


def ddim_weights(table: NoiseTable) -> Weights:
    """Of (4)."""
    a_next, s, s_next, ratio = _shares(table)
    none = np.zeros_like(s)
    return Weights(s_next / s, a_next * (1 - ratio), none, none)


def _shares(table: NoiseTable) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(a_{i+1}, s_i, s_{i+1}, e^{-h}) of every step. e^{-h} is made without lambda, which is infinite at both ends."""
    a = np.append(table.sqrt_alphas.astype(np.float64), 1.0)
    s = np.sqrt(1 - a**2)
    return a[1:], s[:-1], s[1:], a[:-1] * s[1:] / (s[:-1] * a[1:])


def _extrapolation(table: NoiseTable) -> np.ndarray:
    """1 / (2 r) of (1) by step; 0 at the first, the second and the last."""
    a = table.sqrt_alphas.astype(np.float64)[1:]
    steps = np.diff(np.log(a) - np.log1p(-(a**2)) / 2)  # h of the steps 1 ... n - 2
    more = np.zeros(len(table.sqrt_alphas))
    more[2:-1] = steps[1:] / steps[:-1] / 2
    return more


def _solve(
    weights: Weights, denoise_fn: FlowFn, x: jax.Array, table: NoiseTable, noise_fn: NoiseFn | None
) -> jax.Array:
    num_steps, stochastic = len(table.timesteps), bool(np.any(weights.noise))
    if stochastic and noise_fn is None:
        raise ValueError('this sampler adds noise at every step but the last: give it a noise_fn')
    dtype = jnp.promote_types(x.dtype, jnp.float32)

    def advance(state, step):
        x, previous = state
        i, time, w = step
        denoised = denoise_fn(x, time).astype(dtype)
        x = w.x * x + w.denoised * denoised + w.previous * previous
        if stochastic:
            x += w.noise * noise_fn(jnp.minimum(i, num_steps - 2)).astype(dtype)  # the last one's weight is 0
        return (x, denoised), None

    timesteps = jnp.asarray(table.timesteps, jnp.float32)
    steps = (
        jnp.arange(num_steps),
        Times(timesteps / NUM_TIMESTEPS, timesteps),
        Weights(*(jnp.asarray(w, dtype) for w in weights)),
    )
    start = x.astype(dtype)
    (last, _), _ = jax.lax.scan(advance, (start, jnp.zeros_like(start)), steps)
    return last
