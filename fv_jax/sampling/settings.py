"""Sampling settings of both stages. The defaults are the official settings.

A pipeline has defaults of its own (`FlashVideo.preview_settings`, `.enhance_settings`), those of the configs of its
checkpoints; change them with `dataclasses.replace`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from fv_jax.core.config import ConfigError, check_range
from fv_jax.core.latent_spec import LatentSpec
from fv_jax.data.video.shots import ShotDetector
from fv_jax.models.vae_tiling import DEFAULT_OVERLAP, Tiling
from fv_jax.sampling.framing import Fit
from fv_jax.stages.sampler_configs import EnhancementSamplerConfig, PreviewSamplerConfig

OFFICIAL_SCALE = 4.0
MAX_STRETCH = 1.1  # of a preview, in one direction: the official 256x480 becomes 1072x1920, 1.05


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreviewSettings(PreviewSamplerConfig):
    """Sampling settings of previews (model guide 5.2): those of the stage's sampler, and these.

    Attributes:
      frames: length of the video, such as the VAE's latents allow (`check`).
      size: (height, width) in pixels, multiples of what the latents allow.
    """

    frames: int = 49
    size: tuple[int, int] = (256, 480)

    @classmethod
    def from_config(cls, sampler: PreviewSamplerConfig, data: Mapping[str, Any]) -> 'PreviewSettings':
        """Takes the settings of a run from its sampler config and, where present, `frames`, `height` and `width` of its
        data config.
        """
        frames, size = data.get('frames', cls.frames), _size_of(data, cls.size)
        return cls(frames=frames, size=size, **dataclasses.asdict(sampler))

    def check(self, latent_spec: LatentSpec, path: str = '') -> None:
        """Raises ConfigError for a length or a size that the stage's VAE cannot encode; names the nearest valid one.

        Args:
          latent_spec: of the stage's VAE.
          path: precedes the name of a field in messages.
        """
        latent_spec.check_frames(f'{path}frames', self.frames)
        latent_spec.check_size(f'{path}size', self.size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EnhanceSettings(EnhancementSamplerConfig):
    """Sampling settings of enhancements (model guide 5.3): those of the stage's sampler, and these.

    With `numerics` 'official' the last decode is made in two slices besides.

    Attributes:
      size: (height, width) in pixels, multiples of what the VAE's latents allow (`check`); None for the size of the
        preview or clip times `scale`, rounded down.
      scale: output size / input size, where `size` is None.
      width_slices: slices of the width in the last decode; None for 1, or 2 with 'official' numerics.
      tile_size: (height, width) in pixels of VAE tiles (`models/vae_tiling`), multiples of a latent, for a device
        without the memory for whole frames; None for whole frames.
      tile_overlap: pixels that neighbouring tiles share.
    """

    size: tuple[int, int] | None = (1072, 1920)
    scale: float = OFFICIAL_SCALE
    width_slices: int | None = None
    tile_size: tuple[int, int] | None = None
    tile_overlap: int = DEFAULT_OVERLAP

    def __post_init__(self):
        check_range(self, 'scale', above=0)
        check_range(self, 'width_slices', low=1)
        if self.tile_size is not None and self.slices > 1:
            whose = '' if self.width_slices else f", those of '{self.numerics}' numerics"
            raise ConfigError(
                f'tile_size={self.tile_size}: cannot be combined with width_slices={self.slices}{whose}; set '
                'width_slices=1'
            )

    @classmethod
    def from_config(cls, sampler: EnhancementSamplerConfig, data: Mapping[str, Any]) -> 'EnhanceSettings':
        """Takes the settings of a run from its sampler config. The size is that of its training frames if these were
        not crops, else four times the size of the preview.
        """
        whole = data.get('fit', 'resize') == 'resize'
        return cls(size=_size_of(data, None) if whole else None, **dataclasses.asdict(sampler))

    def check(self, latent_spec: LatentSpec, path: str = '') -> None:
        """Raises ConfigError for a size or tiles that the stage's VAE cannot encode; names the nearest valid size.

        Args:
          latent_spec: of the stage's VAE.
          path: precedes the name of a field in messages.
        """
        if self.size is not None:
            latent_spec.check_size(f'{path}size', self.size)
        self.tiling(latent_spec)

    @property
    def slices(self) -> int:
        """The number of slices of the width in the last decode."""
        return self.width_slices or (2 if self.numerics == 'official' else 1)

    def tiling(self, latent_spec: LatentSpec) -> Tiling | None:
        """Returns the tiling of the stage's VAE, or None for whole frames."""
        return None if self.tile_size is None else Tiling(self.tile_size, self.tile_overlap, latent_spec.spatial)

    def size_for(self, height: int, width: int, latent_spec: LatentSpec) -> tuple[int, int]:
        """Returns (height, width) of the video that a preview or a clip of this size becomes.

        Args:
          height, width: of the preview or clip, in pixels.
          latent_spec: of the stage's VAE.

        Raises:
          ValueError: `size` has another aspect ratio, so that the video would be stretched by more than 10 %.
        """
        if self.size is None:
            return latent_spec.round_down(height * self.scale, width * self.scale)
        stretch = (self.size[0] * width) / (self.size[1] * height)
        if not 1 / MAX_STRETCH <= stretch <= MAX_STRETCH:
            fitting = latent_spec.round_down(height * self.scale, width * self.scale)
            raise ValueError(
                f'size={self.size}: would stretch a video of {height}x{width}; use {fitting}, or None for '
                f'{self.scale:g} times its size'
            )
        return self.size


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipSettings:
    """How a clip is enhanced, beside the settings of the stage.

    Attributes:
      overlap: frames that neighbouring windows share; None as in `Windows.create`.
      shots: the detector of cuts, at each of which a new window starts; 'none' enhances the clip as one shot.
      shot_threshold: of the detector, lower finds more cuts; None as in `clip_shots`.
      color_fix: whether the low frequencies of the input are kept (`color_fix`).
      fit: what is done with a clip of another aspect ratio than the output's (`framing`).
    """

    overlap: int | None = None
    shots: ShotDetector = 'adaptive'
    shot_threshold: float | None = None
    color_fix: bool = True
    fit: Fit = 'crop'

    def __post_init__(self):
        check_range(self, 'shot_threshold', above=0)


def _size_of(data: Mapping[str, Any], default: tuple[int, int] | None) -> tuple[int, int] | None:
    return (data['height'], data['width']) if 'height' in data and 'width' in data else default
