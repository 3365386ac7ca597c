"""Transforms from a record to the arrays of a batch: callables (record, rng) -> record.

NumPy only: the loader's threads must not start JAX. `rng` is a NumPy Generator that depends only on the seed and on
the example's index in the global order; a deterministic transform ignores it.

A record's own keys are those of `records.py`; the arrays made here have their dimensions as suffix:

  video_FHWC      uint8, decoded
  high_res_FHWC   float32 in [-1, 1]; `degradations.py` makes low_res_FHWC beside it
  z_high_FHWC, z_low_FHWC      latents
  text_LD         a text embedding, from `text` of the record

and the loader adds the batch dimension: high_res_BFHWC.
"""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from fv_jax.core.checks import require
from fv_jax.data.numpy_resize import crop_to_aspect, resize_uint8
from fv_jax.data.shards.records import Record
from fv_jax.data.video import decoding
from fv_jax.text.encoder import TextEncoder, embed_caption

# Arrays that are stored in records, which may contain NaN.
_STORED = frozenset({'text_LD', 'z_high_FHWC', 'z_low_FHWC'})

Transform = Callable[[Record, np.random.Generator], Record]


def compose(*transforms: Transform) -> Transform:
    """Composes transforms into one that applies them in order."""

    def apply(record: Record, rng: np.random.Generator) -> Record:
        for transform in transforms:
            record = transform(record, rng)
        return record

    return apply


def decode_video(record: Record, rng: np.random.Generator) -> Record:
    """Decodes `video` (mp4 bytes or a uint8 array) to video_FHWC.

    Raises:
      ValueError: the video is corrupted, not uint8, or has fewer frames than its record states.
    """
    del rng
    record = dict(record)
    require('video' in record, f'the record has no video, only {", ".join(sorted(record))}')
    video = record.pop('video')
    frames = decoding.decode(video).frames if isinstance(video, bytes) else np.asarray(video)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
        raise ValueError(f'its video must be uint8 (F, H, W, 3) (got {frames.dtype} {list(frames.shape)})')
    if len(frames) < (stated := record.get('frames') or 0):
        raise ValueError(f'its video has {len(frames)} frames, but the record states {stated}')
    record['video_FHWC'] = frames
    return record


@dataclasses.dataclass(frozen=True)
class Window:
    """Crops `frames` consecutive frames of video_FHWC, at random or in the middle.

    Raises ValueError for a shorter clip: padding it with its last frame would train the network on motion that stops.
    """

    frames: int
    random: bool = True

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        video = record['video_FHWC']
        spare = len(video) - self.frames
        require(spare >= 0, f'its video must have at least {self.frames} frames (got {len(video)})')
        start = _offset(spare, rng if self.random else None)
        return record | {'video_FHWC': video[start : start + self.frames]}


def _offset(spare: int, rng: np.random.Generator | None) -> int:
    """Draws the start of a crop that is `spare` shorter than its source; centred without a generator."""
    spare = max(spare, 0)
    return spare // 2 if rng is None else int(rng.integers(spare + 1))


@dataclasses.dataclass(frozen=True)
class Resize:
    """Crops video_FHWC to the aspect ratio of (height, width) at the centre and resizes it, antialiased."""

    height: int
    width: int

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        del rng
        size = self.height, self.width
        return record | {'video_FHWC': resize_uint8(crop_to_aspect(record['video_FHWC'], size), size)}


@dataclasses.dataclass(frozen=True)
class Crop:
    """Crops height x width of video_FHWC, at random or at the centre.

    With `max_pan`, in pixels per frame, half of the random crops pan over the image at a constant velocity, small
    velocities more often than large ones, which adds camera motion. Otherwise all frames are cropped at one position.

    Raises ValueError for a smaller clip.
    """

    height: int
    width: int
    random: bool = True
    max_pan: float = 0.0

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        video, size = record['video_FHWC'], (self.height, self.width)
        if self.random and self.max_pan and rng.random() < 0.5:
            return record | {'video_FHWC': _panning_crop(video, size, self.max_pan, rng)}
        (cut,) = _crop((video,), size, rng if self.random else None, 'video')
        return record | {'video_FHWC': cut}


def _crop(
    arrays: tuple[np.ndarray, ...], size: tuple[int, int], rng: np.random.Generator | None, what: str
) -> tuple[np.ndarray, ...]:
    top, left = (_offset(spare, rng) for spare in _spare(arrays[0], size, what))
    return tuple(array[:, top : top + size[0], left : left + size[1]] for array in arrays)


