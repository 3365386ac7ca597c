"""The random numbers of a sample: what stage 1 starts from and adds, what stage 2's source is made with.

Samplers ask for them by shape, within their jitted call. A row's numbers depend on the row's seed alone, so that a
prompt gives the same video in any batch.
"""

import dataclasses
import functools
from typing import Protocol

import jax
import jax.numpy as jnp

from fv_jax.diffusion.dpm_solver import NoiseFn
from fv_jax.stages.low_res import drawn_noise
from fv_jax.stages.protocol import row_normal

_PREVIEW, _POSTERIOR, _SOURCE = range(3)


class PreviewNoise(Protocol):
    """A pytree."""

    def preview(self, shape: tuple[int, ...]) -> tuple[jax.Array, NoiseFn]:
        """Unit noise of a batch of latents (B, F, H, W, C): the start, and what is added at each step."""
        ...


class SourceNoise(Protocol):
    """A pytree."""

    def posterior(self, shape: tuple[int, ...]) -> jax.Array:
        """Unit noise (B, F, H, W, C) that the VAE's latents are drawn with, where they are."""
        ...

    def source(self, shape: tuple[int, ...]) -> jax.Array:
        """Unit noise (B, F, H, W, C) that stage 2's source is mixed with."""
        ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SeededNoise:
    """Both, from one key for each row."""

    keys_B: jax.Array

    @classmethod
    def of(cls, seeds: list[int]) -> 'SeededNoise':
        """A row for each seed, 0 to 2^32 - 1."""
        return cls(jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32)))

    def preview(self, shape: tuple[int, ...]) -> tuple[jax.Array, NoiseFn]:
        return drawn_noise(self._keys(_PREVIEW), shape)

    def posterior(self, shape: tuple[int, ...]) -> jax.Array:
        return row_normal(self._keys(_POSTERIOR), shape)

    def source(self, shape: tuple[int, ...]) -> jax.Array:
        return row_normal(self._keys(_SOURCE), shape)

    def _keys(self, purpose: int) -> jax.Array:
        return jax.vmap(lambda key: jax.random.fold_in(key, purpose))(self.keys_B)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class WindowNoise:
    """A source's noise, for one row: a window of a clip whose latent frames begin at `first`.

    The noise of a latent frame is drawn from (key, its index in the whole clip). Windows that overlap therefore share
    the noise of what they share, and the noise of a moment does not depend on the window that it is computed in.
    """

    key: jax.Array
    first: jax.Array | int

    def posterior(self, shape: tuple[int, ...]) -> jax.Array:
        raise NotImplementedError('clips are enhanced from the means of their latents')

    def source(self, shape: tuple[int, ...]) -> jax.Array:
        assert shape[0] == 1, shape
        keys_F = jax.vmap(functools.partial(jax.random.fold_in, self.key))(self.first + jnp.arange(shape[1]))
        return row_normal(keys_F, shape[1:])[None]
