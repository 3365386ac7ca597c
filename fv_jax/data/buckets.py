"""Buckets of clip sizes and their schedule: which clip goes to which bucket, and which bucket a step trains on.

A bucket is a number of frames, a height and a width. A batch comes from one bucket, so that each bucket is one compiled
shape. Images are clips of one frame, in buckets of their own.

A cycle of steps contains every bucket in proportion to its clips, at least once, in an order drawn from (seed, cycle).
Which bucket a step trains on, and how many of its batches came before, are functions of the step alone.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from fv_jax.core.config import check_range
from fv_jax.core.latent_spec import LatentSpec
from fv_jax.data.record_sizes import RecordSizes

Size = tuple[int, int, int]  # frames, height, width

_CYCLE = 1000  # steps in a cycle, to which the buckets' shares are rounded
_TOLERANCE = (
    0.05  # of the image's area: among buckets that crop at most so much more than the best, the largest is taken
)


@dataclasses.dataclass(frozen=True)
class Bucket:
    """A size to train at, in frames and pixels, that the VAE's `LatentSpec` allows."""

    frames: int
    height: int
    width: int

    @property
    def size(self) -> Size:
        """The size as (frames, height, width)."""
        return self.frames, self.height, self.width

    def __str__(self) -> str:
        return f'{self.frames}x{self.height}x{self.width}'


@dataclasses.dataclass(frozen=True)
class BucketFit:
    """How clips are fitted to buckets.

    Attributes:
      scaled: clips are scaled to cover the bucket, then cropped at the centre; otherwise the bucket is cropped out of
        them without scaling.
      max_upscale: the largest factor by which clips may be enlarged.
      max_crop_fraction: the largest fraction of a scaled clip's area that may be cropped, in [0, 1).
      exact: accept only clips of exactly the bucket's size.
    """

    scaled: bool = True
    max_upscale: float = 1.0
    max_crop_fraction: float = 0.4
    exact: bool = False

    def __post_init__(self):
        check_range(self, 'max_upscale', above=0)
        check_range(self, 'max_crop_fraction', low=0, below=1)

    def bucket(self, size: Size, buckets: Sequence[Bucket], latent_spec: LatentSpec) -> Bucket | str:
        """Chooses the bucket for a clip of this size, or returns the reason why none fits.

        Args:
          size: (frames, height, width) of the clip; zeros where it is unknown.
          buckets: to choose from.
          latent_spec: counts tokens: of the buckets that fit, the one with most tokens is chosen.
        """
        if 0 in size:
            return 'of unknown size'
        if self.exact:
            same = [b for b in buckets if b.size == size]
            return same[0] if same else f'of {"x".join(map(str, size))}, which is the size of no bucket'
        kind = [b for b in buckets if (b.frames == 1) == (size[0] == 1)]
        if not kind:
            return 'an image, and no bucket is for images' if size[0] == 1 else 'a clip, and no bucket is for clips'
        long_enough = [b for b in kind if b.frames <= size[0]]
        if not long_enough:
            return f'of fewer than {min(b.frames for b in kind)} frames'
        large_enough = [b for b in long_enough if self._upscale(size, b) <= self._max_upscale]
        if not large_enough:
            smallest = min(long_enough, key=lambda b: b.height * b.width)
            return f'smaller than {smallest.height}x{smallest.width}'
        cut = {b: self._cut(size, b) for b in large_enough}
        kept = [b for b in large_enough if cut[b] <= self.max_crop_fraction] if self.scaled else large_enough
        if not kept:
            return f'of another aspect ratio: more than {self.max_crop_fraction:.0%} would be cropped'
        least = min(cut[b] for b in kept)
        kept = [b for b in kept if not self.scaled or cut[b] <= least + _TOLERANCE]
        return max(kept, key=lambda b: latent_spec.num_tokens(*b.size))

    @property
    def _max_upscale(self) -> float:
        return self.max_upscale * (1 + 1e-6) if self.scaled else 1.0

    def _upscale(self, size: Size, bucket: Bucket) -> float:
        return max(bucket.height / size[1], bucket.width / size[2])

    def _cut(self, size: Size, bucket: Bucket) -> float:
        """Computes the fraction of the area that cropping to the bucket's aspect ratio removes."""
        ratio = (bucket.width / bucket.height) / (size[2] / size[1])
        return 1 - min(ratio, 1 / ratio)


