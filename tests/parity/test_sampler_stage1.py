"""Stage 1's tables, guidance and trajectories against the official ones (model guide 5.1, 5.2 and 8).

Official layout (B, T, C, H, W); ours BFHWC. The latents in these files are scaled, so the stage's scale factor is 1
here.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fv_jax.diffusion import dpm_solver, guidance, noise_schedules, prediction_types, time_grids
from fv_jax.kernels.attention import SINGLE_DEVICE
from fv_jax.stages.low_res import LowRes, LowResConfig
from fv_jax.weights import load_official
from tests.diffusion.fixed_noise import fixed_noise
from tests.parity.official_noise import used_draws

TRAJECTORY = 1e-3


def ours(x):
    return np.moveaxis(x, -3, -1)


def assert_close(got, expected, atol):
    np.testing.assert_allclose(got, expected, rtol=0, atol=atol)


def open_stage(path):
    with np.load(path) as file:
        return dict(file)


def names(tables, pattern):
    found = [(match, tables[key]) for key in tables if (match := re.fullmatch(pattern, key))]
    assert found, f'nothing in the file is called {pattern}'
    return found


# Tables.


@pytest.fixture(scope='module')
def tables(official):
    return open_stage(official / 'sampler_tables.npz')


def test_stage1_sampler_parity_of_guidance_in_float64(tables):
    for match, expected in names(tables, r'f64_steps(\d+)_guidance_scale(\d+)_exp(\d+)'):
        num_steps, scale, exponent = map(int, match.groups())
        table = guidance.guidance_schedule('official', scale, exponent, num_steps)
        assert_close(table[noise_schedules.zero_snr_schedule(num_steps).timesteps], expected, 1e-6)


def test_stage1_sampler_parity_of_denoiser_alphas(tables):
    for match, expected in names(tables, r'steps(\d+)_denoiser_index_shift1'):
        table = noise_schedules.zero_snr_schedule(int(match[1]))
        np.testing.assert_array_equal(noise_schedules.nearest_timesteps(table.sqrt_alphas), expected)
        values = tables[f'steps{match[1]}_denoiser_value_shift1']
        assert_close(noise_schedules.denoiser_sqrt_alphas(table)[table.timesteps], values, 1e-7)


# Trajectories.


@pytest.fixture(scope='module')
def model(official):
    return load_official(official / 'stage1.pt')


@pytest.fixture(scope='module')
def short(official):
    return open_stage(official / 'sampler_stage1_traj.npz')


@pytest.fixture(scope='module')
def long(official):
    return open_stage(official / 'sampler_stage1_traj51.npz')


def make_stage(model, data, **fields):
    return LowRes(LowResConfig(scale_factor=1.0, num_steps=len(data['timestep']), **fields), model.config)


def generate(stage, model, data):
    """From the official first noise, with the official noises of the steps."""
    graphdef, params = nnx.split(model)

    @jax.jit
    def run(params, x, text, noises):
        model = nnx.merge(graphdef, params)
        x = stage.trajectory(model, x, text, fixed_noise(noises), context=SINGLE_DEVICE).integrate()
        return stage.unscale_latents(x)

    return run(params, ours(data['x_T']), data['context'], ours(data['noise_used'][:-1]))


@pytest.mark.parametrize('name', ['short', 'long'])
def test_stage1_sampler_parity_of_network_inputs(request, model, name):
    """Timesteps, shares of signal, the denoiser's own, guidance, the batch's order."""
    data = request.getfixturevalue(name)
    config = make_stage(model, data).config
    table = noise_schedules.zero_snr_schedule(config.num_steps)
    np.testing.assert_array_equal(table.timesteps, data['timestep'])
    np.testing.assert_array_equal(np.stack([table.timesteps] * 2, 1), data['net_timesteps'])
    assert_close([*table.sqrt_alphas, 1], [*data['alpha'], data['next_alpha'][-1]], 1e-7)
    assert_close(noise_schedules.denoiser_sqrt_alphas(table)[table.timesteps], data['denoiser_sigma_quantised'], 1e-7)
    w = guidance.guidance_schedule(
        config.guidance_kind, config.guidance_scale, config.guidance_exponent, config.num_steps
    )
    assert_close(w[table.timesteps], data['f64_guidance_scale'], 1e-6)
    assert bool(np.all(data['uncond_first']))


def test_stage1_sampler_parity_of_every_step(model, short):
    """Each official state, through our denoiser, gives the official x0 and, by the weights, the next state."""
    stage = make_stage(model, short)
    num_steps = stage.config.num_steps
    graphdef, params = nnx.split(model)
    text = jnp.asarray(short['context'])

    @jax.jit
    def denoise(params, x, timestep):
        predict_fn = stage.predict_fn(nnx.merge(graphdef, params), text, context=SINGLE_DEVICE)
        return prediction_types.v_denoiser(predict_fn, num_steps)(x, time_grids.Times(timestep / 1000, timestep))

    weights = dpm_solver.dpmpp_sde_coefficients(noise_schedules.zero_snr_schedule(num_steps))
    previous = np.zeros_like(ours(short['x_T']))
    for i in range(num_steps):
        x, noise = ours(short['x_in'][i]), ours(short['noise_used'][i])
        denoised = denoise(params, x, jnp.float32(short['timestep'][i]))
        assert_close(denoised, ours(short['denoised'][i]), TRAJECTORY)
        w = dpm_solver.Coefficients(*(part[i] for part in weights))
        # The official x0 from here on, so that an error is found where it is made.
        denoised = ours(short['denoised'][i])
        after = w.x * x + w.denoised * denoised + w.previous * previous + (w.noise and w.noise * noise)
        assert_close(after, ours(short['x_out'][i]), 1e-5)
        previous = denoised


def test_stage1_sampler_parity_of_a_short_trajectory(model, short):
    assert_close(generate(make_stage(model, short), model, short), ours(short['final']), TRAJECTORY)


def test_stage1_sampler_parity_with_another_guidance(model, short):
    for match, expected in names(short, r'final_cfg(\d+)'):
        stage = make_stage(model, short, guidance_scale=float(match[1]))
        assert_close(generate(stage, model, short), ours(expected), TRAJECTORY)


@pytest.mark.parametrize(('num_steps', 'used'), [(2, [0]), (3, [0, 2]), (6, [0, 2, 4, 6, 8])])
def test_stage1_sampler_parity_of_unused_noise(num_steps, used):
    draws = jnp.arange(2 * num_steps - 3)
    assert used_draws(draws, num_steps).tolist() == used
    with pytest.raises(ValueError, match=f'{len(draws)} draws: {num_steps + 1} official steps draw'):
        used_draws(draws, num_steps + 1)


def test_stage1_sampler_parity_of_used_noise(short):
    used = used_draws(jnp.asarray(short['all_noise_draws']), len(short['timestep']))
    np.testing.assert_array_equal(used, short['noise_used'][:-1])


def test_stage1_sampler_parity_of_a_long_trajectory(model, long):
    assert_close(generate(make_stage(model, long), model, long), ours(long['final']), TRAJECTORY)
