"""Samplers of a denoiser on Gaussian data, whose denoiser is linear, and on data that is known outright."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fv_jax.diffusion import dpm_solver, samplers
from fv_jax.diffusion.noise_schedules import NoiseSchedule, zero_snr_schedule
from tests.diffusion.fixed_noise import fixed_noise

ALL = sorted(samplers.names('v_prediction'))
DETERMINISTIC = ['ddim', 'dpmpp_2m']
WEIGHTS = {
    'dpmpp_2m_sde': dpm_solver.dpmpp_sde_coefficients,
    'dpmpp_2m': dpm_solver.dpmpp_ode_coefficients,
    'ddim': dpm_solver.ddim_coefficients,
}


def curved_schedule(num_steps, first=0.05, last=0.99):
    """Pure noise, then from `first` to `last` in uneven steps of lambda."""
    ends = [np.log(a / np.sqrt(1 - a**2)) for a in (first, last)]
    lambdas = ends[0] + (ends[1] - ends[0]) * np.linspace(0, 1, num_steps - 1) ** 1.3
    a = np.sqrt(1 / (1 + np.exp(-2 * lambdas)))
    return NoiseSchedule(np.arange(num_steps)[::-1], np.append(0.0, a))


def gaussian_denoiser(table, mean, std):
    """E[x0 | x] for x0 ~ N(mean, std^2)."""
    alphas = np.zeros(1000)
    alphas[table.timesteps] = table.sqrt_alphas

    def denoise(x, time):
        a = jnp.asarray(alphas, x.dtype)[time.timestep.astype(jnp.int32)]
        return mean + a * std**2 / (a**2 * std**2 + 1 - a**2) * (x - a * mean)

    return denoise


def solve(sampler, table, x, denoise_fn, noises=None):
    noise_fn = fixed_noise(jnp.zeros((len(table.timesteps) - 1, *x.shape)) if noises is None else noises)
    return samplers.SAMPLERS[sampler].trajectory(denoise_fn, x, table, noise_fn).integrate()


def exact_solution(table, x, mean, std):
    """Solves the ODE for Gaussian data from the second to the last a of the table: x - a mean is proportional to
    sqrt(a^2 std^2 + 1 - a^2). The first and the last step are those of the sampler.
    """
    first, last = (np.float64(table.sqrt_alphas[i]) for i in (1, -1))

    def spread(a):
        return np.sqrt(a**2 * std**2 + 1 - a**2)

    x = first * mean + np.sqrt(1 - first**2) * x
    x = last * mean + spread(last) / spread(first) * (x - first * mean)
    return mean + last * std**2 / spread(last) ** 2 * (x - last * mean)


@pytest.mark.parametrize(('sampler', 'order'), [('ddim', 1), ('dpmpp_2m', 2)])
def test_dpm_solver_order_of_convergence(sampler, order):
    mean, std = 0.7, 0.4
    errors = []
    with jax.enable_x64(True):
        x = jnp.array([-1.5, 0.3, 2.0], jnp.float64)
        for num_steps in (64, 128):
            table = curved_schedule(num_steps)
            out = solve(sampler, table, x, gaussian_denoiser(table, mean, std))
            errors.append(np.abs(out - exact_solution(table, np.asarray(x), mean, std)).max())
    assert abs(np.log2(errors[0] / errors[1]) - order) < 0.2, errors


def final_spread(table, std):
    """Returns the standard deviation of the last denoised data for states of the exact standard deviation: a little
    less than that of the data, since the table does not end at zero noise.
    """
    a = np.float64(table.sqrt_alphas[-1])
    return a * std**2 / np.sqrt(a**2 * std**2 + 1 - a**2)


def sde_spread_error(num_steps, std):
    """Computes the relative error of the standard deviation of samples, exactly: by the response to each noise."""
    table = zero_snr_schedule(num_steps)
    x = jnp.zeros(num_steps).at[-1].set(1.0)
    noises = jnp.eye(num_steps - 1, num_steps)
    out = np.asarray(solve('dpmpp_2m_sde', table, x, gaussian_denoiser(table, 0.0, std), noises))
    assert out[-1] == 0  # what the SDE starts from is forgotten at once: the first a is 0
    return np.sqrt(np.sum(out**2)) / final_spread(table, std) - 1


def test_dpm_solver_sde_samples_have_the_exact_spread():
    assert abs(sde_spread_error(51, 0.25)) < 0.01
    coarse, fine = (sde_spread_error(n, 1.0) for n in (51, 200))
    assert 0.002 < fine < 0.003 and 3.5 < coarse / fine < 4.5  # first order


@pytest.mark.parametrize(('sampler', 'tolerance'), [('ddim', 0.04), ('dpmpp_2m', 0.005)])
def test_dpm_solver_ode_samples_have_the_exact_mean_and_spread(sampler, tolerance):
    mean, std = 0.7, 0.4
    table = zero_snr_schedule(51)
    x = jnp.array([-1.5, 0.0, 2.0])
    out = np.asarray(solve(sampler, table, x, gaussian_denoiser(table, mean, std)))
    np.testing.assert_allclose(out[1], mean, atol=1e-6)
    np.testing.assert_allclose(out - mean, final_spread(table, std) * x, rtol=tolerance, atol=1e-6)


@pytest.mark.parametrize('sampler', ALL)
@pytest.mark.parametrize('num_steps', [2, 3, 7])
def test_dpm_solver_reaches_known_data(sampler, num_steps):
    x, data = jnp.asarray(np.random.default_rng(0).normal(size=(2, 2, 3, 4)), jnp.float32)
    noises = jnp.ones((num_steps - 1, 2, 3, 4))
    np.testing.assert_allclose(
        solve(sampler, zero_snr_schedule(num_steps), x, lambda x, t: data, noises), data, atol=1e-6
    )


@pytest.mark.parametrize('sampler', ALL)
def test_dpm_solver_states_have_the_marginals_of_the_schedule(sampler):
    """With data known, x_i = a_i data + s_i noise stays of that form: exactly the table's shares."""
    table = zero_snr_schedule(51)
    w = WEIGHTS[sampler](table)
    a = np.append(table.sqrt_alphas.astype(np.float64), 1)
    s = np.sqrt(1 - a**2)
    np.testing.assert_allclose(w.x * a[:-1] + w.denoised + w.previous, a[1:], atol=1e-12)
    np.testing.assert_allclose((w.x * s[:-1]) ** 2 + w.noise**2, s[1:] ** 2, atol=1e-12)
    assert all(part.dtype == np.float64 and np.all(np.isfinite(part)) for part in w)


