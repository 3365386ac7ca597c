"""Which object a clip shows and where it moves, measured on the frames alone.

Made for generated clips: blurry, noisy, about 64 rows high (larger ones are averaged down to that), the camera still.
With frames x_t after a slight blur:

  1. e_t = sum_c (x_(t+k) - x_t)^2, k about F / 8: what differs moved. Its noise floor off, spread over a sprite's
     size, e_t peaks at the thing; c_(t + k/2) is the middle of e_t around the peak.
  2. The landscape b: for every pixel the median over the frames in which the thing is more than R away, or the frame
     in which it is farthest.
  3. c_t again: the middle of |x_t - b|^2 within R of where it was.
  4. Motion: the direction of the straight line through c_t, the nearest of the eight.
  5. Object: every template (object, size s, place p near c_t; colours T, opacity A) laid over b, faintly if need be,
     explains the frame around c_t with the error |b + a A (T - b) - x|^2, a in [0.4, 1]; the object whose best template
     has the least error over several frames. With r = x - b this is |r|^2 - 2 a C + a^2 Q,

       C = sum A T.r - A b.r,   Q = sum A^2 T^2 - 2 A^2 T.b + A^2 b^2,   a = C / Q in its bounds,

     correlations of the template with r, b.r and with 1, b, |b|^2: two matrix products.
"""

import math
from typing import NamedTuple

import cv2
import numpy as np

from fv_jax.data.synthetic import sprite_drawing
from fv_jax.data.synthetic.sprites import MOTIONS, OBJECTS, load_art

_HEIGHT = 64  # rows the measures work on
_BLUR = 0.8  # of the frames, in pixels
_SOFT = (0.8, 2.0)  # of the templates: sharp frames and blurred ones
_REACH = 0.3  # R, in image heights: beyond a sprite's edge
_LEAST_MOVE = 0.12  # in image heights, over the clip: less is no motion
_STRAIGHT = 0.3  # of the centres' variance: less is no motion
_ONE_THING = 0.5  # of what differs from the landscape: less is noise
_SIZES = (0.29, 0.33, 0.37, 0.41, 0.45, 0.49)  # of the templates, in image heights
_SIDE = 34  # of a template's square, in pixels
_SEARCH = 4  # pixels a template may lie off c_t
_LOOKS = 5  # frames in which the object is searched
_FAINT = (0.4, 1.0)  # bounds of a


def motion_of(frames_FHWC: np.ndarray) -> str | None:
    """The motion, a key of `sprites.MOTIONS`, of the thing that moves in uint8 frames.

    None if nothing moves, or nowhere in particular.
    """
    track = _track(_prepared(frames_FHWC))
    move, straightness = _line(track.centres_F2, track.weights_F)
    if math.hypot(*move) < _LEAST_MOVE * _HEIGHT or straightness < _STRAIGHT or track.share < _ONE_THING:
        return None
    return max(MOTIONS, key=lambda name: np.dot(move, MOTIONS[name][0]) / np.linalg.norm(MOTIONS[name][0]))


def object_of(frames_FHWC: np.ndarray) -> str:
    """The object, a key of `sprites.OBJECTS`, that the moving thing in uint8 frames is most like."""
    errors = object_errors(frames_FHWC)
    return min(errors, key=errors.__getitem__)


def object_errors(frames_FHWC: np.ndarray) -> dict[str, float]:
    """For every object what its best template leaves unexplained of the moving thing: 0 all of it explained, 1 as
    if there were no object at all.
    """
    video = _prepared(frames_FHWC)
    track = _track(video)
    looks = np.unique(np.linspace(0, len(video) - 1, _LOOKS + 2).round().astype(int)[1:-1])
    around = _around(video[looks], track.backdrop_HWC, track.centres_F2[looks])
    left = _least_errors(around) / max(float(np.square(around[..., :3]).sum()), 1e-6)
    return {name: float(1 + gain) for name, gain in zip(OBJECTS, left, strict=True)}


