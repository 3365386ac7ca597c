"""Solvers on fields with known solutions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fv_jax.diffusion import samplers
from fv_jax.diffusion.time_grids import Times, flow_time_grid

ALL = sorted(samplers.names('flow'))


def curved_field_error(sampler, num_steps):
    """dx/dt = -x sin(5 t), x(1) = 1: x(0) = exp((1 - cos 5) / 5) by separation of variables."""
    with jax.enable_x64(True):
        t = np.linspace(1, 0, num_steps + 1) ** 1.2
        grid = Times(t, 1000 * t)
        x = (
            samplers.SAMPLERS[sampler]
            .trajectory(lambda x, time: -x * jnp.sin(5 * time.t), jnp.ones(3, jnp.float64), grid)
            .integrate()
        )
        return float(jnp.abs(x - np.exp((1 - np.cos(5.0)) / 5)).max())


@pytest.mark.parametrize(('sampler', 'order'), [('euler', 1), ('heun', 2), ('rk4', 4)])
def test_sampler_order_of_convergence(sampler, order):
    steps = (64, 128)
    coarse, fine = (curved_field_error(sampler, n) for n in steps)
    assert abs(np.log2(coarse / fine) - order) < 0.25, (coarse, fine)


def test_flow_map_jumps_by_mean_velocities():
    """x(t) = exp(t) x(0): any grid gives the same end."""

    def velocity_over(x, here, there):
        return x * (1 - jnp.exp(there.t - here.t)) / (here.t - there.t)

    for num_steps in (1, 3):
        trajectory = samplers.mean_velocity(velocity_over, jnp.ones(2), flow_time_grid(num_steps, 2.5))
        np.testing.assert_allclose(trajectory.integrate(), np.exp(-1) * np.ones(2), rtol=1e-6)


@pytest.mark.parametrize('sampler', ALL)
def test_sampler_steps_take_a_time_for_each_example(sampler):
    step, grid = samplers.SAMPLERS[sampler].step, flow_time_grid(4, 2.5)
    here, there = (Times(*(jnp.asarray(part[i]) for part in grid)) for i in ([0, 2], [1, 3]))
    x = jnp.arange(4.0).reshape(2, 2)

    def velocity(x, time):
        return x * jnp.sin(time.t)[..., None]

    both = step(velocity, x, here, there)
    for i in range(2):
        alone = [Times(*(part[i] for part in times)) for times in (here, there)]
        np.testing.assert_allclose(both[i], step(velocity, x[i], *alone), rtol=1e-6)


@pytest.mark.parametrize('sampler', ALL)
def test_samplers_are_exact_on_constant_fields(sampler):
    source, data = jax.random.normal(jax.random.key(0), (2, 2, 3, 4))
    for num_steps in (1, 5):
        out = (
            samplers.SAMPLERS[sampler]
            .trajectory(lambda x, time: source - data, source, flow_time_grid(num_steps, 2.5))
            .integrate()
        )
        np.testing.assert_allclose(out, data, atol=1e-5)


@pytest.mark.parametrize(('sampler', 'power'), [('euler', 0), ('heun', 1), ('rk4', 3)])
def test_samplers_are_exact_on_polynomials_of_time(sampler, power):
    trajectory = samplers.SAMPLERS[sampler].trajectory(
        lambda x, time: time.t**power * jnp.ones_like(x), jnp.zeros(2), flow_time_grid(3, 2.0)
    )
    out = trajectory.integrate()
    np.testing.assert_allclose(out, -1 / (power + 1), rtol=1e-5)


@pytest.mark.parametrize('sampler', ALL)
def test_sampler_evaluations_and_timesteps(sampler):
    seen = []

    def velocity(x, time):
        jax.debug.callback(
            lambda t, timestep: seen.append((float(t), float(timestep))), time.t, time.timestep, ordered=True
        )
        return jnp.zeros_like(x)

    grid = Times(np.array([1, 0.5, 0], np.float32), np.array([1000, 504, 0], np.float32))
    jax.block_until_ready(samplers.SAMPLERS[sampler].trajectory(velocity, jnp.zeros(1), grid).integrate())
    jax.effects_barrier()
    assert len(seen) == 2 * samplers.SAMPLERS[sampler].evaluations
    expected = {
        'euler': [(1, 1000), (0.5, 504)],
        'heun': [(1, 1000), (0.5, 504), (0.5, 504), (0, 0)],
        'rk4': [(1, 1000), *2 * [(0.75, 752)], (0.5, 504), (0.5, 504), *2 * [(0.25, 252)], (0, 0)],
    }
    assert seen == expected[sampler]


@pytest.mark.parametrize('sampler', ALL)
def test_samplers_keep_the_dtype_of_the_state(sampler):
    x = jnp.ones((2, 2), jnp.bfloat16)
    dtypes = []

    def velocity(x, time):
        dtypes.append(x.dtype)
        return x.astype(jnp.float32)

    assert samplers.SAMPLERS[sampler].trajectory(velocity, x, flow_time_grid(3)).integrate().dtype == jnp.bfloat16
    assert set(dtypes) == {jnp.dtype(jnp.bfloat16)}


def test_samplers_require_two_times():
    with pytest.raises(ValueError, match=r'n \+ 1 >= 2'):
        samplers.euler(lambda x, time: x, jnp.ones(1), Times(np.ones(1), np.ones(1)))
