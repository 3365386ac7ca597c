"""Enhancing a clip: the lines of stage 2 (`sampling`), window by window.

A window of input frames, uint8, becomes as many enhanced ones. The text is all zeros, the source is made from the means
of the VAE's latents, and windows that overlap share the noise of what they share (`noise.WindowNoise`).
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from fv_jax.core.parallel_context import Rules
from fv_jax.data.transforms import to_float, to_uint8
from fv_jax.models import vae_chunking
from fv_jax.models.dit import DiT
from fv_jax.models.vae_tiling import Tiling
from fv_jax.sampling import programs
from fv_jax.sampling.noise import WindowNoise
from fv_jax.sampling.windows import Windows, crossfade, cut
from fv_jax.stages.frozen_vae import JittedVAE
from fv_jax.stages.super_res import SuperRes

# (low-res latents BFHWC, key, the index of their first frame in the clip) -> high-res latents; none of them scaled
Transport = Callable[[jax.Array, jax.Array, int], jax.Array]


def jit_transport(stage: SuperRes, model: DiT, *, rules: Rules) -> Transport:
    """One executable per latent shape: noise, source and sampler. The text is all zeros."""
    loaded = programs.Loaded.of(stage, model)
    return lambda z_low_BFHWC, key, first: programs.transport(
        loaded, z_low_BFHWC, None, WindowNoise(key, first), rules=rules
    )


@dataclasses.dataclass(frozen=True)
class Enhancer:
    """Everything compiled that a window needs. Each part is compiled once per shape. tiling: of the VAE; None for whole
    frames.
    """

    transport: Transport
    vae: JittedVAE
    tiling: Tiling | None = None

    def window(self, video_FHWC: np.ndarray, size: tuple[int, int], *, key: jax.Array, first_latent: int) -> np.ndarray:
        """One window.

        Args:
          video_FHWC: uint8 RGB, any number of frames; padded with the last one to a length that the VAE takes, and
            cut back.
          size: (height, width) of the result, such as the VAE's latents allow.
          key: of the whole clip's noise.
          first_latent: the index of the window's first latent frame in the clip.

        Returns:
          float32 (F, *size, 3) in [-1, 1].
        """
        video_BFHWC = vae_chunking.pad_to_valid(jnp.asarray(to_float(video_FHWC))[None], self.vae.config.latent_spec)
        z_low = programs.low_res_latents(self.vae, video_BFHWC, size, tiling=self.tiling)
        enhanced_BFHWC = programs.decoded(self.vae, self.transport(z_low, key, first_latent), self.tiling)
        return np.asarray(enhanced_BFHWC[0, : len(video_FHWC)])


def enhance(
    enhancer: Enhancer, frames: Iterable[np.ndarray], size: tuple[int, int], *, key: jax.Array, windows: Windows
) -> Iterator[np.ndarray]:
    """A clip of any length, in as many frames.

    Args:
      frames: uint8 HWC RGB, all of one size; read as they are needed.
      size: (height, width) of the result, such as the VAE's latents allow.
      key: of the noise: the same key gives the same clip.
      windows: the model's frames, and how many of them neighbouring windows share.

    Yields:
      uint8 (F, *size, 3): the frames that a window has finished, as soon as it has; one block for each window.
    """

    def enhanced():
        for window in cut(frames, windows):
            first_latent = window.start // windows.alignment
            video = enhancer.window(window.video_FHWC, size, key=key, first_latent=first_latent)
            yield window._replace(video_FHWC=video)

    return map(to_uint8, crossfade(enhanced(), windows.overlap))
