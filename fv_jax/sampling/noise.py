"""The noise of a sample: initial latents and sampler noise of stage 1, noise augmentation of stage 2.

Stages request noise by shape (`stages/noise`), inside their jitted call. The noise of an example depends on its own
seed alone, so that a prompt gives the same video in any batch.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from fv_jax.diffusion.dpm_solver import NoiseFn
from fv_jax.stages.noise import per_example_normal, sampler_noise

_PREVIEW, _POSTERIOR, _AUGMENTATION = range(3)  # folded into an example's key


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SeededNoise:
    """The noise of both stages, from one key per example."""

    keys_B: jax.Array

    @classmethod
    def from_seeds(cls, seeds: list[int]) -> 'SeededNoise':
        """Creates the noise of one example per seed. Seeds are 0 to 2^32 - 1."""
        return cls(jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32)))

    def preview(self, shape: tuple[int, ...]) -> tuple[jax.Array, NoiseFn]:
        return sampler_noise(self._keys(_PREVIEW), shape)

    def posterior(self, shape: tuple[int, ...]) -> jax.Array:
        return per_example_normal(self._keys(_POSTERIOR), shape)

    def augmentation(self, shape: tuple[int, ...]) -> jax.Array:
        return per_example_normal(self._keys(_AUGMENTATION), shape)

    def _keys(self, purpose: int) -> jax.Array:
        return jax.vmap(lambda key: jax.random.fold_in(key, purpose))(self.keys_B)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class WindowNoise:
    """The noise augmentation of a window whose first latent frame has the index `first` in the clip; batch size 1.

    The noise of a latent frame is drawn from (key, its index in the whole clip). Overlapping windows therefore share
    the noise of the frames that they share.
    """

    key: jax.Array
    first: jax.Array | int

    def posterior(self, shape: tuple[int, ...]) -> jax.Array:
        """Raises NotImplementedError, as clips are enhanced from the means of their latents."""
        raise NotImplementedError('clips are enhanced from the means of their latents')

    def augmentation(self, shape: tuple[int, ...]) -> jax.Array:
        assert shape[0] == 1, shape
        keys_F = jax.vmap(functools.partial(jax.random.fold_in, self.key))(self.first + jnp.arange(shape[1]))
        return per_example_normal(keys_F, shape[1:])[None]
