"""Flow matching between a source and data, noise augmentation of a source, and v-prediction.

Time t runs from 1 at the source to 0 at the data (flow matching, arXiv:2210.02747; between any two distributions,
rectified flow, arXiv:2209.03003):

    x_t = t source + (1 - t) data                 (1)
    velocity = dx/dt = source - data              (2)

A source is made from clean latents z at an index of the noise schedule with signal share a (`noise_schedules`;
the noise augmentation of a cascade, arXiv:2106.15282):

    source = a z + sqrt(1 - a^2) noise            (3)

Noising data by (3) gives the diffusion's own x_k. Its network predicts v (arXiv:2202.00512), from which x0, the data,
follows:

    v  = a noise - sqrt(1 - a^2) data             (4)
    x0 = a x_k - sqrt(1 - a^2) v                  (5)
"""

import jax
import jax.numpy as jnp


def expand_dims_like(values_B: jax.Array, like: jax.Array) -> jax.Array:
    """Reshapes (B,) to (B, 1, ..., 1) of the rank of `like`, for broadcasting one value per example."""
    return values_B.reshape(values_B.shape + (1,) * (like.ndim - values_B.ndim))


def interpolate(source: jax.Array, data: jax.Array, t_B: jax.Array) -> jax.Array:
    """Computes x_t of (1) (arXiv:2210.02747, section 4.1; arXiv:2209.03003, eq. 1).

    Args:
      source, data: (B, ...).
      t: times (B,) in [0, 1].
    """
    t = expand_dims_like(t_B, source)
    return t * source + (1 - t) * data


def velocity(source: jax.Array, data: jax.Array) -> jax.Array:
    """Computes dx/dt of (2), which is the same at every t."""
    return source - data


def add_noise(z: jax.Array, noise: jax.Array, sqrt_alpha_B: jax.Array) -> jax.Array:
    """Computes the noised source (3): noise augmentation (arXiv:2106.15282).

    Args:
      z, noise: (B, ...).
      sqrt_alpha: (B,) in [0, 1].
    """
    a = expand_dims_like(sqrt_alpha_B, z)
    return a * z + jnp.sqrt(1 - a**2) * noise


def v_target(data: jax.Array, noise: jax.Array, sqrt_alpha_B: jax.Array) -> jax.Array:
    """Computes v of (4) (arXiv:2202.00512, appendix D).

    Args:
      data, noise: (B, ...).
      sqrt_alpha: (B,) in [0, 1].
    """
    a = expand_dims_like(sqrt_alpha_B, data)
    return a * noise - jnp.sqrt(1 - a**2) * data


def v_to_x0(x: jax.Array, v: jax.Array, sqrt_alpha: jax.Array) -> jax.Array:
    """Computes x0 of (5) (arXiv:2202.00512, appendix D).

    Args:
      x, v: (B, ...).
      sqrt_alpha: (B,), or one number for all examples.
    """
    a = expand_dims_like(sqrt_alpha, x)
    return a * x - jnp.sqrt(1 - a**2) * v