def test_dpm_solver_sde_equals_the_official_update():
    """Model guide 5.2, written out with its logarithms, on denoisers' answers that mean nothing."""
    n = 7
    table = zero_snr_schedule(n)
    rng = np.random.default_rng(0)
    denoised, noises = rng.normal(size=(n, 5)), rng.normal(size=(n, 5))
    a = np.append(table.sqrt_alphas.astype(np.float64), 1)
    x = rng.normal(size=5)
    start = jnp.asarray(x, jnp.float32)
    with np.errstate(divide='ignore'):
        lam = np.log(a / np.sqrt(1 - a**2))
    x = a[1] * denoised[0] + np.sqrt(1 - a[1] ** 2) * noises[0]
    for i in range(1, n - 1):
        h = lam[i + 1] - lam[i]
        r = (lam[i] - lam[i - 1]) / h
        d = denoised[i] if i == 1 else (1 + 1 / (2 * r)) * denoised[i] - 1 / (2 * r) * denoised[i - 1]
        x = (
            np.sqrt((1 - a[i + 1] ** 2) / (1 - a[i] ** 2)) * np.exp(-h) * x
            - np.expm1(-2 * h) * a[i + 1] * d
            + np.sqrt(1 - a[i + 1] ** 2) * np.sqrt(1 - np.exp(-2 * h)) * noises[i]
        )
    seen = {}

    def denoise(state, time):
        index = jnp.argmax(jnp.asarray(table.timesteps) == time.timestep)
        jax.debug.callback(lambda i, state: seen.update({int(i): np.asarray(state)}), index, state)
        return jnp.asarray(denoised, jnp.float32)[index]

    out = jax.block_until_ready(solve('dpmpp_2m_sde', table, start, denoise, jnp.asarray(noises[:-1], jnp.float32)))
    jax.effects_barrier()
    np.testing.assert_allclose(seen[n - 1], x, atol=1e-5)
    np.testing.assert_array_equal(out, denoised[-1].astype(np.float32))  # the last answer, as it is


