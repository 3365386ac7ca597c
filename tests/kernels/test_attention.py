"""The attention that networks call, against the reference, and the reference against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fv_jax.kernels import attention as kernels
from fv_jax.kernels import reference
from fv_jax.kernels.attention import SINGLE_DEVICE, attention


def random_qkv(tokens=37, heads=3, head_dim=16, scale=1.0, dtype='float32'):
    rng = np.random.default_rng(0)
    return [jnp.asarray(scale * rng.standard_normal((2, tokens, heads, head_dim)), dtype) for _ in range(3)]


def test_reference_is_the_formula():
    q, k, v = (np.asarray(x, np.float64) for x in random_qkv())
    expected = np.zeros_like(v)
    for b, m, n in np.ndindex(*q.shape[:3]):
        logits = k[b, :, n] @ q[b, m, n] / np.sqrt(q.shape[-1])
        weights = np.exp(logits - logits.max())
        expected[b, m, n] = weights @ v[b, :, n] / weights.sum()
    np.testing.assert_allclose(reference.attention(*map(jnp.float32, (q, k, v))), expected, atol=1e-6)


@pytest.mark.parametrize('scale', [0.1, 1.0, 30.0])
def test_agrees_with_the_reference(scale):
    q, k, v = random_qkv(scale=scale)
    np.testing.assert_allclose(attention(q, k, v), reference.attention(q, k, v), atol=2e-6 * scale, rtol=1e-5)


@pytest.mark.parametrize('tokens', [1, 300, 1025])
def test_any_number_of_tokens(tokens):
    q, k, v = random_qkv(tokens=tokens, heads=2, head_dim=8)
    np.testing.assert_allclose(attention(q, k, v), reference.attention(q, k, v), atol=2e-6)


def test_keys_of_another_length():
    q, k, v = random_qkv()
    np.testing.assert_allclose(attention(q[:, :5], k, v), reference.attention(q, k, v)[:, :5], atol=2e-6)


def test_gradients_agree_with_the_reference():
    q, k, v = random_qkv(tokens=300, heads=2)
    probe = jnp.asarray(np.random.default_rng(1).standard_normal(q.shape), jnp.float32)

    def grads(kernel):
        return jax.grad(lambda qkv: jnp.sum(kernel(*qkv) * probe))((q, k, v))

    for actual, expected in zip(grads(attention), grads(reference.attention), strict=True):
        np.testing.assert_allclose(actual, expected, atol=5e-6)


def test_bfloat16_keeps_its_softmax_in_float32():
    # Logits near 1024 that differ by 0.5: bfloat16, with steps of 8 there, could not tell them apart.
    q = jnp.full((1, 1, 1, 16), 16.0, jnp.bfloat16)
    k = jnp.full((1, 2, 1, 16), 16.0, jnp.bfloat16).at[0, 1, 0, 0].add(0.125)
    v = jnp.asarray([0.0, 1.0], jnp.bfloat16)[None, :, None, None] * jnp.ones((1, 2, 1, 16), jnp.bfloat16)
    out = attention(q, k, v)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(out, np.float32), 1 / (1 + np.exp(-0.5)), atol=4e-3)


def test_bfloat16_agrees_with_the_reference():
    q, k, v = random_qkv(dtype='bfloat16')
    np.testing.assert_allclose(np.asarray(attention(q, k, v), np.float32), reference.attention(q, k, v), atol=2e-2)


def test_what_other_platforms_run_agrees_too():
    q, k, v = random_qkv()
    np.testing.assert_allclose(kernels._at_once(q, k, v), reference.attention(q, k, v), atol=2e-6)


def test_logits_are_never_all_in_memory():
    q, k, v = random_qkv(tokens=1100, heads=8)
    grad = jax.jit(jax.grad(lambda qkv: jnp.sum(attention(*qkv))))
    logits = 2 * 8 * 1100 * 1100 * 4
    assert grad.lower((q, k, v)).compile().memory_analysis().temp_size_in_bytes < logits / 2


def test_single_device_rules():
    q, k, v = random_qkv(tokens=4)
    np.testing.assert_array_equal(SINGLE_DEVICE.attention(q, k, v), attention(q, k, v))
    assert SINGLE_DEVICE.constrain(q, ('act_batch', None, None, None)) is q
