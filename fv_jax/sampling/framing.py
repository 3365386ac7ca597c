"""Fits frames to an output of another aspect ratio: one scale along both sides, so that nothing is stretched.

With the input's h x w and the output's H x W pixels, the number of input pixels per output pixel is

    crop:  r = min(h / H, w / W)        the largest centred part of the frame that fills the output        (1)
    pad:   r = max(h / H, w / W)        the whole frame, centred, between black bars                       (2)

Frames are padded with their own edges before the network, which would sharpen the edge of a black bar; the bars are
made black afterwards.
"""

import dataclasses
import math
from fractions import Fraction
from typing import Literal

import numpy as np

from fv_jax.core.latent_spec import LatentSpec

Fit = Literal['crop', 'pad']
_BLACK = -1.0


@dataclasses.dataclass(frozen=True)
class Framing:
    """How frames become an output of another aspect ratio.

    Attributes:
      source, size: (height, width) in pixels of the frames and of the output.
      fit: 'crop' or 'pad'.
    """

    source: tuple[int, int]
    size: tuple[int, int]
    fit: Fit

    @property
    def is_exact(self) -> bool:
        """Whether both have one aspect ratio, so that frames need no fitting."""
        return self.source[0] * self.size[1] == self.source[1] * self.size[0]

    @property
    def ratio(self) -> float:
        """The number of input pixels per output pixel, (1) or (2)."""
        choose = min if self.fit == 'crop' else max
        return choose(self.source[0] / self.size[0], self.source[1] / self.size[1])

    @property
    def shown(self) -> tuple[int, int]:
        """(height, width) of the part of a frame that is shown, in input pixels."""
        return tuple(min(side, seen) for side, seen in zip(self.source, self._seen, strict=True))

    @property
    def content(self) -> tuple[slice, slice]:
        """The rows and columns of the output that show the frame; the others are black."""
        bounds = []
        for side, seen, length in zip(self.source, self._seen, self.size, strict=True):
            before = max(seen - side, 0) // 2
            ends = (min(round(pixels / self.ratio), length) for pixels in (before, before + side))
            bounds.append(slice(*ends))
        return tuple(bounds)

    @property
    def _seen(self) -> tuple[int, int]:
        """(height, width) in input pixels that the output covers, rounded up."""
        return tuple(math.ceil(side * self.ratio - 1e-6) for side in self.size)

    def apply(self, video_FHWC: np.ndarray) -> np.ndarray:
        """Crops frames to what is shown, or pads them with their edges; the output begins at their upper left."""
        index, margins = [], [(0, 0)]
        for side, seen in zip(self.source, self._seen, strict=True):
            start, spare = max(side - seen, 0) // 2, max(seen - side, 0)
            index.append(slice(start, start + min(side, seen)))
            margins.append((spare // 2, spare - spare // 2))
        cropped = video_FHWC[:, *index]
        return np.pad(cropped, [*margins, (0, 0)], mode='edge') if np.any(margins) else cropped

    def make_bars_black(self, video_FHWC: np.ndarray) -> np.ndarray:
        """Returns an output, in [-1, 1], whose rows and columns beside the frame are black."""
        framed = np.full_like(video_FHWC, _BLACK)
        framed[:, *self.content] = video_FHWC[:, *self.content]
        return framed

    def describe(self) -> str:
        """Describes in one line what is cropped, or how wide the bars are; '' if neither."""
        source, size, shown = (f'{height}x{width}' for height, width in (self.source, self.size, self.shown))
        if self.is_exact or (self.fit == 'crop' and self.shown == self.source):
            return ''
        if self.fit == 'crop':
            return f'{source} is cropped to {shown}, its centre, for {size} without stretching; --fit=pad shows it all'
        rows, columns = self.content
        bars = f'{self.size[0] - (rows.stop - rows.start)} rows and {self.size[1] - (columns.stop - columns.start)}'
        return f'{source} is padded to {size} without stretching: {bars} columns are black'


def scaled_size(source: tuple[int, int], scale: float, fit: Fit, latent_spec: LatentSpec) -> tuple[int, int]:
    """Returns the size of an output of about `scale` times the source's, a multiple of what the latents allow.

    It is rounded down for 'crop', and up for 'pad', to show the whole frame. Raises ValueError for one too small.
    """
    exact = _exact_size(source, scale)
    if fit == 'crop':
        return latent_spec.round_down(*exact)
    multiple = latent_spec.pixel_multiple
    return tuple(math.ceil(side / multiple) * multiple for side in exact)


def describe_rounding(source: tuple[int, int], scale: float, size: tuple[int, int]) -> str:
    """Describes in one line how `scaled_size` rounded; '' if it did not."""
    exact = _exact_size(source, scale)
    if size == exact:
        return ''
    height, width = (f'{float(side):g}' for side in exact)
    return f'{height}x{width} is rounded {"down" if size < exact else "up"} to {size[0]}x{size[1]}'


def _exact_size(source: tuple[int, int], scale: float) -> tuple[Fraction, Fraction]:
    # 320 times 1.15 is 368 pixels, not 367.99999999999994.
    return source[0] * Fraction(str(scale)), source[1] * Fraction(str(scale))
