"""What networks are trained to predict, and where perfect ones lead."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fv_jax.diffusion import noise_schedules, prediction_types, process
from fv_jax.diffusion.prediction_types import PREDICTION_TYPES, Steps
from fv_jax.diffusion.samplers import SAMPLERS
from fv_jax.diffusion.time_grids import Times
from tests.diffusion.fixed_noise import fixed_noise

SHAPE = (4, 2, 3, 5)


def normal(count, shape, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(0).normal(size=(count, *shape)), dtype)


def data_and_noise():
    return normal(2, SHAPE)


def test_v_prediction_loss_is_the_weighted_x0_loss():
    """(4), at every timestep of the table, the noisiest and the cleanest included."""
    with jax.enable_x64(True):
        a_B = jnp.asarray(noise_schedules.sqrt_alphas_by_timestep(), jnp.float64)
        data, noise, v_theta = normal(3, (1000, 7), jnp.float64)
        x, v = process.add_noise(data, noise, a_B), process.v_target(data, noise, a_B)
        x0 = process.v_to_x0(x, v_theta, a_B)
        weighted = ((x0 - data) ** 2).mean(1) / (1 - a_B**2)
        np.testing.assert_allclose(weighted, ((v_theta - v) ** 2).mean(1), rtol=1e-9)


def test_v_example_follows_the_noise_schedule():
    data, noise = data_and_noise()
    x, target, timestep_B = prediction_types.v_example(data, noise, jnp.array([0.0, 0.5, 0.9991, 1.0]))
    assert timestep_B.dtype == jnp.int32 and timestep_B.tolist() == [0, 499, 999, 999]
    a = noise_schedules.sqrt_alphas_by_timestep()[499]
    np.testing.assert_allclose(x[1], a * data[1] + np.sqrt(1 - a**2) * noise[1], atol=1e-6)
    np.testing.assert_allclose(target[1], a * noise[1] - np.sqrt(1 - a**2) * data[1], atol=1e-6)
    np.testing.assert_array_equal(x[2:], noise[2:])  # nothing is left of the data
    np.testing.assert_array_equal(target[2:], -data[2:])


def test_flow_example():
    data, noise = data_and_noise()
    x, target, timestep_B = prediction_types.flow_example(data, noise, jnp.array([0.0, 0.25, 0.5, 1.0]))
    np.testing.assert_array_equal(timestep_B, [0, 250, 500, 1000])
    np.testing.assert_allclose(x[1], 0.25 * noise[1] + 0.75 * data[1], atol=1e-6)
    np.testing.assert_array_equal(x[3], noise[3])
    np.testing.assert_array_equal(target, noise - data)


def oracle(name, data, noise, num_steps):
    """Returns a network that knows the data. Its v is computed from the state, which the noise of an SDE changes."""
    alphas = noise_schedules.denoiser_sqrt_alphas(noise_schedules.zero_snr_schedule(num_steps))

    def v(x, time):
        a = jnp.asarray(alphas)[time.timestep.astype(jnp.int32)]
        return (a * x - data) / jnp.sqrt(1 - a**2)

    return {'v_prediction': v, 'flow': lambda x, time: noise - data}[name]


@pytest.mark.parametrize(
    'sampler', [name for name, found in SAMPLERS.items() if found.prediction_type in PREDICTION_TYPES]
)
def test_integration_with_an_exact_network_reaches_the_data(sampler):
    name = SAMPLERS[sampler].prediction_type
    data, noise = data_and_noise()
    num_steps = 6
    step_noise = normal(num_steps - 1, SHAPE)
    steps = Steps(sampler, num_steps, 2.0 if name == 'flow' else 1.0)
    predict = oracle(name, data, noise, num_steps)
    out = PREDICTION_TYPES[name].trajectory(predict, noise, steps, fixed_noise(step_noise)).integrate()
    np.testing.assert_allclose(out, data, atol=1e-5)


def test_v_denoiser_uses_the_nearest_of_1000_timesteps():
    table = noise_schedules.zero_snr_schedule(51)
    used = noise_schedules.sqrt_alphas_by_timestep()[noise_schedules.nearest_timesteps(table.sqrt_alphas)]
    assert 5e-4 < np.abs(used - table.sqrt_alphas).max() < 6e-4
    denoise = prediction_types.v_denoiser(lambda x, time: jnp.zeros_like(x), 51)
    for i in (0, 3, 25, 50):
        got = denoise(jnp.ones(2), Times(jnp.float32(0), jnp.float32(table.timesteps[i])))
        np.testing.assert_allclose(got, used[i], rtol=1e-6)
