"""The scores of a clip, one value for each column of the manifest.

A score that cannot be computed, of frames that are too small or of one colour, is None. Filters see it as a value that
fulfills no comparison.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from fv_jax.data.curation import bars, burnt_text, exposure, hashing, motion, noise, resolution, sharpness
from fv_jax.data.curation.samples import ClipSample
from fv_jax.data.video.shots import find_shots

_SHORTEST_SHOT = 4  # frames: cuts within a clip may be close to its ends


@dataclasses.dataclass(frozen=True)
class Score:
    """A column of scores.

    Attributes:
      kind: of its values.
      unit: of its values, for charts; '' without one.
      meaning: in a few words.
    """

    kind: Literal['float', 'int', 'str']
    unit: str
    meaning: str


SCORES = {
    'bandwidth': Score('float', 'share of Nyquist', 'up to which frequency there is content'),
    'true_height': Score('float', 'rows', 'height before the clip was enlarged'),
    'sharpness': Score('float', 'levels²', 'variance of the Laplacian'),
    'noise': Score('float', 'levels', 'standard deviation of the noise'),
    'blocking': Score('float', 'excess over other steps', 'steps on the 8-pixel grid of a codec'),
    'motion': Score('float', '% of height / s', 'mean length of the optical flow'),
    'static': Score('float', 'share of frames', 'frames that show the same as the one before'),
    'cuts': Score('int', '', 'cuts inside the clip'),
    'brightness': Score('float', 'levels', 'mean luma'),
    'black': Score('float', 'share of frames', 'black frames'),
    'white': Score('float', 'share of frames', 'white frames'),
    'colorfulness': Score('float', '', '0 is black and white'),
    'letterbox': Score('float', 'share of height', 'black bars above and below'),
    'pillarbox': Score('float', 'share of width', 'black bars left and right'),
    'text': Score('float', 'share of area', 'burnt-in text'),
    'hash': Score('str', '', 'perceptual hash'),
}


def _crop_small(frames_FHW: np.ndarray, found: bars.Bars, height: int) -> np.ndarray:
    """Crops shrunk frames where bars were found in frames of `height` rows, so that copies with bars are alike."""
    factor = height / frames_FHW.shape[1]
    shrunk = bars.Bars(*(math.ceil(side / factor) for side in dataclasses.astuple(found)))
    return np.stack([shrunk.crop(frame) for frame in frames_FHW])


# Of Parquet.
_TYPES = {'float': 'double', 'int': 'int32', 'str': 'string'}
COLUMN_TYPES = {name: _TYPES[score.kind] for name, score in SCORES.items()}


def score_clip(frames: Sequence[np.ndarray], fps: float) -> dict[str, Any]:
    """Computes the scores of a clip; detail is measured between the bars.

    Args:
      frames: uint8 RGB (H, W, 3), of one size; or one array (F, H, W, 3).
      fps: frames per second.

    Returns:
      A value, or None, for every name of `SCORES`.

    Raises:
      ValueError: frames of another shape or type.
    """
    sample = ClipSample(frames, fps)
    found = bars.find_bars(sample.detailed_FHW)
    height, width, _ = frames[0].shape
    inner = np.stack([found.crop(frame) for frame in sample.detailed_FHW])
    bandwidth = resolution.measure_bandwidth(inner)
    shots = find_shots([lambda frame=frame: frame for frame in sample.small_FHWC], min_frames=_SHORTEST_SHOT)
    return {
        'bandwidth': bandwidth,
        'true_height': resolution.true_height(bandwidth, height),
        'sharpness': sharpness.laplacian_variance(inner),
        'noise': noise.noise_sigma(inner),
        'blocking': noise.blocking(inner),
        'motion': motion.motion(sample.small_FHW, fps),
        'static': motion.static_share(sample.small_FHW),
        'cuts': len(shots) - 1,
        'brightness': exposure.brightness(sample.small_FHW),
        'black': exposure.black_share(sample.small_FHW),
        'white': exposure.white_share(sample.small_FHW),
        'colorfulness': exposure.colorfulness(sample.small_FHWC[:: max(len(sample.small_FHWC) // 4, 1)]),
        'letterbox': (found.top + found.bottom) / height,
        'pillarbox': (found.left + found.right) / width,
        'text': burnt_text.text_share(sample.detailed_FHW),
        'hash': hashing.perceptual_hash(_crop_small(sample.small_FHW, found, height)),
    }