def _spare(array: np.ndarray, size: tuple[int, int], what: str) -> tuple[int, int]:
    """Computes how much larger (height, width) an array is than a crop. Raises ValueError if it is smaller."""
    height, width = array.shape[1:3]
    if height < size[0] or width < size[1]:
        raise ValueError(f'cannot crop {size[0]}x{size[1]} out of a {what} of {height}x{width}')
    return height - size[0], width - size[1]


def _panning_crop(
    video_FHWC: np.ndarray, size: tuple[int, int], max_pan: float, rng: np.random.Generator
) -> np.ndarray:
    frames, paths = len(video_FHWC), []
    for spare in _spare(video_FHWC, size, 'video'):
        # Squared, so that half of the velocities are below a quarter of the largest.
        way = rng.uniform(-1, 1)
        way = way * abs(way) * min(max_pan * (frames - 1), spare)
        start = rng.uniform(max(-way, 0), spare - max(way, 0))
        paths.append(np.rint(np.linspace(start, start + way, frames)).astype(int))
    places = zip(video_FHWC, *paths, strict=True)
    return np.stack([frame[top : top + size[0], left : left + size[1]] for frame, top, left in places])


@dataclasses.dataclass(frozen=True)
class Flip:
    """Mirrors video_FHWC left to right with this probability; unsuitable for captions that mention left or right."""

    probability: float = 0.5

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        if rng.random() >= self.probability:
            return record
        return record | {'video_FHWC': record['video_FHWC'][:, :, ::-1]}


def normalize_video(record: Record, rng: np.random.Generator) -> Record:
    """Converts video_FHWC, uint8, to high_res_FHWC, float32 in [-1, 1]."""
    del rng
    record = dict(record)
    record['high_res_FHWC'] = to_float(record.pop('video_FHWC'))
    return record


def to_float(frames: np.ndarray) -> np.ndarray:
    """Converts uint8 to float32, mapping 0 to -1 and 255 to 1."""
    out = np.multiply(frames, np.float32(2 / 255), dtype=np.float32)
    out -= 1  # in place: the frames of a clip at 1080p are a gigabyte
    return out


def to_uint8(frames: np.ndarray) -> np.ndarray:
    """Inverts `to_float`; values outside of [-1, 1] are clipped."""
    return np.rint((np.clip(frames, -1, 1) + 1) * 127.5).astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class Latents:
    """Reads cached latents as z_high_FHWC and z_low_FHWC, one of the K degraded variants at random.

    Without degraded variants (K = 0) there is no z_low_FHWC.

    Attributes:
      crop: (height, width) in latent pixels, cropped out of both at one random place; None keeps whole frames.
    """

    crop: tuple[int, int] | None = None

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        record = dict(record)
        if missing := [key for key in ('z_high', 'z_low') if not isinstance(record.get(key), np.ndarray)]:
            raise ValueError(f'the record has no {" and no ".join(missing)}, only {", ".join(sorted(record))}')
        z_high, z_low = record.pop('z_high'), record.pop('z_low')
        if z_low.shape[1:] != z_high.shape:
            raise ValueError(f'z_low {z_low.shape} must be a stack of arrays like z_high {z_high.shape}')
        chosen = (z_high, z_low[rng.integers(len(z_low))]) if len(z_low) else (z_high,)
        if self.crop is not None:
            chosen = _crop(chosen, self.crop, rng, 'latent')
        return record | dict(zip(('z_high_FHWC', 'z_low_FHWC'), chosen, strict=False))


@dataclasses.dataclass(frozen=True)
class EmbedCaption:
    """Embeds the caption of a record without an embedding; zeros, the unconditional input, without a caption."""

    encoder: TextEncoder

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        del rng
        return record if 'text' in record else record | {'text': embed_caption(self.encoder, record.get('caption'))}


def keep_arrays(record: Mapping[str, object], rng: np.random.Generator) -> Record:
    """Keeps the arrays that a batch can hold; `text` (LD) becomes text_LD; names, captions and numbers are dropped.

    Raises ValueError when a stored embedding or latent is not finite.
    """
    del rng
    renamed = {'text_LD' if key == 'text' else key: value for key, value in record.items()}
    for key in sorted(renamed.keys() & _STORED):
        require(np.isfinite(np.asarray(renamed[key], np.float32)).all(), f'{key} holds values that are not finite')
    return {key: np.ascontiguousarray(v) for key, v in renamed.items() if isinstance(v, np.ndarray) and v.ndim > 1}
