"""Linear, LayerNorm, MLP and their parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.test_util import check_grads

from fv_jax.models.layers import MLP, Dtypes, LayerNorm, Linear, gelu_tanh, modulate, xavier_uniform, zeros


@pytest.fixture
def rngs():
    return nnx.Rngs(0)


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def test_linear_is_x_w_plus_b(rngs):
    layer = Linear(5, 7, ('embed', 'mlp'), dtypes=Dtypes(), rngs=rngs)
    layer.bias[...] = normal(7)
    x = normal(2, 3, 5)
    expected = np.asarray(x) @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...])
    np.testing.assert_allclose(layer(x), expected, atol=1e-6)


def test_linear_with_groups_is_several_linears(rngs):
    layer = Linear(5, (3, 7), ('embed', None, 'heads'), dtypes=Dtypes(), rngs=rngs)
    layer.bias[...] = normal(3, 7)
    x = normal(2, 4, 5)
    for i in range(3):
        expected = np.asarray(x) @ np.asarray(layer.kernel[...])[:, i] + np.asarray(layer.bias[...])[i]
        np.testing.assert_allclose(layer(x)[:, :, i], expected, atol=1e-6)


def test_layer_parameters_have_logical_axes(rngs):
    layer = Linear(5, (3, 7), ('embed', None, 'heads'), dtypes=Dtypes(), rngs=rngs)
    assert layer.kernel.get_metadata('axes') == ('embed', None, 'heads')
    assert layer.bias.get_metadata('axes') == (None, 'norm')


def test_xavier_counts_each_group_as_a_matrix():
    kernel = xavier_uniform(jax.random.key(0), (64, 3, 128), 'float32')
    limit = np.sqrt(6 / (64 + 128))
    assert 0.95 * limit < np.abs(kernel).max() <= limit
    assert xavier_uniform(jax.random.key(0), (4, 4), 'bfloat16').dtype == jnp.bfloat16
    assert not zeros(jax.random.key(0), (4, 4), 'float32').any()


def test_linear_compute_and_parameter_dtypes(rngs):
    layer = Linear(5, 7, ('embed', 'mlp'), dtypes=Dtypes(compute='bfloat16', param='float32'), rngs=rngs)
    assert layer.kernel.dtype == jnp.float32
    assert layer(normal(2, 5)).dtype == jnp.bfloat16
    stored = Linear(5, 7, ('embed', 'mlp'), dtypes=Dtypes(compute='float32', param='bfloat16'), rngs=rngs)
    assert stored.kernel.dtype == jnp.bfloat16
    assert stored(normal(2, 5)).dtype == jnp.float32


@pytest.mark.parametrize('eps', [1e-5, 1e-6])
def test_layer_norm_eps(eps):
    norm = LayerNorm(16, eps=eps, dtypes=Dtypes())
    norm.scale[...], norm.bias[...] = normal(16), normal(16, seed=1)
    x = 3 + 1e-3 * np.random.default_rng(2).standard_normal((4, 16))  # variance 1e-6
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)
    expected = expected * np.asarray(norm.scale[...]) + np.asarray(norm.bias[...])
    np.testing.assert_allclose(norm(jnp.float32(x)), expected, atol=2e-3)


def test_layer_norm_computes_in_float32():
    norm = LayerNorm(16, eps=1e-6, dtypes=Dtypes(compute='bfloat16', param='bfloat16'))
    x = normal(4, 16).astype(jnp.bfloat16)
    assert norm(x).dtype == jnp.float32
    np.testing.assert_allclose(norm(x).mean(-1), 0, atol=1e-6)


def test_layer_norm_is_accurate_with_a_large_mean():
    # A one-pass variance, E[x^2] - E[x]^2, loses every digit here.
    x = 4096 + normal(8, 32)
    exact = np.asarray(x, np.float64)
    expected = (exact - exact.mean(-1, keepdims=True)) / exact.std(-1, keepdims=True)
    np.testing.assert_allclose(LayerNorm(32, eps=0.0, dtypes=Dtypes())(x), expected, atol=2e-3)


def test_layer_norm_gradients():
    norm = LayerNorm(8, eps=1e-2, dtypes=Dtypes())
    norm.scale[...], norm.bias[...] = normal(8), normal(8, seed=1)
    graphdef, params = nnx.split(norm)
    probe = normal(3, 8, seed=3)

    def loss(params, x):
        return jnp.sum(jnp.sin(nnx.merge(graphdef, params)(x)) * probe)

    check_grads(loss, (params, normal(3, 8, seed=2)), order=1, modes=['rev'], eps=1e-2, atol=1e-2, rtol=1e-2)


def test_mlp_and_its_sharding_constraint(rngs):
    mlp = MLP((4, 8, 6), (('embed', 'mlp'), ('mlp', 'embed')), gelu_tanh, dtypes=Dtypes(), rngs=rngs)
    x, seen = normal(2, 3, 4), []

    def constrain(inner):
        seen.append(inner.shape)
        return inner

    expected = mlp.out(gelu_tanh(mlp.hidden(x)))
    np.testing.assert_array_equal(mlp(x, constrain), expected)
    assert seen == [(2, 3, 8)]


def test_gelu_is_the_tanh_approximation():
    x = np.linspace(-4, 4, 33)
    expected = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    np.testing.assert_allclose(gelu_tanh(jnp.float32(x)), expected, atol=1e-6)


def test_modulate():
    assert modulate(jnp.float32(2.0), shift=jnp.float32(0.5), scale=jnp.float32(3.0)) == 2 * 4 + 0.5
