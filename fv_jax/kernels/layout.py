"""Transposes between tokens second, as networks have them, and tokens last, as a TPU stores and sends them densely."""

import jax


def tokens_last(x_BMNK: jax.Array) -> jax.Array:
    """Transposes (B, M, N, K) to (B, N, K, M)."""
    return x_BMNK.transpose(0, 2, 3, 1)


def tokens_second(x_BNKM: jax.Array) -> jax.Array:
    """Transposes (B, N, K, M) to (B, M, N, K)."""
    return x_BNKM.transpose(0, 3, 1, 2)
