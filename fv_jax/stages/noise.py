"""Random numbers of a batch, each example's from its own key, and the noise that sampling starts from.

A key is folded from (step, index in the global batch): an example gets the same noise however the batch is split over
hosts, and a resumed run gets the noise that the interrupted run would have had.
"""

import math
from typing import Protocol

import jax
import jax.numpy as jnp

from fv_jax.diffusion.dpm_solver import NoiseFn


def per_example_keys(key: jax.Array, step: jax.Array | int, batch_size: int) -> jax.Array:
    """Derives one key for each example of the global batch at a step, (B,)."""
    at_step = jax.random.fold_in(key, step)
    return jax.vmap(lambda index: jax.random.fold_in(at_step, index))(jnp.arange(batch_size))


def heldout_keys(key: jax.Array, clips_B: jax.Array) -> jax.Array:
    """Returns one key for each held-out clip, (B,), which depends on its index and not on the batch that it is in."""
    return jax.vmap(lambda clip: jax.random.fold_in(jax.random.fold_in(key, clip), 0))(jnp.asarray(clips_B))


def per_example_normal(keys_B: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draws unit normal noise of `shape` (B, ...), float32, each example's from its own key."""
    # Drawn flat: the values are the same, and XLA compiles it seven times faster than counters of four dimensions.
    size = math.prod(shape[1:])
    return jax.vmap(lambda key: jax.random.normal(key, (size,), jnp.float32))(keys_B).reshape(shape)


def sampler_noise(keys_B: jax.Array, shape: tuple[int, ...]) -> tuple[jax.Array, NoiseFn]:
    """Returns the noise of a sampler.

    Args:
      keys_B: one key for each example.
      shape: (B, ...) of the state.

    Returns:
      (the initial state, unit normal; a function from the index of a step to the noise that it adds).
    """

    def draw(index: jax.Array | int) -> jax.Array:
        return per_example_normal(jax.vmap(lambda key: jax.random.fold_in(key, index))(keys_B), shape)

    return draw(0), lambda step: draw(1 + step)


class PreviewNoise(Protocol):
    """Draws the noise of previews. A pytree."""

    def preview(self, shape: tuple[int, ...]) -> tuple[jax.Array, NoiseFn]:
        """Returns initial latents (B, F, H, W, C), unit normal, and a function for the noise of each sampler step."""
        ...


class EnhanceNoise(Protocol):
    """Draws the noise of enhancements. A pytree."""

    def posterior(self, shape: tuple[int, ...]) -> jax.Array:
        """Returns unit normal noise (B, F, H, W, C) for sampling the VAE posterior."""
        ...

    def augmentation(self, shape: tuple[int, ...]) -> jax.Array:
        """Returns unit normal noise (B, F, H, W, C) for the noise augmentation of the low-resolution latents."""
        ...


SamplingNoise = PreviewNoise | EnhanceNoise