EXACT_FIT = BucketFit(exact=True)  # for latents, which cannot be scaled


@dataclasses.dataclass(frozen=True)
class Assignment:
    """The records of a source by bucket.

    Attributes:
      indices_by_bucket: the indices of each bucket's records, in order; a range where it is all of them.
      skipped: how many records fit no bucket, by reason.
    """

    indices_by_bucket: dict[Bucket, np.ndarray | range]
    skipped: dict[str, int]

    def drop(self, dropped: np.ndarray, reasons: Sequence[str]) -> 'Assignment':
        """Drops records from all buckets.

        Args:
          dropped: for every record of the source the number of the reason, -1 for those that are kept, int (n,).
          reasons: why records are dropped.
        """
        indices_by_bucket, counts = {}, np.zeros(len(reasons), np.int64)
        for bucket, indices in self.indices_by_bucket.items():
            found = dropped if isinstance(indices, range) else dropped[indices]
            kept = found < 0
            if kept.all():
                indices_by_bucket[bucket] = indices
                continue
            whole = isinstance(indices, range)
            indices_by_bucket[bucket] = np.flatnonzero(kept).astype(np.uint32) if whole else indices[kept]
            counts += np.bincount(found[~kept], minlength=len(reasons))
        by_reason = {reason: int(count) for reason, count in zip(reasons, counts, strict=True) if count}
        return Assignment(indices_by_bucket, self.skipped | by_reason)


def assign(sizes: RecordSizes, buckets: Sequence[Bucket], fit: BucketFit, latent_spec: LatentSpec) -> Assignment:
    """Assigns all records of a source to buckets.

    Args:
      sizes: of the records; zeros where unknown.
      buckets: to choose from.
      fit: which clips fit.
      latent_spec: of the VAE.
    """
    goes = [fit.bucket(tuple(int(v) for v in kind), buckets, latent_spec) for kind in sizes.kinds]
    indices_by_bucket, skipped = {}, {}
    for bucket in buckets:
        chosen = np.array([found == bucket for found in goes], bool)
        indices_by_bucket[bucket] = range(len(sizes)) if chosen.all() else sizes.select(chosen)
    for found, count in zip(goes, sizes.count(), strict=True):
        if isinstance(found, str):
            skipped[found] = skipped.get(found, 0) + int(count)
    return Assignment(indices_by_bucket, skipped)


def batch_size(tokens: int, token_budget: int, multiple: int) -> int:
    """Computes the batch size of a bucket.

    Args:
      tokens: of a clip.
      token_budget: of a batch.
      multiple: batch sizes are multiples of it, and at least that.
    """
    return max(token_budget // (tokens * multiple), 1) * multiple


@dataclasses.dataclass(frozen=True)
class BucketSchedule:
    """The stream that each step takes its batch from.

    Attributes:
      shares: the fraction of steps of each stream, up to a common factor.
      seed: of the order of the streams.
    """

    shares: tuple[float, ...]
    seed: int

    @functools.cached_property
    def steps(self) -> np.ndarray:
        """The number of steps of each stream in a cycle, int (streams,)."""
        if len(self.shares) == 1:
            return np.ones(1, int)
        shares = np.asarray(self.shares, float)
        return np.maximum(np.rint(_CYCLE * shares / shares.sum()).astype(int), 1)

    @property
    def cycle(self) -> int:
        """The number of steps in a cycle."""
        return int(self.steps.sum())

    def order(self, cycle: int) -> np.ndarray:
        """Draws the order of the streams in a cycle, int (cycle,)."""
        order = np.repeat(np.arange(len(self.steps)), self.steps)
        return np.random.default_rng([self.seed, cycle]).permutation(order)
