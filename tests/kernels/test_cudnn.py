"""cuDNN's flash attention on a GPU, against the float32 reference; skipped elsewhere, where `test_attention` runs the
library's own formula:

    JAX_PLATFORMS=cuda python -m pytest tests/kernels/test_cudnn.py
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fv_jax.kernels import cudnn_gpu, reference

pytestmark = pytest.mark.skipif(jax.default_backend() != 'gpu', reason='needs an NVIDIA GPU')

HEADS, HEAD_DIM = 3, 64
ROUNDED = 2**-8  # bfloat16 keeps 8 bits


def random_qkv(tokens, keys):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal((2, n, HEADS, HEAD_DIM)), jnp.bfloat16) for n in (tokens, keys, keys)]


def distance(actual, expected):
    a, b = (np.asarray(x, np.float64) for x in (actual, expected))
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.parametrize(
    ('tokens', 'keys', 'num_keys'), [(37, 37, 37), (130, 257, 257), (256, 384, 300), (1026, 1026, 1001)], ids=str
)
def test_attention_and_gradients_equal_the_reference(tokens, keys, num_keys):
    """Odd lengths, keys of another length, padding that must not be seen."""
    q, k, v = random_qkv(tokens, keys)
    probe = jnp.asarray(np.random.default_rng(1).standard_normal(q.shape), jnp.bfloat16)

    @jax.jit
    def actual(q, k, v):
        out, pull = jax.vjp(lambda *qkv: cudnn_gpu.attention(*qkv, num_keys), q, k, v)
        return out, *pull(probe)

    @jax.jit
    def expected(q, k, v):
        with jax.default_matmul_precision('float32'):
            out, pull = jax.vjp(lambda q, k, v: reference.attention(q, k[:, :num_keys], v[:, :num_keys]), q, k, v)
            return out, *pull(probe.astype(jnp.float32))

    found = actual(q, k, v)
    for a, b in zip(found, expected(*(x.astype(jnp.float32) for x in (q, k, v))), strict=True):
        assert distance(a, b) < 2 * ROUNDED
    for gradient in found[2:]:
        assert not np.any(gradient[:, num_keys:])


def test_cudnn_attention_in_float32_is_float32():
    q, k, v = (x.astype(jnp.float32) for x in random_qkv(130, 257))
    with jax.default_matmul_precision('float32'):
        found, expected = cudnn_gpu.attention(q, k, v, 250), reference.attention(q, k[:, :250], v[:, :250])
    np.testing.assert_allclose(found, expected, atol=1e-5)
