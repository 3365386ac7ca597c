"""A decoded frame, and its conversion to RGB as it is meant to be shown."""

import dataclasses

import av
import numpy as np
from av.video.reformatter import Colorspace, Interpolation

# Players assume BT.709 for a file without a colour matrix from this height on, BT.601 below.
HD_HEIGHT = 720
_UNSPECIFIED = 2  # in FFmpeg's numbering of colour matrices
# For upsampling chroma: a linear filter is as accurate as a cubic one in two thirds of the time.
EXACT_UP = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT


@dataclasses.dataclass(frozen=True)
class Frame:
    """A decoded frame: its time in seconds from the first one, and its pixels on demand."""

    seconds: float
    _frame: av.VideoFrame

    def pixels(self, size: tuple[int, int] | None = None) -> np.ndarray:
        """Converts the frame to uint8 HWC (RGB), upright.

        Args:
          size: (height, width) to scale to, ignoring the aspect ratio (by area averaging: for display and detection,
            not for training); None keeps the size.
        """
        turns = int(self._frame.rotation) % 360 // 90
        options = {'interpolation': EXACT_UP}
        if size is not None:
            height, width = size[::-1] if turns % 2 else size
            options = {'height': height, 'width': width, 'interpolation': Interpolation.AREA}
        if self._frame.colorspace == _UNSPECIFIED:
            options['src_colorspace'] = Colorspace.ITU709 if self._frame.height >= HD_HEIGHT else Colorspace.ITU601
        image = self._frame.to_ndarray(format='rgb24', **options)
        return np.ascontiguousarray(np.rot90(image, turns)) if turns else image
