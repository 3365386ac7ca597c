"""The linear flow in closed form."""

import jax
import jax.numpy as jnp
import numpy as np

from fv_jax.diffusion import process


def test_interpolate_ends_and_velocity():
    source, data = jax.random.normal(jax.random.key(0), (2, 3, 2, 4, 4, 1))
    np.testing.assert_array_equal(process.interpolate(source, data, jnp.ones(3)), source)
    np.testing.assert_array_equal(process.interpolate(source, data, jnp.zeros(3)), data)
    _, slope = jax.jvp(lambda t: process.interpolate(source, data, t), (jnp.full(3, 0.3),), (jnp.ones(3),))
    np.testing.assert_allclose(slope, process.velocity(source, data), atol=1e-6)


def test_interpolate_with_a_time_per_example():
    source, data = jnp.ones((3, 2, 1)), jnp.zeros((3, 2, 1))
    t = jnp.array([0.0, 0.25, 1.0])
    np.testing.assert_array_equal(process.interpolate(source, data, t), t[:, None, None] * jnp.ones((3, 2, 1)))


def test_add_noise_keeps_unit_variance():
    z, noise = jax.random.normal(jax.random.key(1), (2, 4, 50, 50))
    out = process.add_noise(z, noise, jnp.array([0.0, 0.6, 0.8, 1.0]))
    np.testing.assert_array_equal(out[0], noise[0])
    np.testing.assert_array_equal(out[3], z[3])
    np.testing.assert_allclose(out[1], 0.6 * z[1] + 0.8 * noise[1], atol=1e-6)
    np.testing.assert_allclose(out[1:3].std(axis=(1, 2)), 1.0, atol=0.05)


def test_v_to_x0_inverts_v_target():
    data, noise = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 3, 5)), jnp.float32)
    a_B = jnp.array([0.0, 0.3, 0.8, 1.0])
    x, v = process.add_noise(data, noise, a_B), process.v_target(data, noise, a_B)
    np.testing.assert_allclose(process.v_to_x0(x, v, a_B), data, atol=1e-6)
    a = a_B[:, None, None]
    np.testing.assert_allclose(jnp.sqrt(1 - a**2) * x + a * v, noise, atol=1e-6)
    np.testing.assert_array_equal(v[0], -data[0])
    np.testing.assert_array_equal(v[3], noise[3])
    np.testing.assert_array_equal(process.v_to_x0(x[1:2], v[1:2], a_B[1]), process.v_to_x0(x, v, a_B)[1:2])
