"""A trajectory is the same in one program and step by step."""

import jax
import jax.numpy as jnp
import numpy as np

from fv_jax.diffusion import dpm_solver, samplers
from fv_jax.diffusion.noise_schedules import zero_snr_schedule
from fv_jax.diffusion.time_grids import flow_time_grid
from fv_jax.diffusion.trajectory import Trajectory


def run_steps(make):
    """Runs step by step; every function of the trajectory is a program of its own."""
    x = jnp.linspace(-1, 1, 6)
    state = jax.jit(lambda x: make(x).start)(x)
    advance = jax.jit(lambda x, state, i: make(x).advance(state, i))
    for i in range(make(x).num_steps):
        state = advance(x, state, i)
    return jax.jit(lambda x, state: make(x).finish(state))(x, state), jax.jit(lambda x: make(x).integrate())(x)


def test_steps_equal_one_program():
    def noise(i):
        return jnp.sin(i + jnp.arange(6.0))

    for make in (
        lambda x: samplers.heun(lambda x, time: jnp.cos(x) * time.t, x, flow_time_grid(4, 2.0)),
        lambda x: dpm_solver.dpmpp_2m_sde(lambda x, time: jnp.tanh(x), x, zero_snr_schedule(5), noise),
    ):
        by_step, whole = run_steps(make)
        np.testing.assert_allclose(by_step, whole, rtol=1e-6)


def test_then_changes_the_data_alone():
    counting = Trajectory(jnp.zeros(()), lambda state, i: state + i, lambda state: state, 4)
    doubled = counting.then(lambda x: 2 * x)
    assert (counting.integrate(), doubled.integrate(), doubled.num_steps) == (6, 12, 4)
