"""Enhances a video with stage 2: the one path of previews, of windows of clips, and of evaluation.

z_low  = mean or sample of the VAE's latents of the resized video    model guide 5.4, 4
z_high = stage 2, from the noise-augmented z_low                     model guide 5.3
result = decode(z_high)                                              model guide 4.3
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import numpy as np

from fv_jax.core.checks import require
from fv_jax.data.transforms import to_float
from fv_jax.models import vae_chunking
from fv_jax.models.vae_tiling import Tiling
from fv_jax.sampling import programs
from fv_jax.sampling.noise import WindowNoise
from fv_jax.sampling.programs import LoadedStage
from fv_jax.sampling.progress import OnStep, ignore_steps
from fv_jax.sampling.settings import EnhanceSettings
from fv_jax.stages.frozen_vae import JittedVAE
from fv_jax.stages.latent_stage import EnhancementStage
from fv_jax.stages.noise import EnhanceNoise

NOT_FINITE = 'the video has values that are not finite; parameters or activations overflow'

# (low-res latents BFHWC, text BLD or None for zeros, noise, on_step) -> high-res latents; both unscaled
EnhanceLatents = Callable[[jax.Array, jax.Array | None, EnhanceNoise, OnStep], jax.Array]


@dataclasses.dataclass(frozen=True)
class Enhancer:
    """The compiled functions that enhance a video. Each is compiled once per shape.

    Attributes:
      enhance_latents: samples stage 2.
      vae: encodes the resized video and decodes the result.
      tiling: of the VAE; None for whole frames.
      width_slices: of the last decode.
      sample_posterior: whether z_low is a sample of the VAE's posterior instead of its mean.
      to_host: copies an array, which may be sharded over devices, to the host.
    """

    enhance_latents: EnhanceLatents
    vae: JittedVAE
    tiling: Tiling | None = None
    width_slices: int = 1
    sample_posterior: bool = False
    to_host: Callable[[jax.Array], np.ndarray] = np.asarray

    @classmethod
    def create(
        cls, loaded: LoadedStage[EnhancementStage], vae: JittedVAE, settings: EnhanceSettings | None = None
    ) -> 'Enhancer':
        """Makes the enhancer of a loaded stage; nothing is compiled yet.

        Args:
          loaded: the stage, with the settings of its sampler.
          vae: of its latents, on the mesh of the stage.
          settings: of the VAE's part; None for whole frames and the mean, sliced where the stage's numerics ask for it.
        """
        settings = settings or EnhanceSettings.from_config(loaded.stage.sampler_config(), {})
        return cls(
            functools.partial(programs.enhance_latents, loaded),
            vae,
            settings.tiling(vae.config.latent_spec),
            settings.slices,
            settings.sample_posterior,
            loaded.mesh.to_host,
        )

    def enhance(
        self,
        video_BFHWC: jax.Array,
        size: tuple[int, int],
        text_BLD: jax.Array | None,
        noise: EnhanceNoise,
        on_step: OnStep = ignore_steps,
        ratio: float | None = None,
    ) -> jax.Array:
        """Resizes videos to `size` and enhances them.

        Args:
          video_BFHWC: in [-1, 1], a length that the VAE takes.
          size: (height, width) of the result in pixels, multiples of what the VAE's latents allow.
          text_BLD: text embeddings; None for all zeros.
          noise: the noise augmentation, and of the posterior.
          on_step: called after every step of the sampler. What it raises ends sampling.
          ratio: input pixels per output pixel, from the upper left corner; None resizes each side by its own ratio.

        Returns:
          float32 (B, F, *size, 3) in [-1, 1], which may be sharded over devices.
        """
        sampled = noise if self.sample_posterior else None
        z_low = programs.low_res_latents(self.vae, video_BFHWC, size, sampled, self.tiling, ratio)
        z_high = self.enhance_latents(z_low, text_BLD, noise, on_step)
        return programs.decode_latents(self.vae, z_high, self.tiling, width_slices=self.width_slices)

    def enhance_window(
        self,
        video_FHWC: np.ndarray,
        size: tuple[int, int],
        *,
        seed: int,
        first_latent: int,
        on_step: OnStep = ignore_steps,
        ratio: float | None = None,
    ) -> np.ndarray:
        """Enhances a window of a clip, without text.

        Args:
          video_FHWC: uint8 RGB, any number of frames; padded with the last frame to a length that the VAE takes,
            and cropped again.
          size: as in `enhance`.
          seed: of the noise of the whole clip.
          first_latent: the index of the window's first latent frame in the clip.
          on_step, ratio: as in `enhance`.

        Returns:
          float32 (F, *size, 3) in [-1, 1].

        Raises:
          ValueError: values that are not finite.
        """
        video_BFHWC = vae_chunking.pad_to_valid(to_float(video_FHWC)[None], self.vae.config.latent_spec)
        noise = WindowNoise.create(seed, first_latent)
        enhanced = self.enhance(video_BFHWC, size, None, noise, on_step, ratio)
        enhanced_FHWC = self.to_host(enhanced)[0, : len(video_FHWC)]
        require(np.isfinite(enhanced_FHWC).all(), NOT_FINITE)
        return enhanced_FHWC
