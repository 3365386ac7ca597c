"""The registry of samplers, and the solvers of dx/dt = velocity_fn(x, time) over a grid of times.

A solver calls the velocity function only, and does not depend on the network, the text or the guidance. `times` is a
grid of n intervals (`time_grids.Times` of arrays of n + 1); `velocity_fn` gets one `Times` of scalars. A solver returns
its `trajectory.Trajectory`, whose data is the last state, in the dtype of the first.

Not the schedulers of diffusers, which keep their state in an object: a step here is a function of the state, and rounds
where the official code does.

`SAMPLERS` is the only list of samplers: configurations, plans and messages read it. A new solver is its step, its
function and its entry there.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from fv_jax.core.checks import require
from fv_jax.core.config import ConfigError
from fv_jax.diffusion import dpm_solver
from fv_jax.diffusion.guidance import FlowFn
from fv_jax.diffusion.process import expand_dims_like
from fv_jax.diffusion.time_grids import Times
from fv_jax.diffusion.trajectory import Trajectory, take_step

Predicted = Literal[
    'v_prediction', 'flow', 'mean_velocity'
]  # see `prediction_types`; 'mean_velocity' is that of a flow over an interval
MeanVelocityFn = Callable[[jax.Array, Times, Times], jax.Array]  # (x, from, to) -> mean velocity, shaped like x
Step = Callable[[FlowFn, jax.Array, Times, Times], jax.Array]  # (function, x, from, to) -> the increment of x


def euler(velocity_fn: FlowFn, x: jax.Array, times: Times) -> Trajectory:
    """Integrates by Euler's method, first order: x + h v(x, t_i). nfe = n.

    Args:
      velocity_fn: (x, time) -> dx/dt, shaped like x.
      x: the state at the first time, of any shape.
      times: the grid, n + 1 values each.

    Returns:
      The trajectory to the state at the last time, in the dtype of `x`.
    """
    return _solve(_euler_step, velocity_fn, x, times)


def heun(velocity_fn: FlowFn, x: jax.Array, times: Times) -> Trajectory:
    """Integrates by Heun's method, second order: the mean of the slopes at both ends of a step. nfe = 2 n.

    Arguments and result are those of `euler`.
    """
    return _solve(_heun_step, velocity_fn, x, times)


def rk4(velocity_fn: FlowFn, x: jax.Array, times: Times) -> Trajectory:
    """Integrates by the classical Runge-Kutta method, fourth order, with four slopes a step. nfe = 4 n.

    The middle of an interval has t and timestep halfway between those of its ends. Arguments and result are those of
    `euler`.
    """
    return _solve(_rk4_step, velocity_fn, x, times)


def mean_velocity(mean_velocity_fn: MeanVelocityFn, x: jax.Array, times: Times) -> Trajectory:
    """Jumps along a grid by a flow map: x + (r - t) u(x, t, r) from t to r (arXiv:2505.13447). nfe = n.

    Args:
      mean_velocity_fn: (x, time, time to jump to) -> u, the mean of dx/dt over the interval, shaped like x.
      x, times: as in `euler`.

    Returns:
      As `euler`.
    """
    return _solve(_map_step, mean_velocity_fn, x, times)


class Sampler(NamedTuple):
    """How noise, or another source, becomes data.

    Attributes:
      trajectory: for 'v_prediction' of (denoise_fn, x, schedule, noise_fn), as in `dpm_solver`; for the others of
        (function, x, times).
      prediction_type: of the network.
      evaluations: function evaluations in each step.
      step: of a sampler of a 'flow'; its times may be (B,), one for each example.
    """

    trajectory: Callable[..., Trajectory]
    prediction_type: Predicted
    evaluations: int
    step: Step | None = None


def _euler_step(velocity_fn: FlowFn, x: jax.Array, here: Times, there: Times) -> jax.Array:
    return _length(x, here, there) * velocity_fn(x, here)


def _heun_step(velocity_fn: FlowFn, x: jax.Array, here: Times, there: Times) -> jax.Array:
    h = _length(x, here, there)
    start = velocity_fn(x, here)
    end = velocity_fn(_state(x, x + h * start), there)
    return h / 2 * (start + end)


def _rk4_step(velocity_fn: FlowFn, x: jax.Array, here: Times, there: Times) -> jax.Array:
    h = _length(x, here, there)
    middle = Times((here.t + there.t) / 2, (here.timestep + there.timestep) / 2)
    k1 = velocity_fn(x, here)
    k2 = velocity_fn(_state(x, x + h / 2 * k1), middle)
    k3 = velocity_fn(_state(x, x + h / 2 * k2), middle)
    k4 = velocity_fn(_state(x, x + h * k3), there)
    return h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


def _length(x: jax.Array, here: Times, there: Times) -> jax.Array:
    """Computes the step t_{i+1} - t_i (negative towards the data) in the dtype of the state, broadcastable to it."""
    return expand_dims_like(there.t - here.t, x).astype(x.dtype)


def _map_step(mean_velocity_fn: MeanVelocityFn, x: jax.Array, here: Times, there: Times) -> jax.Array:
    return _length(x, here, there) * mean_velocity_fn(x, here, there)


def _state(x: jax.Array, moved: jax.Array) -> jax.Array:
    """Casts an intermediate state to the dtype of the state; a network may return another."""
    return moved.astype(x.dtype)


SAMPLERS: dict[str, Sampler] = {
    'dpmpp_2m_sde': Sampler(dpm_solver.dpmpp_2m_sde, 'v_prediction', 1),
    'dpmpp_2m': Sampler(dpm_solver.dpmpp_2m, 'v_prediction', 1),
    'ddim': Sampler(dpm_solver.ddim, 'v_prediction', 1),
    'euler': Sampler(euler, 'flow', 1, _euler_step),
    'heun': Sampler(heun, 'flow', 2, _heun_step),
    'rk4': Sampler(rk4, 'flow', 4, _rk4_step),
    'mean_velocity': Sampler(mean_velocity, 'mean_velocity', 1),
}


def names(prediction_type: Predicted) -> tuple[str, ...]:
    """Returns the names of the samplers for networks of this prediction type."""
    return tuple(name for name, sampler in SAMPLERS.items() if sampler.prediction_type == prediction_type)


def check_sampler(name: str, prediction_type: Predicted) -> None:
    """Raises ConfigError for a sampler that does not exist, or that needs another prediction type."""
    known = names(prediction_type)
    wrong = f'sampler={name}: must be one of {", ".join(known)}, for the prediction type {prediction_type!r}'
    require(name in known, wrong, ConfigError)


def _solve(step: Step, velocity_fn: Callable[..., jax.Array], x: jax.Array, times: Times) -> Trajectory:
    grid = Times(*(jnp.asarray(part) for part in times))
    if grid.t.ndim != 1 or grid.t.shape != grid.timestep.shape or grid.t.shape[0] < 2:
        raise ValueError(f'a grid is two vectors of n + 1 >= 2 times, got {grid.t.shape} and {grid.timestep.shape}')

    def advance(x: jax.Array, i: jax.Array) -> jax.Array:
        return (x + step(velocity_fn, x, take_step(grid, i), take_step(grid, i + 1))).astype(x.dtype)

    return Trajectory(x, advance, lambda x: x, grid.t.shape[0] - 1)
