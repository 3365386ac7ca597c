"""Clips of photographs in motion: a camera that pans, zooms and turns over an image, and sprites in front of it.

Small networks have few videos to train on; photographs have their textures. Frame t of a clip shows the image around

  c_t = c_0 + t v,   enlarged by s z^t,   turned by a + t w                                          (1)

in the image's pixels, resampled at fractions of a pixel. The image is averaged down to the scale of the clip first, so
that nothing aliases, and a frame is the mean of `SUBFRAMES` moments while the shutter is open.
"""

import math
from collections.abc import Sequence

import cv2
import numpy as np

from fv_jax.core.checks import require
from fv_jax.core.config import ConfigError
from fv_jax.data.loader import DataSource
from fv_jax.data.shards.records import Record
from fv_jax.data.sources import record_name
from fv_jax.data.synthetic import sprite_drawing, sprites
from fv_jax.data.video import decoding

VARIANTS = 1000  # clips of an image
SUBFRAMES = 4

SPEED = (0.002, 0.1)  # of the pan, in clip heights a frame
ZOOM, TURN = 0.006, 0.006  # standard deviations of log z and of w in radians, a frame
SHUTTER = 0.5  # at most, of the time of a frame
FOREGROUND = 0.4  # of the clips have a sprite


class MovingImages:
    """Records of clips made of the first frames of another source's clips; record i is a function of i alone.

    Args:
      source: of images or clips.
      size: (frames, height, width) of every clip.
      count: the number of clips, of every image equally many to one; None is VARIANTS of each.
    """

    def __init__(self, source: DataSource, size: tuple[int, int, int], count: int | None = None):
        require(count is None or count >= 1, f'{count} moving clips: must be at least 1', ConfigError)
        self._source, self._size, self.sources = source, size, (source,)
        self._count = VARIANTS * len(source) if count is None else count
        self._art = sprites.load_art()

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Record:
        record = self._source[index % len(self._source)]
        video = record['video']
        image = decoding.decode(video, max_frames=1).frames[0] if isinstance(video, bytes) else video[0]
        rng = np.random.default_rng([int(index), 2])
        clip = move_camera(image, self._size, rng, self.record_name(index))
        if rng.random() < FOREGROUND:
            _add_sprite(clip, self._art[rng.integers(len(self._art))], rng)
        frames, height, width = self._size
        return {
            'video': clip,
            'fps': sprites.FPS,
            'frames': frames,
            'height': height,
            'width': width,
            'source': str(record.get('source', '')),
        }

    def record_name(self, index: int) -> str:
        """Returns the name of the image's record."""
        return record_name(self._source, index % len(self._source))


def move_camera(
    image_HWC: np.ndarray, size: tuple[int, int, int], rng: np.random.Generator, name: str = 'image'
) -> np.ndarray:
    """Renders a clip (1), uint8 FHWC, of a uint8 image.

    Args:
      image_HWC: at least 1.2 times as large on its shorter side as the clip's diagonal.
      size: (frames, height, width) of the clip.
      rng: draws the path, the scale between that of the whole image and its own, and the shutter.
      name: of the image, for the error.

    Raises:
      ValueError: a smaller image.
    """
    frames, height, width = size
    reach = math.hypot(height, width) / 2 * 1.1  # of a turned window, in the clip's pixels
    least = 2 * reach / min(image_HWC.shape[:2])
    smaller = f'{name}: {image_HWC.shape[0]}x{image_HWC.shape[1]}: too small for moving clips of {height}x{width}; '
    require(least <= 0.95, smaller + f'the shorter side must be at least {math.ceil(2 * reach / 0.95)}')
    scale = least * (1 / least) ** rng.random() ** 2  # more often near the whole image, which has more edges
    scaled = cv2.resize(image_HWC, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA).astype(np.float32)
    speed = height * SPEED[0] * (SPEED[1] / SPEED[0]) ** rng.random()
    direction, zoom, turn = rng.uniform(0, 2 * math.pi), rng.normal(0, ZOOM), rng.normal(0, TURN)
    low, high = np.full(2, reach), np.maximum(np.array(scaled.shape[1::-1]) - reach, reach)
    start = low + (high - low) * rng.random(2)
    end = np.clip(start + speed * (frames - 1) * np.array([math.cos(direction), math.sin(direction)]), low, high)
    shutter = rng.uniform(0, SHUTTER)
    middle = (frames - 1) / 2
    clip = np.empty((frames, height, width, 3), np.uint8)
    for t in range(frames):
        exposed = np.zeros((height, width, 3), np.float32)
        for moment in t + shutter * (np.arange(SUBFRAMES) / SUBFRAMES):
            centre = start + (end - start) * (moment / max(frames - 1, 1))
            exposed += _look(scaled, centre, zoom * (moment - middle), turn * (moment - middle), (height, width))
        clip[t] = np.rint(exposed / SUBFRAMES)
    return clip


def _look(image_HWC: np.ndarray, centre: Sequence[float], log_zoom: float, angle: float, size: tuple[int, int]):
    """Resamples the window of `size` around a centre (x, y), enlarged by exp(|log_zoom|) at least."""
    height, width = size
    inverse = math.exp(-max(log_zoom, -0.09))  # the window stays within its reach
    cos, sin = inverse * math.cos(angle), inverse * math.sin(angle)
    x, y = (width - 1) / 2, (height - 1) / 2
    window_to_image = np.array(
        [[cos, -sin, centre[0] - cos * x + sin * y], [sin, cos, centre[1] - sin * x - cos * y]], np.float64
    )
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(image_HWC, window_to_image, (width, height), flags=flags, borderMode=cv2.BORDER_REFLECT_101)


def _add_sprite(clip_FHWC: np.ndarray, art: np.ndarray, rng: np.random.Generator) -> None:
    """Draws a sprite on a straight path across the middle of a clip, in place."""
    frames, height, width = clip_FHWC.shape[:3]
    size, aspect = rng.uniform(0.3, 0.7), width / height
    middle = np.array([rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.7) * aspect])
    angle, length = rng.uniform(0, 2 * math.pi), rng.uniform(0.05, 1.2)
    half = np.array([math.sin(angle), math.cos(angle)]) * length / 2
    for frame, centre in zip(clip_FHWC, np.linspace(middle - half, middle + half, frames), strict=True):
        sprite_drawing.paste_sprite(frame, art, centre * height, size * height)
