"""Prediction types, 'v_prediction' and 'flow': the training target of each, and sampling with its predictions.

'v_prediction' (arXiv:2202.00512), the official first stage's (model guide 5.1, 5.2). With a_k the noise schedule's
signal share at timestep k = 0 ... 999, exactly 0 at 999, and s_k = sqrt(1 - a_k^2):

    x_k  = a_k data + s_k noise                                          (1)
    v    = a_k noise - s_k data                                          (2)   what the network predicts
    x0   = a_k x_k - s_k v_theta                                         (3)   what it takes the data to be
    loss = mean 1/(1 - a_k^2) (x0 - data)^2 = mean (v_theta - v)^2       (4)

The two sides of (4) are equal: (1) and (2) solved for the data give data = a_k x_k - s_k v, so that x0 - data =
-s_k (v_theta - v), and s_k^2 = 1 - a_k^2 cancels. The right one is computed: nothing is divided by a number that is
10^-3 near the data. A sampler of `dpm_solver` takes n steps by (3), with a_k rounded to the table of 1000's nearest
entry, as the official denoiser does.

'flow' (arXiv:2210.02747), the second stage's with noise for a source (`process`, `samplers`):

    x_t      = t noise + (1 - t) data                                    (5)
    velocity = dx/dt = noise - data                                      (6)   what the network predicts
    loss     = mean (velocity_theta - velocity)^2                        (7)

Sampling may begin at state i of n, from data noised by (1) or (5) to the a or the t of that state. Its noise level is

    level = s / (a + s) = t                                              (8)

the share of the noise's standard deviation in both: a network of either type sees as much noise at the same level.

(6) has the signs of (2), so that weights that predict v are a start for it. Stage 2's official network predicts the
opposite of (6), and its stage turns that round; no official network of this flow from noise exists.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fv_jax.diffusion import noise_schedules, process, time_grids
from fv_jax.diffusion.dpm_solver import NoiseFn
from fv_jax.diffusion.guidance import FlowFn
from fv_jax.diffusion.samplers import SAMPLERS, Predicted
from fv_jax.diffusion.trajectory import Trajectory


class TrainingExample(NamedTuple):
    """A training example.

    Attributes:
      x: the network's input (B, ...).
      target: of its prediction, (B, ...).
      timestep_B: the network's timestep.
    """

    x: jax.Array
    target: jax.Array
    timestep_B: jax.Array


class Steps(NamedTuple):
    """The steps from noise to data.

    Attributes:
      num_steps: their number.
      sampler: a name of `samplers.SAMPLERS`.
      shift: of the time grid, for 'flow' only.
      first: the state that they begin at, of those from 0, noise, to num_steps, data.
    """

    sampler: str
    num_steps: int
    shift: float = 1.0
    first: int = 0


class PredictionType(NamedTuple):
    """A prediction type.

    Attributes:
      example: (data, noise, t_B in [0, 1]) -> the training example.
      trajectory: (prediction of the network, first state, steps, noise of a stochastic sampler) -> from there to data.
      noise_levels: steps -> (8) of all n + 1 states, whatever the first, float64.
      first_state: (data, noise, steps) -> data, noised to the first state.
    """

    example: Callable[[jax.Array, jax.Array, jax.Array], TrainingExample]
    trajectory: Callable[[FlowFn, jax.Array, Steps, NoiseFn | None], Trajectory]
    noise_levels: Callable[[Steps], np.ndarray]
    first_state: Callable[[jax.Array, jax.Array, Steps], jax.Array]


def v_example(data: jax.Array, noise: jax.Array, t_B: jax.Array) -> TrainingExample:
    """Makes the training example of 'v_prediction', (1) and (2) (arXiv:2202.00512, appendix D).

    Args:
      data, noise: (B, ...).
      t_B: times in [0, 1], discretized to timesteps.
    """
    timestep_B = time_grids.discretize_times(t_B)
    a_B = jnp.asarray(noise_schedules.sqrt_alphas_by_timestep())[timestep_B]
    return TrainingExample(process.add_noise(data, noise, a_B), process.v_target(data, noise, a_B), timestep_B)


def v_denoiser(predict_fn: FlowFn, num_steps: int) -> FlowFn:
    """Turns predictions of v into those of x0 by (3), for a sampler of `num_steps` steps.

    Args:
      predict_fn: (x, time) -> v.
      num_steps: n of the sampler's schedule, which determines the rounding of a.

    Returns:
      (x, time) -> x0.
    """
    sqrt_alphas = noise_schedules.denoiser_sqrt_alphas(noise_schedules.zero_snr_schedule(num_steps))

    def denoise(x: jax.Array, time: time_grids.Times) -> jax.Array:
        a = jnp.asarray(sqrt_alphas)[time.timestep.astype(jnp.int32)]
        return process.v_to_x0(x, predict_fn(x, time), a)

    return denoise


def _v_trajectory(predict_fn: FlowFn, x: jax.Array, steps: Steps, noise_fn: NoiseFn | None) -> Trajectory:
    """Returns the trajectory over the noise schedule of `steps.num_steps` steps, from `steps.first` on."""
    denoise_fn, schedule = v_denoiser(predict_fn, steps.num_steps), noise_schedules.zero_snr_schedule(steps.num_steps)
    rest = noise_schedules.NoiseSchedule(*(values[steps.first :] for values in schedule))
    return SAMPLERS[steps.sampler].trajectory(denoise_fn, x, rest, noise_fn)


def _v_noise_levels(steps: Steps) -> np.ndarray:
    a = np.append(noise_schedules.zero_snr_schedule(steps.num_steps).sqrt_alphas.astype(np.float64), 1.0)
    s = np.sqrt(1 - a**2)
    return s / (a + s)


def _v_first_state(data: jax.Array, noise: jax.Array, steps: Steps) -> jax.Array:
    a = noise_schedules.zero_snr_schedule(steps.num_steps).sqrt_alphas[steps.first]
    return process.add_noise(data, noise, jnp.asarray(a))


def flow_example(data: jax.Array, noise: jax.Array, t_B: jax.Array) -> TrainingExample:
    """Makes the training example of 'flow', (5) and (6) (arXiv:2210.02747, section 4.1).

    Args:
      data, noise: (B, ...).
      t_B: times in [0, 1].
    """
    return TrainingExample(process.interpolate(noise, data, t_B), process.velocity(noise, data), 1000 * t_B)


def _flow_trajectory(predict_fn: FlowFn, x: jax.Array, steps: Steps, noise_fn: NoiseFn | None) -> Trajectory:
    """Returns the trajectory over the time grid, from `steps.first` on; `noise_fn` is never called."""
    grid = time_grids.flow_time_grid(steps.num_steps, steps.shift)
    rest = time_grids.Times(*(values[steps.first :] for values in grid))
    return SAMPLERS[steps.sampler].trajectory(predict_fn, x, rest)


def _flow_noise_levels(steps: Steps) -> np.ndarray:
    return time_grids.flow_time_grid(steps.num_steps, steps.shift).t.astype(np.float64)


def _flow_first_state(data: jax.Array, noise: jax.Array, steps: Steps) -> jax.Array:
    t = time_grids.flow_time_grid(steps.num_steps, steps.shift).t[steps.first]
    return process.interpolate(noise, data, jnp.asarray(t))


PREDICTION_TYPES: dict[Predicted, PredictionType] = {
    'v_prediction': PredictionType(v_example, _v_trajectory, _v_noise_levels, _v_first_state),
    'flow': PredictionType(flow_example, _flow_trajectory, _flow_noise_levels, _flow_first_state),
}
