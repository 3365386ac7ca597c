"""What networks are trained to predict, and where perfect ones lead."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fv_jax.diffusion import noise_schedules, prediction_types, process, time_grids
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


@pytest.mark.parametrize('name', PREDICTION_TYPES)
def test_noise_levels_are_the_shares_of_noise_in_the_states(name):
    """Of constant data and noise the state itself is the share, once its two parts are scaled to sum to 1."""
    steps = Steps('any', 7, 2.0 if name == 'flow' else 1.0)
    kind = PREDICTION_TYPES[name]
    levels = kind.noise_levels(steps)
    assert levels.shape == (8,) and levels[0] == 1 and levels[-1] == 0 and (np.diff(levels) < 0).all()
    for first, level in enumerate(levels[:-1]):
        data, noise = (
            kind.first_state(a, b, steps._replace(first=first))
            for a, b in ((jnp.ones((1, 1)), jnp.zeros((1, 1))), (jnp.zeros((1, 1)), jnp.ones((1, 1))))
        )
        np.testing.assert_allclose(float(noise[0, 0] / (noise + data)[0, 0]), level, rtol=1e-6)


def test_first_states_are_those_of_the_schedule_and_of_the_time_grid():
    data, noise = data_and_noise()
    for first in (1, 20, 50):
        a = noise_schedules.zero_snr_schedule(51).sqrt_alphas[first]
        state = PREDICTION_TYPES['v_prediction'].first_state(data, noise, Steps('ddim', 51, 1.0, first))
        np.testing.assert_array_equal(state, process.add_noise(data, noise, jnp.full(SHAPE[:1], a)))
        t = time_grids.flow_time_grid(51, 2.0).t[first]
        state = PREDICTION_TYPES['flow'].first_state(data, noise, Steps('euler', 51, 2.0, first))
        np.testing.assert_allclose(state, t * noise + (1 - t) * data, atol=1e-6)


@pytest.mark.parametrize('first', [1, 4])
@pytest.mark.parametrize('sampler', ['ddim', 'euler', 'heun'])
def test_integration_from_a_later_state_is_the_rest_of_the_whole(sampler, first):
    """Of samplers without memory, for a network that is far from exact."""
    name, num_steps = SAMPLERS[sampler].prediction_type, 6
    _, noise = data_and_noise()
    seen = []

    def predict(x, time):
        seen.append(float(time.timestep))
        return jnp.tanh(2 * x) - time.t

    kind, steps = PREDICTION_TYPES[name], Steps(sampler, num_steps, 2.0 if name == 'flow' else 1.0)
    whole = kind.trajectory(predict, noise, steps, None)
    states = [whole.start]
    for i in range(num_steps):
        states.append(whole.advance(states[-1], i))
    every, seen[:] = list(seen), []
    state = states[first][0] if name == 'v_prediction' else states[first]
    rest = kind.trajectory(predict, state, steps._replace(first=first), None)
    assert rest.num_steps == num_steps - first
    state = rest.start
    for i in range(rest.num_steps):
        state = rest.advance(state, i)
    np.testing.assert_array_equal(rest.finish(state), whole.finish(states[-1]))
    assert seen == every[len(every) * first // num_steps :]


@pytest.mark.parametrize('first', [1, 3, 5])
@pytest.mark.parametrize(
    'sampler', [name for name, found in SAMPLERS.items() if found.prediction_type in PREDICTION_TYPES]
)
def test_integration_from_a_later_state_with_an_exact_network_reaches_the_data(sampler, first):
    name, num_steps = SAMPLERS[sampler].prediction_type, 6
    data, noise = data_and_noise()
    steps = Steps(sampler, num_steps, 2.0 if name == 'flow' else 1.0, first)
    kind, predict = PREDICTION_TYPES[name], oracle(name, data, noise, num_steps)
    rest = kind.trajectory(predict, kind.first_state(data, noise, steps), steps, fixed_noise(normal(5, SHAPE)))
    np.testing.assert_allclose(rest.integrate(), data, atol=1e-5)


def test_v_denoiser_uses_the_nearest_of_1000_timesteps():
    table = noise_schedules.zero_snr_schedule(51)
    used = noise_schedules.sqrt_alphas_by_timestep()[noise_schedules.nearest_timesteps(table.sqrt_alphas)]
    assert 5e-4 < np.abs(used - table.sqrt_alphas).max() < 6e-4
    denoise = prediction_types.v_denoiser(lambda x, time: jnp.zeros_like(x), 51)
    for i in (0, 3, 25, 50):
        got = denoise(jnp.ones(2), Times(jnp.float32(0), jnp.float32(table.timesteps[i])))
        np.testing.assert_allclose(got, used[i], rtol=1e-6)
