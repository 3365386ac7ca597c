"""DPM-Solver++ (2M and 2M SDE, arXiv:2211.01095) and DDIM (arXiv:2010.02502) over a noise schedule (model guide 5.2).

A sampler calls `denoise_fn(x, time) -> x0` and nothing else of the network; its caller builds that function from the
prediction (v), guidance and the rounding of a. At step i = 0 ... n - 1 the state is x_i = a_i x0 + s_i eps with
s = sqrt(1 - a^2), from a_0 = 0 (pure noise) to the schedule's last a; a_n = 1 is data. With lambda = ln(a / s),
h = lambda_{i+1} - lambda_i, r = (lambda_i - lambda_{i-1}) / h, D_i = denoise_fn(x_i, time_i) and

    D' = D_i + (D_i - D_{i-1}) / (2 r)                                                               (1)

a step is

    dpmpp_2m_sde  x_{i+1} = s_{i+1}/s_i e^{-h} x_i + a_{i+1} (1 - e^{-2h}) D' + s_{i+1} sqrt(1 - e^{-2h}) noise_i    (2)
    dpmpp_2m      x_{i+1} = s_{i+1}/s_i x_i + a_{i+1} (1 - e^{-h}) D'                                                (3)
    ddim          (3) with D_i in place of D'                                                                        (4)

At the first step lambda = -inf, so that e^{-h} = 0 and there is no D_{i-1}; at the second lambda_{i-1} = -inf, so that
D' = D_i; the last one is x_n = D_{n-1} (in the official code D_{n-2} does not contribute either, although r = 0 there).

So every step is a sum of x_i, D_i, D_{i-1} and noise_i with coefficients that depend on the schedule alone. They are
computed in float64 on the host; the sums are computed in the state's dtype, float32 at least.

The steps from i on, from data that was noised to x_i, are those of the schedule without its first i timesteps: there is
no D_{i-1} at their first step.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fv_jax.diffusion.guidance import FlowFn
from fv_jax.diffusion.noise_schedules import NUM_TIMESTEPS, NoiseSchedule
from fv_jax.diffusion.time_grids import Times
from fv_jax.diffusion.trajectory import Trajectory, take_step

NoiseFn = Callable[[jax.Array], jax.Array]  # a step's index, int32 -> unit Gaussian noise shaped like the state


class Coefficients(NamedTuple):
    """The coefficients of x_i, D_i, D_{i-1} and noise_i in the next state, for each of n steps: float64 (n,) each."""

    x: np.ndarray
    denoised: np.ndarray
    previous: np.ndarray
    noise: np.ndarray


def dpmpp_2m_sde(denoise_fn: FlowFn, x: jax.Array, schedule: NoiseSchedule, noise_fn: NoiseFn) -> Trajectory:
    """Samples by DPM-Solver++(2M) SDE (2): stochastic, second order; the sampler of the official stage 1. nfe = n.

    Source: arXiv:2211.01095, the SDE variant of algorithm 2.

    Args:
      denoise_fn: (x, time) -> x0; `time` has t = timestep / 1000 and the schedule's timestep, both float32 scalars.
      x: unit normal noise, of any shape; data noised to the first a of a schedule that begins later.
      schedule: n steps, from a = 0 up.
      noise_fn: returns the noise of step i = 0 ... n - 2, unit normal, shaped like `x`.

    Returns:
      The trajectory to data, shaped like `x`, in its dtype or float32.

    Raises:
      ValueError: `noise_fn` is None.
    """
    return _solve(dpmpp_sde_coefficients(schedule), denoise_fn, x, schedule, noise_fn)


def dpmpp_2m(denoise_fn: FlowFn, x: jax.Array, schedule: NoiseSchedule, noise_fn: NoiseFn | None = None) -> Trajectory:
    """Samples by DPM-Solver++(2M) (3): deterministic, second order (arXiv:2211.01095, algorithm 2). nfe = n.

    Arguments and result are those of `dpmpp_2m_sde`; `noise_fn` is never called.
    """
    return _solve(dpmpp_ode_coefficients(schedule), denoise_fn, x, schedule, noise_fn)


def ddim(denoise_fn: FlowFn, x: jax.Array, schedule: NoiseSchedule, noise_fn: NoiseFn | None = None) -> Trajectory:
    """Samples by DDIM (4) with eta = 0: deterministic, first order (arXiv:2010.02502, eq. 12). nfe = n.

    Arguments and result are those of `dpmpp_2m_sde`; `noise_fn` is never called.
    """
    return _solve(ddim_coefficients(schedule), denoise_fn, x, schedule, noise_fn)


def dpmpp_sde_coefficients(schedule: NoiseSchedule) -> Coefficients:
    """Computes the coefficients of every step of (2)."""
    a_next, s, s_next, ratio = _signal_and_noise(schedule)
    more = _extrapolation(schedule)
    denoised = a_next * (1 - ratio**2)
    noise = s_next * np.sqrt(1 - ratio**2)
    return Coefficients(s_next / s * ratio, denoised * (1 + more), -denoised * more, noise)


def dpmpp_ode_coefficients(schedule: NoiseSchedule) -> Coefficients:
    """Computes the coefficients of every step of (3)."""
    first_order, more = ddim_coefficients(schedule), _extrapolation(schedule)
    return first_order._replace(denoised=first_order.denoised * (1 + more), previous=-first_order.denoised * more)


def ddim_coefficients(schedule: NoiseSchedule) -> Coefficients:
    """Computes the coefficients of every step of (4)."""
    a_next, s, s_next, ratio = _signal_and_noise(schedule)
    none = np.zeros_like(s)
    return Coefficients(s_next / s, a_next * (1 - ratio), none, none)


def _signal_and_noise(schedule: NoiseSchedule) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Computes (a_{i+1}, s_i, s_{i+1}, e^{-h}) of every step.

    e^{-h} is computed as (a_i s_{i+1}) / (s_i a_{i+1}), without lambda, which is infinite at both ends.
    """
    a = np.append(schedule.sqrt_alphas.astype(np.float64), 1.0)
    s = np.sqrt(1 - a**2)
    return a[1:], s[:-1], s[1:], a[:-1] * s[1:] / (s[:-1] * a[1:])


