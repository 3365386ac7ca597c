"""Noise tables and time grids against the official ones (model guide 5.1 and 5.3)."""

import re

import numpy as np
import pytest

from fv_jax.diffusion import noise_schedules, time_grids


@pytest.fixture(scope='module')
def tables(official):
    with np.load(official / 'sampler_tables.npz') as file:
        return dict(file)


@pytest.fixture(scope='module')
def grids(official):
    with np.load(official / 'sampler_stage2.npz') as file:
        return {key: file[key] for key in file.files if key.startswith(('grid_', 'ref_'))}


def names(tables, pattern):
    found = [(match, tables[key]) for key in tables if (match := re.fullmatch(pattern, key))]
    assert found, f'nothing in the file is called {pattern}'
    return found


def test_schedule_parity_of_alphas_cumprod_in_float64(tables):
    for match, expected in names(tables, r'f64_alphas_cumprod_shift([\d.]+)'):
        np.testing.assert_allclose(noise_schedules.alphas_cumprod(float(match[1])), expected, rtol=1e-12)


def test_schedule_parity_of_1000_timesteps(tables):
    for match, expected in names(tables, r'sqrt_alphas_cumprod_1000_shift([\d.]+)'):
        np.testing.assert_allclose(
            noise_schedules.sqrt_alphas_by_timestep(float(match[1])), expected, rtol=0, atol=1e-7
        )


def test_schedule_parity_of_fewer_steps(tables):
    for match, expected in names(tables, r'steps(\d+)_sqrt_alphas_cumprod_shift([\d.]+)'):
        a = noise_schedules.zero_snr_schedule(int(match[1]), float(match[2])).sqrt_alphas
        np.testing.assert_allclose([*a, 1], expected, rtol=0, atol=1e-7)  # the official sequence ends with clean data


def test_schedule_parity_of_timesteps(tables):
    for match, expected in names(tables, r'steps(\d+)_timesteps'):
        np.testing.assert_array_equal(noise_schedules.zero_snr_schedule(int(match[1])).timesteps, expected)


def test_schedule_parity_of_the_source_signal(grids):
    a = noise_schedules.sqrt_alphas_by_timestep()
    expected = grids['ref_alpha_sqrt_at_675_650_700_750']
    np.testing.assert_allclose(a[[675, 650, 700, 750]], expected, rtol=0, atol=1e-7)


def test_schedule_parity_of_exact_time_grids(grids):
    for match, expected in names(grids, r'grid_f32_n(\d+)_shift([\d.]+)_t'):
        n, shift = match[1], match[2]
        ours = time_grids.flow_time_grid(int(n), float(shift))
        np.testing.assert_allclose(1 - ours.t, expected, rtol=0, atol=1e-6)
        np.testing.assert_allclose(ours.timestep, grids[f'grid_f32_n{n}_shift{shift}_idx'], rtol=1e-6, atol=1e-6)


def test_schedule_parity_of_official_time_grids_is_bit_exact(grids):
    for match, expected in names(grids, r'grid_bf16cpu_n(\d+)_shift([\d.]+)_t'):
        n, shift = match[1], match[2]
        ours = time_grids.flow_time_grid(int(n), float(shift), 'official')
        np.testing.assert_array_equal(1 - ours.t, expected)
        np.testing.assert_array_equal(ours.timestep, grids[f'grid_bf16cpu_n{n}_shift{shift}_idx'])
