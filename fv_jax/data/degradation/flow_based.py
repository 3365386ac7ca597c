"""Flow-based degradation: what models that generate videos do to things that move.

SimpleGVR (arXiv:2506.19838) describes it: colours of the previous frame blended into moving ellipses along the optical
flow, and blur along the motion. It publishes neither code nor ranges; the forms below are ours.

With x_t the frames and f_t the optical flow from frame t to frame t - 1, in pixels, the weight of motion is

  m_t(p) = clip(|f_t(p)| / (threshold H) - 1, 0, 1)                                              (1)

of a height H: 0 where nothing moves by the threshold, 1 where it moves by twice as much. With e_t(p) the largest of
some soft ellipses, which follow the flow from frame to frame and whose long axes lie along it,

  y_t(p) = x_t(p) + blending e_t(p) m_t(p) (x_{t-1}(p) - x_t(p))                                 (2)   colours
  z_t(p) = y_t(p) + m_t(p) (mean_k y_t(p + u_k shutter f_t(p)) - y_t(p)),  u_k in [-1/2, 1/2]    (3)   blur

The first frame has nothing before it: (2) leaves it as it is, and (3) takes the flow of the second. Where m is 0 the
frames are unchanged, bit by bit; so are images. Flow and weights are computed on shrunk frames and enlarged.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence

import cv2
import numpy as np

from fv_jax.data.degradation.configs import FlowBasedConfig
from fv_jax.data.degradation.operations import luma
from fv_jax.data.optical_flow import SMALLEST, optical_flows

_ROWS = 270  # of the shrunk frames, at most
_TAPS = 3, 15  # of the blur: a sample a pixel of the way, but not fewer and not more


@dataclasses.dataclass(frozen=True)
class Ellipse:
    """A region that follows the motion.

    Attributes:
      place: in [0, 1): which of the moving pixels of all frames it is centred on.
      along, across: half axes, as shares of the height.
    """

    place: float
    along: float
    across: float


@dataclasses.dataclass(frozen=True)
class MotionDegradation:
    """A flow-based degradation with sampled parameters.

    Attributes:
      blending: share of the previous frame within the ellipses.
      ellipses: of (2).
      shutter: length of the blur, in motions from a frame to the next.
      threshold: of (1), as a share of the height.
    """

    blending: float
    ellipses: tuple[Ellipse, ...]
    shutter: float
    threshold: float

    def __call__(self, frames_FHWC: np.ndarray) -> np.ndarray:
        """Degrades a clip, float32 of any range, by (2) and (3); of one frame it returns a copy."""
        out = frames_FHWC.astype(np.float32)
        small_FHW = _shrink_luma(frames_FHWC)
        if len(out) < 2 or min(small_FHW.shape[1:]) < SMALLEST:
            return out
        flows_GHW2 = np.stack(list(optical_flows((b, a) for a, b in itertools.pairwise(small_FHW))))
        lengths_GHW = np.linalg.norm(flows_GHW2, axis=-1)
        weights_GHW = np.clip(lengths_GHW / (self.threshold * small_FHW.shape[1]) - 1, 0, 1)
        masks_GHW = self._masks(flows_GHW2, weights_GHW)
        for t, frame in enumerate(out):
            pair = max(t - 1, 0)
            weight = _enlarge(weights_GHW[pair], frame)
            if t:
                share = self.blending * _enlarge(masks_GHW[pair], frame) * weight
                frame += share[..., None] * (frames_FHWC[t - 1] - frame)
            if self.shutter and weight.any():
                frame += weight[..., None] * (self._blur(frame, flows_GHW2[pair]) - frame)
        return out

    def __str__(self) -> str:
        return f'blending {self.blending:.2f} in {len(self.ellipses)} ellipse(s), shutter {self.shutter:.2f}'

    def _masks(self, flows_GHW2: np.ndarray, weights_GHW: np.ndarray) -> np.ndarray:
        """Draws e of (2) for each frame but the first, float32 in [0, 1]."""
        masks = np.zeros_like(weights_GHW)
        moving = np.flatnonzero(weights_GHW > 0.5)
        if not len(moving):
            return masks
        for ellipse in self.ellipses:
            pair, row, column = np.unravel_index(moving[int(ellipse.place * len(moving))], weights_GHW.shape)
            path = follow(flows_GHW2, int(pair), (float(column), float(row)))
            for mask, flow, centre in zip(masks, flows_GHW2, path, strict=True):
                np.maximum(mask, _soft_ellipse(mask.shape, centre, _at(flow, centre), ellipse), out=mask)
        return masks

    def _blur(self, frame_HWC: np.ndarray, flow_hw2: np.ndarray) -> np.ndarray:
        """Computes the mean of (3)."""
        height, width = frame_HWC.shape[:2]
        scale = np.array([width / flow_hw2.shape[1], height / flow_hw2.shape[0]], np.float32)
        way = _enlarge(flow_hw2, frame_HWC) * scale * np.float32(self.shutter)
        grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).astype(np.float32)
        taps = int(np.clip(math.ceil(np.linalg.norm(way, axis=-1).max()), *_TAPS))
        total = np.zeros_like(frame_HWC)
        for u in np.linspace(-0.5, 0.5, taps, dtype=np.float32):
            total += cv2.remap(frame_HWC, grid + u * way, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return total / np.float32(taps)


def sample_motion(rng: np.random.Generator, config: FlowBasedConfig) -> MotionDegradation:
    """Draws the parameters of a flow-based degradation for one clip."""
    count = int(rng.integers(config.ellipses[0], config.ellipses[1] + 1))
    radii = [sorted(rng.uniform(*config.radius, 2)) for _ in range(count)]
    ellipses = tuple(Ellipse(rng.random(), along, across) for across, along in radii)
    return MotionDegradation(rng.uniform(*config.blending), ellipses, rng.uniform(*config.shutter), config.threshold)


def follow(flows_GHW2: np.ndarray, pair: int, point: tuple[float, float]) -> list[tuple[float, float]]:
    """Follows a point along the optical flow.

    Args:
      flows_GHW2: flow g leads from frame g + 1 to frame g.
      pair: where the point is known: in frame pair + 1.
      point: (x, y).

    Returns:
      (x, y) in each frame but the first, within the frames.
    """
    path = {pair: point}
    for g in range(pair - 1, -1, -1):
        path[g] = _moved(path[g + 1], flows_GHW2[g + 1], 1)
    # Where the point goes next is known in the frame after: the flow there, at the same place, is nearly the same.
    for g in range(pair + 1, len(flows_GHW2)):
        path[g] = _moved(path[g - 1], flows_GHW2[g], -1)
    return [path[g] for g in range(len(flows_GHW2))]


def _moved(point: tuple[float, float], flow_HW2: np.ndarray, sign: int) -> tuple[float, float]:
    height, width = flow_HW2.shape[:2]
    x, y = point + sign * _at(flow_HW2, point)
    return float(np.clip(x, 0, width - 1)), float(np.clip(y, 0, height - 1))


def _at(flow_HW2: np.ndarray, point: tuple[float, float]) -> np.ndarray:
    return flow_HW2[round(point[1]), round(point[0])]


def _soft_ellipse(
    size: tuple[int, int], centre: tuple[float, float], direction: np.ndarray, ellipse: Ellipse
) -> np.ndarray:
    """Draws an ellipse (H, W), float32: 1 within half of its axes, 0 at its edge; its long axis has a direction."""
    height, width = size
    length = float(np.hypot(*direction))
    cos, sin = direction / length if length else (1.0, 0.0)
    x, y = np.arange(width) - centre[0], (np.arange(height) - centre[1])[:, None]
    along, across = (cos * x + sin * y) / (ellipse.along * height), (cos * y - sin * x) / (ellipse.across * height)
    return np.clip(2 - 2 * np.hypot(along, across), 0, 1).astype(np.float32)


def _shrink_luma(frames_FHWC: Sequence[np.ndarray]) -> np.ndarray:
    """Computes the luma of frames in [-1, 1], shrunk to at most `_ROWS` rows, uint8 (F, H, W)."""
    height, width = frames_FHWC[0].shape[:2]
    factor = max(height / _ROWS, 1)
    size = max(round(width / factor), 1), max(round(height / factor), 1)
    shrunk = (cv2.resize(luma(frame), size, interpolation=cv2.INTER_AREA) for frame in frames_FHWC)
    return np.stack([np.rint((np.clip(frame, -1, 1) + 1) * 127.5).astype(np.uint8) for frame in shrunk])


def _enlarge(values_HW: np.ndarray, like_HWC: np.ndarray) -> np.ndarray:
    """Resizes to the size of a frame, bilinearly; zeros between zeros stay zero."""
    return cv2.resize(values_HW.astype(np.float32), like_HWC.shape[1::-1], interpolation=cv2.INTER_LINEAR)
