"""Enhances a clip of any length with stage 2, window by window.

A window of input frames, uint8, becomes as many enhanced frames. The text embedding is all zeros, the low-resolution
latents are the posterior means of the VAE, and overlapping windows share the noise of the frames that they share
(`noise.WindowNoise`).
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fv_jax.core.parallel_context import ParallelContext
from fv_jax.data.transforms import to_float, to_uint8
from fv_jax.kernels.attention import SINGLE_DEVICE
from fv_jax.models import vae_chunking
from fv_jax.models.vae_tiling import Tiling
from fv_jax.sampling import programs
from fv_jax.sampling.noise import WindowNoise
from fv_jax.sampling.windows import Windows, crossfade, split_windows
from fv_jax.stages.frozen_vae import JittedVAE
from fv_jax.stages.latent_stage import EnhancementStage
from fv_jax.weights.trained_runs import Run

# (low-res latents BFHWC, key, index of their first latent frame in the clip) -> high-res latents; both unscaled
EnhanceLatents = Callable[[jax.Array, jax.Array, int], jax.Array]


def jit_enhance_latents(stage: EnhancementStage, model: nnx.Module, *, context: ParallelContext) -> EnhanceLatents:
    """Returns a function that adds noise to latents and samples stage 2, with one executable per latent shape.

    The text embedding is all zeros.
    """
    loaded = programs.LoadedStage.create(stage, model)
    return lambda z_low_BFHWC, key, first: programs.enhance_latents(
        loaded, z_low_BFHWC, None, WindowNoise(key, first), context=context
    )


@dataclasses.dataclass(frozen=True)
class Enhancer:
    """The compiled functions that enhance a window. Each is compiled once per shape.

    Attributes:
      enhance_latents: see `jit_enhance_latents`.
      vae: encodes the resized window and decodes the result.
      tiling: of the VAE; None for whole frames.
    """

    enhance_latents: EnhanceLatents
    vae: JittedVAE
    tiling: Tiling | None = None

    def enhance_window(
        self, video_FHWC: np.ndarray, size: tuple[int, int], *, key: jax.Array, first_latent: int
    ) -> np.ndarray:
        """Resizes a window to `size` and enhances it.

        Args:
          video_FHWC: uint8 RGB, any number of frames; padded with the last frame to a length that the VAE takes,
            and cropped again.
          size: (height, width) of the result in pixels, multiples of what the VAE's latents allow.
          key: of the noise of the whole clip.
          first_latent: the index of the window's first latent frame in the clip.

        Returns:
          float32 (F, *size, 3) in [-1, 1].

        Raises:
          ValueError: values that are not finite.
        """
        video_BFHWC = vae_chunking.pad_to_valid(jnp.asarray(to_float(video_FHWC))[None], self.vae.config.latent_spec)
        z_low = programs.low_res_latents(self.vae, video_BFHWC, size, tiling=self.tiling)
        enhanced_BFHWC = programs.decode_latents(self.vae, self.enhance_latents(z_low, key, first_latent), self.tiling)
        enhanced_FHWC = np.asarray(enhanced_BFHWC[0, : len(video_FHWC)])
        if not np.isfinite(enhanced_FHWC).all():
            raise ValueError('the enhanced video has values that are not finite; parameters or activations overflow')
        return enhanced_FHWC


def open_enhancer(run: Run, stage: EnhancementStage, tiling: Tiling | None = None) -> Enhancer:
    """Returns the enhancer of an opened run on one device; nothing is compiled yet.

    Args:
      run: of an enhancement stage.
      stage: the run's, with its own or other sampler settings.
      tiling: of the VAE; None for whole frames.
    """
    model = run.network.model(**run.params)
    return Enhancer(jit_enhance_latents(stage, model, context=SINGLE_DEVICE), run.vae, tiling)


def enhance_clip(
    enhancer: Enhancer, frames: Iterable[np.ndarray], size: tuple[int, int], *, key: jax.Array, windows: Windows
) -> Iterator[np.ndarray]:
    """Enhances a clip of any length, streaming.

    Args:
      enhancer: the compiled functions.
      frames: uint8 HWC RGB, all of one size; read lazily.
      size: (height, width) of the result in pixels, multiples of what the VAE's latents allow.
      key: of the noise; the same key gives the same clip.
      windows: the length of the windows and their overlap.

    Yields:
      uint8 (F, *size, 3), one block per window: the frames that no later window contributes to.

    Raises:
      ValueError: out of memory.
    """

    def enhance_windows():
        for window in split_windows(frames, windows):
            first_latent = window.start // windows.alignment
            video = enhancer.enhance_window(window.video_FHWC, size, key=key, first_latent=first_latent)
            yield window._replace(video_FHWC=video)

    try:
        yield from map(to_uint8, crossfade(enhance_windows(), windows.overlap))
    except jax.errors.JaxRuntimeError as error:
        if 'out of memory' not in str(error).lower():
            raise
        shape = f'{windows.frames}x{size[0]}x{size[1]}'
        raise ValueError(
            f'out of memory for windows of {shape}; use a smaller --size or --scale, or tiles (--tile-size=256x256)'
        ) from error