def _extrapolation(schedule: NoiseSchedule) -> np.ndarray:
    """Computes 1 / (2 r) of (1) for every step; 0 at the first, at the last, and where lambda_{i-1} = -inf."""
    a = schedule.sqrt_alphas.astype(np.float64)
    with np.errstate(divide='ignore'):
        steps = np.diff(np.log(a) - np.log1p(-(a**2)) / 2)  # h of the steps 0 ... n - 2; infinite from a = 0
    more = np.zeros(len(a))
    more[1:-1] = steps[1:] / steps[:-1] / 2
    return more


def _solve(
    coefficients: Coefficients, denoise_fn: FlowFn, x: jax.Array, schedule: NoiseSchedule, noise_fn: NoiseFn | None
) -> Trajectory:
    num_steps, stochastic = len(schedule.timesteps), bool(np.any(coefficients.noise))
    if stochastic and noise_fn is None:
        raise ValueError('this sampler adds noise at every step but the last; pass a noise_fn')
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    timesteps = jnp.asarray(schedule.timesteps, jnp.float32)
    steps = Times(timesteps / NUM_TIMESTEPS, timesteps), Coefficients(*(jnp.asarray(w, dtype) for w in coefficients))

    def advance(state: tuple[jax.Array, jax.Array], i: jax.Array) -> tuple[jax.Array, jax.Array]:
        x, previous = state
        time, w = take_step(steps, i)
        denoised = denoise_fn(x, time).astype(dtype)
        x = w.x * x + w.denoised * denoised + w.previous * previous
        if stochastic:
            x += w.noise * noise_fn(jnp.minimum(i, num_steps - 2)).astype(dtype)  # the last one's weight is 0
        return x, denoised

    start = x.astype(dtype)
    return Trajectory((start, jnp.zeros_like(start)), advance, lambda state: state[0], num_steps)
