"""The noise of a sample: initial latents and sampler noise of stage 1, noise augmentation of stage 2.

Stages request noise by shape (`stages/noise`), inside their jitted call. The noise of an example depends on its own
seed alone, so that a prompt gives the same video in any batch.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fv_jax.diffusion.dpm_solver import NoiseFn
from fv_jax.stages.noise import per_example_normal, sampler_noise

_PREVIEW, _POSTERIOR, _AUGMENTATION = range(3)  # folded into an example's key
_CLIP_POSTERIOR = 2**32 - 1  # folded into a clip's key, from which latent frames take their indices


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SeededNoise:
    """The noise of both stages, from one seed per example.

    Attributes:
      seeds_B: uint32.
    """

    seeds_B: jax.Array | np.ndarray

    @classmethod
    def from_seeds(cls, seeds: Sequence[int]) -> 'SeededNoise':
        """Creates the noise of one example per seed. Seeds are 0 to 2^32 - 1."""
        return cls(np.asarray(seeds, np.uint32))

    def preview(self, shape: tuple[int, ...]) -> tuple[jax.Array, NoiseFn]:
        return sampler_noise(self._keys(_PREVIEW), shape)

    def posterior(self, shape: tuple[int, ...]) -> jax.Array:
        return per_example_normal(self._keys(_POSTERIOR), shape)

    def augmentation(self, shape: tuple[int, ...]) -> jax.Array:
        return per_example_normal(self._keys(_AUGMENTATION), shape)

    def _keys(self, purpose: int) -> jax.Array:
        return jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), purpose))(self.seeds_B)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class WindowNoise:
    """The noise of a window whose first latent frame has the index `first` in the clip; batch size 1.

    The noise of a latent frame is drawn from (seed, its index in the whole clip). Overlapping windows therefore share
    the noise of the frames that they share.

    Attributes:
      seed, first: uint32.
    """

    seed: jax.Array | np.ndarray
    first: jax.Array | np.ndarray

    @classmethod
    def create(cls, seed: int, first: int) -> 'WindowNoise':
        return cls(np.uint32(seed), np.uint32(first))

    def posterior(self, shape: tuple[int, ...]) -> jax.Array:
        return self._draw(jax.random.fold_in(jax.random.key(self.seed), _CLIP_POSTERIOR), shape)

    def augmentation(self, shape: tuple[int, ...]) -> jax.Array:
        return self._draw(jax.random.key(self.seed), shape)

    def _draw(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        assert shape[0] == 1, shape
        indices = self.first + jnp.arange(shape[1], dtype=jnp.uint32)
        keys_F = jax.vmap(functools.partial(jax.random.fold_in, key))(indices)
        return per_example_normal(keys_F, shape[1:])[None]