def _prepared(frames_FHWC: np.ndarray) -> np.ndarray:
    """float32 in [0, 1], about _HEIGHT rows, slightly blurred. Raises ValueError for what is not a clip."""
    if frames_FHWC.ndim != 4 or frames_FHWC.shape[-1] != 3 or frames_FHWC.dtype != np.uint8 or len(frames_FHWC) < 3:
        raise ValueError(
            f'frames {frames_FHWC.dtype.name}{list(frames_FHWC.shape)}: expected uint8 [frames, height, width, 3] with '
            'at least 3 frames'
        )
    height, width = frames_FHWC.shape[1:3]
    size = round(width * _HEIGHT / height), _HEIGHT
    small = (cv2.resize(frame.astype(np.float32) / 255, size, interpolation=cv2.INTER_AREA) for frame in frames_FHWC)
    return np.stack([cv2.GaussianBlur(frame, (0, 0), _BLUR) for frame in small])


# --- steps 1 to 4 ---


class _Track(NamedTuple):
    """The thing's middle (y, x) in every frame; how much it differs from the landscape there; the share of all that
    differs from the landscape, in the middle frame of the order of shares; the landscape.
    """

    centres_F2: np.ndarray
    weights_F: np.ndarray
    share: float
    backdrop_HWC: np.ndarray


def _track(video_FHWC: np.ndarray) -> _Track:
    """Steps 1 to 3."""
    frames, height = video_FHWC.shape[:2]
    gap = max(1, round(frames / 8))
    energy = np.square(video_FHWC[gap:] - video_FHWC[:-gap]).sum(axis=-1)
    energy = np.maximum(energy - 4 * np.median(energy, axis=(1, 2), keepdims=True), 0)
    peaks = np.stack([_peak(e, 0.12 * height) for e in energy])
    rough = np.stack([_middle(e, peak, _REACH * height)[0] for e, peak in zip(energy, peaks, strict=True)])
    centres = _extended(rough, np.arange(len(rough)) + gap / 2, frames)
    for _ in range(2):
        backdrop = _behind(video_FHWC, centres, _REACH * height)
        difference = np.square(video_FHWC - backdrop).sum(axis=-1)
        difference = np.maximum(difference - 4 * np.median(difference, axis=(1, 2), keepdims=True), 0)
        found = [_middle(d, c, _REACH * height) for d, c in zip(difference, centres, strict=True)]
        centres = np.stack([centre for centre, _ in found])
    weights = np.array([weight for _, weight in found])
    share = np.median(weights / np.maximum(difference.sum(axis=(1, 2)), 1e-9))
    return _Track(centres, weights, float(share), backdrop)


def _peak(map_HW: np.ndarray, spread: float) -> np.ndarray:
    smooth = cv2.GaussianBlur(map_HW, (0, 0), spread, borderType=cv2.BORDER_CONSTANT)
    return np.array(np.unravel_index(smooth.argmax(), smooth.shape), np.float64)


def _middle(map_HW: np.ndarray, start: np.ndarray, radius: float) -> tuple[np.ndarray, float]:
    """The centre of what lies within `radius` of `start`, found again around itself, and how much that is."""
    rows, columns = np.ogrid[: map_HW.shape[0], : map_HW.shape[1]]
    centre, weight = start, 0.0
    for _ in range(3):
        near = map_HW * (np.hypot(rows - centre[0], columns - centre[1]) < radius)
        weight = float(near.sum())
        if weight <= 0:
            break
        centre = np.array([(near * rows).sum(), (near * columns).sum()]) / weight
    return centre, weight


def _extended(rough_T2: np.ndarray, times_T: np.ndarray, frames: int) -> np.ndarray:
    """Centres for every frame from those at `times_T`: a running median, then lines through neighbours and the ends."""
    padded = np.concatenate([rough_T2[:1], rough_T2, rough_T2[-1:]])
    smooth = np.median(np.stack([padded[:-2], padded[1:-1], padded[2:]]), axis=0)
    every = np.arange(frames)
    centres = np.stack([np.interp(every, times_T, column) for column in smooth.T], axis=1)
    if len(smooth) < 3:
        return centres
    speed = np.median(np.diff(smooth, axis=0), axis=0)
    before, after = np.maximum(times_T[0] - every, 0), np.maximum(every - times_T[-1], 0)
    return centres + (after - before)[:, None] * speed


