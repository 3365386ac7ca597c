"""The geometry of a VAE's latents: valid sizes of clips, the size of their latents, and the number of tokens.

A clip of F frames of H x W pixels has latents of F' x H' x W', with the VAE's factors t in time and s in space:

    F' = 1 + (F - 1) / t,    H' = H / s,    W' = W / s        (1)   the first frame is encoded by itself, like an image
    F  = 1 + 2 t k                                            (2)   after the first, latent frames come in pairs
    F' (H' / p) (W' / p)                                      (3)   tokens, of p x p latents each

The config of a VAE has its `LatentSpec`, which is passed to all code that needs one of these numbers.
"""

import dataclasses

from fv_jax.core.checks import require
from fv_jax.core.config import ConfigError

LATENT_FRAME_STEP = 2  # of (2)


@dataclasses.dataclass(frozen=True)
class LatentSpec:
    """The channels and factors of a VAE's latents.

    Attributes:
      channels: of the latents.
      temporal: frames per latent frame, except for the first frame of a clip.
      spatial: pixels per latent, along each side.
      patch: latents per token, along each side: `patch_size` of the stage's DiT; the default is the official one.
    """

    channels: int
    temporal: int
    spatial: int
    patch: int = 2

    def with_patch(self, patch: int) -> 'LatentSpec':
        """Returns the same latents for a DiT of this patch size."""
        return dataclasses.replace(self, patch=patch)

    @property
    def frame_step(self) -> int:
        """The number of frames between two valid lengths of a clip (2)."""
        return LATENT_FRAME_STEP * self.temporal

    @property
    def pixel_multiple(self) -> int:
        """The number that both sides of a video must be multiples of, so that whole patches cover its latents."""
        return self.spatial * self.patch

    # --- sizes ---

    def latent_size(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Computes (F', H', W') of a clip's latents (1)."""
        return 1 + (frames - 1) // self.temporal, height // self.spatial, width // self.spatial

    def video_size(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Computes (F, H, W) of the clip that has latents of this size: the inverse of `latent_size`."""
        return 1 + self.temporal * (frames - 1), self.spatial * height, self.spatial * width

    def num_tokens(self, frames: int, height: int, width: int) -> int:
        """Computes the number of video tokens (3) of a clip of this size."""
        latent_frames, rows, columns = self.latent_size(frames, height, width)
        return latent_frames * (rows // self.patch) * (columns // self.patch)

    def is_valid_length(self, frames: int) -> bool:
        """Returns whether a clip of this length is decoded from its latents with the same length (2)."""
        return frames >= 1 and (frames - 1) % self.frame_step == 0

    def padded_length(self, frames: int) -> int:
        """Returns the smallest valid length that is not below `frames`."""
        return frames + -(frames - 1) % self.frame_step

    def round_down(self, height: float, width: float) -> tuple[int, int]:
        """Returns the largest size (height, width) of whole patches that is not larger.

        Raises:
          ValueError: a side is too small for one patch.
        """
        multiple, smallest = self.pixel_multiple, int(min(height, width))
        require(smallest >= multiple, f'a side of {smallest} pixels is too small: at least {multiple} are needed')
        return int(height) // multiple * multiple, int(width) // multiple * multiple

    # --- checks of what a user asked for ---

    def check_clip(self, path: str, frames: int, height: int, width: int) -> None:
        """Checks a clip's size; `path` and a dot precede each field's name in messages.

        Raises:
          ConfigError: the VAE cannot take the length, or patches do not cover the latents; with the nearest that fit.
        """
        self.check_frames(f'{path}.frames', frames)
        self.check_side(f'{path}.height', height)
        self.check_side(f'{path}.width', width)

    def check_frames(self, name: str, frames: int) -> None:
        """Raises ConfigError if the VAE cannot encode a clip of so many frames, naming the nearest lengths."""
        if self.is_valid_length(frames):
            return
        step = self.frame_step
        below = max((frames - 1) // step * step + 1, 1)
        raise ConfigError(f'{name}={frames}: a clip must have 1 or {step}k+1 frames; use {below} or {below + step}')

    def check_size(self, name: str, size: tuple[int, int]) -> None:
        """Raises ConfigError if (height, width) is not a whole number of patches, naming the nearest that are."""
        for side, pixels in zip(('height', 'width'), size, strict=True):
            self.check_side(f'{name}: {side}', pixels)

    def check_side(self, name: str, pixels: int) -> None:
        """Raises ConfigError if a side of so many pixels is not whole patches, naming the nearest that are."""
        check_multiple(name, pixels, self.pixel_multiple)


def check_multiple(name: str, size: int, multiple: int) -> None:
    """Raises ConfigError when `size` is not a positive multiple of `multiple`, naming the nearest that are."""
    if size > 0 and size % multiple == 0:
        return
    below = max(size // multiple, 1) * multiple
    choices = f'{below} or {below + multiple}' if size > below else f'{below}'
    raise ConfigError(f'{name}={size}: must be a multiple of {multiple}; use {choices}')