def test_dpm_solver_order_of_the_first_and_last_steps():
    w = dpm_solver.dpmpp_sde_coefficients(zero_snr_schedule(51))
    assert w.x[0] == 0 and np.all(w.x[1:-1] > 0)
    assert np.all(w.previous[[0, 1, -1]] == 0) and np.all(w.previous[2:-1] < 0)
    assert (w.x[-1], w.denoised[-1], w.noise[-1]) == (0, 1, 0)
    ode = dpm_solver.dpmpp_ode_coefficients(zero_snr_schedule(51))
    assert ode.x[0] > 0 and np.all(ode.previous[[0, 1, -1]] == 0) and np.all(ode.previous[2:-1] < 0)
    assert not np.any(dpm_solver.ddim_coefficients(zero_snr_schedule(51)).previous)


@pytest.mark.parametrize('sampler', ALL)
def test_dpm_solver_number_of_evaluations_and_noises(sampler):
    times, asked = [], []

    def denoise(x, time):
        jax.debug.callback(lambda t, k: times.append((float(t), float(k))), time.t, time.timestep, ordered=True)
        return x

    def noise(step):
        jax.debug.callback(lambda i: asked.append(int(i)), step, ordered=True)
        return jnp.zeros(2)

    jax.block_until_ready(
        samplers.SAMPLERS[sampler].trajectory(denoise, jnp.zeros(2), zero_snr_schedule(6), noise).integrate()
    )
    jax.effects_barrier()
    timesteps = [999, 832, 666, 499, 333, 166]
    assert [k for _, k in times] == timesteps
    np.testing.assert_allclose([t for t, _ in times], np.array(timesteps) / 1000, rtol=1e-6)
    assert set(asked) == (set(range(5)) if sampler == 'dpmpp_2m_sde' else set())


@pytest.mark.parametrize('sampler', ALL)
def test_dpm_solver_state_is_at_least_float32(sampler):
    out = solve(sampler, zero_snr_schedule(3), jnp.ones(2, jnp.bfloat16), lambda x, t: x.astype(jnp.bfloat16))
    assert out.dtype == jnp.float32


def test_dpm_solver_sde_requires_noise():
    with pytest.raises(ValueError, match='pass a noise_fn'):
        dpm_solver.dpmpp_2m_sde(lambda x, time: x, jnp.zeros(2), zero_snr_schedule(3), None)
    assert dpm_solver.ddim(lambda x, time: x, jnp.zeros(2), zero_snr_schedule(3)).integrate().shape == (2,)


def test_dpm_solver_sde_uses_noises_in_order():
    noise_fn = fixed_noise(np.arange(6.0).reshape(3, 2))
    np.testing.assert_array_equal(jax.jit(noise_fn)(1), [2, 3])


def test_second_order_starts_with_the_second_step_of_a_later_schedule():
    """The first one has no D before it; the others are those of the whole schedule."""
    whole = curved_schedule(9)
    rest = NoiseSchedule(*(values[3:] for values in whole))
    for name in ('dpmpp_2m', 'dpmpp_2m_sde'):
        of_whole, of_rest = WEIGHTS[name](whole), WEIGHTS[name](rest)
        for before, after in zip(of_whole, of_rest, strict=True):
            np.testing.assert_allclose(after[1:], before[4:], rtol=1e-12)
        assert of_rest.previous[0] == 0 and of_rest.previous[1] != 0
    first_order = dpm_solver.ddim_coefficients(rest)
    np.testing.assert_allclose(dpm_solver.dpmpp_ode_coefficients(rest).denoised[0], first_order.denoised[0])