def _behind(video_FHWC: np.ndarray, centres_F2: np.ndarray, radius: float) -> np.ndarray:
    """The landscape, step 2."""
    rows, columns = np.ogrid[: video_FHWC.shape[1], : video_FHWC.shape[2]]
    distance = np.stack([np.hypot(rows - y, columns - x) for y, x in centres_F2])
    clear = distance >= np.minimum(radius, distance.max(axis=0))
    # The median of those that are clear: the others are sorted behind them.
    ordered = np.sort(np.where(clear[..., None], video_FHWC, np.inf), axis=0)
    count = clear.sum(axis=0)
    picks = [np.take_along_axis(ordered, i[None, ..., None], axis=0)[0] for i in ((count - 1) // 2, count // 2)]
    return (picks[0] + picks[1]) / 2


def _line(centres_F2: np.ndarray, weights_F: np.ndarray) -> tuple[np.ndarray, float]:
    """(down, right) from the first frame to the last of the weighted least-squares line, and the share of the centres'
    variance that the line explains.
    """
    time = np.linspace(-0.5, 0.5, len(centres_F2))
    total = weights_F.sum()
    weights = weights_F / total if total > 0 else np.full(len(time), 1 / len(time))
    time, centres = time - weights @ time, centres_F2 - weights @ centres_F2
    spread, variance = weights @ time**2, weights @ np.square(centres).sum(axis=1)
    if spread <= 0 or variance <= 0:
        return np.zeros(2), 0.0
    move = (weights * time) @ centres / spread
    return move, float(spread * move @ move / variance)


# --- step 5 ---


def _around(video_FHWC: np.ndarray, backdrop_HWC: np.ndarray, centres_F2: np.ndarray) -> np.ndarray:
    """r, b.r, 1, b, |b|^2 around the centres: (F, side, side, 9).

    Beyond the image's edge all of them are 0: what of a template lies there is neither right nor wrong.
    """
    reach = _SIDE // 2 + _SEARCH
    residual = video_FHWC - backdrop_HWC
    backdrop = np.broadcast_to(backdrop_HWC, video_FHWC.shape)
    product = (backdrop * residual).sum(axis=-1, keepdims=True)
    square = np.square(backdrop).sum(axis=-1, keepdims=True)
    maps = np.concatenate([residual, product, np.ones_like(product), backdrop, square], axis=-1)
    maps = np.pad(maps, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    out = []
    for frame, (y, x) in zip(maps, centres_F2, strict=True):
        top, left = (int(np.clip(round(c), 0, n - 1)) for c, n in zip((y, x), backdrop_HWC.shape, strict=False))
        out.append(frame[top : top + 2 * reach, left : left + 2 * reach])
    return np.stack(out)


def _least_errors(around: np.ndarray) -> np.ndarray:
    """For every object: a^2 Q - 2 a C at its best places in the frames and of its best size, summed over the frames."""
    kernels = _kernels()

    def correlated(maps: np.ndarray, kernels: np.ndarray) -> np.ndarray:
        windows = np.lib.stride_tricks.sliding_window_view(maps, (_SIDE, _SIDE), axis=(1, 2))
        seen = windows.transpose(0, 1, 2, 4, 5, 3).reshape(len(maps), -1, kernels[0].size)
        return seen @ kernels.reshape(len(kernels), -1).T

    c, q = correlated(around[..., :4], kernels[..., :4]), correlated(around[..., 4:], kernels[..., 4:])
    a = np.clip(c / np.maximum(q, 1e-6), *_FAINT)
    errors = (a**2 * q - 2 * a * c).min(axis=1).sum(axis=0)
    return errors.reshape(len(OBJECTS), -1).min(axis=1)


def _kernels() -> np.ndarray:
    """What `_around` is multiplied with, (objects * sizes * softnesses, side, side, 9): 4 for C, then 5 for Q."""
    out = []
    for art in load_art():
        # Quarter the art's size: still larger than any template, and quick to scale.
        small = cv2.resize(art, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
        for size in _SIZES:
            square = sprite_drawing.resample_art(small, (_SIDE / 2, _SIDE / 2), size * _HEIGHT, _SIDE)
            for soft in _SOFT:
                blurred = cv2.GaussianBlur(square, (0, 0), soft)
                colour, opacity = blurred[..., :3], blurred[..., 3:]  # A T and A
                own = np.square(colour).sum(axis=-1, keepdims=True)
                out.append(np.concatenate([colour, -opacity, own, -2 * opacity * colour, opacity**2], axis=-1))
    return np.stack(out)
