"""The noise table's properties; its numbers are held against the official ones in tests/parity."""

import numpy as np
import pytest

from fv_jax.diffusion import noise_schedules


@pytest.mark.parametrize('num_steps', [2, 6, 51, 999, 1000])
@pytest.mark.parametrize('shift', [1.0, 3.0])
def test_noise_schedule_starts_at_pure_noise_and_rises(num_steps, shift):
    timesteps, a = noise_schedules.zero_snr_schedule(num_steps, shift)
    assert timesteps.shape == a.shape == (num_steps,)
    assert a.dtype == np.float32 and timesteps.dtype == np.int64
    assert timesteps[0] == 999 and a[0] == 0
    assert np.all(np.diff(timesteps) < 0) and np.all(np.diff(a) > 0) and a[-1] < 1


def test_noise_schedule_rescaling_keeps_the_cleanest_entry():
    for num_steps in (6, 51):
        timesteps, a = noise_schedules.zero_snr_schedule(num_steps)
        np.testing.assert_allclose(a[-1], np.sqrt(noise_schedules.alphas_cumprod()[timesteps[-1]]), rtol=1e-6)


def test_noise_schedule_of_few_steps_is_rescaled_on_its_own():
    timesteps, a = noise_schedules.zero_snr_schedule(51)
    long = noise_schedules.sqrt_alphas_by_timestep()
    assert 1e-5 < np.abs(a - long[timesteps]).max() < 1e-3


def test_noise_schedule_known_values():
    a = noise_schedules.sqrt_alphas_by_timestep()
    expected = {0: 0.9995749, 500: 0.4909367, 650: 0.2940186, 675: 0.2639587, 700: 0.2350522, 998: 0.00044361}
    for timestep, value in expected.items():
        np.testing.assert_allclose(a[timestep], value, rtol=1e-5)
    np.testing.assert_allclose(noise_schedules.sqrt_alphas_by_timestep(3.0)[675], 0.1543075, rtol=1e-5)


def test_noise_schedule_shift_divides_the_signal_to_noise_ratio():
    plain, shifted = noise_schedules.alphas_cumprod(1.0), noise_schedules.alphas_cumprod(3.0)
    np.testing.assert_allclose(shifted / (1 - shifted), plain / (1 - plain) / 3, rtol=1e-12)


def test_noise_schedule_refuses_invalid_values():
    for num_steps in (1, 1001):
        with pytest.raises(ValueError, match=f'num_steps={num_steps}: .* between 2 and 1000'):
            noise_schedules.zero_snr_schedule(num_steps)


def test_denoiser_sqrt_alphas_are_the_nearest_of_1000():
    """Model guide 5.2: 11 of 51 fall on the timestep before; off by up to 5.2e-4."""
    table, long = noise_schedules.zero_snr_schedule(51), noise_schedules.sqrt_alphas_by_timestep()
    nearest = noise_schedules.nearest_timesteps(table.sqrt_alphas)
    assert set((table.timesteps - nearest).tolist()) == {0, 1} and np.sum(nearest != table.timesteps) == 11
    by_timestep = noise_schedules.denoiser_sqrt_alphas(table)
    assert by_timestep.shape == (1000,) and by_timestep.dtype == np.float32
    np.testing.assert_array_equal(by_timestep[table.timesteps], long[nearest])
    rest = np.setdiff1d(np.arange(1000), table.timesteps)
    np.testing.assert_array_equal(by_timestep[rest], long[rest])
    off = np.abs(by_timestep[table.timesteps] - table.sqrt_alphas)
    assert 5.1e-4 < off.max() < 5.3e-4 and by_timestep[999] == 0


def test_nearest_timesteps_of_the_schedule_itself():
    table = noise_schedules.zero_snr_schedule()
    np.testing.assert_array_equal(noise_schedules.nearest_timesteps(table.sqrt_alphas), table.timesteps)
    np.testing.assert_array_equal(
        noise_schedules.denoiser_sqrt_alphas(table), noise_schedules.sqrt_alphas_by_timestep()
    )
