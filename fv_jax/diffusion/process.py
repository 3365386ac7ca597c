"""The linear flow between a source and data, and the noising of a source.

Time t runs from 1 at the source to 0 at the data:

    x_t = t source + (1 - t) data                 (1)
    velocity = dx/dt = source - data              (2)

A source is made from clean latents z at an index of the noise table with signal share a (`schedules`):

    source = a z + sqrt(1 - a^2) noise            (3)
"""

import jax
import jax.numpy as jnp


def per_row(values_B: jax.Array, like: jax.Array) -> jax.Array:
    """Values of the batch's rows, shaped (B, 1, ..., 1) to meet an array of `like`'s rank."""
    return values_B.reshape(values_B.shape + (1,) * (like.ndim - values_B.ndim))


def interpolate(source: jax.Array, data: jax.Array, t_B: jax.Array) -> jax.Array:
    """x_t of (1): source and data (B, ...), t (B,) in [0, 1]."""
    t = per_row(t_B, source)
    return t * source + (1 - t) * data


def velocity(source: jax.Array, data: jax.Array) -> jax.Array:
    """dx/dt of (2), the same at every t."""
    return source - data


def add_noise(z: jax.Array, noise: jax.Array, sqrt_alpha_B: jax.Array) -> jax.Array:
    """The noised source (3): z and noise (B, ...), sqrt_alpha (B,) in [0, 1]."""
    a = per_row(sqrt_alpha_B, z)
    return a * z + jnp.sqrt(1 - a**2) * noise
