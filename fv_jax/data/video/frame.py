"""A decoded frame, and its conversion to RGB as it is meant to be shown."""

import dataclasses
from fractions import Fraction
from typing import Literal

import av
import numpy as np
from av.video.reformatter import ColorRange, Interpolation

from fv_jax.core.checks import error_context, require
from fv_jax.data.images import BACKGROUND
from fv_jax.data.video.colours import read_colours
from fv_jax.data.video.display import read_orientation, square_size
from fv_jax.data.video.tone_mapping import to_sdr

Interlaced = Literal['deinterlace', 'refuse']
HighDynamicRange = Literal['tone_map', 'refuse']

# For upsampling chroma: a linear filter is as accurate as a cubic one in two thirds of the time.
EXACT_UP = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
# For pixels that are not square.
_EXACT_STRETCH = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT


@dataclasses.dataclass(frozen=True)
class DisplayConfig:
    """What is done with videos that a BT.709 display shows only after a conversion.

    Attributes:
      interlaced: 'deinterlace' interlaced videos (bwdif; one frame for each frame), or 'refuse' them.
      hdr: 'tone_map' videos of high dynamic range (PQ, HLG) or wide gamut (BT.2020, P3) to BT.709, or 'refuse' them.
    """

    interlaced: Interlaced = 'deinterlace'
    hdr: HighDynamicRange = 'tone_map'


@dataclasses.dataclass(frozen=True)
class Frame:
    """A decoded frame, whose pixels are converted on demand.

    Attributes:
      source: the name of its file, for messages.
      seconds: its time from the first one.
      decoded: as the decoder returns it.
      aspect: width of a stored pixel / its height; None if unknown.
      duration: for how many seconds it is shown, as the file states it; 0 if it does not.
    """

    source: str
    seconds: float
    decoded: av.VideoFrame
    aspect: Fraction | None = None
    duration: float = 0.0

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) as shown. Raises ValueError where the file states what is not supported."""
        with error_context(f'{self.source}: '):
            return read_orientation(self.decoded).size(*square_size(self.decoded, self.aspect))

    def check(self, config: DisplayConfig) -> None:
        """Raises ValueError where the file states what is not supported, or what the config refuses."""
        _ = self.size
        with error_context(f'{self.source}: '):
            colours = read_colours(self.decoded)
            interlaced = self.decoded.interlaced_frame and config.interlaced == 'refuse'
            require(not interlaced, 'is interlaced, which interlaced=refuse refuses; choose deinterlace')
            hdr = colours.converted and config.hdr == 'refuse'
            require(not hdr, f'its colours are {colours.name}, which hdr=refuse refuses; choose tone_map')

    def describe_conversions(self) -> str:
        """Describes what is assumed and what is changed to show the frame; '' if nothing is."""
        colours, (height, width) = read_colours(self.decoded), self.size
        stored = read_orientation(self.decoded).size(self.decoded.height, self.decoded.width)
        parts = {
            f'no colour matrix is stated, {colours.assumed} assumed': colours.assumed,
            f'{colours.name} converted to BT.709': colours.converted,
            f'pixels of {self.aspect}, shown with square ones as {height}x{width}': (height, width) != stored,
            'interlaced, and deinterlaced': self.decoded.interlaced_frame,
        }
        return '; '.join(text for text, holds in parts.items() if holds)

    def pixels(self, size: tuple[int, int] | None = None) -> np.ndarray:
        """Converts the frame to uint8 HWC (RGB): BT.709, upright, square pixels, transparent parts on white.

        Args:
          size: (height, width) to scale to, ignoring the aspect ratio (by area averaging: for display and detection,
            not for training); None keeps the size.

        Raises:
          ValueError: the colours or the geometry that the file states are not supported.
        """
        stored = self.decoded.height, self.decoded.width
        with error_context(f'{self.source}: '):
            orientation = read_orientation(self.decoded)
            target = square_size(self.decoded, self.aspect)
            if size is not None:
                target, interpolation = orientation.size(*size), Interpolation.AREA
            else:
                interpolation = EXACT_UP if target == stored else _EXACT_STRETCH
            colours = read_colours(self.decoded)
        options = {'interpolation': interpolation, 'src_colorspace': colours.matrix}
        if target != stored:
            options |= {'height': target[0], 'width': target[1]}
        # Formats that the scaler does not convert raise the operating system's errors.
        unconverted = f'{self.source}: its frames, {self.decoded.format.name}, cannot be converted to RGB: '
        with error_context(unconverted, (OSError, av.FFmpegError)):
            if colours.converted:
                # Not packed rgb48, which the scaler converts wrongly with FULL_CHR_H_INT.
                image = to_sdr(
                    self.decoded.to_ndarray(format='gbrp16le', **options), _white_level(self.decoded), colours
                )
            else:
                image = self.decoded.to_ndarray(format='rgb24', **options)
            if _has_alpha(self.decoded.format):
                image = _composite(image, self.decoded.to_ndarray(format='rgba', **options)[..., 3:])
        return orientation.apply(image)


def _white_level(frame: av.VideoFrame) -> int:
    """Returns the level that white of a frame has after the scaler's conversion to 16 bits, which only shifts it."""
    if frame.color_range == ColorRange.JPEG or frame.format.is_rgb or frame.format.name.startswith('yuvj'):
        bits = frame.format.components[0].bits
        return ((1 << bits) - 1) << (16 - bits)
    return 255 << 8


def _has_alpha(video_format: av.VideoFormat) -> bool:
    return video_format.has_palette or any(component.is_alpha for component in video_format.components)


def _composite(image: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Puts an image on the background of images. alpha: uint8 (H, W, 1), 255 where the image is opaque."""
    if (alpha == 255).all():
        return image
    mixed = image.astype(np.uint32) * alpha + np.array(BACKGROUND, np.uint32) * (255 - alpha.astype(np.uint32))
    return ((mixed + 127) // 255).astype(np.uint8)
