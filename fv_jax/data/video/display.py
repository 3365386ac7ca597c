"""How frames are shown: square pixels, upright, not mirrored.

A frame is shown as its display matrix and its sample aspect ratio say. One side is enlarged, never the other reduced,
so that no detail is lost; to an even number of pixels, as H.264 needs.
"""

import dataclasses
import math
import struct
from fractions import Fraction

import av
import numpy as np
from av.sidedata.sidedata import Type

from fv_jax.core.checks import require

# Pixels of an aspect ratio nearer to 1 are square: containers round it, and resampling would only blur.
_SQUARE_WITHIN = 0.005
_LARGEST_ASPECT = 10
_TOLERANCE = math.tan(math.radians(1))  # of rotations by multiples of 90 degrees, as in FFmpeg


@dataclasses.dataclass(frozen=True)
class Orientation:
    """What shows a stored frame upright.

    Attributes:
      transposed: rows and columns are exchanged first.
      flipped, mirrored: then the rows, and the columns, are reversed.
    """

    transposed: bool = False
    flipped: bool = False
    mirrored: bool = False

    @property
    def rotation(self) -> int:
        """Degrees counter-clockwise that the frame is rotated by, before its columns are reversed if it is mirrored."""
        if self.transposed:
            return 90 if self.flipped else 270
        return 180 if self.flipped else 0

    def apply(self, image: np.ndarray) -> np.ndarray:
        """Shows (H, W, ...) upright."""
        if self == Orientation():
            return image
        image = image.swapaxes(0, 1) if self.transposed else image
        return np.ascontiguousarray(image[:: -1 if self.flipped else 1, :: -1 if self.mirrored else 1])

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Returns the size of an upright frame of the stored one's, and the other way round."""
        return (width, height) if self.transposed else (height, width)


def read_orientation(frame: av.VideoFrame) -> Orientation:
    """Reads the display matrix of a frame. Raises ValueError for a rotation by other angles than quarter turns."""
    matrix = frame.side_data.get(Type.DISPLAYMATRIX)
    if matrix is None:
        return Orientation()
    # (x, y) is shown at (a x + c y, b x + d y), y downwards; a scale is part of the sample aspect ratio.
    a, b, _, c, d = struct.unpack('=5i', bytes(matrix)[:20])
    if max(abs(b), abs(c)) <= _TOLERANCE * min(abs(a), abs(d)):
        return Orientation(flipped=d < 0, mirrored=a < 0)
    require(
        max(abs(a), abs(d)) <= _TOLERANCE * min(abs(b), abs(c)),
        f'is shown rotated by {math.degrees(math.atan2(b, a)):.0f} degrees; only multiples of 90 are supported',
    )
    return Orientation(transposed=True, flipped=b < 0, mirrored=c < 0)


def square_size(frame: av.VideoFrame, aspect: Fraction | None) -> tuple[int, int]:
    """Computes the size (height, width) that a stored frame has with square pixels.

    Args:
      frame: the frame.
      aspect: width of a stored pixel / its height; None or 0 if it is unknown: pixels are square then.

    Raises:
      ValueError: the aspect ratio cannot be meant.
    """
    if not aspect or abs(aspect - 1) < _SQUARE_WITHIN:
        return frame.height, frame.width
    require(
        1 / _LARGEST_ASPECT <= aspect <= _LARGEST_ASPECT,
        f'states pixels of {aspect.numerator}:{aspect.denominator}; at most {_LARGEST_ASPECT}:1 is supported',
    )
    if aspect > 1:
        return frame.height, _nearest_even(frame.width * aspect)
    return _nearest_even(frame.height / aspect), frame.width


def _nearest_even(length: Fraction) -> int:
    return 2 * math.floor(length / 2 + Fraction(1, 2))
