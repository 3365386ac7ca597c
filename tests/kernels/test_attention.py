"""Every backend against the float32 reference, forward and gradients, and the reference against numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fv_jax.core.hardware import CHIPS
from fv_jax.kernels import blocked, cudnn_gpu, fused_tpu, reference
from fv_jax.kernels.attention import BACKENDS as ON_CHIPS
from fv_jax.kernels.attention import SINGLE_DEVICE, attention, portable_attention


def random_qkv(tokens=37, heads=3, head_dim=16, scale=1.0, dtype='float32', keys=None):
    rng = np.random.default_rng(0)
    lengths = tokens, keys or tokens, keys or tokens
    return [jnp.asarray(scale * rng.standard_normal((2, n, heads, head_dim)), dtype) for n in lengths]


def test_reference_attention_is_the_formula():
    q, k, v = (np.asarray(x, np.float64) for x in random_qkv())
    expected = np.zeros_like(v)
    for b, m, n in np.ndindex(*q.shape[:3]):
        logits = k[b, :, n] @ q[b, m, n] / np.sqrt(q.shape[-1])
        weights = np.exp(logits - logits.max())
        expected[b, m, n] = weights @ v[b, :, n] / weights.sum()
    np.testing.assert_allclose(reference.attention(*map(jnp.float32, (q, k, v))), expected, atol=1e-6)


# Every backend. What cannot run here runs interpreted (the TPU's kernel), or by the library's own formula (the GPU's).

interpreted = fused_tpu.Options(CHIPS['v5e'].vmem, interpret=True)
BACKENDS = {
    'cpu': blocked.attention,
    'tpu': functools.partial(fused_tpu.attention, options=interpreted),
    'gpu': cudnn_gpu.attention,
    'portable': portable_attention,
    'portable, not on a cpu': blocked.unblocked_attention,
}
PARTS = {
    'cpu': blocked.attention_with_lse,
    'tpu': functools.partial(fused_tpu.attention_with_lse, options=interpreted),
}


@pytest.mark.parametrize(
    ('tokens', 'keys', 'num_keys', 'head_dim'),
    [(37, 37, 37, 64), (130, 257, 257, 64), (256, 384, 300, 64), (5, 37, 30, 16)],
    ids=str,
)
@pytest.mark.parametrize('name', list(BACKENDS))
def test_attention_and_gradients_equal_the_reference(name, tokens, keys, num_keys, head_dim):
    """Odd lengths, keys of another length, padding that must not be seen."""
    q, k, v = random_qkv(tokens=tokens, heads=2, head_dim=head_dim, keys=keys)
    probe = jnp.asarray(np.random.default_rng(1).standard_normal(q.shape), jnp.float32)

    def run(kernel):
        out, pull = jax.vjp(kernel, q, k, v)
        return out, *pull(probe)

    actual = run(lambda q, k, v: BACKENDS[name](q, k, v, num_keys))
    expected = run(lambda q, k, v: reference.attention(q, k[:, :num_keys], v[:, :num_keys]))
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=5e-6 * float(jnp.abs(b).max()))
    for gradient in actual[2:]:
        assert not np.any(gradient[:, num_keys:])


@pytest.mark.parametrize('name', list(PARTS))
def test_attention_with_lse_of_parts_merges_to_full_attention(name):
    q, k, v = random_qkv(tokens=70, heads=2, head_dim=64, keys=140)
    parts = [
        jax.jit(PARTS[name])(q, k[:, :100], v[:, :100], jnp.int32(90)),
        PARTS[name](q, k[:, 90:], v[:, 90:], jnp.int32(50)),
    ]
    weights = jax.nn.softmax(jnp.stack([lse for _, lse in parts]), axis=0)
    merged = sum(w[..., None] * o for w, (o, _) in zip(weights, parts, strict=True))
    np.testing.assert_allclose(merged, reference.attention(q, k, v), atol=5e-6)


@pytest.mark.parametrize('name', list(BACKENDS))
def test_attention_in_bfloat16_equals_the_reference(name):
    q, k, v = random_qkv(dtype='bfloat16', head_dim=64)
    out = jax.nn.dot_product_attention(q, k, v) if name == 'gpu' else BACKENDS[name](q, k, v, 37)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(out, np.float32), reference.attention(q, k, v), atol=2e-2)


# The entry.


@pytest.mark.parametrize('scale', [0.1, 1.0, 30.0])
def test_attention_with_large_logits_equals_the_reference(scale):
    q, k, v = random_qkv(scale=scale)
    np.testing.assert_allclose(attention(q, k, v), reference.attention(q, k, v), atol=2e-6 * scale, rtol=1e-5)


@pytest.mark.parametrize('tokens', [1, 300, 1025])
def test_attention_with_any_number_of_tokens(tokens):
    q, k, v = random_qkv(tokens=tokens, heads=2, head_dim=8)
    np.testing.assert_allclose(attention(q, k, v), reference.attention(q, k, v), atol=2e-6)


def test_attention_of_a_given_backend():
    q, k, v = random_qkv()
    cpu, tpu = (ON_CHIPS[platform](CHIPS['v5e']) for platform in ('cpu', 'tpu'))
    np.testing.assert_array_equal(attention(q, k, v, 30, backend=cpu), attention(q, k, v, 30))
    jaxpr = str(jax.make_jaxpr(functools.partial(attention, backend=tpu))(q, k, v))
    assert 'pallas_call' in jaxpr and 'pallas_call' not in str(jax.make_jaxpr(attention)(q, k, v))


def test_attention_in_bfloat16_has_a_float32_softmax():
    # Logits near 1024 that differ by 0.5: bfloat16, with steps of 8 there, could not tell them apart.
    q = jnp.full((1, 1, 1, 16), 16.0, jnp.bfloat16)
    k = jnp.full((1, 2, 1, 16), 16.0, jnp.bfloat16).at[0, 1, 0, 0].add(0.125)
    v = jnp.asarray([0.0, 1.0], jnp.bfloat16)[None, :, None, None] * jnp.ones((1, 2, 1, 16), jnp.bfloat16)
    out = attention(q, k, v)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(out, np.float32), 1 / (1 + np.exp(-0.5)), atol=4e-3)


def test_attention_does_not_materialize_all_logits():
    q, k, v = random_qkv(tokens=1100, heads=8)
    grad = jax.jit(jax.grad(lambda qkv: jnp.sum(attention(*qkv))))
    logits = 2 * 8 * 1100 * 1100 * 4
    assert grad.lower((q, k, v)).compile().memory_analysis().temp_size_in_bytes < logits / 2


def test_single_device_context():
    q, k, v = random_qkv(tokens=4)
    np.testing.assert_array_equal(SINGLE_DEVICE.attention(q, k, v, 4), attention(q, k, v))
    assert SINGLE_DEVICE.constrain(q, ('act_batch', None, None, None)) is q
    assert SINGLE_DEVICE.padded_length(37) == 37
